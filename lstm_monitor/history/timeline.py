"""Which files, by their names, and which checks make up a training that was interrupted, resumed, or started twice."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal

_NAME = re.compile(r"(check|study|weights)-(-?\d+|none)-(\d{8}T\d{12})-([0-9a-f]+)\.(parquet|safetensors)$")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_FORMAT = "%Y%m%dT%H%M%S%f"


def file_name(kind: str, step: int | None, stamp: str, attempt: str) -> str:
    """``check-0000000120-20261123T025719123456-1f2e3d4c.parquet``: sorted by kind and step."""
    return f"{kind}-{'none' if step is None else f'{step:010d}'}-{stamp}-{attempt}.parquet"


def weights_name(name: str) -> str:
    """The name of the file of snapshots that belongs to the file of a check."""
    return f"weights-{name.split('-', 1)[1].removesuffix('.parquet')}.safetensors"


def is_ours(name: str) -> bool:
    """Whether a file, or the part of one whose writing was cut off, bears such a name."""
    return _NAME.match(name) is not None or is_part(name)


def is_part(name: str) -> bool:
    """Whether it is the part of a file whose writing was cut off."""
    return name.startswith(".") and name.endswith(".part") and _NAME.match(name[1:-5]) is not None


def is_weights(name: str) -> bool:
    """Whether it is a file of snapshots."""
    return name.endswith(".safetensors") and _NAME.match(name) is not None


def stamp_of(name: str) -> int:
    """When a file was written, in microseconds since 1970; 0 for a file that is not ours."""
    found = _NAME.match(name)
    return 0 if found is None else (to_time(found[3]) - _EPOCH) // timedelta(microseconds=1)


def to_stamp(microseconds: int) -> str:
    """A time in UTC as it stands in names, ``20261123T025719123456``."""
    return f"{_EPOCH + timedelta(microseconds=microseconds):{_FORMAT}}"


def to_time(stamp: str) -> datetime:
    """The time that such a stamp means."""
    return datetime.strptime(stamp, _FORMAT).replace(tzinfo=UTC)


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
