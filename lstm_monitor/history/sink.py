"""Every report in a folder of files that nothing can lose."""

from __future__ import annotations

import os
import secrets
import time
from collections import deque
from dataclasses import asdict, dataclass, field, replace
from importlib.util import find_spec
from platform import python_version
from typing import Any, Literal

import numpy as np

from lstm_monitor.core.errors import require
from lstm_monitor.core.guard import LOG
from lstm_monitor.history.snapshot_file import snapshots_to_bytes, storable
from lstm_monitor.history.storage import Folder, absolute
from lstm_monitor.history.tables import to_bytes
from lstm_monitor.history.timeline import FORMAT, Entry, Place, file_name, place, stamp_of, to_stamp, weights_name
from lstm_monitor.report.report import Report

MOST_WAITING = 256 << 20
"""How many bytes wait in memory for a disk that cannot be written to."""
MOST_KNOWN = 64 << 20
"""How many bytes of the latest files stay in memory, for a folder that is deleted under the training."""

_NEEDED = ("pyarrow.parquet", "fsspec.core", "fsspec.implementations.local", "safetensors.torch")


@dataclass
class _Attempt:
    """One uninterrupted run of checks; ``stamp``: the time of the latest file, in microseconds."""

    stamp: int
    id: str = field(default_factory=lambda: secrets.token_hex(4))
    number: int = 0
    last: Place | None = None
    started: str = ""

    def goes_on_at(self, here: Place | None) -> bool:
        """Whether a check at this place comes after the last one."""
        return here is None or self.last is None or here > self.last


@dataclass(frozen=True)
class _Waiting:
    """The encoded files of one report."""

    step: int | None
    files: tuple[tuple[str, bytes], ...]

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(len(data) for _, data in self.files)


