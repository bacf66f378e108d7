"""Pictures of runs over their training. matplotlib is imported only when one is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from lstm_monitor.history.comparison.records import ComparisonRecord
from lstm_monitor.history.comparison.trajectory import LayerCourse
from lstm_monitor.metrics.catalog import CATALOG
from lstm_monitor.metrics.distributions import Values
from lstm_monitor.report.canvas import HUES, canvas, frame, head, log_range, log_ticks, x_axis, y_axis

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Courses = Sequence[LayerCourse | None]

COLUMNS = 3
PANEL = (3.9, 3.0)
"""Inches of a panel with its words."""
RANKING = "ranking/tau"
_TITLES = {
    "step/peak_response": "size of the response",
    "step/settling_time": "settling time (steps)",
    "activity/std": "activity (std)",
    "gates/saturation": "saturated gates",
    "gates/tau_f": "forget gate (steps)",
}
LEAST = 1e-4
"""Where smaller values are drawn on a log scale."""


def course_picture(layer: LayerCourse) -> Figure:
    """The headline metrics of one layer over the training: the median cell and p10 to p90."""
    return _grid([([layer], layer.name)], [""])


def comparison_overview(comparison: ComparisonRecord) -> Figure:
    """The headline metrics of every compared layer over the trainings, a colour a run."""
    return _grid([(layer.courses, layer.name) for layer in comparison.layers], comparison.names)


def _grid(layers: Sequence[tuple[Courses, str]], names: Sequence[str]) -> Figure:
    rows = [(courses, name, panels) for courses, name in layers for panels in _in_rows(_drawn(courses))]
    legend = 0.3 if len(names) > 1 else 0.0
    height = PANEL[1] * max(len(rows), 1) + legend
    figure = canvas(PANEL[0] * COLUMNS, height)
    for row, (courses, name, panels) in enumerate(rows):
        bottom = (len(rows) - 1 - row + 0.19) * PANEL[1] / height
        for column, panel in enumerate(panels):
            place = ((column + 0.2) / COLUMNS, bottom, 0.75 / COLUMNS, 0.59 * PANEL[1] / height)
            (draw_agreement if panel == RANKING else draw_course)(frame(figure, place), courses, name, panel)
    for run, name in enumerate(names if legend else ()):
        left = 0.023 + min(0.25, 0.95 / len(names)) * run
        figure.text(left, 1 - 0.5 * legend / height, f"\u2501 {name}", color=HUES[run % len(HUES)],
                    family="DejaVu Sans", size=10.5, va="center", weight="bold", parse_math=False)  # fmt: skip
    return figure


def _drawn(courses: Courses) -> list[str]:
    """The metrics that some run knows, and the agreement of the rankings."""
    known = [course for course in courses if course is not None]
    metrics = [path for path in _TITLES if any(np.isfinite(course.quantiles[path]).any() for course in known)]
    return [*metrics, *([RANKING] if any(np.isfinite(course.taus).any() for course in known) else [])]


def _in_rows(panels: Sequence[str]) -> list[Sequence[str]]:
    return [panels[start : start + COLUMNS] for start in range(0, len(panels), COLUMNS)]


def draw_course(axes: Axes, courses: Courses, name: str, path: str) -> None:
    """One metric over the training: median and p10 to p90 over the cells, a colour a run."""
    log = CATALOG[path].log
    bands = [None if c is None else (c.steps, _scaled(c.quantiles[path], log)) for c in courses]
    for run, band in enumerate(bands):
        if band is not None:
            _draw_band(axes, *band, HUES[run % len(HUES)], alone=len(bands) == 1)
    low, high = _range([band[1] for band in bands if band is not None], log)
    axes.set(ylim=(low, high))
    _step_axis(axes, courses)
    y_axis(axes, log_ticks(low, high) if log else _linear_ticks(low, high, CATALOG[path].unit), "")
    head(axes, name, _TITLES[path], _words(path, courses))


def draw_agreement(axes: Axes, courses: Courses, name: str, path: str = RANKING) -> None:
    """Kendall's tau of the ranking with that of the first check, and dashed with that of the check before."""
    shown = [course.taus for course in courses if course is not None]
    for run, course in enumerate(courses):
        if course is not None:
            colour = HUES[run % len(HUES)]
            axes.plot(course.steps, course.taus[:, 0], color=colour, lw=1.3, ls=(0, (3, 2)))
            axes.plot(course.steps, course.taus[:, 1], color=colour, lw=2.2, marker=_mark(course.steps), ms=4)
    low = float(np.nanmin(np.concatenate(shown)))
    axes.set(ylim=(min(low, 0) - 0.07, 1.07))
    _step_axis(axes, courses)
    y_axis(axes, _linear_ticks(min(low, 0) - 0.07, 1.07, ""), "")
    head(axes, name, "ranking (tau)", "with the first check's; dashed: with the one before")


