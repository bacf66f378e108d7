"""A greedy order of removal: which cells a layer can do without together, not only one at a time."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Literal

import torch
from torch import Tensor

from lstm_monitor.core.distributed import from_first, processes, shared
from lstm_monitor.core.errors import choose
from lstm_monitor.core.float64 import doubled
from lstm_monitor.core.terms import Better, LayerKey
from lstm_monitor.importance.removal.network import Network
from lstm_monitor.importance.removal.outcomes import Outcome, score_weights, weighted_mean

By = Literal["output", "score"]

BLOCKS = 16
"""Cells are measured again, in the network that is left, after each of so many equal parts of a layer is gone."""
CANDIDATES, PER_REMOVED = 32, 4
"""Measured again are the cells that are expected to harm least: 4 for each that goes next, and at least 32."""
SKETCH = 16384
"""Changes of the output of more elements than this are summed, with random signs, into as many as this."""
SWEEPS = 3
"""An order takes about as long as removing each cell by itself so many times."""


def removal_order(
    network: Network,
    key: LayerKey,
    *,
    blocks: int = BLOCKS,
    by: By | None = None,
    better: Better | None = None,
    indices: Sequence[int] | None = None,
    deadline: float = math.inf,
) -> Tensor:
    """The cells of a layer ``(H,)``, the most important first: the reverse of the order in which they can go.

    Block by block those cells are removed that together do least harm. Of each candidate the change of the output on
    top of what is already removed is measured; cells whose changes point the same way do more harm together than the
    sum of their own, and cells whose changes cancel do less. For the output that is exact as long as the changes of
    cells in one block add up; for a score the price of a change of the output is estimated from the candidates.

    Args:
        network: the model on runs; with means, cells stand still at theirs.
        key: the layer.
        blocks: how many times cells are measured again; as many as there are cells is slow and hardly better.
        by: harm is the mean squared change of the "output" against the intact network's, or how much the "score"
            gets worse. None: the output, where the runs have one.
        better: whether a "lower" or a "higher" score is better; None: the direction away from the emptied layer's.
        indices: which of the network's runs; None: all that have what is judged.
        deadline: on the clock of `time.perf_counter`. Fewer runs are used where all would take too long; if it passes
            all the same, the rest is ordered by what was last measured, cells never measured being the last to go.

    Raises:
        ValueError: a value that is not allowed, or runs without what is judged.

    Source: this project's definition.
    """
    if blocks < 1:
        raise ValueError(f"blocks={blocks} must be 1 or more; {BLOCKS} are enough")
    bench = _within(_bench(network, key, by, better, indices), deadline)
    known, removed = _blank(bench), torch.empty(0, dtype=torch.long)
    for count in _block_sizes(bench.size, blocks):
        removed = torch.cat([removed, _next(bench, known, removed, count, deadline)])
    return removed.flip(0)


def _block_sizes(size: int, blocks: int) -> list[int]:
    edges = torch.linspace(0, size, min(blocks, size) + 1).round().long()
    return edges.diff().tolist()


# What is measured


@dataclass(frozen=True, eq=False)
class _Bench:
    """A layer, the runs used, what is judged, and the sign (+1, -1) of a change of the score for the worse."""

    network: Network
    key: LayerKey
    runs: tuple[int, ...]
    by: By
    worse: float = 1.0

    @property
    def size(self) -> int:
        """H."""
        return self.network.parts[self.key].weights.hidden_size

    def measure(self, removed: Tensor) -> tuple[Tensor, float]:
        """The output's change against the intact network's ``(K,)``, whose square is the mean one; and the harm."""
        pairs = [(index, self.network.outcome(index, {self.key: removed})) for index in self.runs]
        row = _difference(pairs, self.network)
        if self.by == "output":
            return row, float(doubled(row).square().sum())
        return row, self.worse * _score(pairs, self.network)


def _bench(
    network: Network, key: LayerKey, by: By | None, better: Better | None, indices: Sequence[int] | None
) -> _Bench:
    watched = any(outcome.outputs for outcome in network.intact)
    judged: By = by or ("output" if watched else "score")
    choose("by", judged, ("output", "score"))
    given = range(len(network.runs)) if indices is None else indices
    runs = tuple(index for index in given if _has(network.intact[index], judged))
    if not runs:
        other = "output" if judged == "score" else "score"
        raise ValueError(f"by={judged!r}: the runs have no {judged}; give by={other!r}, or runs that have one")
    bench = _Bench(network, key, runs, judged)
    return bench if judged == "output" else replace(bench, worse=_direction(bench, better))


def _direction(bench: _Bench, better: Better | None) -> float:
    """+1 where a lower score is better, -1 where a higher one is."""
    if better is None:
        return -1.0 if bench.measure(torch.arange(bench.size))[1] < 0 else 1.0
    return -1.0 if choose("better", better, ("lower", "higher")) == "higher" else 1.0


def _has(outcome: Outcome, by: By) -> bool:
    return bool(outcome.outputs) if by == "output" else len(outcome.score) > 0


def _within(bench: _Bench, deadline: float) -> _Bench:
    """With as many of the runs as there is time for, judged by the first; at least that."""
    if deadline == math.inf:
        return bench
    affordable = int(processes() * from_first(partial(_affordable, bench, deadline)))
    return replace(bench, runs=bench.runs[: max(affordable, 1)])


def _affordable(bench: _Bench, deadline: float) -> float:
    """On how many runs one process can measure as often as an order takes."""
    began = time.perf_counter()
    replace(bench, runs=bench.runs[:1]).measure(torch.tensor([0]))
    now = time.perf_counter()
    return (deadline - now) / max(SWEEPS * bench.size * (now - began), 1e-9)


def _difference(pairs: Sequence[tuple[int, Outcome]], network: Network) -> Tensor:
    """All outputs' changes in one row, each scaled by the root of how many elements its mean is over."""
    both = [(a, b) for index, now in pairs for a, b in zip(now.outputs, network.intact[index].outputs, strict=True)]
    sequences = sum(len(a) for a, _ in both)
    rows = [((a - b) / math.sqrt(a.shape[1] * sequences)).flatten().float() for a, b in both]
    row = torch.cat(rows) if rows else torch.empty(0)
    return (row if len(row) <= SKETCH else _sketch(row)).cpu()


