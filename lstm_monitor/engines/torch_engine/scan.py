"""Cells alone, step by step: every operation is elementwise over sequences and cells, and writes where there is memory.

``tanh(x)`` is ``2 sigmoid(2x) - 1``, which is faster on CPU: all that goes into it has its weights doubled. Few
cells run by the fused ops, the input from all others frozen at their mean.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from lstm_monitor.core.weights import LayerWeights
from lstm_monitor.engines.fused import State, run_fused
from lstm_monitor.engines.lone_cells import LoneCells, LoneWeights, cells_in, cells_in_layer, dense

HALF, ONE, TWO = (torch.tensor(number, device="cpu") for number in (0.5, 1.0, 2.0))
"""Numbers as tensors, for any type and device: torch takes longer over a number than over a small block of cells."""


class Driven:
    """Cells ready for `scan`, of which stimulus s moves the input along the direction ``way[s]``.

    `still`: no signal moves, so that what the cells receive besides their own state is always the same.
    """

    def __init__(self, cells: LoneCells, way: Tensor, still: bool) -> None:
        self.cells = _doubled(cells)
        self.drive = self.cells.drive[way].transpose(0, 1).contiguous()
        self.still = still

    def outside(self, signals: Tensor) -> Iterator[Tensor]:
        """What does not depend on the state, ``(G, S, H)`` for each step."""
        columns = signals[..., None] if signals.dim() == 2 else signals
        bias = self.cells.bias[:, None]
        driven = torch.addcmul(bias, self.drive, columns[0])
        for column in columns:
            yield driven if self.still else torch.addcmul(bias, self.drive, column, out=driven)


def is_still(signals: Tensor) -> bool:
    """Whether no signal of ``(T, S)`` moves."""
    return bool((signals == signals[0]).all())


def scan(driven: Driven, signals: Tensor, state: State, hidden: Tensor) -> State:
    """Write the responses to ``signals (T, S)``, or ``(T, S, H)`` of each cell's own, to ``hidden (T, S, H)``.

    ``state``: parts ``(S, H)``, as are those of the returned state at the end.
    """
    return _RUN[driven.cells.kind](driven.cells, driven.outside(signals), state, hidden)


def scan_inputs(cells: LoneCells, inputs: Tensor, state: State, hidden: Tensor) -> State:
    """As `scan`, of ``inputs (T, N, D)`` along all directions at once."""
    ready = _doubled(cells)
    return _RUN[cells.kind](ready, _among(ready, inputs), state, hidden)


def _among(cells: LoneCells, inputs: Tensor) -> Iterator[Tensor]:
    """As `Driven.outside`, for general inputs."""
    bias, driven = cells.bias[:, None], inputs.new_empty(len(cells.bias), inputs.shape[1], cells.hidden_size)
    drive = cells.drive.transpose(0, 1).contiguous()
    for x in inputs:
        yield torch.baddbmm(bias, x.expand(len(drive), *x.shape), drive, out=driven)


def _lstm(cells: LoneCells, driven: Iterator[Tensor], state: State, hidden: Tensor) -> State:
    own, zero, (h, c) = cells.own[:, None], hidden.new_zeros(()), state
    gates, twice = hidden.new_empty(4, *h.shape), 2 * c  # the cell state is kept doubled, as its tanh wants it
    squashed, (i, f, g, o) = torch.empty_like(twice), gates
    for outside, row in zip(driven, hidden, strict=True):
        torch.addcmul(outside, own, h, out=gates).sigmoid_()
        g.sub_(HALF)
        twice.mul_(f).addcmul_(i, g, value=4)
        torch.sigmoid(twice, out=squashed).sub_(HALF)
        h = torch.addcmul(zero, o, squashed, value=2, out=row)
    return h.clone(), twice / 2


def _gru(cells: LoneCells, driven: Iterator[Tensor], state: State, hidden: Tensor) -> State:
    own, inner, (h,) = cells.own[:, None], cells.inner, state
    assert inner is not None
    gates = hidden.new_empty(3, *h.shape)
    both, (r, z, n) = gates[:2], gates
    for outside, row in zip(driven, hidden, strict=True):
        torch.addcmul(outside[:2], own[:2], h, out=both).sigmoid_()
        torch.addcmul(inner, own[2], h, out=n)
        torch.addcmul(outside[2], r, n, out=n).sigmoid_().mul_(TWO).sub_(ONE)
        h = torch.lerp(n, h, z, out=row)
    return (h.clone(),)


def _rnn_tanh(cells: LoneCells, driven: Iterator[Tensor], state: State, hidden: Tensor) -> State:
    own, (h,) = cells.own[0], state
    for outside, row in zip(driven, hidden, strict=True):
        h = torch.addcmul(outside[0], own, h, out=row).sigmoid_().mul_(TWO).sub_(ONE)
    return (h.clone(),)


def _rnn_relu(cells: LoneCells, driven: Iterator[Tensor], state: State, hidden: Tensor) -> State:
    own, (h,) = cells.own[0], state
    for outside, row in zip(driven, hidden, strict=True):
        h = torch.addcmul(outside[0], own, h, out=row).relu_()
    return (h.clone(),)


_RUN = {"lstm": _lstm, "gru": _gru, "rnn_tanh": _rnn_tanh, "rnn_relu": _rnn_relu}
_CANDIDATE = {"lstm": 2, "gru": 2, "rnn_tanh": 0}
"""The row of the gate that is a tanh."""


def _doubled(cells: LoneCells) -> LoneCells:
    """The cells with all that enters a tanh doubled."""
    if cells.kind not in _CANDIDATE:
        return cells
    factor = cells.own.new_ones(len(cells.own), 1)
    factor[_CANDIDATE[cells.kind]] = 2
    inner = None if cells.inner is None else 2 * cells.inner
    return replace(cells, own=cells.own * factor, bias=cells.bias * factor, inner=inner, drive=cells.drive * factor)


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
    cells: LoneCells, signals: Tensor, way: Tensor, state: State, out: Tensor | None = None
) -> tuple[Tensor, State]:
    """Cells alone: ``hidden (T, S, H)`` on ``signals (T, S)`` along the directions ``way (S,)``; the last state.

    ``state``: parts ``(1, H)`` or ``(S, H)``. ``out (T, S, H)``: memory that `hidden` may take.
    """
    start = tuple(part.expand(signals.shape[1], -1) for part in state)
    if _few(cells, signals.shape[1]):
        return _run_groups(cells, signals[..., None] * one_hot(way, len(cells.drive)), start)
    hidden = signals.new_empty(*signals.shape, cells.hidden_size) if out is None else out
    return hidden, scan(Driven(cells, way, is_still(signals)), signals, start, hidden)


def _few(cells: LoneCells, count: int) -> bool:
    return cells.kind == "lstm" and count * cells.hidden_size <= FEW


def _run_groups(cells: LoneCells, inputs: Tensor, state: State) -> tuple[Tensor, State]:
    """The fused op on groups of cells, their own recurrence on diagonals; ``inputs (T, N, D)`` along the directions."""
    groups = [slice(k, k + GROUP) for k in range(0, cells.hidden_size, GROUP)]
    runs = [run_fused(_layer(cells_in(cells, g)), inputs, tuple(s[:, g] for s in state)) for g in groups]
    if len(runs) == 1:
        return runs[0]
    hidden = torch.cat([hidden for hidden, _ in runs], dim=-1)
    return hidden, tuple(torch.cat(ends, dim=-1) for ends in zip(*(end for _, end in runs), strict=True))


def _layer(cells: LoneCells) -> LayerWeights:
    """Cells of an LSTM as a layer that reads along their directions."""
    drive, own, bias = cells.drive.flatten(1).T, cells.own.reshape(-1, 1), cells.bias.flatten()
    return dense(LoneWeights(cells.kind, drive, own, bias, torch.zeros_like(bias)))
