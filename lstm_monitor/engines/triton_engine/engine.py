"""The engine for cells alone in float32 on CUDA: one kernel for the steps, one for the sines."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from lstm_monitor.core.definitions import Thresholds
from lstm_monitor.engines.facts import Engine, ResponseFacts, Signals, SineFacts, StepFacts, Window, window_of
from lstm_monitor.engines.fused import State
from lstm_monitor.engines.lone_cells import LoneCells
from lstm_monitor.engines.torch_engine.engine import TorchEngine

WARPS = 2
BLOCK = 32 * WARPS
"""A thread a cell."""


@dataclass(frozen=True)
class TritonEngine(TorchEngine):
    """Cells alone by kernels of Triton's; what is asked of a trace, by torch.

    Triton's interpreter (``TRITON_INTERPRET=1`` from the start) runs them without a GPU, slowly.
    """

    name: str = "triton"

    def cell_trace(self, cells: LoneCells, signals: Tensor, way: Tensor, state: State) -> tuple[Tensor, State]:
        """As `Engine.cell_trace`; a ``state`` of one row is that before every signal.

        Raises:
            TypeError: the cells are not float32.
        """
        steps, count = signals.shape
        hidden = cells.own.new_empty(steps, count, cells.hidden_size)
        last = tuple(cells.own.new_empty(count, cells.hidden_size) for _ in state)
        row = cells.hidden_size if len(state[0]) == count else 0
        _launch("trace", cells, signals, way, state, (row, hidden, last[0], last[-1], steps))
        return hidden, last

    def cell_facts(
        self, cells: LoneCells, signals: Signals, state: State, initial: Tensor, thresholds: Thresholds
    ) -> ResponseFacts:
        """As `Engine.cell_facts`.

        Raises:
            TypeError: the cells are not float32.
        """
        return ResponseFacts(_steps(cells, signals, state, initial, thresholds), _sines(cells, signals, state))


ENGINE: Engine = TritonEngine()


def _steps(cells: LoneCells, signals: Signals, state: State, initial: Tensor, thresholds: Thresholds) -> StepFacts:
    steps, count = signals.steps.shape
    facts = cells.own.new_empty(12, count, cells.hidden_size)
    tail = max(thresholds.tail_least, steps // thresholds.tail_share)
    tail_from, before_from = max(0, steps - tail), max(0, steps - 2 * tail)
    shares = [1 / samples if samples else float("nan") for samples in (tail_from - before_from, steps - tail_from)]
    limits = [float(limit) for limit in (thresholds.silent, thresholds.washout, thresholds.band)]
    given = (initial.contiguous(), facts, steps, before_from, tail_from, *shares, *limits)
    _launch("steps_alone", cells, signals.steps, signals.step_way, state, given)
    return StepFacts(steps, *facts.unbind())


def _sines(cells: LoneCells, signals: Signals, state: State) -> SineFacts:
    steps, count = signals.sines.shape
    size, windows = cells.hidden_size, [window_of(steps, frequency) for frequency in signals.frequencies]
    folded = cells.own.new_zeros(sum(window.period for window in windows), size)
    std, window = cells.own.new_empty(count, size), cells.own.new_empty(windows[signals.main].size, size)
    table = _table(tuple(windows), cells.own.device)
    given = (table, folded, std, window, signals.main, steps // 2)
    _launch("sines_alone", cells, signals.sines, signals.sine_way, state, given)
    parts = tuple(part.T for part in folded.split([window.period for window in windows]))
    return SineFacts(steps, signals.frequencies, parts, std, window.T)


@lru_cache(maxsize=64)
def _table(windows: tuple[Window, ...], device: torch.device) -> Tensor:
    """Of each window its samples, those of its mean period, and of the mean periods before it: ``(3, S)``."""
    periods = [window.period for window in windows]
    rows = [[window.size for window in windows], periods, list(accumulate(periods, initial=0))[:-1]]
    return torch.tensor(rows, dtype=torch.int32).to(device)


def _launch(kernel: str, cells: LoneCells, signals: Tensor, way: Tensor, state: State, given: tuple[Any, ...]) -> None:
    """Run a kernel of `lone_cells.py` over all cells and signals; what it is `given` comes between those two."""
    if cells.own.dtype != torch.float32:
        raise TypeError(f"engine 'triton' computes in float32; these cells are {cells.own.dtype}: use engine 'torch'")
    from lstm_monitor.engines.triton_engine import lone_cells

    own, bias, drive = cells.own.contiguous(), cells.bias.contiguous(), cells.drive.contiguous()
    inner = own if cells.inner is None else cells.inner.contiguous()
    parts = [part.contiguous() for part in state]
    size, count = cells.hidden_size, signals.shape[1]
    grid = ((size + BLOCK - 1) // BLOCK, count)
    with _on(own):
        getattr(lone_cells, kernel)[grid](
            *(own, bias, inner, drive, way.to(own.device), signals.contiguous(), parts[0], parts[-1]),
            *(*given, count, size, cells.kind, BLOCK),
            num_warps=WARPS,
            enable_fp_fusion=False,
        )


def _on(tensor: Tensor) -> AbstractContextManager[Any]:
    """Triton launches on the current device."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()
