"""Where reports go: a small protocol, a list in memory, and several sinks as one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Protocol, runtime_checkable

from lstm_monitor.core.guard import Guard
from lstm_monitor.report.report import Report


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


def check_sinks(sinks: Sequence[Sink] | None) -> list[Sink]:
    """The sinks as a list; TypeError if one of them cannot take reports."""
    example = "give a list of sinks, such as sinks=[TensorBoardSink('runs/a')]"
    if isinstance(sinks, str) or not isinstance(sinks, Iterable | None):
        raise TypeError(f"sinks={sinks!r} is no list; {example}")
    given = list(sinks or ())
    for sink in given:
        if isinstance(sink, type) or not isinstance(sink, Sink):
            raise TypeError(f"sinks: {sink!r} is no object with write(report) and close(); {example}")
    return given


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
    """Several sinks as one; one that fails does not keep the report from the others.

    Histories come first, so that what another sink loses is there: sinks with the name of their place in ``kept_in``.
    """

    def __init__(self, sinks: Sequence[Sink], guard: Guard | None = None) -> None:
        """The sinks, in order; with a guard the errors of a sink become one warning, unless it raises errors."""
        self.sinks, self.guard = sorted(sinks, key=lambda sink: _kept_in(sink) is None), guard

    def write(self, report: Report) -> None:
        """Hand the report to every sink; the first error is raised after all had it.

        With its snapshots only to those that want them: most keep the last report, and the weights are large.
        """
        bare = replace(report, snapshots=()) if report.snapshots else report
        self._each(lambda sink: sink.write(report if getattr(sink, "wants_snapshots", False) else bare))

    def close(self) -> None:
        """Close every sink; the first error is raised after all were closed."""
        self._each(lambda sink: sink.close())

    def _each(self, act: Callable[[Sink], None]) -> None:
        failed: list[tuple[Sink, Exception]] = []
        kept: str | None = None
        for sink in self.sinks:
            try:
                act(sink)
                kept = kept or _kept_in(sink)
            except Exception as error:
                failed.append((sink, error))
        if self.guard is not None:
            self.guard.forgive(failed, kept)
        elif failed:
            raise failed[0][1]


def _kept_in(sink: Sink) -> str | None:
    """Where a history keeps its reports; None for a sink that is none."""
    return getattr(sink, "kept_in", None)
