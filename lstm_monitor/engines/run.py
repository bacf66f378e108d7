"""The engines behind one name: torch's kinds by the fused ops, registered cells step by step."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from lstm_monitor.core.terms import Mode
from lstm_monitor.core.weights import CellWeights, LayerWeights
from lstm_monitor.engines import fused
from lstm_monitor.engines.choice import forced
from lstm_monitor.engines.fused import State, run_fused
from lstm_monitor.engines.lone_cells import decouple
from lstm_monitor.engines.loop_engine import run_loop
from lstm_monitor.engines.registered import run_cell, start_state
from lstm_monitor.engines.torch_engine.scan import run_alone


def zero_state(weights: LayerWeights | CellWeights, count: int) -> State:
    """The state before the first step of `count` sequences: zeros, or what a registered cell starts with."""
    return start_state(weights, count) if isinstance(weights, CellWeights) else fused.zero_state(weights, count)


def in_mode(weights: LayerWeights | CellWeights, mode: Mode, hidden_mean: Tensor) -> LayerWeights | CellWeights:
    """The layer as trained, or with every cell alone while the others stand still at their mean."""
    if mode == "coupled":
        return weights
    if isinstance(weights, CellWeights):
        return replace(weights, alone=True)
    return decouple(weights, hidden_mean)


def run(weights: LayerWeights | CellWeights, mode: Mode, inputs: Tensor, state: State) -> tuple[Tensor, State]:
    """Run ``inputs (T, N, I)`` from ``state``; returns ``hidden (T, N, H)`` and the state at the end."""
    if isinstance(weights, CellWeights):
        return run_cell(weights, inputs, state)
    if forced() == "loop" and mode == "coupled":
        return run_loop(weights, inputs, state)[:2]
    return (run_fused if mode == "coupled" else run_alone)(weights, inputs, state)
