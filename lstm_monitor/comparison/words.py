"""A comparison of runs as lines for people."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence

from lstm_monitor.comparison.course import HEADLINES, Course
from lstm_monitor.comparison.records import ComparedLayer, ComparedMetric, ComparisonRecord
from lstm_monitor.comparison.rows import largest, single_values
from lstm_monitor.metrics.catalog import CATALOG

WIDTH, COLUMN = 80, 15
LEGEND = (
    "In brackets: how far the cells lie from those of the first run (Wasserstein's distance over the spread of both). "
    "*: further than random splits of these cells; two trainings from different seeds may well differ as much."
)
_LABELS = {
    "cells": "cells",
    "checks": "checks",
    "last_step": "last step",
    "flagged_share": "have not settled",
    "not_at_rest_share": "not at rest by itself",
    "silent_share": "hardly move",
    "dead_share": "dead on held-out data",
    "ranking/tau/previous": "ranking: tau with previous",
    "ranking/tau/first": "ranking: tau with first",
    "ablation/rho_output": "ablation: rho of ranking",
    "ablation/gap": "ablation: gap of AUCs",
    "ablation/harmless": "ablation: harmless cells",
}


def comparison_lines(comparison: ComparisonRecord, width: int = WIDTH) -> Iterator[str]:
    """A line a run, a table a layer, and the words."""
    for run in comparison.runs:
        yield from fold(run_words(run), width)
    for layer in comparison.layers:
        yield from layer_lines(layer, comparison.names, width)
    yield ""
    if comparison.layers:
        yield from fold(LEGEND, width)
        yield ""
    yield from (line for words in sentences(comparison) for line in fold(words, width))


def fold(words: str, width: int) -> list[str]:
    """A sentence as lines of at most so many letters, the next ones indented."""
    lead = len(words) - len(words.lstrip())
    return textwrap.wrap(words, width, subsequent_indent=" " * (lead + 2), break_on_hyphens=False)


def run_words(run: Course) -> str:
    """A run's checks, steps, epochs and what the monitoring cost, in a line."""
    checks = "1 check" if len(run.steps) == 1 else f"{len(run.steps)} checks"
    spans = [("step", span(run.steps)), ("epoch", span(run.epochs))]
    parts = [checks, *(f"{noun}{'s' if ' ' in found else ''} {found}" for noun, found in spans if found)]
    cost = run.costs[-1]
    if cost is not None and cost == cost:
        parts.append(f"monitoring cost {f'{cost:.3g} times' if cost >= 1 else f'{100 * cost:.2g}% of'} the training")
    return f"{run.name or 'run'}: {', '.join(parts)}"


def span(values: Sequence[int | None]) -> str:
    """``3 to 12``; one number where both ends are the same, nothing where they are not known."""
    known = [value for value in values if value is not None]
    return "" if not known else f"{known[0]}" if known[0] == known[-1] else f"{known[0]} to {known[-1]}"


def layer_lines(layer: ComparedLayer, names: Sequence[str], width: int = WIDTH) -> Iterator[str]:
    """The table of a layer: in blocks, the first run in each, where the runs are too many for the width."""
    label = max(30, min(36, len(layer.name) + 1))
    fitting = max(1, (width - label) // COLUMN - 1)
    for start in range(1, len(names), fitting):
        runs = [0, *range(start, min(start + fitting, len(names)))]
        yield ""
        yield f"{_left(layer.name, label)}{''.join(f'{_right(names[run])}' for run in runs)}"
        for words, cells in _table(layer):
            yield f"{_left(f'  {words}', label)}{''.join(_right(cells[run]) for run in runs)}".rstrip()


def _table(layer: ComparedLayer) -> Iterator[tuple[str, list[str]]]:
    yield "kind", ["-" if course is None else course.last.kind.replace("_", " ") for course in layer.courses]
    singles = list(single_values(layer))
    for name, unit, values in singles[:3]:
        yield _LABELS[name], [shown(value, unit, ".0f") for value in values]
    for item in layer.metrics:
        if item.metric in HEADLINES and any(p50 == p50 for _, p50, _ in item.quantiles):
            yield labelled(item.metric), [_cell(item, run) for run in range(len(layer.courses))]
    for name, unit, values in singles[3:]:
        if any(value == value for value in values):
            yield _LABELS.get(name, name), [shown(value, unit, ".2f") for value in values]


def labelled(path: str) -> str:
    """A metric with its unit."""
    unit = CATALOG[path].unit
    return f"{path} ({unit})" if unit and unit != "share" else path


def shown(value: float, unit: str = "", form: str = ".3g") -> str:
    """A number as people read it: a share in percent, ``-`` for NaN."""
    if value != value:
        return "-"
    return f"{100 * value:.3g}%" if unit == "share" else f"{value:{form}}"


def _cell(item: ComparedMetric, run: int) -> str:
    value, distance = shown(item.quantiles[run][1], CATALOG[item.metric].unit), item.distances[run]
    return value if distance != distance else f"{value} ({distance:.2f}{'*' if item.differs(run) else ''})"


def _left(words: str, width: int) -> str:
    return f"{words if len(words) < width else f'...{words[4 - width :]}':<{width}}"


def _right(words: str) -> str:
    return f"{words if len(words) < COLUMN else f'...{words[5 - COLUMN :]}':>{COLUMN}}"


def sentences(comparison: ComparisonRecord, count: int = 3) -> Iterator[str]:
    """What differs most between each run and the first, and what some runs lack."""
    first = comparison.names[0]
    for run, name in list(enumerate(comparison.names))[1:] if comparison.layers else ():
        found = largest(comparison, run)
        if found:
            yield f"{name} differs from {first} most in:"
            yield from (f"  {_difference(layer, item, run, comparison.names)}" for layer, item in found[:count])
        else:
            yield f"{name}: no metric of its cells lies further from {first} than chance"
    if not comparison.layers:
        yield "the runs have no layer in common"
    yield from (f"note: {note}" for note in comparison.notes)


def _difference(layer: ComparedLayer, item: ComparedMetric, run: int, names: Sequence[str]) -> str:
    spec = CATALOG[item.metric]
    origin = next(place for place, course in enumerate(layer.courses) if course is not None)
    unit = "" if spec.unit == "share" else f" {spec.unit}".rstrip()
    ends = [shown(item.quantiles[place][1], spec.unit) for place in (origin, run)]
    far = f"distance {item.distances[run]:.2f}, by chance up to {item.chance[run]:.2f}"
    return f"{layer.name} {item.metric}: median {ends[0]} -> {ends[1]}{unit} ({far})"
