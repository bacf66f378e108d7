"""The report of one check, with plain host values."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import TYPE_CHECKING

import numpy as np
import torch

from lstm_monitor.core.errors import nearest, require
from lstm_monitor.core.records import Alarm, Drift, Metric, Snapshot
from lstm_monitor.metrics.catalog import CATALOG, DRIFTING
from lstm_monitor.metrics.distributions import Values, finite, quantiles
from lstm_monitor.report import canvas, pictures
from lstm_monitor.report.ablation.pictures import study_pictures
from lstm_monitor.report.ablation.records import LayerStudy
from lstm_monitor.report.ablation.result import Study
from lstm_monitor.report.ablation.tables import study_scalars
from lstm_monitor.report.ablation.verdict import trust_sentence
from lstm_monitor.report.drift import compare
from lstm_monitor.report.keys import key, run_key
from lstm_monitor.report.layer_report import LayerReport
from lstm_monitor.report.notebook import page
from lstm_monitor.report.tables import cell_table, layer_table, summary_lines

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


@dataclass(frozen=True, eq=False)
class Report:
    """One check of all layers: plain values on the host.

    ``step`` and ``epoch`` are those of the training (None in a notebook), ``cost`` what all checks so far, before this
    one, took of the training time without them: with their writing and pictures, without the ablation and the closing
    of sinks. ``checks`` is how many were made, ``may_draw`` whether the monitor's budget has room for pictures,
    ``skipped`` what looks recurrent and is not supported. ``study`` is the ablation check at the end of the training.
    Sinks get it as a report of its own, at the step of the last one and without layers. ``alarms`` are the signs that
    something goes wrong, ``snapshots`` the layers themselves, where a sink keeps them.
    """

    layers: tuple[LayerReport, ...]
    step: int | None = None
    epoch: int | None = None
    cost: float | None = None
    checks: int = 1
    skipped: tuple[str, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    study: Study | None = None
    alarms: tuple[Alarm, ...] = ()
    snapshots: tuple[Snapshot, ...] = ()
    may_draw: bool = True

    @property
    def studied(self) -> tuple[LayerStudy, ...]:
        """The layers of the ablation check; none without it."""
        return () if self.study is None else self.study.layers

    def __getitem__(self, layer: str) -> LayerReport:
        """The report of a layer by its name, such as ``rnn.l0``; KeyError with the nearest match."""
        for item in self.layers:
            if str(item.key) == layer:
                return item
        raise KeyError(f"no layer {layer!r}. {nearest(layer, (str(item.key) for item in self.layers))}")

    def scalars(self) -> dict[str, float]:
        """Every logged scalar by its key; only finite values."""
        pairs = {name: value for layer in self.layers for name, value in _layer_scalars(layer)}
        pairs |= {name: value for layer in self.studied for name, value in _study_scalars(layer)}
        if self.layers:
            pairs |= {run_key("checks"): float(self.checks), run_key("alarms"): float(len(self.alarms))}
            pairs |= {} if self.cost is None else {run_key("cost"): self.cost}
        return {name: value for name, value in pairs.items() if math.isfinite(value)}

    def histograms(self) -> dict[str, Values]:
        """The finite values over the cells by key, ascending; times and amplitudes as log10 (``cells_log10``)."""
        pairs = [pair for layer in self.layers for pair in _layer_histograms(layer)]
        pairs += [pair for layer in self.studied for pair in _study_histograms(layer)]
        return {name: values for name, values in pairs if len(values) > 0}

    def pictures(self) -> dict[str, Figure]:
        """Single-panel pictures by key, drawn now: step responses, Bode picture, ranking over training, ablation."""
        drawn = [(layer.key, pictures.pictures(layer, self.step)) for layer in self.layers]
        drawn += [(layer.key, study_pictures(layer, self.step)) for layer in self.studied]
        return {key(str(owner), "pictures", name): figure for owner, found in drawn for name, figure in found.items()}

    def drift_from(self, earlier: Report) -> dict[str, tuple[Drift, ...]]:
        """The drift of every metric since an earlier report, by layer: ``compare(self, earlier)``."""
        return compare(self, earlier)

    def to_pandas(self) -> pd.DataFrame:
        """One row a cell, one column a metric (``group/name``), with its layer, rank (0 is first) and score.

        Raises:
            ImportError: pandas is not installed (extra ``plots``).
        """
        pd = require("pandas", "plots")
        return pd.concat([pd.DataFrame(layer_table(layer)) for layer in self.layers], ignore_index=True)

    def plot(self) -> Figure:
        """One picture of all layers, a row a layer: step responses, gain, and time scale and size of every cell.

        Raises:
            ImportError: matplotlib is not installed (extra ``plots``).
        """
        require("matplotlib", "plots")
        return pictures.overview(self.layers)

    def in_words(self, count: int = 3) -> str:
        """A short table of the `count` most and least responsive cells of each layer, in words and units.

        After an ablation check also which ranking could be trusted.
        """
        tables = ["\n".join(cell_table(layer, count)) for layer in self.layers]
        return "\n\n".join([*tables, *map(trust_sentence, self.studied)])

    def __repr__(self) -> str:
        """A few lines for people: layers, time scales, the most and least responsive cells, what is undefined."""
        return "\n".join([*summary_lines(self.layers, self.skipped), *(f"alarm: {alarm}" for alarm in self.alarms)])

    def _repr_html_(self) -> str:
        """The same for a notebook, with the picture where matplotlib is installed."""
        has_pictures = find_spec("matplotlib") is not None
        shows = "step responses, gain, and time scale and size of every cell"
        return page(repr(self), canvas.as_png(self.plot()) if has_pictures else None, shows)


def _layer_scalars(layer: LayerReport) -> Iterator[tuple[str, float]]:
    name = str(layer.key)
    for item in layer.metrics.items:
        for statistic, value in _statistics(item):
            yield key(name, item.group, item.name, statistic), value
    for group, metric, count in layer.counts():
        yield key(name, group, metric, "count"), float(count)
    for statistic, agreement in (("previous", layer.previous), ("first", layer.first)):
        if agreement is not None:
            yield key(name, "ranking", "tau", statistic), agreement.tau
            yield key(name, "ranking", "top_overlap", statistic), agreement.overlap
    for drift in layer.drift:
        if drift.metric in DRIFTING:
            yield key(name, "drift", CATALOG[drift.metric].name, "previous"), drift.distance


def _statistics(item: Metric) -> Iterator[tuple[str, float]]:
    shown = CATALOG[item.path].statistics
    if shown == "table":
        return
    for statistic, value in zip(("p10", "p50", "p90"), quantiles(finite(item.cells)), strict=True):
        if shown != "median" or statistic == "p50":
            yield statistic, value


def _layer_histograms(layer: LayerReport) -> Iterator[tuple[str, Values]]:
    for item in layer.metrics.items:
        spec = CATALOG[item.path]
        if spec.statistics == "full":
            values = finite(item.cells)
            ending = "cells_log10" if spec.log else "cells"
            yield key(str(layer.key), item.group, item.name, ending), _log10(values, spec.unit) if spec.log else values


def _study_scalars(layer: LayerStudy) -> Iterator[tuple[str, float]]:
    for (metric, statistic), value in study_scalars(layer):
        yield key(str(layer.key), "ablation", metric, statistic), value


def _study_histograms(layer: LayerStudy) -> Iterator[tuple[str, Values]]:
    name, effects = str(layer.key), layer.effects
    yield key(name, "ablation", "output_change", "cells_log10"), np.log10(np.maximum(finite(effects.output), SMALLEST))
    yield key(name, "ablation", "score_change", "cells"), finite(effects.score)


SMALLEST = 1e-12
"""Where smaller changes of the output (mean squared) are drawn on a log scale."""


def _log10(values: Values, unit: str) -> Values:
    """log10, with times under one step drawn at one step and amplitudes under 1e-6 at 1e-6."""
    return np.log10(np.maximum(values, 1.0 if unit == "steps" else 1e-6))


def versions() -> dict[str, str]:
    """The versions that a report was made with."""
    return {"torch": str(torch.__version__), "lstm_monitor": _own_version()}


@cache
def _own_version() -> str:
    """Looked up once: it is read from a file."""
    try:
        return version("lstm-monitor")
    except PackageNotFoundError:  # the working tree on the path, not installed
        return "not installed"
