"""Which checks make up a training that was interrupted, resumed, or started twice."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from lstm_monitor.history.names import to_time

FORMAT = 1
"""The version of the files."""
Place = tuple[int, int]


@dataclass(frozen=True, eq=False)
class Entry:
    """One file of a history: the check or the ablation study in it, who wrote it, and when.

    ``attempt``: the run of checks that it belongs to, which began at ``started``; ``number``: its place there from 0;
    ``written``: when (later than all that its writer saw). ``step, epoch, checks``: as in the report; ``layers``: their
    names; ``weights``: whether snapshots were kept; ``versions``: of the libraries that wrote it.
    """

    name: str
    kind: Literal["check", "study"]
    attempt: str
    started: str
    written: str
    number: int
    step: int | None
    epoch: int | None
    checks: int
    layers: tuple[str, ...]
    weights: bool
    versions: Mapping[str, str]

    @property
    def place(self) -> Place | None:
        """Where in the training: the step, or the epoch where no steps are counted; None if the step is not known."""
        return place(self.step, self.epoch)


def place(step: int | None, epoch: int | None) -> Place | None:
    """The step, or the epoch where no steps are counted."""
    return None if step is None else (step, 0 if step else epoch or 0)


@dataclass(frozen=True)
class Attempt:
    """One uninterrupted run of checks.

    Its id, when it began (UTC), how many checks it made, its first and last step, and the versions of the libraries.
    """

    id: str
    started: datetime
    checks: int
    first: int | None
    last: int | None
    versions: Mapping[str, str]

    def __str__(self) -> str:
        """One line for people."""
        return f"attempt {self.id} of {self.started:%Y-%m-%d %H:%M:%S} UTC"


def attempts_of(entries: Iterable[Entry]) -> list[list[Entry]]:
    """The entries of each attempt in the order in which they were written; the attempt that wrote last comes last.

    Of two that ran at the same time the one that went on longer is so the later one.
    """
    found: dict[str, list[Entry]] = {}
    for entry in sorted(entries, key=lambda entry: (entry.written, entry.number)):
        found.setdefault(entry.attempt, []).append(entry)
    return sorted(found.values(), key=lambda attempt: (attempt[-1].written, attempt[-1].attempt))


def timeline(attempts: Iterable[Sequence[Entry]]) -> list[Entry]:
    """The entries of the training as it really went on, in order, without gaps and doubles.

    An attempt takes the place of what earlier ones found from its first check on.
    """
    kept: list[Entry] = []
    for attempt in attempts:
        kept = [entry for entry in kept if not _is_superseded(entry, attempt[0])] + list(attempt)
    return list({(entry.place or entry.name, entry.kind): entry for entry in kept}.values())


def _is_superseded(entry: Entry, first: Entry) -> bool:
    """Whether an attempt that begins with `first` went on from before `entry`.

    A monitor whose state came from a checkpoint counts its checks on: those counted since then were rolled back,
    at whatever step they were. A study at the very step from which the training went on stays true.
    """
    if entry.place is None or first.place is None:
        return False
    if entry.place == first.place:
        return entry.kind == first.kind
    return entry.place > first.place or (first.checks > 1 and entry.kind == "check" and entry.checks >= first.checks)


def summary(entries: Sequence[Entry]) -> Attempt:
    """What an attempt was, from its entries."""
    checks = [entry for entry in entries if entry.kind == "check"]
    steps = [entry.step for entry in entries if entry.step is not None]
    first, last = (min(steps), max(steps)) if steps else (None, None)
    started, versions = to_time(entries[0].started), entries[-1].versions
    return Attempt(entries[0].attempt, started, len(checks), first, last, versions)


def missing(entries: Sequence[Entry]) -> list[int]:
    """The numbers between the first and last entry of an attempt that are not there."""
    there = {entry.number for entry in entries}
    return [number for number in range(max(there)) if number not in there]
