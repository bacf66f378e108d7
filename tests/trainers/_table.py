"""The table of what was seen, on the terminal and in `docs/trainers.md`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from _scripts import HERE, Outcome

DOCUMENT = HERE.parents[1] / "docs" / "trainers.md"
BEGIN, END = "<!-- tests/trainers/run.py --write: from here -->", "<!-- to here -->"
HEAD = ("script", "trained", "layers found", "checks", "values arrived", "untouched", "ablation: intact, own score")


def as_text(outcomes: Iterable[Outcome]) -> str:
    """One line a script, with what went wrong below it."""
    return "\n".join(_line(outcome) for outcome in outcomes)


def write(outcomes: Iterable[Outcome]) -> None:
    """Enter what passed into the table of the document; rows of other scripts stay."""
    text = DOCUMENT.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    table, _, after = rest.partition(END)
    rows = {line.split("|")[1].strip(): line for line in table.strip().splitlines()[2:]}
    rows |= {outcome.script.name: _row(outcome.script.name, outcome.results) for outcome in outcomes if outcome.results}
    head = [_cells(HEAD), "|---" * len(HEAD) + "|"]
    lines = [BEGIN, *head, *(rows[name] for name in sorted(rows)), END]
    DOCUMENT.write_text(before + "\n".join(lines) + after, encoding="utf-8")


def _line(outcome: Outcome) -> str:
    name, results, seconds = outcome.script.name, outcome.results, f"{outcome.seconds:4.0f} s"
    if results is None:
        return f"FAILED {name:24} {seconds}  {outcome.script.title}\n{_indented(outcome.error)}"
    what = f"{results['library']} {results['version']}, {results['model']}: {_layers(results['layers'])}"
    return f"passed {name:24} {seconds}  {what}; {results['checks']} checks; {_ablation(results['ablation'])}"


def _row(name: str, results: Mapping[str, Any]) -> str:
    trained = f"{results['library']} {results['version']}, {results['model']}"
    arrived = f"{results['values']:,} in {results['where']}"
    untouched = "bit-identical" if results["untouched"] else "no"
    ablation = _ablation(results["ablation"])
    return _cells((name, trained, _layers(results["layers"]), str(results["checks"]), arrived, untouched, ablation))


def _cells(words: Iterable[str]) -> str:
    return "| " + " | ".join(word.replace("|", "/").replace("\n", " ") for word in words) + " |"


def _layers(names: list[str]) -> str:
    shown = ", ".join(f"`{name}`" for name in names[:3])
    return shown + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _ablation(found: Mapping[str, float] | str) -> str:
    return found if isinstance(found, str) else f"{found['intact']:.6g}, {found['own']:.6g}"


def _indented(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.splitlines())