def _sketch(row: Tensor) -> Tensor:
    """A shorter row ``(SKETCH,)`` with the same products on average: error of a square about 1%.

    M. Charikar, K. Chen and M. Farach-Colton, Finding frequent items in data streams, 2002 (the count sketch).
    """
    whole = math.ceil(len(row) / SKETCH) * SKETCH
    padded = torch.nn.functional.pad(row, (0, whole - len(row)))
    return (padded.view(-1, SKETCH) * _signs(whole).to(row.device)).sum(0)


@cache
def _signs(count: int) -> Tensor:
    drawn = torch.randint(0, 2, (count // SKETCH, SKETCH), generator=torch.Generator().manual_seed(0), dtype=torch.int8)
    return 2 * drawn - 1


def _score(pairs: Sequence[tuple[int, Outcome]], network: Network) -> float:
    """The mean change of the score."""
    changes = torch.cat([now.score - network.intact[index].score for index, now in pairs])
    weights = torch.cat([score_weights(network.runs[index], now.score) for index, now in pairs])
    return float(weighted_mean(changes, weights))


# The choice


@dataclass(eq=False)
class _Known:
    """What is known of each cell: the output's change by it alone ``rows (H, K)``, and the ``harm (H,)`` it adds.

    Both are on top of the cells that were gone when it was measured: the output had then changed by a row whose product
    with the cell's own is ``then (H,)``. ``harm`` is infinite where nothing finite was measured. ``price``: harm
    for a unit of mean squared change of the output. ``change (K,)``: of the output, with what is gone now.
    """

    rows: Tensor
    harm: Tensor
    then: Tensor
    price: float
    change: Tensor

    def expected(self) -> Tensor:
        """The harm ``(H,)`` that each cell adds to what is gone now."""
        return self.harm + 2 * self.price * (self.rows @ self.change - self.then)

    def learn(self, cell: int, change: Tensor, harm: float) -> None:
        """Note what a cell adds: `harm`, and a change of the output to ``change (K,)``."""
        row = change - self.change
        if math.isfinite(harm) and bool(row.isfinite().all()):
            self.rows[cell], self.harm[cell], self.then[cell] = row, harm, row @ self.change


def _blank(bench: _Bench) -> _Known:
    row, _ = bench.measure(torch.empty(0, dtype=torch.long))
    rows, unknown = row.new_zeros(bench.size, len(row)), row.new_full((bench.size,), math.inf)
    return _Known(rows, unknown, torch.zeros_like(unknown), 1.0 if bench.by == "output" else 0.0, row)


def _next(bench: _Bench, known: _Known, removed: Tensor, count: int, deadline: float) -> Tensor:
    """The next cells to go ``(count,)``, the least harmful first, after those ``removed (R,)``."""
    left = torch.ones(bench.size, dtype=torch.bool)
    left[removed] = False
    remaining = left.nonzero()[:, 0]
    if len(remaining) == 1:
        return remaining
    cells = remaining
    if deadline == math.inf or from_first(lambda: time.perf_counter() < deadline):
        known.change, harm = bench.measure(removed)
        cells = _candidates(known, remaining, count)
        _measure_each(bench, known, removed, cells, harm, deadline)
    chosen = cells[_together(known, cells, count)]
    known.change = known.change + known.rows[chosen].sum(0)
    return chosen


def _measure_each(bench: _Bench, known: _Known, removed: Tensor, cells: Tensor, harm: float, deadline: float) -> None:
    def without(cell: Tensor) -> tuple[Tensor, float] | None:
        return bench.measure(torch.cat([removed, cell[None]])) if time.perf_counter() < deadline else None

    for cell, found in zip(cells, shared([partial(without, cell) for cell in cells]), strict=True):
        if found is not None:
            known.learn(int(cell), found[0], found[1] - harm)
    if bench.by == "score":
        known.price = _price(known, cells)


def _candidates(known: _Known, remaining: Tensor, count: int) -> Tensor:
    """The cells to measure: all at first, then those expected to do least harm."""
    expected = known.expected()[remaining]
    number = max(PER_REMOVED * count, CANDIDATES) if bool(expected.isfinite().any()) else len(remaining)
    return remaining[expected.argsort(stable=True)[:number]]


def _price(known: _Known, cells: Tensor) -> float:
    """The slope of the harm over the change of the mean squared output, among some cells; at least 0."""
    harm = doubled(known.harm[cells])
    moved = doubled(known.rows[cells].square().sum(1) + 2 * known.then[cells])
    use = harm.isfinite()
    harm, moved = harm[use] - harm[use].mean(), moved[use] - moved[use].mean()
    spread = float(moved @ moved)
    return max(float(harm @ moved) / spread, 0.0) if spread else 0.0


def _together(known: _Known, cells: Tensor, count: int) -> Tensor:
    """Places in ``cells (C,)`` of those to remove together, one after the other by what each adds to those before."""
    added, rows = known.expected()[cells], known.rows[cells]
    products, left, chosen = rows @ rows.T, list(range(len(cells))), []
    for _ in range(count):
        chosen.append(min(left, key=added.tolist().__getitem__))
        left.remove(chosen[-1])
        added = added + 2 * known.price * products[chosen[-1]]
    return torch.tensor(chosen)