class HistorySink:
    """Keeps every report as a Parquet file of its own, and on request the layers themselves.

    Each file is written at once and whole: a check that was reported survives a kill at any moment. Files are never
    changed or deleted; `load_history` finds out which of them make up the training. One folder is for one training,
    however often it is interrupted and resumed; of several trainings in one folder the last to write is what
    `load_history` shows, the others by ``attempt=``. What cannot be written waits in memory (256 MiB at most) and is
    written at the next check, or when the sink is closed. If the folder is deleted meanwhile, what this sink wrote
    there is written again, the latest 64 MiB of it.

    Args:
        path: a folder, such as ``runs/a``, or any URL of fsspec, such as ``s3://bucket/runs/a``.
        save_weights: keep the snapshot of each layer too, as safetensors, so that `History.snapshot` can go into
            `characterize` later. It holds the layer's weights and held-out sequences.

    Raises:
        ImportError: pyarrow, fsspec or safetensors is not installed (extra ``history``).
    """

    def __init__(self, path: str | os.PathLike[str], *, save_weights: bool = False) -> None:
        """See the class."""
        for name in _NEEDED:  # now, and not in the midst of a training
            require(name, "history")
        if find_spec("pandas"):  # which pyarrow imports at its first array
            require("pandas", "history")
        self.path = absolute(path)
        self.save_weights = self.wants_snapshots = save_weights  # the monitor asks for it
        self._attempt: _Attempt | None = None
        self._waiting: deque[_Waiting] = deque()
        self._written: deque[_Waiting] = deque()

    @property
    def kept_in(self) -> str:
        """Where all reports are, also those that another sink loses."""
        return self.path

    def write(self, report: Report) -> None:
        """Write one report, after those that still wait; an ablation study in it goes into a file of its own.

        Raises:
            OSError: the folder cannot be written to; the report waits.
        """
        if report.layers:
            self._waiting.append(self._encoded(replace(report, study=None)))
        if report.study is not None or not report.layers:
            self._waiting.append(self._encoded(replace(report, layers=(), alarms=(), snapshots=())))
        self._flush()

    def close(self) -> None:
        """Write what still waits; a later report begins a new attempt.

        Raises:
            OSError: the folder still cannot be written to; the reports go on waiting.
        """
        self._attempt = None
        self._flush()
        self._written.clear()

    def __getstate__(self) -> dict[str, Any]:
        """The options: a copy is a new attempt, and what waits is written by the original."""
        return vars(self) | {"_attempt": None, "_waiting": deque(), "_written": deque()}

    def __deepcopy__(self, memo: dict[int, Any]) -> HistorySink:
        """A sink with the same options."""
        copy = type(self).__new__(type(self))
        vars(copy).update(self.__getstate__())
        return copy

    def _encoded(self, report: Report) -> _Waiting:
        attempt = self._attempt_of(report)
        snapshots = storable(report.snapshots) if self.save_weights else ()
        entry = _entry(report, attempt, with_weights=bool(snapshots))
        files = [(entry.name, to_bytes(report, {"format": FORMAT} | asdict(entry)))]
        if snapshots:  # first, so that a check that is there has its weights
            files.insert(0, (weights_name(entry.name), snapshots_to_bytes(snapshots)))
        attempt.number += 1
        return _Waiting(report.step, tuple(files))

    def _attempt_of(self, report: Report) -> _Attempt:
        """The attempt that goes on with this report; a new one where the training went back."""
        here, attempt = place(report.step, report.epoch), self._attempt
        if attempt is None or (report.layers and not attempt.goes_on_at(here)):
            attempt = self._attempt = _Attempt(max(_latest(self.path), 0 if attempt is None else attempt.stamp))
        attempt.stamp = max(time.time_ns() // 1000, attempt.stamp + 1)  # after all it saw, whatever the clock says
        attempt.started = attempt.started or to_stamp(attempt.stamp)
        attempt.last = here if report.layers else attempt.last
        return attempt

    def _flush(self) -> None:
        folder = Folder(self.path)
        try:
            self._recall(folder)
            while self._waiting:
                for name, data in self._waiting[0].files:
                    folder.write(name, data)
                self._written.append(self._waiting.popleft())
            _shorten(self._written)
        except Exception as error:
            self._drop_newest()
            count, size = len(self._waiting), sum(item.size for item in self._waiting)
            raise OSError(
                f"{self.path} cannot be written to ({error}). {count} report{'s' if count > 1 else ''} "
                f"({size / 1e6:.1f} MB) in memory will be as soon as possible, and lost if the process ends before"
            ) from error

    def _recall(self, folder: Folder) -> None:
        """Have what was written wait again, if all of it has vanished."""
        if self._written and not folder.holds([name for item in self._written for name, _ in item.files]):
            LOG.warning("lstm_monitor: %s was deleted; its latest reports are written again", self.path)
            self._waiting.extendleft(reversed(self._written))
            self._written.clear()

    def _drop_newest(self) -> None:
        """Keep the oldest, within what may wait."""
        while len(self._waiting) > 1 and sum(item.size for item in self._waiting) > MOST_WAITING:
            lost = self._waiting.pop()
            LOG.warning("lstm_monitor: the report at step %s is lost, too much waits for %s", lost.step, self.path)


def _shorten(written: deque[_Waiting]) -> None:
    """Forget the oldest, beyond what stays in memory."""
    size = sum(item.size for item in written)
    while size > MOST_KNOWN:
        size -= written.popleft().size


def _latest(path: str) -> int:
    """The time of the latest file that is there, in microseconds; 0 without any, or where it cannot be listed."""
    try:
        return max(map(stamp_of, Folder(path).names()), default=0)
    except Exception:  # writing says what is wrong
        return 0


def _entry(report: Report, attempt: _Attempt, with_weights: bool) -> Entry:
    kind: Literal["check", "study"] = "check" if report.layers else "study"
    stamp = to_stamp(attempt.stamp)
    return Entry(
        name=file_name(kind, report.step, stamp, attempt.id),
        kind=kind,
        attempt=attempt.id,
        started=attempt.started,
        written=stamp,
        number=attempt.number,
        step=report.step,
        epoch=report.epoch,
        checks=report.checks,
        layers=tuple(str(layer.key) for layer in report.layers),
        weights=with_weights,
        versions=_versions(report),
    )


def _versions(report: Report) -> dict[str, str]:
    """Of all that made a file."""
    arrow = str(require("pyarrow", "history").__version__)
    return {**report.versions, "python": python_version(), "numpy": np.__version__, "pyarrow": arrow}
