"""What one check found out about one layer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from lstm_monitor.core.definitions import Reason, Thresholds
from lstm_monitor.core.records import Agreement, Drift, Metrics, Ranking, Trace
from lstm_monitor.core.terms import Kind, LayerKey
from lstm_monitor.metrics.measuring import flagged


@dataclass(frozen=True, eq=False)
class RankHistory:
    """The rankings of a layer over the training: ``ranks (K, H)`` at ``steps (K,)``, 0 the first place."""

    steps: Tensor
    ranks: Tensor


@dataclass(frozen=True, eq=False)
class LayerReport:
    """One layer at one check: metrics, ranking, its stability, drift, and what pictures need.

    ``previous`` and ``first`` are the agreement with the ranking of the previous and of the first check, ``drift``
    since the previous one; None and empty at the first check. ``settled (H,)``: whether each cell was at rest before
    the stimuli. ``first_gain (F, H)``: the sine amplitudes at the first check. ``frozen``: none of its weights learns.
    """

    key: LayerKey
    kind: Kind
    input_size: int
    point_source: str
    periods: tuple[float, ...]
    metrics: Metrics
    ranking: Ranking
    trace: Trace
    settled: Tensor
    thresholds: Thresholds
    previous: Agreement | None = None
    first: Agreement | None = None
    drift: tuple[Drift, ...] = ()
    rank_history: RankHistory | None = None
    first_gain: Tensor | None = None
    frozen: bool = False

    @property
    def hidden_size(self) -> int:
        """H, the number of cells."""
        return len(self.ranking.scores)

    @property
    def horizon(self) -> int:
        """Steps of the step responses."""
        return self.trace.change.shape[-1]

    def flagged(self, group: str = "step") -> Tensor:
        """Cells ``(H,)`` that drift or oscillate at the end, for most of the steps that move them."""
        return flagged(self.metrics[f"{group}/settling_time"].reasons)

    def silent(self) -> Tensor:
        """Cells ``(H,)`` that no step moves."""
        return (self.metrics["step/settling_time"].reasons == Reason.SILENT).all(0)

    def dead(self) -> Tensor | None:
        """Cells ``(H,)`` with a std under 1e-3 on held-out data; None without data."""
        std = self.metrics["activity/std"].cells
        return None if bool(torch.isnan(std).all()) else std < self.thresholds.dead

    def counts(self) -> Iterator[tuple[str, str, int]]:
        """(group, name, number of cells): flagged, not at rest, silent, dead."""
        yield "step", "flagged", int(self.flagged().sum())
        yield "step", "not_at_rest", int((~self.settled).sum())
        yield "step", "silent", int(self.silent().sum())
        dead = self.dead()
        if dead is not None:
            yield "activity", "dead", int(dead.sum())
