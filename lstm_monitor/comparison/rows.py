"""A comparison of runs as rows: what stands side by side, as numbers and in words."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from lstm_monitor.comparison.course import NAN, LayerCourse
from lstm_monitor.comparison.records import ComparedLayer, ComparedMetric, ComparisonRecord
from lstm_monitor.metrics.catalog import CATALOG
from lstm_monitor.study.records import LayerStudy
from lstm_monitor.study.trust import evidence, harmless


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
