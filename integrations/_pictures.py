"""When a sink draws its pictures, and the pictures of a report as pixels."""

from __future__ import annotations

import time
from collections.abc import Callable
from importlib.util import find_spec

import numpy as np
from numpy.typing import NDArray

from lstm_monitor import figures
from lstm_monitor.report import Report
from lstm_monitor.sinks import check_pictures_every

PICTURE_SHARE = 0.01

Draw = Callable[[Report], None]


class Pictures:
    """Draws at every n-th report and at the last; None as often as drawing takes at most 1% of the time, 0 never.

    Raises:
        ValueError: a negative interval.
    """

    def __init__(self, every: int | None) -> None:
        """Nothing was drawn yet."""
        check_pictures_every(every)
        self.every = every
        self.reports = 0
        self._undrawn: Report | None = None
        self._drawing, self._began = 0.0, 0.0

    def offer(self, report: Report, draw: Draw) -> None:
        """Draw this report if it is its turn; otherwise it may turn out to be the last one."""
        if self.reports == 0:
            self._drawing, self._began = 0.0, time.perf_counter()
        self._undrawn = report
        if self._due():
            self.finish(draw)
        self.reports += 1

    def finish(self, draw: Draw) -> None:
        """Draw the last report if it was not drawn."""
        began = time.perf_counter()
        report, self._undrawn = self._undrawn, None
        if report is not None and self.every != 0:
            draw(report)
        self._drawing += time.perf_counter() - began

    def _due(self) -> bool:
        if self.every is not None:
            return self.every > 0 and self.reports % self.every == 0
        return self._drawing <= PICTURE_SHARE * (time.perf_counter() - self._began)


def drawn(report: Report) -> dict[str, NDArray[np.uint8]]:
    """Every picture of a report by its key, as pixels ``(height, width, 3)``; none where matplotlib is missing."""
    if not has_matplotlib():
        return {}
    return {name: figures.as_pixels(figure) for name, figure in report.pictures().items()}


def has_matplotlib() -> bool:
    """Whether pictures can be drawn."""
    return find_spec("matplotlib") is not None
