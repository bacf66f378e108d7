"""The total derivative with respect to every hidden state: one scan over time, backwards, without autograd.

What does not depend on the derivative itself (gates and their slopes) is computed for all steps at once. The scan then
takes two to five tensor ops a step, for many derivatives together: V vectors of N sequences are V * N rows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lstm_monitor.core.weights import LayerWeights
from lstm_monitor.engines.choice import loops_for
from lstm_monitor.engines.fused import State
from lstm_monitor.engines.gates import cell_states, gate_values


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


class _Walk(NamedTuple):
    """What the steps back need: what the layer did, ``(T, N, ...)``, where to write, and what comes in at the ends."""

    weights: LayerWeights
    hidden: Tensor
    start: State
    gates: Tensor
    cells: Tensor | None
    total: Tensor
    buffers: _Buffers
    cell_ends: dict[int, Tensor]


_Step = Callable[[int, Tensor, Tensor], None]
"""From step t and ``total[t] (V, N, H)``: fills the gates' buffer, adds to ``total[t - 1]`` what no weight carries."""


@torch.no_grad()
def reverse(  # noqa: PLR0913  # what the layer did, what comes back to it, and what is known already
    weights: LayerWeights,
    inputs: Tensor,
    hidden: Tensor,
    start: State,
    direct: Tensor,
    end: State | None = None,
    lengths: Tensor | None = None,
    *,
    gates: Tensor | None = None,
    cells: Tensor | None = None,
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
        gates: (T, N, G, H) what `gate_values` makes of these, if it is known; then nothing may be NaN.
        cells: (T, N, H) an LSTM's cell states, if they are known.
        for_inputs: whether the derivatives by the inputs are wanted, which takes a matrix product a step more.

    Source: backpropagation through time of torch's own equations of LSTM, GRU and RNN.
    """
    if gates is None:
        if lengths is not None:
            inputs, hidden = _blank_beyond(inputs, lengths), _blank_beyond(hidden, lengths)
        gates = gate_values(weights, inputs, hidden, start[0])
    if cells is None and weights.kind == "lstm":
        cells = cell_states(weights, gates, start[1])
    total = direct.clone(memory_format=torch.contiguous_format)
    by_start = direct.new_zeros(direct.shape[1:])
    steps, count, sequences, size = direct.shape
    ends = torch.full((sequences,), steps, device=direct.device) if lengths is None else lengths
    if end is not None:
        total[ends - 1, :, torch.arange(sequences, device=ends.device)] += end[0].transpose(0, 1)
    rows = weights.weight_hh.shape[0] // size
    buffers = _Buffers(direct.new_empty(count, sequences, rows, size), torch.zeros_like(by_start))
    walk = _Walk(weights, hidden, start, gates, cells, total, buffers, _cell_ends(end, ends))
    by_inputs = direct.new_empty(steps, count, sequences, weights.input_size) if for_inputs else None
    _scan(weights, total, by_start, by_inputs, buffers.gates, *_steps(walk))
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


def _steps(walk: _Walk) -> tuple[_Step, _Step | None]:
    """What one step does to the gates, and what has to be set right in them before the inputs are reached."""
    if walk.weights.kind == "lstm":
        return _lstm(walk), None
    return _gru(walk) if walk.weights.kind == "gru" else (_rnn(walk), None)


def _rnn(walk: _Walk) -> _Step:
    hidden = walk.hidden
    slopes = (hidden > 0).to(hidden) if walk.weights.kind == "rnn_relu" else 1 - hidden * hidden
    slope, out = slopes.unbind(), walk.buffers.gates[:, :, 0]

    def step(t: int, total: Tensor, before: Tensor) -> None:
        torch.mul(total, slope[t], out=out)

    return step


def _gru(walk: _Walk) -> tuple[_Step, _Step]:
    """Reset and update gates reach state and input alike; the candidate's state side is scaled by the reset gate."""
    before = torch.cat([walk.start[0][None], walk.hidden[:-1]])
    r, z, n, scaled = walk.gates.unbind(2)
    candidate = (1 - z) * (1 - n * n)
    update = (before - n) * z * (1 - z)
    through = candidate * r
    slope = torch.stack([through * scaled * (1 - r), update, through], dim=2).unbind()
    leak, input_slope, gates = z.unbind(), candidate.unbind(), walk.buffers.gates
    last = gates[:, :, 2]

    def step(t: int, total: Tensor, before: Tensor) -> None:
        torch.mul(total[:, :, None], slope[t], out=gates)
        before.addcmul_(total, leak[t])

    def input_step(t: int, total: Tensor, before: Tensor) -> None:
        torch.mul(total, input_slope[t], out=last)

    return step, input_step


def _lstm(walk: _Walk) -> _Step:
    """Three gates act through the cell, the output gate on the hidden state; the order i, f, g, o keeps them apart."""
    assert walk.cells is not None
    before = torch.cat([walk.start[1][None], walk.cells[:-1]])
    loops = loops_for(walk.gates, walk.total)
    if loops is not None:
        return _compiled_lstm(walk, before, loops)
    i, f, g, o = walk.gates.unbind(2)
    squashed = walk.cells.tanh()
    by_cell = torch.stack([g * i * (1 - i), before * f * (1 - f), i * (1 - g * g)], dim=2)
    through, slope = by_cell.unbind(), (squashed * o * (1 - o)).unbind()
    opened, forget, cell = (o * (1 - squashed * squashed)).unbind(), f.unbind(), walk.buffers.cell
    first, last, wide = walk.buffers.gates[:, :, :3], walk.buffers.gates[:, :, 3], cell[:, :, None]

    def step(t: int, total: Tensor, before: Tensor) -> None:
        if t in walk.cell_ends:
            cell.add_(walk.cell_ends[t])
        cell.addcmul_(total, opened[t])
        torch.mul(wide, through[t], out=first)
        torch.mul(total, slope[t], out=last)
        cell.mul_(forget[t])

    return step


def _compiled_lstm(walk: _Walk, before: Tensor, loops: Any) -> _Step:
    """The same in one loop a step."""
    assert walk.cells is not None
    gates, cells, earlier = walk.gates.contiguous().numpy(), walk.cells.contiguous().numpy(), before.numpy()
    totals, cell = walk.total.numpy(), walk.buffers.cell
    by_cell, out = cell.numpy(), walk.buffers.gates.numpy()

    def step(t: int, total: Tensor, before: Tensor) -> None:
        if t in walk.cell_ends:
            cell.add_(walk.cell_ends[t])
        loops.lstm_back(gates[t], cells[t], earlier[t], totals[t], by_cell, out)

    return step


def _cell_ends(end: State | None, ends: Tensor) -> dict[int, Tensor]:
    """What comes in at the ends of the sequences, by step: derivatives by the LSTM's last cell states."""
    if end is None or len(end) == 1:
        return {}
    return {length - 1: end[1] * (ends == length)[:, None] for length in set(ends.tolist())}
