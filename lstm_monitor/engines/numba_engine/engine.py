"""Cells alone, and facts, by compiled loops on the CPU in float32; numba is imported at the first call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import accumulate, pairwise
from math import prod
from threading import main_thread
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lstm_monitor.core.definitions import Thresholds
from lstm_monitor.engines.facts import ResponseFacts, Signals, SineFacts, StepFacts, window_of
from lstm_monitor.engines.fused import State
from lstm_monitor.engines.lone_cells import LoneCells
from lstm_monitor.engines.numba_engine.layout import LANES, Shape, Source, as_array, of_cells, of_response

Job = Callable[[], None]

MOST_THREADS = 4
WORTH_A_THREAD = 500_000  # samples
_STEP_FACTS = (  # in the order of facts.py
    "top", "bottom", "final", "before", "last", "tail_top", "tail_bottom", "peak_at", "rise_from", "rise_to", "outside"
)  # fmt: skip


class NumbaEngine:
    """Blocks of 64 cells in the core's cache, in at most 4 threads that end with the call; see `Engine`.

    Everything must be float32 on the CPU, or a TypeError says so. The first call compiles, or reads numba's cache.
    """

    name = "numba"

    def cell_trace(self, cells: LoneCells, signals: Tensor, way: Tensor, state: State) -> tuple[Tensor, State]:
        """As `Engine.cell_trace`."""
        ((source, shape),) = of_cells(cells, state, (signals, way))
        hidden, cell = np.empty(shape, np.float32), np.empty(shape[1:], np.float32)
        _run([_Simulation("simulate_trace", shape, source, (hidden, cell))])
        last = (torch.from_numpy(hidden[-1].copy()), torch.from_numpy(cell))
        return torch.from_numpy(hidden), last[: len(state)]

    def cell_facts(
        self, cells: LoneCells, signals: Signals, state: State, initial: Tensor, thresholds: Thresholds
    ) -> ResponseFacts:
        """As `Engine.cell_facts`."""
        of_steps, of_sines = of_cells(
            cells, state, (signals.steps, signals.step_way), (signals.sines, signals.sine_way)
        )
        steps = _Steps(*of_steps, initial, thresholds)
        sines = _Sines(*of_sines, signals.frequencies, signals.main)
        _run([steps.simulation, sines.simulation])
        return ResponseFacts(steps.facts(), sines.facts())

    def step_facts(self, hidden: Tensor, initial: Tensor, thresholds: Thresholds) -> StepFacts:
        """As `Engine.step_facts`."""
        steps = _Steps(*of_response(hidden), initial, thresholds)
        _run([steps.simulation])
        return steps.facts()

    def sine_facts(self, hidden: Tensor, frequencies: Sequence[float], main: int | None) -> SineFacts:
        """As `Engine.sine_facts`."""
        sines = _Sines(*of_response(hidden), frequencies, main)
        _run([sines.simulation])
        return sines.facts()


ENGINE = NumbaEngine()


class _Simulation:
    """A compiled entry with its arguments; its items, blocks of cells times stimuli, may be shared among threads."""

    def __init__(self, entry: str, shape: Shape, source: Source, rest: tuple[Any, ...]) -> None:
        self.entry, self.source, self.rest = entry, source, rest
        self.items = shape[1] * -(-shape[2] // LANES)
        self.samples = prod(shape)

    def jobs(self, count: int) -> list[Job]:
        from lstm_monitor.engines.numba_engine import simulate

        count = min(count, self.items)
        bounds = np.array([(self.items * k // count, self.items * (k + 1) // count) for k in range(count)], np.int64)
        entry = getattr(simulate, self.entry)
        return [partial(entry, self.source, ends, *self.rest) for ends in bounds]


def _run(simulations: list[_Simulation]) -> None:
    """All of them, in threads that end before this returns; in this one if there is little to do."""
    threads = min(
        torch.get_num_threads(),
        MOST_THREADS,
        1 + sum(simulation.samples for simulation in simulations) // WORTH_A_THREAD,
    )
    jobs = [job for simulation in simulations for job in simulation.jobs(threads)]
    if threads == 1 or not main_thread().is_alive():  # an interpreter that ends starts no thread any more
        for job in jobs:
            job()
    else:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(lambda job: job(), jobs))


class _Steps:
    """Steps to be simulated, then their facts."""

    def __init__(self, source: Source, shape: Shape, initial: Tensor, thresholds: Thresholds) -> None:
        self.steps, self.initial = shape[0], initial.expand(shape[1:])
        self.found = np.empty((len(_STEP_FACTS), *shape[1:]), np.float32)
        limits = np.array([thresholds.silent, thresholds.washout, thresholds.band], np.float32)
        tail = max(thresholds.tail_least, shape[0] // thresholds.tail_share)
        start = np.ascontiguousarray(as_array(initial, "initial"))
        self.simulation = _Simulation("simulate_steps", shape, source, (shape[0], start, limits, tail, self.found))

    def facts(self) -> StepFacts:
        found = {name: torch.from_numpy(row) for name, row in zip(_STEP_FACTS, self.found, strict=True)}
        return StepFacts(self.steps, self.initial, **found)


class _Sines:
    """Sines to be simulated, then their facts."""

    def __init__(self, source: Source, shape: Shape, frequencies: Sequence[float], main: int | None) -> None:
        self.shape, self.frequencies = shape, tuple(frequencies)
        windows = [window_of(shape[0], frequency) for frequency in frequencies]
        self.bounds = list(accumulate((w.period * shape[2] for w in windows), initial=0))
        self.folded, self.std = np.empty(self.bounds[-1], np.float32), np.empty(shape[1:], np.float32)
        kept = [w.size for row, w in enumerate(windows) if row == main]
        self.window = np.empty((shape[2], kept[0]), np.float32) if kept else None
        rows = [(w.start, w.start + w.size, w.period, self.bounds[row], row == main) for row, w in enumerate(windows)]
        flat = np.empty(0, np.float32) if self.window is None else self.window.reshape(-1)
        table = np.array(rows, np.int64).reshape(-1, 5)
        self.simulation = _Simulation("simulate_sines", shape, source, (shape[0], table, self.folded, self.std, flat))

    def facts(self) -> SineFacts:
        pieces = [self.folded[a:b].reshape(self.shape[2], -1) for a, b in pairwise(self.bounds)]
        folded = tuple(torch.from_numpy(piece) for piece in pieces)
        window = None if self.window is None else torch.from_numpy(self.window)
        return SineFacts(self.shape[0], self.frequencies, folded, torch.from_numpy(self.std), window)
