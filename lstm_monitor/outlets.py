"""Where a monitor's reports go: its sinks, a trainer's loggers, and the history that is kept beside them."""

from __future__ import annotations

import os
from collections.abc import Sequence

from lstm_monitor.guard import Guard
from lstm_monitor.history.beside import bring_along, check_history, history_beside
from lstm_monitor.history.sink import HistorySink
from lstm_monitor.report import Report
from lstm_monitor.sinks import FanOut, Sink, check_sinks


class Outlets:
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
