"""Where cells come to rest at the operating point, without a stimulus."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lstm_monitor.core.definitions import Thresholds
from lstm_monitor.core.records import Snapshot
from lstm_monitor.core.terms import Mode
from lstm_monitor.core.weights import LayerWeights
from lstm_monitor.engines.choice import engine_for
from lstm_monitor.engines.fused import State
from lstm_monitor.engines.lone_cells import LoneCells, cells_of
from lstm_monitor.engines.run import in_mode, run, zero_state

SETTLE_CHUNK = 64
SETTLE_MOST = 256
SETTLE_TAIL = 8


@dataclass(frozen=True, eq=False)
class Rest:
    """The state before a stimulus: of one sequence, ``(1, H)`` each; and of each cell the hidden state ``(H,)`` then.

    ``settled (H,)``: whether each cell is at rest.
    """

    state: State
    settled: Tensor
    hidden: Tensor


def settle(snapshot: Snapshot, mode: Mode, thresholds: Thresholds) -> Rest:
    """Where the cells come to rest: up to 256 steps from zero at the operating point, without stimulus."""
    weights, mean = snapshot.weights, snapshot.point.mean
    nowhere = weights.like.new_zeros(weights.input_size, 1)
    if mode == "alone" and isinstance(weights, LayerWeights):
        return settle_cells(cells_of(weights, snapshot.hidden_mean, mean, nowhere), None, thresholds)
    still = in_mode(weights, mode, snapshot.hidden_mean).from_mean(mean).along(nowhere)
    inputs = weights.like.new_zeros(SETTLE_CHUNK, 1, 1)
    return _rest(lambda state: run(still, mode, inputs, state), zero_state(still, 1), None, thresholds)


def settle_cells(cells: LoneCells, sizes: Sequence[int] | None, thresholds: Thresholds) -> Rest:
    """As `settle` of cells alone, of several layers of these `sizes`: each moves for as long as its own cells need."""
    signals = cells.bias.new_zeros(SETTLE_CHUNK, 1)
    way = torch.zeros(1, dtype=torch.long, device=signals.device)
    engine, zeros = engine_for(signals.device, signals.dtype), cells.bias.new_zeros(1, cells.hidden_size)
    start = (zeros, zeros) if cells.kind == "lstm" else (zeros,)
    return _rest(lambda state: engine.cell_trace(cells, signals, way, state), start, sizes, thresholds)


def _rest(
    go_on: Callable[[State], tuple[Tensor, State]], state: State, sizes: Sequence[int] | None, thresholds: Thresholds
) -> Rest:
    """64 steps at a time, until all cells of a layer rest; of several layers, that of each when its own do."""
    found: Rest | None = None
    for _ in range(SETTLE_MOST // SETTLE_CHUNK):
        hidden, state = go_on(state)
        tail = hidden[-SETTLE_TAIL:, 0]
        new = Rest(state, tail.amax(0) - tail.amin(0) <= thresholds.unsettled, tail[-1].clone())
        found = new if found is None or sizes is None else _each(found, new, sizes)
        if bool(found.settled.all()):
            break
    assert found is not None
    return found


def _each(earlier: Rest, later: Rest, sizes: Sequence[int]) -> Rest:
    """Of each layer the earlier rest if all its cells rested then."""
    counts = torch.tensor(sizes, device=earlier.settled.device)
    rested = torch.stack([part.all() for part in earlier.settled.split(list(sizes))])
    keep = rested.repeat_interleave(counts, output_size=len(earlier.settled))
    state = tuple(torch.where(keep, *parts) for parts in zip(earlier.state, later.state, strict=True))
    return Rest(
        state,
        torch.where(keep, earlier.settled, later.settled),
        torch.where(keep, earlier.hidden, later.hidden),
    )
