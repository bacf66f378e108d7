"""The engine for a bug report: cells alone by the plain loop over time, kept whole; torch finds the facts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lstm_monitor.kernels import trace_facts
from lstm_monitor.kernels.cells import Cells
from lstm_monitor.kernels.facts import Engine, Played, Score, SineFacts, StepFacts
from lstm_monitor.kernels.fused import State
from lstm_monitor.reasons import Thresholds


@dataclass(frozen=True)
class LoopEngine:
    """`Engine` as one first writes it, in the type of the weights."""

    name: str = "loop"

    def cell_trace(self, cells: Cells, signals: Tensor, way: Tensor, state: State) -> tuple[Tensor, State]:
        """Cells alone: ``hidden (T, S, H)`` on ``signals (T, S)`` along the directions ``way (S,)``; the last state."""
        step, hidden = _STEPS[cells.kind], []
        state = tuple(part.expand(signals.shape[1], -1) for part in state)
        for signal in signals:
            driven = cells.bias + signal[:, None, None] * cells.drive[way]
            state = step(cells, driven.unbind(1), state)
            hidden.append(state[0])
        return torch.stack(hidden), state

    def cell_facts(self, cells: Cells, score: Score, state: State, initial: Tensor, thresholds: Thresholds) -> Played:
        """Cells alone from ``state``, each part ``(1, H)``; ``initial (H,)`` before it."""
        steps, _ = self.cell_trace(cells, score.steps, score.step_way, state)
        sines, _ = self.cell_trace(cells, score.sines, score.sine_way, state)
        return Played(
            self.step_facts(steps, initial, thresholds), self.sine_facts(sines, score.frequencies, score.shown)
        )

    def step_facts(self, hidden: Tensor, initial: Tensor, thresholds: Thresholds) -> StepFacts:
        """Of a response ``hidden (T, S, H)`` to steps; ``initial (H,)`` before it."""
        return trace_facts.step_facts(hidden, initial, thresholds)

    def sine_facts(self, hidden: Tensor, frequencies: Sequence[float], shown: int | None) -> SineFacts:
        """Of a response ``hidden (T, S, H)`` to sines; `shown` the row whose window is kept, None for none."""
        return trace_facts.sine_facts(hidden, frequencies, shown)


Driven = tuple[Tensor, ...]
"""What each gate receives besides its own recurrence, ``(S, H)`` each."""


def _lstm(cells: Cells, driven: Driven, state: State) -> State:
    h, c = state
    i, f, g, o = (z + own * h for z, own in zip(driven, cells.own, strict=True))
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


def _gru(cells: Cells, driven: Driven, state: State) -> State:
    (h,) = state
    assert cells.inner is not None
    r, z = (torch.sigmoid(x + own * h) for x, own in zip(driven[:2], cells.own[:2], strict=True))
    n = torch.tanh(driven[2] + r * (cells.inner + cells.own[2] * h))
    return ((1 - z) * n + z * h,)


def _rnn_tanh(cells: Cells, driven: Driven, state: State) -> State:
    return (torch.tanh(driven[0] + cells.own[0] * state[0]),)


def _rnn_relu(cells: Cells, driven: Driven, state: State) -> State:
    return (torch.relu(driven[0] + cells.own[0] * state[0]),)


_STEPS: dict[str, Callable[[Cells, Driven, State], State]] = {
    "lstm": _lstm,
    "gru": _gru,
    "rnn_tanh": _rnn_tanh,
    "rnn_relu": _rnn_relu,
}

ENGINE: Engine = LoopEngine()
