"""The engine of torch alone: for every device, type and kind, and what the other engines fall back to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from lstm_monitor.kernels import alone, streaming, trace_facts
from lstm_monitor.kernels.cells import Cells
from lstm_monitor.kernels.facts import Engine, Played, Score, SineFacts, StepFacts
from lstm_monitor.kernels.fused import State
from lstm_monitor.reasons import Thresholds


@dataclass(frozen=True)
class TorchEngine:
    """`Engine` by torch's own operations, in the type of the weights."""

    name: str = "torch"

    def cell_trace(self, cells: Cells, signals: Tensor, way: Tensor, state: State) -> tuple[Tensor, State]:
        """Cells alone: ``hidden (T, S, H)`` on ``signals (T, S)`` along the directions ``way (S,)``; the last state."""
        return alone.trace_alone(cells, signals, way, state)

    def cell_facts(self, cells: Cells, score: Score, state: State, initial: Tensor, thresholds: Thresholds) -> Played:
        """Cells alone from ``state``, each part ``(1, H)``, in blocks of cells; ``initial (H,)`` before it."""
        return streaming.cell_facts(cells, score, state, initial, thresholds)

    def step_facts(self, hidden: Tensor, initial: Tensor, thresholds: Thresholds) -> StepFacts:
        """Of a response ``hidden (T, S, H)`` to steps; ``initial (H,)`` before it."""
        return trace_facts.step_facts(hidden, initial, thresholds)

    def sine_facts(self, hidden: Tensor, frequencies: Sequence[float], shown: int | None) -> SineFacts:
        """Of a response ``hidden (T, S, H)`` to sines; `shown` the row whose window is kept, None for none."""
        return trace_facts.sine_facts(hidden, frequencies, shown)


ENGINE: Engine = TorchEngine()
