"""A comparison of runs as rows, and as lines for people."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from lstm_monitor.history.comparison.records import ComparedLayer, ComparedMetric, ComparisonRecord
from lstm_monitor.history.comparison.run_words import run_words
from lstm_monitor.history.comparison.trajectory import NAN, LayerCourse
from lstm_monitor.metrics.catalog import CATALOG
from lstm_monitor.report.ablation.records import LayerStudy
from lstm_monitor.report.ablation.verdict import evidence, harmless
from lstm_monitor.report.tables import HEADLINES
from lstm_monitor.report.text import fold, labelled, shown

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


def table(comparison: ComparisonRecord) -> dict[str, list[Any]]:
    """Columns, a row a layer and metric: layer, metric, unit, and for each run its median (or value), p10 and p90.

    From the second run on also its distance from the first and the distance by chance.
    """
    rows = [row for layer in comparison.layers for row in _rows(layer, comparison.names)]
    return {name: [row.get(name, NAN) for row in rows] for name in dict.fromkeys(name for row in rows for name in row)}


def _rows(layer: ComparedLayer, names: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    for item in layer.metrics:
        row: dict[str, Any] = {"layer": layer.name, "metric": item.metric, "unit": CATALOG[item.metric].unit}
        for run, name in enumerate(names):
            p10, p50, p90 = item.quantiles[run]
            row |= {f"value:{name}": p50, f"p10:{name}": p10, f"p90:{name}": p90}
        for run, name in list(enumerate(names))[1:]:
            row |= {f"distance:{name}": item.distances[run], f"chance:{name}": item.chance[run]}
        yield row
    for metric, unit, values in single_values(layer):
        yield {"layer": layer.name, "metric": metric, "unit": unit} | {
            f"value:{name}": value for name, value in zip(names, values, strict=True)
        }


def single_values(layer: ComparedLayer) -> Iterator[tuple[str, str, list[float]]]:
    """What is one number a run: metric, unit, and a value for each run, NaN where there is none."""
    counts = dict.fromkeys(name for course in layer.courses if course is not None for name in course.counts)
    checks: list[tuple[str, str, Callable[[LayerCourse], float]]] = [
        ("cells", "", lambda course: course.last.hidden_size),
        ("checks", "", lambda course: len(course.steps)),
        ("last_step", "", lambda course: float(course.steps[-1])),
        *((f"{name}_share", "share", _share_of(name)) for name in counts),
        ("ranking/tau/previous", "", lambda course: float(course.taus[-1, 0])),
        ("ranking/tau/first", "", lambda course: float(course.taus[-1, 1])),
    ]
    for name, unit, of in checks:
        yield name, unit, [NAN if course is None else of(course) for course in layer.courses]
    if any(study is not None for study in layer.studies):
        for name, unit, found in _STUDIED:
            yield name, unit, [NAN if study is None else found(study) for study in layer.studies]


def _share_of(count: str) -> Callable[[LayerCourse], float]:
    return lambda course: float(course.counts[count][-1]) / course.last.hidden_size if count in course.counts else NAN


def _rho(study: LayerStudy) -> float:
    return evidence(study, study.trials[0]).rho if study.trials else NAN


def _gap(study: LayerStudy) -> float:
    return study.trials[0].gap if study.trials else NAN


def _harmless(study: LayerStudy) -> float:
    known = int((study.effects.output == study.effects.output).sum())
    return int(harmless(study).sum()) / known if known else NAN


_STUDIED: tuple[tuple[str, str, Callable[[LayerStudy], float]], ...] = (
    ("ablation/rho_output", "", _rho),
    ("ablation/gap", "", _gap),
    ("ablation/harmless", "share", _harmless),
)


def largest(comparison: ComparisonRecord, run: int) -> list[tuple[ComparedLayer, ComparedMetric]]:
    """The metrics of which a run lies further from the first than chance, the furthest beyond it first."""
    pairs = [(layer, item) for layer in comparison.layers for item in layer.metrics if item.differs(run)]
    return sorted(pairs, key=lambda pair: pair[1].chance[run] - pair[1].distances[run])
