"""Gates and cell state of a fused run: one matrix product, then an elementwise scan."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lstm_monitor.core.terms import GATES
from lstm_monitor.core.weights import LayerWeights
from lstm_monitor.engines.choice import loops_for
from lstm_monitor.engines.lone_cells import dense


def gates_of(weights: LayerWeights, inputs: Tensor, hidden: Tensor, h0: Tensor) -> Mapping[str, Tensor]:
    """Every gate by name, ``(T, N, H)``, from ``inputs (T, N, I)``, ``hidden (T, N, H)`` and ``h0 (N, H)``."""
    return named(weights, gate_values(weights, inputs, hidden, h0))


def named(weights: LayerWeights, values: Tensor) -> Mapping[str, Tensor]:
    """The gates by name, views of what `gate_values` returned."""
    return dict(zip(GATES[weights.kind], values.unbind(2), strict=False))


def gate_values(weights: LayerWeights, inputs: Tensor, hidden: Tensor, h0: Tensor) -> Tensor:
    """Every gate ``(T, N, G, H)`` in torch's order, in one piece of memory.

    A GRU has a fourth block: what its reset gate scales, ``W_hn h + b_hn``.
    """
    if weights.kind.startswith("rnn"):
        return hidden[:, :, None]
    weights = dense(weights)
    before = torch.cat([h0[None], hidden[:-1]]).flatten(0, 1)
    read = inputs.flatten(0, 1)
    values = (_lstm_gates if weights.kind == "lstm" else _gru_gates)(weights, read, before)
    return values.view(*hidden.shape[:2], 4, -1)


def _lstm_gates(weights: LayerWeights, read: Tensor, before: Tensor) -> Tensor:
    """The four gates ``(T * N, 4 * H)``, each row opened in place."""
    sums = torch.addmm(weights.bias_ih + weights.bias_hh, read, weights.weight_ih.T)
    sums.addmm_(before, weights.weight_hh.T)
    i, f, g, o = sums.chunk(4, dim=1)
    for gate in (i, f, o):
        gate.sigmoid_()
    g.tanh_()
    return sums


def _gru_gates(weights: LayerWeights, read: Tensor, before: Tensor) -> Tensor:
    """The three gates, and what the reset gate scales in the candidate, ``(T * N, 4 * H)``."""
    size = 2 * weights.hidden_size
    bias = weights.bias_ih.clone()
    bias[:size] += weights.bias_hh[:size]
    sums = read.new_empty(len(read), 2 * size)
    torch.addmm(bias, read, weights.weight_ih.T, out=sums[:, : len(bias)])
    sums[:, :size].addmm_(before, weights.weight_hh[:size].T)
    torch.addmm(weights.bias_hh[size:], before, weights.weight_hh[size:].T, out=sums[:, len(bias) :])
    r, z, n, scaled = sums.chunk(4, dim=1)
    r.sigmoid_()
    z.sigmoid_()
    n.addcmul_(r, scaled).tanh_()
    return sums


def cell_states(weights: LayerWeights, values: Tensor, c0: Tensor) -> Tensor:
    """An LSTM's cell state ``(T, N, H)`` from its ``values (T, N, 4, H)`` and the state before ``(N, H)``."""
    loops = loops_for(values, c0)
    if loops is None:
        return cell_of(named(weights, values), c0)
    cells = torch.empty_like(values[:, :, 0], memory_format=torch.contiguous_format)
    loops.cell_states(values.contiguous().numpy(), c0.contiguous().numpy(), cells.numpy())
    return cells


def cell_of(gates: Mapping[str, Tensor], c0: Tensor) -> Tensor:
    """An LSTM's cell state ``(T, N, H)`` from its gates: ``c = f * c + i * g``; then ``o * tanh(c)`` is hidden."""
    cells = gates["input"] * gates["candidate"]
    before = c0
    for forget, cell in zip(gates["forget"], cells, strict=True):
        before = cell.addcmul_(forget, before)
    return cells
