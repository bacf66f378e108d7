"""The total derivative with respect to every hidden state: one scan over time, backwards, without autograd.

What does not depend on the derivative itself (gates and their slopes) is computed for all steps at once. The scan then
takes two to five tensor ops a step, for many derivatives together: V vectors of N sequences are V * N rows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import linear

from lstm_monitor.kernels.fused import State
from lstm_monitor.kernels.gates import cell_of, gates_of
from lstm_monitor.records import LayerWeights


class Reversed(NamedTuple):
    """Derivatives of V numbers: by the hidden states, by the inputs (None if not asked for), by the start.

    ``total (T, V, N, H)``, ``inputs (T, V, N, I)``, and ``start`` as the state itself, each ``(V, N, H)``.
    """

    total: Tensor
    inputs: Tensor | None
    start: State


class _Buffers(NamedTuple):
    """What is written step by step: derivatives by the gates' sums ``(V, N, G, H)``, and by the LSTM's cell."""

    gates: Tensor
    cell: Tensor


_Step = Callable[[int, Tensor, Tensor], None]
"""From step t and ``total[t] (V, N, H)``: fills the gates' buffer, adds to ``total[t - 1]`` what no weight carries."""


@torch.no_grad()
def reverse(
    weights: LayerWeights,
    inputs: Tensor,
    hidden: Tensor,
    start: State,
    direct: Tensor,
    end: State | None = None,
    lengths: Tensor | None = None,
    *,
    for_inputs: bool = True,
) -> Reversed:
    """From the direct derivatives by every hidden state to the total ones, through the layer's own recurrence.

    Args:
        weights: the layer, its projection folded into ``weight_hh``.
        inputs: (T, N, I) what it read.
        hidden: (T, N, H) its cells on them; what is beyond a sequence's length is not read.
        start: (N, H) states at the start.
        direct: (T, V, N, H) derivatives by every h_t of all that reads it outside the recurrence; 0 beyond a length.
        end: (V, N, H) derivatives by the state at the end of each sequence.
        lengths: (N,) steps of each sequence.
        for_inputs: whether the derivatives by the inputs are wanted, which takes a matrix product a step more.

    Source: backpropagation through time of torch's own equations of LSTM, GRU and RNN.
    """
    if lengths is not None:
        inputs, hidden = _blank_beyond(inputs, lengths), _blank_beyond(hidden, lengths)
    total = direct.clone(memory_format=torch.contiguous_format)
    by_start = direct.new_zeros(direct.shape[1:])
    steps, count, sequences, size = direct.shape
    ends = torch.full((sequences,), steps, device=direct.device) if lengths is None else lengths
    if end is not None:
        total[ends - 1, :, torch.arange(sequences, device=ends.device)] += end[0].transpose(0, 1)
    gates = weights.weight_hh.shape[0] // size
    buffers = _Buffers(direct.new_empty(count, sequences, gates, size), torch.zeros_like(by_start))
    step, input_step = _steps(weights, inputs, hidden, start, buffers, end, ends)
    by_inputs = direct.new_empty(steps, count, sequences, weights.input_size) if for_inputs else None
    _scan(weights, total, by_start, by_inputs, buffers.gates, step, input_step)
    return Reversed(total, by_inputs, (by_start, buffers.cell) if weights.kind == "lstm" else (by_start,))


def _blank_beyond(values: Tensor, lengths: Tensor) -> Tensor:
    """``values (T, N, ...)`` with 0 beyond the lengths, where they could be anything."""
    beyond = torch.arange(len(values), device=values.device)[:, None] >= lengths.to(values.device)
    return values.masked_fill(beyond[..., None], 0)


def _scan(
    weights: LayerWeights,
    total: Tensor,
    by_start: Tensor,
    by_inputs: Tensor | None,
    gates: Tensor,
    step: _Step,
    input_step: _Step | None,
) -> None:
    """Fill `total` in place, from the last step to the first, and the derivatives by the start and the inputs."""
    at = [by_start, *total.unbind()]  # at[t + 1] belongs to step t
    rows = [values.view(-1, values.shape[-1]) for values in at]
    flat = gates.view(len(rows[0]), -1)
    inputs = None if by_inputs is None else by_inputs.view(len(total), len(rows[0]), -1).unbind()
    for t in range(len(total) - 1, -1, -1):
        step(t, at[t + 1], at[t])
        rows[t].addmm_(flat, weights.weight_hh)
        if inputs is not None:
            if input_step is not None:
                input_step(t, at[t + 1], at[t])
            torch.mm(flat, weights.weight_ih, out=inputs[t])


