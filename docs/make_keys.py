"""Make docs/keys.md, the table of every logged key, from the code: ``python docs/make_keys.py``."""

from __future__ import annotations

from pathlib import Path

from lstm_monitor.report.keys import documented_keys

HEAD = """# Logged keys

`<layer>` is a layer's name as in torch's parameters: `rnn.l0`, `encoder.l1_reverse`, `l0` where the model itself is the
layer; a cell module is its path. At most 100 keys a layer. A scalar that is undefined (NaN) is not written.
Made by `docs/make_keys.py`; a test holds it to what a training writes.

| key | kind | meaning |
|---|---|---|
"""


def table() -> str:
    """The whole page."""
    return HEAD + "".join(f"| `{key}` | {kind} | {words} |\n" for key, kind, words in documented_keys())


if __name__ == "__main__":
    Path(__file__).with_name("keys.md").write_text(table(), encoding="utf-8")
