"""Cumulative ablation: the performance that is kept while cells are removed in some order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from lstm_monitor.core.distributed import shared
from lstm_monitor.core.terms import LayerKey
from lstm_monitor.importance.removal.network import Network, Removed
from lstm_monitor.importance.removal.outcomes import output_change, score_weights, weighted_mean

NEXT_TO_CELLS = 0.25
"""About how long the rest of a network takes, in the time of a whole layer: what is left of one takes less."""


@dataclass(frozen=True, eq=False)
class Scale:
    """What 1 and 0 of a curve are: the score, or the change of the output, intact and with the layer emptied.

    ``runs``: the network's runs that are used; ``of_score``: whether the score is judged, or the output's change.
    """

    key: LayerKey
    intact: float
    emptied: float
    of_score: bool
    runs: tuple[int, ...]

    def kept(self, value: float) -> float:
        """Performance kept, 1 intact and 0 emptied; NaN if emptying the layer changes nothing."""
        span = self.emptied - self.intact
        return 1 - (value - self.intact) / span if span else float("nan")


def scale_of(network: Network, key: LayerKey, *, of_score: bool, runs: Sequence[int]) -> Scale:
    """Measure the ends of the curves of one layer."""
    size = network.parts[key].weights.hidden_size
    intact, emptied = (value_of(network, {key: torch.arange(n)}, of_score=of_score, runs=runs) for n in (0, size))
    return Scale(key, intact, emptied, of_score, tuple(runs))


def value_of(network: Network, removed: Removed, *, of_score: bool, runs: Sequence[int]) -> float:
    """The score, or the output's mean squared change, with some cells removed."""
    outcomes = [(network.runs[index], network.outcome(index, removed), network.intact[index]) for index in runs]
    if not of_score:
        return float(torch.cat([output_change(now, then) for _, now, then in outcomes]).mean())
    scores = torch.cat([now.score for _, now, _ in outcomes])
    weights = torch.cat([score_weights(run, now.score) for run, now, _ in outcomes])
    return float(weighted_mean(scores, weights))


def counts_to_try(size: int, points: int) -> Tensor:
    """How many cells are removed at each point of a curve, from 0 to all ``(K,)``."""
    return torch.linspace(0, size, min(points, size) + 1).round().long().unique()


def curve(network: Network, scale: Scale, removal: Tensor, counts: Tensor, tick: Callable[[], None]) -> Tensor:
    """Performance kept ``(K,)`` with the first ``counts (K,)`` cells of a removal order gone; the ends are known."""
    return curves(network, scale, [removal], counts, tick)[0]


def curves(
    network: Network, scale: Scale, removals: Sequence[Tensor], counts: Tensor, tick: Callable[[], None]
) -> list[Tensor]:
    """`curve` for several orders; processes that share (`together`) take some points each."""
    size = network.parts[scale.key].weights.hidden_size
    inner = [count for count in counts.tolist() if 0 < count < size]

    def point(removal: Tensor, count: int) -> float:
        tick()
        return value_of(network, {scale.key: removal[:count]}, of_score=scale.of_score, runs=scale.runs)

    jobs = [partial(point, removal, count) for removal in removals for count in inner]
    costs = [size - count + NEXT_TO_CELLS * size for _ in removals for count in inner]
    found = iter(shared(jobs, costs))
    ends = {0: scale.intact, size: scale.emptied}
    kept = [[scale.kept(ends[n] if n in ends else next(found)) for n in counts.tolist()] for _ in removals]
    return [torch.tensor(values, dtype=torch.float64, device="cpu") for values in kept]


def area(kept: Tensor, counts: Tensor) -> float:
    """AUC over the fraction removed, by the trapezoidal rule."""
    return float(torch.trapezoid(kept, counts.double() / counts[-1]))


def random_orders(size: int, orders: int, seed: int) -> Iterable[Tensor]:
    """Orders of removal from a generator of their own."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randperm(size, generator=generator) for _ in range(orders)]


def order_gap(areas: Sequence[float]) -> float:
    """How far the AUCs of two random orders lie apart, in 95% of the pairs; NaN with fewer than two."""
    if len(areas) < 2:
        return float("nan")
    values = torch.tensor(areas, dtype=torch.float64)
    pairs = torch.combinations(values)
    return float((pairs[:, 0] - pairs[:, 1]).abs().quantile(0.95))
