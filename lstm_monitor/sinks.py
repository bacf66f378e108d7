"""Where reports go: a small protocol, a list in memory, and several sinks as one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from lstm_monitor.report import Report


@runtime_checkable
class Sink(Protocol):
    """Receives finished reports of plain host values.

    ``write`` is called once a check, in order; ``close`` once, after the last, also after an exception.
    """

    def write(self, report: Report) -> None:
        """Take one report."""
        ...

    def close(self) -> None:
        """Finish; nothing is written afterwards."""
        ...


def check_pictures_every(pictures_every: int | None) -> None:
    """Raise ValueError unless `pictures_every` is a number of checks of at least 0, or None."""
    if pictures_every is not None and pictures_every < 0:
        raise ValueError(f"pictures_every={pictures_every} is negative; give 0 for none, or None")


class MemorySink:
    """Keeps every report in the list `reports`."""

    def __init__(self) -> None:
        """Start empty."""
        self.reports: list[Report] = []

    def write(self, report: Report) -> None:
        """Append the report."""
        self.reports.append(report)

    def close(self) -> None:
        """Nothing to do."""


class FanOut:
    """Several sinks as one; one that fails does not keep the report from the others."""

    def __init__(self, sinks: Sequence[Sink]) -> None:
        """The sinks, in order."""
        self.sinks = list(sinks)

    def write(self, report: Report) -> None:
        """Hand the report to every sink; the first error is raised after all had it."""
        self._each(lambda sink: sink.write(report))

    def close(self) -> None:
        """Close every sink; the first error is raised after all were closed."""
        self._each(lambda sink: sink.close())

    def _each(self, act) -> None:  # type: ignore[no-untyped-def]  # Callable[[Sink], None]
        errors: list[Exception] = []
        for sink in self.sinks:
            try:
                act(sink)
            except Exception as error:
                errors.append(error)
        if errors:
            raise errors[0]
