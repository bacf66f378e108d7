"""How the layers of a run went over its training: the statistics of all checks, the first and the last check whole."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lstm_monitor.core.records import Alarm
from lstm_monitor.core.terms import OneLine
from lstm_monitor.metrics.distributions import Values, finite, quantiles
from lstm_monitor.report.ablation.records import LayerStudy
from lstm_monitor.report.ablation.result import Study
from lstm_monitor.report.layer_report import LayerReport
from lstm_monitor.report.report import Report
from lstm_monitor.report.tables import HEADLINES

NAN = float("nan")


@dataclass(frozen=True, eq=False, repr=False)
class LayerCourse(OneLine):
    """One layer over the K checks that hold it: at ``steps (K,)``; ``first`` and ``last`` are the checks themselves.

    ``quantiles``: p10, p50, p90 ``(K, 3)`` over the cells, by metric. ``taus (K, 2)``: agreement of the ranking with
    that of the previous and of the first check. ``counts (K,)``: numbers of cells, by name. NaN where not defined.
    """

    steps: Values
    quantiles: Mapping[str, Values]
    taus: Values
    counts: Mapping[str, Values]
    first: LayerReport
    last: LayerReport

    @property
    def name(self) -> str:
        """The layer's name, such as ``rnn.l0``."""
        return str(self.last.key)


@dataclass(frozen=True, eq=False, repr=False)
class Course(OneLine):
    """A run: its layers, and what belongs to all of them.

    ``steps`` and ``epochs``, one a check, are None where the training has none; ``costs`` the share of the training
    time that monitoring took so far. ``alarms``: (step, alarm) of all checks. ``last`` is the last check with layers.
    """

    name: str
    layers: tuple[LayerCourse, ...]
    steps: tuple[int | None, ...]
    epochs: tuple[int | None, ...]
    costs: tuple[float | None, ...]
    alarms: tuple[tuple[int | None, Alarm], ...]
    last: Report
    study: Study | None = None
    notes: tuple[str, ...] = ()

    def study_of(self, layer: str) -> LayerStudy | None:
        """The ablation study of a layer; None without one."""
        studied = () if self.study is None else self.study.layers
        return next((item for item in studied if str(item.key) == layer), None)


def course_of(reports: Iterable[Report], name: str = "", notes: Sequence[str] = ()) -> Course:
    """The course of a run from the reports of its checks, in order; each is read once and only two are kept.

    Raises:
        ValueError: no report has layers.
    """
    rows: list[tuple[int | None, int | None, float | None]] = []
    alarms: list[tuple[int | None, Alarm]] = []
    layers: dict[str, _Growing] = {}
    last, study = None, None
    for report in reports:
        study = report.study or study
        if not report.layers:
            continue
        for layer in report.layers:
            growing = layers.setdefault(str(layer.key), _Growing(layer))
            growing.add(layer, float(len(rows)) if report.step is None else float(report.step))
        rows.append((report.step, report.epoch, report.cost))
        alarms += [(report.step, alarm) for alarm in report.alarms]
        last = report
    if last is None:
        raise ValueError(f"the run {name} has no checks{''.join(f'; {note}' for note in notes[:3])}")
    steps, epochs, costs = zip(*rows, strict=True)
    grown = tuple(growing.course() for growing in layers.values())
    return Course(name, grown, steps, epochs, costs, tuple(alarms), last, study, tuple(notes))


class _Growing:
    """The course of a layer while its checks are read."""

    def __init__(self, first: LayerReport) -> None:
        self.first = self.last = first
        self.steps: list[float] = []
        self.quantiles: dict[str, list[tuple[float, float, float]]] = {path: [] for path in HEADLINES}
        self.taus: list[tuple[float, float]] = []
        self.counts: dict[str, list[float]] = {}

    def add(self, layer: LayerReport, step: float) -> None:
        """Take the layer at one more check."""
        self.last = layer
        self.steps.append(step)
        for path, found in self.quantiles.items():
            found.append(quantiles(finite(layer.metrics[path].cells)) if path in layer.metrics else (NAN,) * 3)
        self.taus.append(tuple(NAN if a is None else a.tau for a in (layer.previous, layer.first)))  # type: ignore[arg-type]  # of 2
        counts = {name: float(count) for _, name, count in layer.counts()}
        for name in dict.fromkeys([*self.counts, *counts]):
            self.counts.setdefault(name, [NAN] * (len(self.steps) - 1)).append(counts.get(name, NAN))

    def course(self) -> LayerCourse:
        """What was taken so far."""
        return LayerCourse(
            np.array(self.steps),
            {path: np.array(found) for path, found in self.quantiles.items()},
            np.array(self.taus),
            {name: np.array(found) for name, found in self.counts.items()},
            self.first,
            self.last,
        )
