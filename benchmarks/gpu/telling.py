"""What a section says, as lines of JSON on standard output, of which the page is made at once.

Whatever else a section prints is kept only for the case that it fails.
"""

from __future__ import annotations

import json
import os
import sys

DRY = os.environ.get("LSTM_MONITOR_DRY") == "1"
"""Whether everything runs on the CPU, only to see that it runs."""
NO_GPU = "needs a GPU"


def say(**what: object) -> None:
    """One line, after whatever stands in the last one; pytest puts another stream into `sys.stdout`'s place."""
    print(f"\n{json.dumps(what)}", file=sys.__stdout__, flush=True)


def table(title: str, *head: str) -> None:
    """Begin a table."""
    say(title=title, head=head)


def row(*cells: str) -> None:
    """A row of the table that was begun."""
    say(row=cells)


def words(text: str) -> None:
    """A paragraph, or a line of one."""
    say(words=text)


def begun(name: str) -> None:
    """A part that is over when its verdict is told; if that never comes, the process died in it."""
    say(begun=name)


def verdict(name: str, *, passed: bool | None) -> None:
    """What came of a part, None where it did nothing here; counted in the summary."""
    say(verdict=name, passed=passed)


def target(name: str, found: float, most: float, unit: str) -> None:
    """A figure, and the most that it should be; in the summary."""
    shown = NO_GPU if DRY else f"{found:.3g} {unit}"
    say(target=name, found=shown, most=f"{most:g} {unit}", reached=None if DRY else found <= most)
