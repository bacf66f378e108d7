"""Which engine runs cells alone: the fastest one that works here. The user need not know.

The variable ``LSTM_MONITOR_ENGINE`` of the environment forces one, for a bug report. Engines, and the compiled loops
for held-out data, are imported by name at the first call.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any, TypeVar

import torch
from torch import Tensor

from lstm_monitor.core.definitions import Thresholds
from lstm_monitor.core.errors import choose
from lstm_monitor.engines import loop_engine
from lstm_monitor.engines.batch_size import is_out_of_memory
from lstm_monitor.engines.facts import Engine, ResponseFacts, Signals, SineFacts, StepFacts
from lstm_monitor.engines.fused import State
from lstm_monitor.engines.lone_cells import LoneCells
from lstm_monitor.engines.torch_engine import engine

VARIABLE = "LSTM_MONITOR_ENGINE"
NAMES = ("numba", "torch", "triton", "loop")
LOG = logging.getLogger("lstm_monitor")
PLAIN: dict[str, Engine] = {"torch": engine.ENGINE, "loop": loop_engine.ENGINE}
"""Those that run everywhere, in any type."""

_given_up: set[str] = set()
"""The engines that cannot be used in this process."""

R = TypeVar("R")


def forced() -> str | None:
    """The engine that the environment asks for, None for the best.

    Raises:
        ValueError: there is none of that name.
    """
    name = os.environ.get(VARIABLE) or None
    if name is not None:
        choose(VARIABLE, name, NAMES)
    return name


def engine_for(device: torch.device, dtype: torch.dtype) -> Engine:
    """The engine for cells of this type on this device.

    Raises:
        ValueError: the environment asks for one that does not exist, or that cannot run such cells.
    """
    fast = {"cpu": "numba", "cuda": "triton"}.get(device.type, "torch") if dtype == torch.float32 else "torch"
    name = forced() or fast
    if name in PLAIN:
        return PLAIN[name]
    if name != fast and not (name == "triton" and dtype == torch.float32 and os.environ.get("TRITON_INTERPRET")):
        raise ValueError(
            f"{VARIABLE}={name!r} cannot run cells of {dtype} on {device}: numba runs torch.float32 on cpu, triton "
            f"torch.float32 on cuda; allowed here: {', '.join(dict.fromkeys((fast, *PLAIN)))}, or nothing for the best"
        )
    return PLAIN["torch"] if name in _given_up or not _found(name) else Guarded(name)


@dataclass
class Guarded:
    """An engine that gives way to torch's once and for all when it fails, with one message and the same numbers."""

    name: str

    def cell_trace(self, cells: LoneCells, signals: Tensor, way: Tensor, state: State) -> tuple[Tensor, State]:
        """As `Engine.cell_trace`."""
        return self._tried(lambda engine: engine.cell_trace(cells, signals, way, state))

    def cell_facts(
        self, cells: LoneCells, signals: Signals, state: State, initial: Tensor, thresholds: Thresholds
    ) -> ResponseFacts:
        """As `Engine.cell_facts`."""
        return self._tried(lambda engine: engine.cell_facts(cells, signals, state, initial, thresholds))

    def step_facts(self, hidden: Tensor, initial: Tensor, thresholds: Thresholds) -> StepFacts:
        """As `Engine.step_facts`."""
        return self._tried(lambda engine: engine.step_facts(hidden, initial, thresholds))

    def sine_facts(self, hidden: Tensor, frequencies: Sequence[float], main: int | None) -> SineFacts:
        """As `Engine.sine_facts`."""
        return self._tried(lambda engine: engine.sine_facts(hidden, frequencies, main))

    def _tried(self, call: Callable[[Engine], R]) -> R:
        if self.name in _given_up:
            return call(PLAIN["torch"])
        try:
            return call(_loaded(self.name))
        except Exception as error:  # whatever the environment does to it
            reason = None if is_out_of_memory(error) else words_of(error)
        instead = call(PLAIN["torch"])  # raises where the arguments are at fault; what failed holds no memory any more
        if reason is not None:
            give_up(self.name, reason)
        return instead


def give_up(name: str, reason: str) -> None:
    """Use this engine no more in this process; said once."""
    if name not in _given_up:
        _given_up.add(name)
        LOG.warning("lstm_monitor computes with torch alone from now on: %s failed: %.300s", name, reason)


def words_of(error: Exception) -> str:
    """What went wrong, in a line."""
    return f"{type(error).__name__}: {error}".splitlines()[0]


def _loaded(name: str) -> Engine:
    engine: Engine = import_module(f"lstm_monitor.engines.{name}_engine.engine").ENGINE
    return engine


@cache
def _found(name: str) -> bool:
    """Whether the package is installed; said once where it is not."""
    if find_spec(name) is not None:
        return True
    extra = ': pip install "lstm-monitor[fast]" makes checks on CPU faster' if name == "numba" else ""
    LOG.log(logging.WARNING if forced() == name else logging.INFO, "lstm_monitor runs without %s%s", name, extra)
    return False


def loops_for(*tensors: Tensor) -> Any:
    """The module `numba_engine.held_out` for float32 on the CPU, where the engine there is numba's; else None."""
    if any(tensor.dtype != torch.float32 or tensor.device.type != "cpu" for tensor in tensors):
        return None
    return _loops() if engine_for(tensors[0].device, torch.float32).name == "numba" else None


@cache
def _loops() -> Any:
    """The module, or None with one message where numba cannot compile it."""
    try:
        return import_module("lstm_monitor.engines.numba_engine.held_out")
    except Exception as error:  # whatever is wrong with numba here
        give_up("numba", words_of(error))
        return None
