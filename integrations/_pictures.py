"""When a sink draws its pictures, a report's pictures as pixels, and its cells counted into bins."""

from __future__ import annotations

import time
from collections.abc import Callable
from importlib.util import find_spec

import numpy as np
from numpy.typing import NDArray

from lstm_monitor.metrics.distributions import Values
from lstm_monitor.report import canvas
from lstm_monitor.report.report import Report
from lstm_monitor.report.sinks import check_pictures_every

Draw = Callable[[Report], None]


class Pictures:
    """Draws at every n-th report and at the last, where the monitor has room for it; None means every one, 0 never.

    Raises:
        ValueError: a negative interval.
    """

    def __init__(self, every: int | None) -> None:
        """Nothing was drawn yet."""
        check_pictures_every(every)
        self.every = 1 if every is None else every
        self.reports = 0
        self.seconds = 0.0
        self._is_due = False
        self._undrawn: Report | None = None

    def offer(self, report: Report, draw: Draw) -> None:
        """Draw this report if it is its turn, or has been, and there is room; it may turn out to be the last one."""
        self._undrawn = report
        self._is_due |= self.every > 0 and self.reports % self.every == 0
        if self._is_due and report.may_draw:
            self._is_due = False
            self.finish(draw)
        self.reports += 1

    def finish(self, draw: Draw) -> None:
        """Draw the last report if it was not drawn."""
        report, self._undrawn = self._undrawn, None
        if report is not None and self.every != 0:
            began = time.perf_counter()
            try:
                draw(report)
            finally:
                self.seconds += time.perf_counter() - began


def drawn(report: Report) -> dict[str, NDArray[np.uint8]]:
    """Every picture of a report by its key, as pixels ``(height, width, 3)``; none where matplotlib is missing."""
    if not has_matplotlib():
        return {}
    return {name: canvas.as_pixels(figure) for name, figure in report.pictures().items()}


def has_matplotlib() -> bool:
    """Whether pictures can be drawn."""
    return find_spec("matplotlib") is not None


def counted(values: Values, bins: int) -> tuple[NDArray[np.int64], Values]:
    """How many of finite, ascending ``values (N,)``, N > 0, lie in each of equal bins: counts ``(bins,)``, edges."""
    low, high = float(values[0]), float(values[-1])
    margin = 1e-9 + 1e-6 * max(abs(low), abs(high))
    counts, edges = np.histogram(values, bins=bins, range=(low - margin, high + margin))
    return counts, edges
