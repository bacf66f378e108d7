"""What metrics need of responses, found while they are simulated, so that no response has to be kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from math import floor
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from lstm_monitor.core.definitions import Thresholds
from lstm_monitor.engines.fused import State
from lstm_monitor.engines.lone_cells import LoneCells


@dataclass(frozen=True, eq=False)
class StepFacts:
    """Of the responses ``y`` of H cells to S steps over `steps` samples, each ``(S, H)``; NaN where y is not finite.

    With ``L = max(tail_least, steps // tail_share)``: ``final`` is the mean of the last L samples, ``before`` that of
    the L samples before them (NaN where there are none), ``tail_top`` and ``tail_bottom`` the extremes of the last L,
    ``last`` the last sample. Times are indices as floats: ``peak_at`` of the first sample that lies farthest from
    ``initial``; ``rise_from`` and ``rise_to`` of the first at 10% and 90% of the way from initial to final, `steps` if
    there is none; ``outside`` of the last sample outside the settling band around final, -1 if there is none.
    """

    steps: int
    initial: Tensor
    top: Tensor
    bottom: Tensor
    final: Tensor
    before: Tensor
    last: Tensor
    tail_top: Tensor
    tail_bottom: Tensor
    peak_at: Tensor
    rise_from: Tensor
    rise_to: Tensor
    outside: Tensor


@dataclass(frozen=True, eq=False)
class SineFacts:
    """Of the responses of H cells to S sines over `steps` samples, each over the whole periods after the first half.

    ``folded``: S tensors ``(H, period)``, the mean period, or the whole window ``(H, n)`` where a period is no whole
    number of steps. ``std (S, H)``: over the window, its mean taken out first. ``window (H, n)``: the samples
    themselves of the sine number `main`; None where that one is not among these.
    """

    steps: int
    frequencies: tuple[float, ...]
    folded: tuple[Tensor, ...]
    std: Tensor
    window: Tensor | None


@dataclass(frozen=True, eq=False)
class ResponseFacts:
    """What was found of the responses to the steps and to the sines of a probe."""

    steps: StepFacts
    sines: SineFacts


@dataclass(frozen=True, eq=False)
class Signals:
    """What cells are given: ``steps (T1, S1)`` and ``sines (T2, S2)``, each along one of D directions.

    ``step_way (S1,)`` and ``sine_way (S2,)``: the number of each one's direction. ``frequencies``: of the sines, cycles
    per step. ``main``: the sine that stands for a cell in tables, whose samples are kept.
    """

    steps: Tensor
    step_way: Tensor
    sines: Tensor
    sine_way: Tensor
    frequencies: tuple[float, ...]
    main: int


@dataclass(frozen=True)
class Window:
    """Where a sine is measured: `size` samples from `start` on; `period` of them make one period, or all of them do."""

    start: int
    size: int
    period: int


def window_of(steps: int, frequency: float, transient: int | None = None) -> Window:
    """The largest whole number of periods after a `transient`, by default the first half of `steps` samples."""
    start = steps // 2 if transient is None else transient
    periods = floor((steps - start) * frequency + 1e-9)
    size = min(round(periods / frequency), steps - start)
    period = round(1 / frequency)
    return Window(start, size, period if abs(period * frequency - 1) <= 1e-9 else size)


Facts = TypeVar("Facts", StepFacts, SineFacts)


class Engine(Protocol):
    """What every engine does; all are held to the plain loop in `loop_engine.py`."""

    @property
    def name(self) -> str:
        """As in ``LSTM_MONITOR_ENGINE``."""

    def cell_trace(self, cells: LoneCells, signals: Tensor, way: Tensor, state: State) -> tuple[Tensor, State]:
        """Cells alone from ``state``, each part ``(1, H)``: ``hidden (T, S, H)`` on ``signals (T, S)``; the last state.

        ``way (S,)``: the direction of each signal.
        """

    def cell_facts(
        self, cells: LoneCells, signals: Signals, state: State, initial: Tensor, thresholds: Thresholds
    ) -> ResponseFacts:
        """Cells alone from ``state``, each part ``(1, H)``, without their responses; ``initial (H,)`` before it."""

    def step_facts(self, hidden: Tensor, initial: Tensor, thresholds: Thresholds) -> StepFacts:
        """Of a response ``hidden (T, S, H)`` to steps; ``initial (H,)`` before it."""

    def sine_facts(self, hidden: Tensor, frequencies: Sequence[float], main: int | None) -> SineFacts:
        """Of a response ``hidden (T, S, H)`` to sines; `main` the row whose window is kept, None for none."""


def joined(parts: Sequence[ResponseFacts]) -> ResponseFacts:
    """The cells of several layers, or parts of one, as those of one: all were given the same signals."""
    return ResponseFacts(joined_facts([p.steps for p in parts]), joined_facts([p.sines for p in parts]))


def stacked_steps(parts: Sequence[StepFacts]) -> StepFacts:
    """The responses of the same cells to more steps."""
    found: StepFacts = _together(parts, torch.cat, torch.cat)
    return found


def stacked_sines(parts: Sequence[SineFacts]) -> SineFacts:
    """The responses of the same cells to more sines."""
    frequencies = tuple(frequency for part in parts for frequency in part.frequencies)
    folded = tuple(period for part in parts for period in part.folded)
    window = next((part.window for part in parts if part.window is not None), None)
    return SineFacts(parts[0].steps, frequencies, folded, torch.cat([part.std for part in parts]), window)


def joined_facts(parts: Sequence[Facts]) -> Facts:
    """As `joined`, of the facts of one kind of stimulus."""
    if len(parts) == 1:
        return parts[0]
    found: Facts = _together(parts, lambda tensors: torch.cat(tensors, dim=-1), lambda tensors: torch.cat(tensors))
    return found


def _together(
    parts: Sequence[Any], join: Callable[[list[Tensor]], Tensor], join_rows: Callable[[list[Tensor]], Tensor]
) -> Any:
    """One record of several: ``(S, H)`` by `join`, ``(H, n)`` by `join_rows`; what is no tensor is the first's."""
    values: dict[str, Any] = {}
    for field in fields(parts[0]):
        own = [getattr(part, field.name) for part in parts]
        if field.name == "folded":
            values["folded"] = tuple(join_rows(list(rows)) for rows in zip(*own, strict=True))
        elif field.name == "window":
            values["window"] = None if own[0] is None else join_rows(own)
        else:
            values[field.name] = join(own) if isinstance(own[0], Tensor) else own[0]
    return type(parts[0])(**values)
