"""A run in the terminal: each layer at its first and last check, over the training, and what its ablation found."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from lstm_monitor.history.comparison.run_words import (
    changed_counts,
    course_notes,
    headlines,
    layer_title,
    run_words,
    stability,
)
from lstm_monitor.history.comparison.trajectory import Course, LayerCourse
from lstm_monitor.metrics.catalog import CATALOG
from lstm_monitor.metrics.distributions import Values
from lstm_monitor.report.ablation.verdict import judgement
from lstm_monitor.report.ablation.words import layer_notes, lead, score_line
from lstm_monitor.report.tables import cell_table
from lstm_monitor.report.tables import notes as check_notes
from lstm_monitor.report.text import ends, fold, labelled, shown

Bold = Callable[[str], str]

BLOCKS, ASCII_BLOCKS = "▁▂▃▄▅▆▇█", "_.-:=+*#"
OVER = "over the checks"
MOST_ALARMS = 6
"""Alarms that are listed, the latest."""


def report_lines(course: Course, width: int = 80, bold: Bold = str, blocks: str = BLOCKS) -> Iterator[str]:
    """A run as lines of at most `width` letters; `bold` marks headings, `blocks` draw the course over the checks."""
    yield from map(bold, fold(run_words(course), width))
    yield from _alarm_lines(course, width, bold)
    for layer in course.layers:
        yield ""
        yield from _layer_lines(course, layer, width, bold, blocks)
    if course.study is not None:
        yield ""
        yield bold("ablation")
        yield from fold(f"  {lead(course.study)}; {score_line(course.study)}", width)
    yield from _note_lines(course, width)


def _alarm_lines(course: Course, width: int, bold: Bold) -> Iterator[str]:
    if not course.alarms:
        return
    yield ""
    hidden = len(course.alarms) - MOST_ALARMS
    yield bold(f"alarms ({len(course.alarms)}{f', the last {MOST_ALARMS}' if hidden > 0 else ''})")
    for step, alarm in course.alarms[-MOST_ALARMS:]:
        yield from fold(f"  {'' if step is None else f'step {step}: '}{alarm}", width)


def _note_lines(course: Course, width: int) -> Iterator[str]:
    words = course_notes(course)
    if words:
        yield ""
    yield from (line for item in words for line in fold(item, width))


def _layer_lines(course: Course, layer: LayerCourse, width: int, bold: Bold, blocks: str) -> Iterator[str]:
    yield bold(layer_title(layer))
    yield from _metric_lines(layer, width, blocks)
    for note in (*check_notes(layer.last), *changed_counts(layer)):
        yield from fold(f"  {note}", width)
    yield from fold(f"  ranked by {layer.last.ranking.words}:", width)
    yield from fold(f"    {ends(layer.last.ranking.order.tolist())}", width)
    if stability(layer):
        yield from fold(f"  {stability(layer)}", width)
    if len(layer.steps) == 1:
        yield from cell_table(layer.last)
    study = course.study_of(layer.name)
    if course.study is not None and study is not None:
        yield from fold(f"  ablation: {judgement(study)}", width)
        told = layer_notes(study, course.study.score, course.study.better)
        yield from (line for words in told for line in fold(f"    {words}", width))


def _metric_lines(layer: LayerCourse, width: int, blocks: str) -> Iterator[str]:
    """The headline metrics: median at the first and last check, p10 to p90 now, and the medians over the checks."""
    several, paths = len(layer.steps) > 1, headlines(layer)
    titles = ["", "first", "last", "p10 to p90"] if several else ["", "median", "p10 to p90"]
    table = [titles, *(_metric_row(layer, path, several) for path in paths)]
    sizes = [max(map(len, column)) for column in zip(*table, strict=True)]
    gap = min(2, max(1, (width - sum(sizes)) // (len(sizes) - 1)))
    room = max(0, min(len(layer.steps), width - sum(sizes) - gap * len(sizes)))
    courses = [OVER] if room >= len(OVER) else [""]
    courses += [spark(layer.quantiles[path][:, 1], room, blocks) if room else "" for path in paths]
    for (label, *numbers), drawn in zip(table, courses, strict=True):
        right = "".join(f"{number:>{gap + size}}" for number, size in zip(numbers, sizes[1:], strict=True))
        yield f"{label:<{sizes[0]}}{right}{' ' * gap}{drawn if several else ''}".rstrip()


def _metric_row(layer: LayerCourse, path: str, several: bool) -> list[str]:
    values, unit = layer.quantiles[path], CATALOG[path].unit
    medians = [values[0, 1], values[-1, 1]] if several else [values[-1, 1]]
    band = f"{shown(float(values[-1, 0]), unit)} to {shown(float(values[-1, 2]), unit)}"
    return [f"  {labelled(path)}", *(shown(float(value), unit) for value in medians), band]


def spark(values: Values, room: int, blocks: str = BLOCKS) -> str:
    """Values as at most so many blocks, low to high; a gap where none is defined, the lowest where all are the same.

    Example:
        >>> spark(np.array([0.0, 1.0, np.nan, 7.0]), 10)
        '▁▂ █'
    """
    parts = [part for part in np.array_split(values, min(room, len(values))) if len(part)]
    means = np.array([np.nanmean(part) if np.isfinite(part).any() else np.nan for part in parts])
    low, high = np.nanmin(means, initial=np.inf), np.nanmax(means, initial=-np.inf)
    scale = (len(blocks) - 1) / (high - low) if high > low else 0.0
    return "".join(" " if mean != mean else blocks[round(float((mean - low) * scale))] for mean in means)
