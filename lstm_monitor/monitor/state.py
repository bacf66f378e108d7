"""What is remembered of a layer between checks, and how it is written into a checkpoint as plain values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lstm_monitor.core.records import Alarm, Metric, Metrics, OperatingPoint, Probe, Ranking, Snapshot, Stimulus
from lstm_monitor.core.terms import LayerKey
from lstm_monitor.importance.ranking import agreement, ranks_of
from lstm_monitor.metrics.catalog import CATALOG
from lstm_monitor.report.alarms import alarms, seen
from lstm_monitor.report.drift import compare
from lstm_monitor.report.layer_report import LayerReport, RankHistory

MOST_RANKS = 64


@dataclass(frozen=True, eq=False)
class LayerMemory:
    """The probe fixed at the first check, the first ranking and gain, the previous check, and all rankings.

    ``first_seen``: the rules of `lstm_monitor.report.alarms` that held at the first check.
    """

    probe: Probe
    first: Ranking
    first_gain: Tensor
    previous: Ranking
    previous_metrics: Metrics
    history: RankHistory
    first_seen: tuple[str, ...] = ()


class Memories:
    """What is remembered of every layer, by its name."""

    def __init__(self, plain: Mapping[str, Any] | None = None) -> None:
        """Nothing, or what a checkpoint remembered; that is taken up as soon as the layers are seen."""
        self._layers: dict[str, LayerMemory] = {}
        self._restored = dict(plain or {})

    def recall(self, snaps: Sequence[Snapshot]) -> dict[LayerKey, Probe]:
        """The probes of the layers that are remembered; those of another size now are forgotten."""
        for snap in snaps:
            name = str(snap.key)
            if name in self._restored:
                self._layers.setdefault(name, from_plain(snap.key, self._restored[name]))
            if name in self._layers and not fits(self._layers[name], snap):
                del self._layers[name]
        self._restored = {}
        return {snap.key: self._layers[str(snap.key)].probe for snap in snaps if str(snap.key) in self._layers}

    def take(
        self, report: LayerReport, probe: Probe, step: int, learned: bool
    ) -> tuple[LayerReport, tuple[Alarm, ...]]:
        """The report with what the earlier ones say, and its alarms; `learned`: steps were made since the last one."""
        name = str(report.key)
        memory = self._layers.get(name)
        if memory is None or memory.first.name != report.ranking.name:
            full, self._layers[name] = first_memory(report, probe, step)
            return full, alarms(report, self._layers[name].first_seen)
        full, self._layers[name] = next_memory(report, memory, step)
        return full, alarms(report, memory.first_seen, memory.previous_metrics if learned else None)

    def plain(self) -> dict[str, Any]:
        """Plain values and tensors, for a checkpoint."""
        return {name: to_plain(memory) for name, memory in self._layers.items()} or dict(self._restored)


def first_memory(report: LayerReport, probe: Probe, step: int) -> tuple[LayerReport, LayerMemory]:
    """The report of a layer's first check with its history, and what to remember."""
    history = RankHistory(torch.tensor([step], device="cpu"), ranks_of(report.ranking.order)[None])
    gain = report.metrics["sine/amplitude"].values
    memory = LayerMemory(probe, report.ranking, gain, report.ranking, report.metrics, history, tuple(seen(report)))
    return replace(report, rank_history=history), memory


def next_memory(report: LayerReport, memory: LayerMemory, step: int) -> tuple[LayerReport, LayerMemory]:
    """A later report with stability, drift and history filled in, and what to remember."""
    history = _extended(memory.history, step, report.ranking)
    full = replace(
        report,
        previous=agreement(report.ranking, memory.previous),
        first=agreement(report.ranking, memory.first),
        drift=compare(report.metrics, memory.previous_metrics),
        rank_history=history,
        first_gain=memory.first_gain,
    )
    return full, replace(memory, previous=report.ranking, previous_metrics=report.metrics, history=history)


def _extended(history: RankHistory, step: int, ranking: Ranking) -> RankHistory:
    """The history with one ranking more; every second one is dropped when there are too many."""
    keep = slice(None) if len(history.steps) < MOST_RANKS else slice(None, None, 2)
    steps = torch.cat([history.steps[keep], torch.tensor([step], device="cpu")])
    return RankHistory(steps, torch.cat([history.ranks[keep], ranks_of(ranking.order)[None]]))


def fits(memory: LayerMemory, snap: Snapshot) -> bool:
    """Whether a memory is of a layer of this size, and its operating point not made without data that is here now."""
    remembered = (len(memory.probe.point.mean), memory.first_gain.shape[1])
    blind = memory.probe.point.source == "default" and snap.point.source == "held_out"
    return remembered == (snap.weights.input_size, snap.hidden_size) and not blind


def to_plain(memory: LayerMemory) -> dict[str, Any]:
    """Plain Python values and tensors only, so that a checkpoint loads with ``weights_only=True``."""
    point = memory.probe.point
    variance = point.covariance.diagonal().clone()  # the directions are kept; all of it would outgrow the model
    return {
        "point": {"mean": point.mean, "variance": variance, "length": point.length, "source": point.source},
        "steps": [vars(stimulus) for stimulus in memory.probe.steps],
        "sines": [vars(stimulus) for stimulus in memory.probe.sines],
        "first": _plain_ranking(memory.first),
        "first_gain": memory.first_gain,
        "previous": _plain_ranking(memory.previous),
        "previous_cells": {item.path: item.cells for item in memory.previous_metrics.items},
        "history": {"steps": memory.history.steps, "ranks": memory.history.ranks},
        "first_seen": list(memory.first_seen),
    }


def from_plain(key: LayerKey, plain: dict[str, Any]) -> LayerMemory:
    """The memory that `to_plain` wrote."""
    point = plain["point"]
    probe = Probe(
        OperatingPoint(point["mean"], torch.diag(point["variance"]), point["length"], point["source"]),
        tuple(Stimulus(**stimulus) for stimulus in plain["steps"]),
        tuple(Stimulus(**stimulus) for stimulus in plain["sines"]),
    )
    cells = plain["previous_cells"]
    return LayerMemory(
        probe,
        Ranking(key, **plain["first"]),
        plain["first_gain"],
        Ranking(key, **plain["previous"]),
        Metrics(key, tuple(_only_cells(path, values) for path, values in cells.items() if path in CATALOG)),
        RankHistory(**plain["history"]),
        tuple(plain.get("first_seen", ())),
    )


def _plain_ranking(ranking: Ranking) -> dict[str, Any]:
    return {name: value for name, value in vars(ranking).items() if name != "key"}


def _only_cells(path: str, cells: Tensor) -> Metric:
    group, name = path.split("/")
    return Metric(group, name, cells[None], torch.zeros_like(cells, dtype=torch.uint8)[None], ("",), cells)
