"""The plain loop over time: slow, for every kind, with cell state and gates. Engines are held to it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lstm_monitor.kernels.cells import dense
from lstm_monitor.kernels.fused import State
from lstm_monitor.records import LayerWeights


def run_loop(weights: LayerWeights, inputs: Tensor, state: State) -> tuple[Tensor, State, Mapping[str, Tensor]]:
    """Run ``inputs (T, N, I)`` step by step; returns hidden, the final state and every trace ``(T, N, H)``.

    The traces are the gates by name and, for an LSTM, ``cell``.
    """
    steps = {"lstm": _lstm, "gru": _gru, "rnn_tanh": _rnn_tanh, "rnn_relu": _rnn_relu}
    step, weights = steps[weights.kind], dense(weights)
    hidden, traces = [], []
    for x in inputs:
        state, trace = step(weights, x, state)
        hidden.append(state[0])
        traces.append(trace)
    return torch.stack(hidden), state, {name: torch.stack([t[name] for t in traces]) for name in traces[0]}


def _blocks(weights: LayerWeights, x: Tensor, h: Tensor, count: int) -> tuple[list[Tensor], list[Tensor]]:
    from_input = x @ weights.weight_ih.T + weights.bias_ih
    from_hidden = h @ weights.weight_hh.T + weights.bias_hh
    return list(from_input.chunk(count, -1)), list(from_hidden.chunk(count, -1))


def _lstm(weights: LayerWeights, x: Tensor, state: State) -> tuple[State, dict[str, Tensor]]:
    h, c = state
    a, b = _blocks(weights, x, h, 4)
    i, f, o = torch.sigmoid(a[0] + b[0]), torch.sigmoid(a[1] + b[1]), torch.sigmoid(a[3] + b[3])
    g = torch.tanh(a[2] + b[2])
    c = f * c + i * g
    return (o * torch.tanh(c), c), {"input": i, "forget": f, "candidate": g, "output": o, "cell": c}


def _gru(weights: LayerWeights, x: Tensor, state: State) -> tuple[State, dict[str, Tensor]]:
    (h,) = state
    a, b = _blocks(weights, x, h, 3)
    r, z = torch.sigmoid(a[0] + b[0]), torch.sigmoid(a[1] + b[1])
    n = torch.tanh(a[2] + r * b[2])
    return ((1 - z) * n + z * h,), {"reset": r, "update": z, "candidate": n}


def _rnn_tanh(weights: LayerWeights, x: Tensor, state: State) -> tuple[State, dict[str, Tensor]]:
    a, b = _blocks(weights, x, state[0], 1)
    h = torch.tanh(a[0] + b[0])
    return (h,), {"candidate": h}


def _rnn_relu(weights: LayerWeights, x: Tensor, state: State) -> tuple[State, dict[str, Tensor]]:
    a, b = _blocks(weights, x, state[0], 1)
    h = torch.relu(a[0] + b[0])
    return (h,), {"candidate": h}
