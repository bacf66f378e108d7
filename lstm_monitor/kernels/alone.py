"""Decoupled cells: each alone, with the input from all other cells frozen at their mean."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from lstm_monitor.kernels.cells import Cells, LoneWeights, cells_in, cells_in_layer, dense
from lstm_monitor.kernels.elementwise import Driven, is_still, scan, scan_inputs
from lstm_monitor.kernels.fused import State, run_fused
from lstm_monitor.records import LayerWeights

GROUP = 64
FEW = 2560
"""Sequences times cells up to which the fused op is faster for LSTM: a step's calls cost more than its arithmetic."""


def run_alone(weights: LayerWeights, inputs: Tensor, state: State) -> tuple[Tensor, State]:
    """Run ``inputs (T, N, I)`` from ``state``, parts ``(N, H)``, with weights from `decouple`.

    Returns ``hidden (T, N, H)`` and the state at the end.
    """
    cells = cells_in_layer(weights)
    if _few(cells, inputs.shape[1]):
        return _run_groups(cells, inputs, state)
    hidden = inputs.new_empty(*inputs.shape[:2], cells.hidden_size)
    return hidden, scan_inputs(cells, inputs, state, hidden)


def trace_alone(
    cells: Cells, signals: Tensor, way: Tensor, state: State, out: Tensor | None = None
) -> tuple[Tensor, State]:
    """Cells alone: ``hidden (T, S, H)`` on ``signals (T, S)`` along the directions ``way (S,)``; the last state.

    ``state``: parts ``(1, H)`` or ``(S, H)``. ``out (T, S, H)``: memory that `hidden` may take.
    """
    start = tuple(part.expand(signals.shape[1], -1) for part in state)
    if _few(cells, signals.shape[1]):
        return _run_groups(cells, signals[..., None] * one_hot(way, len(cells.drive)), start)
    hidden = signals.new_empty(*signals.shape, cells.hidden_size) if out is None else out
    return hidden, scan(Driven(cells, way, is_still(signals)), signals, start, hidden)


def _few(cells: Cells, count: int) -> bool:
    return cells.kind == "lstm" and count * cells.hidden_size <= FEW


def _run_groups(cells: Cells, inputs: Tensor, state: State) -> tuple[Tensor, State]:
    """The fused op on groups of cells, their own recurrence on diagonals; ``inputs (T, N, D)`` along the directions."""
    groups = [slice(k, k + GROUP) for k in range(0, cells.hidden_size, GROUP)]
    runs = [run_fused(_layer(cells_in(cells, g)), inputs, tuple(s[:, g] for s in state)) for g in groups]
    if len(runs) == 1:
        return runs[0]
    hidden = torch.cat([hidden for hidden, _ in runs], dim=-1)
    return hidden, tuple(torch.cat(ends, dim=-1) for ends in zip(*(end for _, end in runs), strict=True))


def _layer(cells: Cells) -> LayerWeights:
    """Cells of an LSTM as a layer that reads along their directions."""
    drive, own, bias = cells.drive.flatten(1).T, cells.own.reshape(-1, 1), cells.bias.flatten()
    return dense(LoneWeights(cells.kind, drive, own, bias, torch.zeros_like(bias)))
