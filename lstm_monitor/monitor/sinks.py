"""Where a monitor's reports go: its sinks, a trainer's loggers, and the history that is kept beside them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from importlib.util import find_spec

from lstm_monitor.core.errors import require
from lstm_monitor.core.guard import Guard
from lstm_monitor.history.sink import HistorySink
from lstm_monitor.history.storage import Folder
from lstm_monitor.history.timeline import is_ours, is_weights
from lstm_monitor.report.report import Report
from lstm_monitor.report.sinks import FanOut, Sink, check_sinks


class MonitorSinks:
    """The sinks of a monitor. A trainer's loggers come as `extra` with each call: they are known in a training only."""

    def __init__(self, sinks: Sequence[Sink], history: bool | str | os.PathLike[str] | None, guard: Guard) -> None:
        """The user's sinks, and whether or where to keep a history besides; see `LSTMMonitor`.

        Raises:
            ImportError: a history is asked for, and its extra is not installed.
            TypeError: sinks that are none, or a history of another type.
        """
        self.sinks, self.history, self.guard = check_sinks(sinks), check_history(history), guard
        self._kept: HistorySink | None = None
        self._earlier: str | None = None

    @property
    def place(self) -> str | None:
        """The folder of the history, for a checkpoint."""
        return self._earlier if self._kept is None else self._kept.path

    def go_on_from(self, place: str | None) -> None:
        """A run is resumed whose history is at `place`: it goes along if this one is kept elsewhere."""
        self._earlier = place

    def all(self, extra: Sequence[Sink] = ()) -> list[Sink]:
        """Every sink, the history first: what another one loses is there."""
        given = [*self.sinks, *extra]
        try:
            self._keep_beside(given)
        except Exception as error:
            self.guard.forgive([("The history", error)])
        return given if self._kept is None else [self._kept, *given]

    def write(self, report: Report, sinks: Sequence[Sink]) -> None:
        """Hand a report to these sinks, which `all` returned."""
        FanOut(sinks, self.guard).write(report)

    def close(self, extra: Sequence[Sink] = ()) -> None:
        """Close every sink."""
        kept = [] if self._kept is None else [self._kept]
        FanOut([*kept, *self.sinks, *extra], self.guard).close()

    def _keep_beside(self, sinks: Sequence[Sink]) -> None:
        found = history_beside(sinks, self.history) if self._kept is None else None
        if found is not None:
            self._kept = found
            if self._earlier is not None:
                bring_along(self._earlier, found.path)


FOLDER = "lstm_monitor_history"
_NEEDED = ("pyarrow", "fsspec", "safetensors")


def history_beside(sinks: Sequence[Sink], history: bool | str | None) -> HistorySink | None:
    """The history to keep besides `sinks`: in the folder `history`, or beside the first sink that has one.

    None for False, where one of the sinks is a history already, and by default (None) where there is no folder or the
    extra is not installed.

    Raises:
        ImportError: a history is asked for, and its extra is not installed.
        ValueError: True without any folder.
    """
    if history is False or any(isinstance(sink, HistorySink) for sink in sinks):
        return None
    if isinstance(history, str):
        return HistorySink(history)
    if history is None and not all(find_spec(name) for name in _NEEDED):
        return None
    folder = next((folder for folder in map(_folder, sinks) if folder is not None), None)
    if folder is None and history:
        raise ValueError("history=True finds no sink or logger with a folder; give the folder, history='runs/a'")
    return None if folder is None else HistorySink(os.path.join(folder, FOLDER))


def _folder(sink: Sink) -> str | None:
    """Where the sink writes; None where it does not know, or fails to tell: it will say so when it writes."""
    try:
        folder: str | None = getattr(sink, "directory", None)
    except Exception:
        return None
    return folder


def bring_along(earlier: str, now: str) -> None:
    """Copy the files of an earlier history into a new, empty one: a resumed run often gets another folder."""
    old, new = Folder(earlier), Folder(now)
    if earlier == now or not old.exists() or (new.exists() and any(map(is_ours, new.names()))):
        return
    for name in _weights_first(old.names()):
        new.write(name, old.read(name))


def _weights_first(names: Iterable[str]) -> list[str]:
    """A check that is there has its weights."""
    given = list(names)
    return [*filter(is_weights, given), *filter(is_ours, given)]


def check_history(history: bool | str | os.PathLike[str] | None) -> bool | str | None:
    """`history` itself, a path as text.

    Raises:
        ImportError: one is asked for, and its extra is not installed.
        TypeError: it is something else.
    """
    if history:
        for name in _NEEDED:
            require(name, "history")
    if isinstance(history, os.PathLike):
        return os.fspath(history)
    if history is None or isinstance(history, bool | str):
        return history
    raise TypeError(f"history={history!r}: give a folder, True, False, or None for one beside a logger's folder")
