"""The page: Markdown that is printed and written to its file piece by piece; a run that is cut off keeps it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Tally:
    """For the summary: `targets` are rows of a name, a figure, the most that it should be, and whether it is."""

    passed: int = 0
    not_run: int = 0
    failed: list[str] = field(default_factory=list)
    targets: list[tuple[str, str, str, bool | None]] = field(default_factory=list)


class Page:
    """Writes to the terminal and to a file, and keeps the tally."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self.tally = path, Tally()
        self._in_table = False
        self._written: list[str] = []
        for file in (path, path.with_suffix(".log")):
            file.write_text("", encoding="utf-8")

    def write(self, text: str) -> None:
        """A piece of Markdown, at once."""
        print(text, flush=True)
        self._written.append(text)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(text + "\n")

    @property
    def length(self) -> int:
        """The number of pieces so far."""
        return len(self._written)

    def lead_with(self, since: int) -> None:
        """Put all pieces from the number `since` on right after the first one, in the file."""
        first, *others = self._written
        order = [first, *self._written[since:], *others[: since - 1]]
        self.path.write_text("".join(f"{text}\n" for text in order), encoding="utf-8")

    def heading(self, text: str, level: int = 2) -> None:
        """A heading, apart from what is around it."""
        self._leave_table()
        self.write(f"{'#' * level} {text}\n")

    def words(self, text: str) -> None:
        """A paragraph."""
        self._leave_table()
        self.write(f"{text}\n")

    def table(self, title: str, head: Sequence[str]) -> None:
        """Begin a table."""
        self._leave_table()
        self.write(f"{title}\n\n{_line(head)}\n{_line(['---'] * len(head))}")
        self._in_table = True

    def row(self, cells: Sequence[str]) -> None:
        """A row of the table that was begun, or a line where none was."""
        if self._in_table:
            self.write(_line(cells))
        else:
            self.words(" ".join(cells))

    def log(self, title: str, lines: Sequence[str]) -> None:
        """What a section printed besides, in a file beside the page."""
        with self.path.with_suffix(".log").open("a", encoding="utf-8") as file:
            file.write("\n".join([f"--- {title}", *lines, ""]))

    def fail(self, name: str, reason: str) -> None:
        """What went wrong, as a row of whatever table there is."""
        self.tally.failed.append(name)
        self.row([name, "**failed**", "", reason])

    def take(self, line: str) -> dict[str, Any] | None:
        """Write what a section told in a line; None if the line is something else."""
        told = _told(line)
        if told is None:
            return None
        if "head" in told:
            self.table(told["title"], told["head"])
        elif "row" in told:
            self.row(told["row"])
        elif "words" in told:
            self.words(told["words"])
        elif "verdict" in told:
            self._count(told)
        elif "target" in told:
            self.tally.targets.append((told["target"], told["found"], told["most"], told["reached"]))
        return told

    def _count(self, told: dict[str, Any]) -> None:
        if told["passed"] is None:
            self.tally.not_run += 1
        elif told["passed"]:
            self.tally.passed += 1
        else:
            self.tally.failed.append(told["verdict"])

    def _leave_table(self) -> None:
        if self._in_table:
            self.write("")
        self._in_table = False


def _told(line: str) -> dict[str, Any] | None:
    if not line.startswith("{"):
        return None
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _line(cells: Sequence[str]) -> str:
    shown = (cell.replace("|", "\\|").replace("\n", "<br>") for cell in cells)
    return f"| {' | '.join(shown)} |"