def _steps(
    weights: LayerWeights,
    inputs: Tensor,
    hidden: Tensor,
    start: State,
    buffers: _Buffers,
    end: State | None,
    ends: Tensor,
) -> tuple[_Step, _Step | None]:
    """What one step does to the gates, and what has to be set right in them before the inputs are reached."""
    if weights.kind == "lstm":
        return _lstm(weights, inputs, hidden, start, buffers, _cell_ends(end, ends)), None
    if weights.kind == "gru":
        return _gru(weights, inputs, hidden, start, buffers)
    return _rnn(weights, hidden, buffers), None


def _rnn(weights: LayerWeights, hidden: Tensor, buffers: _Buffers) -> _Step:
    slopes = (hidden > 0).to(hidden) if weights.kind == "rnn_relu" else 1 - hidden * hidden
    slope, out = slopes.unbind(), buffers.gates[:, :, 0]

    def step(t: int, total: Tensor, before: Tensor) -> None:
        torch.mul(total, slope[t], out=out)

    return step


def _gru(weights: LayerWeights, inputs: Tensor, hidden: Tensor, start: State, buffers: _Buffers) -> tuple[_Step, _Step]:
    """Reset and update gates reach state and input alike; the candidate's state side is scaled by the reset gate."""
    size, before = weights.hidden_size, torch.cat([start[0][None], hidden[:-1]])
    r, z, n = gates_of(weights, inputs, hidden, start[0]).values()
    recurrent = linear(before, weights.weight_hh[2 * size :], weights.bias_hh[2 * size :])
    candidate = (1 - z) * (1 - n * n)
    update = (before - n) * z * (1 - z)
    slope = torch.stack([candidate * recurrent * r * (1 - r), update, candidate * r], dim=2).unbind()
    leak, input_slope, gates = z.unbind(), candidate.unbind(), buffers.gates
    last = gates[:, :, 2]

    def step(t: int, total: Tensor, before: Tensor) -> None:
        torch.mul(total[:, :, None], slope[t], out=gates)
        before.addcmul_(total, leak[t])

    def input_step(t: int, total: Tensor, before: Tensor) -> None:
        torch.mul(total, input_slope[t], out=last)

    return step, input_step


def _lstm(
    weights: LayerWeights,
    inputs: Tensor,
    hidden: Tensor,
    start: State,
    buffers: _Buffers,
    cell_ends: dict[int, Tensor],
) -> _Step:
    """Three gates act through the cell, the output gate on the hidden state; the order i, f, g, o keeps them apart."""
    gates = gates_of(weights, inputs, hidden, start[0])
    i, f, g, o = gates.values()
    cells = cell_of(gates, start[1])
    squashed = cells.tanh()
    by_cell = torch.stack([g * i * (1 - i), torch.cat([start[1][None], cells[:-1]]) * f * (1 - f), i * (1 - g * g)], 2)
    through, slope = by_cell.unbind(), (squashed * o * (1 - o)).unbind()
    opened, forget, cell = (o * (1 - squashed * squashed)).unbind(), f.unbind(), buffers.cell
    first, last, wide = buffers.gates[:, :, :3], buffers.gates[:, :, 3], buffers.cell[:, :, None]

    def step(t: int, total: Tensor, before: Tensor) -> None:
        if t in cell_ends:
            cell.add_(cell_ends[t])
        cell.addcmul_(total, opened[t])
        torch.mul(wide, through[t], out=first)
        torch.mul(total, slope[t], out=last)
        cell.mul_(forget[t])

    return step


def _cell_ends(end: State | None, ends: Tensor) -> dict[int, Tensor]:
    """What comes in at the ends of the sequences, by step: derivatives by the LSTM's last cell states."""
    if end is None or len(end) == 1:
        return {}
    return {length - 1: end[1] * (ends == length)[:, None] for length in set(ends.tolist())}