def _step_axis(axes: Axes, courses: Courses) -> None:
    steps = np.concatenate([course.steps for course in courses if course is not None])
    start, end = float(steps.min()), float(steps.max())
    margin = 0.03 * (end - start or 1)
    axes.set(xlim=(start - margin, end + margin))
    x_axis(axes, _ticks(start, end), "step")


def _mark(steps: Values) -> str:
    """Dots where the checks are few."""
    return "o" if len(steps) <= 25 else ""


def _draw_band(axes: Axes, steps: Values, values: Values, colour: str, alone: bool) -> None:
    axes.fill_between(steps, values[:, 0], values[:, 2], color=colour, alpha=0.2 if alone else 0.12, lw=0)
    axes.plot(steps, values[:, 1], color=colour, lw=2.2, marker=_mark(steps), ms=4)
    if len(steps) == 1:
        axes.vlines(steps, values[:, 0], values[:, 2], color=colour, alpha=0.4, lw=3)


def _scaled(values: Values, log: bool) -> Values:
    return np.log10(np.maximum(values, LEAST)) if log else values


def _range(bands: Sequence[Values], log: bool) -> tuple[float, float]:
    if log:
        return log_range([10**band for band in bands])
    shown = np.concatenate([band.ravel() for band in bands])
    shown = shown[np.isfinite(shown)]
    low, high = (float(shown.min()), float(shown.max())) if len(shown) else (0.0, 1.0)
    room = 0.08 * (high - low) or 0.05 * max(abs(high), 0.1)
    return low - room, high + room


def _linear_ticks(low: float, high: float, unit: str) -> list[tuple[float, str]]:
    stride = _stride((high - low) / 4)
    ticks = np.arange(np.ceil(low / stride), np.floor(high / stride) + 1) * stride
    return [(float(at), f"{100 * at:.3g}%" if unit == "share" else f"{at:.3g}") for at in ticks + 0.0]


def _stride(rough: float) -> float:
    """The next of 1, 2, 5 and 10 times a power of ten."""
    power = 10.0 ** np.floor(np.log10(max(rough, 1e-12)))
    return float(next(lead * power for lead in (1, 2, 5, 10) if lead * power >= rough * (1 - 1e-9)))


def _ticks(start: float, end: float) -> list[tuple[float, str]]:
    """About four round steps; thousands as k, millions as M."""
    if end == start:
        return [(start, _thousands(start))]
    stride = max(1.0, _stride((end - start) / 4))
    return [(float(at), _thousands(at)) for at in np.arange(np.ceil(start / stride), end // stride + 1) * stride]


def _thousands(step: float) -> str:
    for unit, letter in ((1e6, "M"), (1e3, "k")):
        if step >= 10 * unit or (step >= unit and step % unit == 0):
            return f"{step / unit:g}{letter}"
    return f"{step:g}"


def _words(path: str, courses: Courses) -> str:
    ends = [(course.quantiles[path][0, 1], course.quantiles[path][-1, 1]) for course in courses if course is not None]
    share = CATALOG[path].unit == "share"
    if len(courses) > 1 or len(ends) != 1:
        return "median cell, p10 to p90"
    first, last = (f"{100 * end:.3g}%" if share else f"{end:.3g}" for end in ends[0])
    return f"median {first} \u2192 {last}; band: p10 to p90".replace("nan", "-")
