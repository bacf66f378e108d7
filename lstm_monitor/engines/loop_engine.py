"""The plain loop over time: slow, for every kind, with cell state and gates. Engines are held to it.

For a bug report it is an engine too: cells alone, kept whole; torch finds the facts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lstm_monitor.core.definitions import Thresholds
from lstm_monitor.core.weights import LayerWeights
from lstm_monitor.engines import trace_facts
from lstm_monitor.engines.facts import Engine, ResponseFacts, Signals, SineFacts, StepFacts
from lstm_monitor.engines.fused import State
from lstm_monitor.engines.lone_cells import LoneCells, dense


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


@dataclass(frozen=True)
class LoopEngine:
    """`Engine` as one first writes it, in the type of the weights."""

    name: str = "loop"

    def cell_trace(self, cells: LoneCells, signals: Tensor, way: Tensor, state: State) -> tuple[Tensor, State]:
        """Cells alone: ``hidden (T, S, H)`` on ``signals (T, S)`` along the directions ``way (S,)``; the last state."""
        step, hidden = _STEPS[cells.kind], []
        state = tuple(part.expand(signals.shape[1], -1) for part in state)
        for signal in signals:
            driven = cells.bias + signal[:, None, None] * cells.drive[way]
            state = step(cells, driven.unbind(1), state)
            hidden.append(state[0])
        return torch.stack(hidden), state

    def cell_facts(
        self, cells: LoneCells, signals: Signals, state: State, initial: Tensor, thresholds: Thresholds
    ) -> ResponseFacts:
        """Cells alone from ``state``, each part ``(1, H)``; ``initial (H,)`` before it."""
        steps, _ = self.cell_trace(cells, signals.steps, signals.step_way, state)
        sines, _ = self.cell_trace(cells, signals.sines, signals.sine_way, state)
        return ResponseFacts(
            self.step_facts(steps, initial, thresholds), self.sine_facts(sines, signals.frequencies, signals.main)
        )

    def step_facts(self, hidden: Tensor, initial: Tensor, thresholds: Thresholds) -> StepFacts:
        """Of a response ``hidden (T, S, H)`` to steps; ``initial (H,)`` before it."""
        return trace_facts.step_facts(hidden, initial, thresholds)

    def sine_facts(self, hidden: Tensor, frequencies: Sequence[float], main: int | None) -> SineFacts:
        """Of a response ``hidden (T, S, H)`` to sines; `main` the row whose window is kept, None for none."""
        return trace_facts.sine_facts(hidden, frequencies, main)


Driven = tuple[Tensor, ...]
"""What each gate receives besides its own recurrence, ``(S, H)`` each."""


def _lone_lstm(cells: LoneCells, driven: Driven, state: State) -> State:
    h, c = state
    i, f, g, o = (z + own * h for z, own in zip(driven, cells.own, strict=True))
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


def _lone_gru(cells: LoneCells, driven: Driven, state: State) -> State:
    (h,) = state
    assert cells.inner is not None
    r, z = (torch.sigmoid(x + own * h) for x, own in zip(driven[:2], cells.own[:2], strict=True))
    n = torch.tanh(driven[2] + r * (cells.inner + cells.own[2] * h))
    return ((1 - z) * n + z * h,)


def _lone_rnn_tanh(cells: LoneCells, driven: Driven, state: State) -> State:
    return (torch.tanh(driven[0] + cells.own[0] * state[0]),)


def _lone_rnn_relu(cells: LoneCells, driven: Driven, state: State) -> State:
    return (torch.relu(driven[0] + cells.own[0] * state[0]),)


_STEPS: dict[str, Callable[[LoneCells, Driven, State], State]] = {
    "lstm": _lone_lstm,
    "gru": _lone_gru,
    "rnn_tanh": _lone_rnn_tanh,
    "rnn_relu": _lone_rnn_relu,
}

ENGINE: Engine = LoopEngine()
