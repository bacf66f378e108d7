"""The engine of torch alone: cells without their responses, block after block, in memory near the core.

Facts of steps need no trace: the cells run chunk after chunk of steps through one small buffer. Exact all the same: the
state at the start of each chunk is kept, and when it is known what to look for, each cell runs again over the one chunk
in which it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from lstm_monitor.core.definitions import Thresholds
from lstm_monitor.engines import trace_facts
from lstm_monitor.engines.facts import Engine, ResponseFacts, Signals, SineFacts, StepFacts, joined_facts, window_of
from lstm_monitor.engines.fused import State
from lstm_monitor.engines.lone_cells import LoneCells, cells_in
from lstm_monitor.engines.torch_engine.scan import Driven, is_still, scan, trace_alone
from lstm_monitor.engines.trace_facts import (
    blocks_reaching,
    goals_of,
    late_sine_facts,
    places,
    sine_facts,
    step_facts,
    step_record,
    tail_of,
    times_of,
)


@dataclass(frozen=True)
class TorchEngine:
    """`Engine` by torch's own operations, in the type of the weights."""

    name: str = "torch"

    def cell_trace(self, cells: LoneCells, signals: Tensor, way: Tensor, state: State) -> tuple[Tensor, State]:
        """Cells alone: ``hidden (T, S, H)`` on ``signals (T, S)`` along the directions ``way (S,)``; the last state."""
        return trace_alone(cells, signals, way, state)

    def cell_facts(
        self, cells: LoneCells, signals: Signals, state: State, initial: Tensor, thresholds: Thresholds
    ) -> ResponseFacts:
        """Cells alone from ``state``, each part ``(1, H)``, in blocks of cells; ``initial (H,)`` before it."""
        return cell_facts(cells, signals, state, initial, thresholds)

    def step_facts(self, hidden: Tensor, initial: Tensor, thresholds: Thresholds) -> StepFacts:
        """Of a response ``hidden (T, S, H)`` to steps; ``initial (H,)`` before it."""
        return trace_facts.step_facts(hidden, initial, thresholds)

    def sine_facts(self, hidden: Tensor, frequencies: Sequence[float], main: int | None) -> SineFacts:
        """Of a response ``hidden (T, S, H)`` to sines; `main` the row whose window is kept, None for none."""
        return trace_facts.sine_facts(hidden, frequencies, main)


ENGINE: Engine = TorchEngine()

SMALL = 12 << 20
"""Bytes of a trace that is rather kept whole: it is near the core anyway."""
KEPT = {"cpu": 8 << 20, "cuda": 64 << 20}
"""Bytes for what is kept of one block of cells."""
LANES = {"cpu": 8192, "cuda": 1 << 19}
"""Stimuli times cells of one block: a step is then no small operation, and its gates stay in the second cache."""
EARLY = 16
"""Rows of the buffer for the first half of the sines, which nothing reads."""


def cell_facts(
    cells: LoneCells, signals: Signals, state: State, initial: Tensor, thresholds: Thresholds
) -> ResponseFacts:
    """What metrics need of cells alone, from ``state``, each part ``(1, H)``; ``initial (H,)`` before it."""
    if max(signals.steps.numel(), signals.sines.numel()) * cells.own[0].nbytes > SMALL:
        return ResponseFacts(_steps(cells, signals, state, initial, thresholds), _sines(cells, signals, state))
    steps, _ = trace_alone(cells, signals.steps, signals.step_way, state)
    facts = step_facts(steps, initial, thresholds)
    del steps
    sines, _ = trace_alone(cells, signals.sines, signals.sine_way, state)
    return ResponseFacts(facts, sine_facts(sines, signals.frequencies, signals.main))


def _steps(cells: LoneCells, signals: Signals, state: State, initial: Tensor, thresholds: Thresholds) -> StepFacts:
    still, found = is_still(signals.steps), []
    rows, count = sum(plan_of(len(signals.steps), thresholds).rows(len(state))), signals.steps.shape[1]
    parts = _blocks(cells, rows, count)
    room = _room(cells, rows, count, parts[0])
    for part in parts:
        driven, start = Driven(cells_in(cells, part), signals.step_way, still), tuple(s[:, part] for s in state)
        here = room[..., : driven.cells.hidden_size]
        found.append(chunked_step_facts(driven, signals.steps, start, initial[part], thresholds, here))
    return joined_facts(found)


def _sines(cells: LoneCells, signals: Signals, state: State) -> SineFacts:
    (steps, count), frequencies, main = signals.sines.shape, signals.frequencies, signals.main
    rows = EARLY + steps - steps // 2
    parts = _blocks(cells, rows, count)
    room, whole = _room(cells, rows, count, parts[0]), _unfilled(cells, steps, frequencies, main)
    for part in parts:
        driven, start = Driven(cells_in(cells, part), signals.sine_way, still=False), tuple(s[:, part] for s in state)
        late = _late(driven, signals.sines, start, room[..., : driven.cells.hidden_size])
        _fill(whole, part, late_sine_facts(late, steps, frequencies, main))
    return whole


def _unfilled(cells: LoneCells, steps: int, frequencies: tuple[float, ...], main: int) -> SineFacts:
    """Room for the facts of all cells, which are too large to be held twice."""
    windows, size = [window_of(steps, frequency) for frequency in frequencies], cells.hidden_size
    folded = tuple(cells.own.new_empty(size, window.period) for window in windows)
    std, window = cells.own.new_empty(len(frequencies), size), cells.own.new_empty(size, windows[main].size)
    return SineFacts(steps, frequencies, folded, std, window)


def _fill(whole: SineFacts, part: slice, found: SineFacts) -> None:
    assert whole.window is not None
    assert found.window is not None
    whole.std[:, part], whole.window[part] = found.std, found.window
    for all_cells, cells in zip(whole.folded, found.folded, strict=True):
        all_cells[part] = cells


def _blocks(cells: LoneCells, rows: int, count: int) -> list[slice]:
    """Blocks of cells of about one size, of which `rows` rows of `count` stimuli fit into memory."""
    size, device = cells.hidden_size, cells.own.device.type
    kept, lanes = (limits.get(device, limits["cpu"]) for limits in (KEPT, LANES))
    most = max(1, min(kept // (rows * cells.own.element_size()), lanes) // count)
    wide = -(-size // -(-size // most))
    return [slice(start, min(start + wide, size)) for start in range(0, size, wide)]


def _room(cells: LoneCells, rows: int, count: int, part: slice) -> Tensor:
    """Memory ``(rows, count, H)`` that all blocks share; the last one may need less."""
    return cells.own.new_empty(rows, count, part.stop - part.start)


def _late(driven: Driven, signals: Tensor, state: State, room: Tensor) -> Tensor:
    """The responses ``(T - T // 2, S, H)`` after the first half; the first half is only run."""
    half, early, late = len(signals) // 2, room[:EARLY], room[EARLY:]
    state = tuple(part.expand_as(early[0]) for part in state)
    for part in signals[:half].split(EARLY):
        state = scan(driven, part, state, early[: len(part)])
    scan(driven, signals[half:], state, late)
    return late


@dataclass(frozen=True)
class Plan:
    """Chunk k is the steps ``bounds[k]`` to ``bounds[k + 1]``; neither of the last two tails shares one with others."""

    bounds: tuple[int, ...]
    tail: int

    @property
    def lengths(self) -> tuple[int, ...]:
        """Steps a chunk."""
        return tuple(end - start for start, end in pairwise(self.bounds))

    def first_of(self, tails: int) -> int:
        """The number of the first chunk in the last tails."""
        return next(k for k, start in enumerate(self.bounds) if start >= self.bounds[-1] - tails * self.tail)

    def rows(self, parts: int) -> list[int]:
        """Rows ``(S, H)`` to keep: largest and smallest samples and the parts of the state a chunk, and one chunk."""
        return [len(self.bounds) - 1] * (2 + parts) + [max(self.lengths)]


def plan_of(steps: int, thresholds: Thresholds) -> Plan:
    """Longer chunks run again for longer, shorter ones keep more."""
    tail, most = tail_of(steps, thresholds), max(16, steps // 32)
    cuts = [0, *(cut for cut in (steps - 2 * tail, steps - tail) if cut > 0), steps]
    return Plan((*(k for a, b in pairwise(cuts) for k in range(a, b, most)), steps), tail)


@dataclass(frozen=True, eq=False)
class Kept:
    """Of each chunk its ``tops`` and ``bottoms (K, S, H)`` and first state; ``hidden (n, S, H)`` is one chunk's."""

    tops: Tensor
    bottoms: Tensor
    starts: State
    hidden: Tensor


def chunked_step_facts(
    driven: Driven, signals: Tensor, state: State, initial: Tensor, thresholds: Thresholds, room: Tensor
) -> StepFacts:
    """What metrics need of the responses to ``signals (T, S)`` from ``state``, each part ``(1, H)``.

    ``initial (H,)`` before it. ``room (rows, S, H)``: memory for as many rows as the plan's.
    """
    plan, steps = plan_of(len(signals), thresholds), len(signals)
    tops, bottoms, *starts, hidden = room.split(plan.rows(len(state)))
    kept = Kept(tops, bottoms, tuple(starts), hidden)
    last, sums = _simulate(plan, kept, driven, signals, state)
    top, bottom, y0, end = tops.amax(0), bottoms.amin(0), initial.expand_as(last), plan.first_of(1)
    final = sums[0] / min(plan.tail, steps)
    before = sums[1] / min(plan.tail, max(steps - plan.tail, 0))  # 0 / 0 where there are no such samples
    goals = goals_of(y0, final, top, bottom, thresholds)
    chunk = blocks_reaching(goals, tops, bottoms)
    found = _again(plan, kept, driven, signals, chunk.clamp(0, len(tops) - 1), goals)
    times = times_of(chunk, len(tops), found, steps)
    ends = [last, tops[end:].amax(0), bottoms[end:].amin(0)]
    return step_record(steps, [y0, top, bottom, final, before, *ends, *times])


def _simulate(plan: Plan, kept: Kept, driven: Driven, signals: Tensor, state: State) -> tuple[Tensor, Tensor]:
    """Fill `kept`; the last sample ``(S, H)`` and the sums ``(2, S, H)`` over the last tail and the one before."""
    sums = kept.tops.new_zeros(2, *kept.tops.shape[1:])
    final, before = plan.first_of(1), plan.first_of(2)
    for k, (start, end) in enumerate(pairwise(plan.bounds)):
        for starts, part in zip(kept.starts, state, strict=True):
            starts[k] = part
        hidden = kept.hidden[: end - start]
        state = scan(driven, signals[start:end], tuple(starts[k] for starts in kept.starts), hidden)
        torch.amax(hidden, 0, out=kept.tops[k])
        torch.amin(hidden, 0, out=kept.bottoms[k])
        if k >= before:
            sums[0 if k >= final else 1] += hidden.sum(0)
    return state[0], sums


def _again(
    plan: Plan, kept: Kept, driven: Driven, signals: Tensor, chunk: Tensor, goals: tuple[Tensor, Tensor]
) -> Tensor:
    """The index ``(4, S, H)`` of each goal in its own ``chunk (4, S, H)``: each cell runs over it once more.

    Rounding may differ from the first run's in the last digit: where no sample reaches its goal, the nearest is it.
    """
    begin, length = (torch.tensor(n, device=chunk.device)[chunk] for n in (plan.bounds[:-1], plan.lengths))
    hidden = kept.hidden
    offsets = torch.arange(len(hidden), device=chunk.device).reshape(-1, 1, 1)
    reached = torch.empty(len(hidden), *chunk.shape, dtype=torch.bool, device=chunk.device)
    for goal, (low, high) in enumerate(zip(*goals, strict=True)):
        state = tuple(starts.gather(0, chunk[None, goal])[0] for starts in kept.starts)
        scan(driven, _moved(driven, signals, begin[goal], offsets), state, hidden)
        over = hidden - high
        beyond = torch.maximum(over, torch.sub(low, hidden, out=hidden), out=over)
        beyond.masked_fill_(offsets >= length[goal], -torch.inf)
        torch.ge(beyond, beyond.amax(0).clamp_(max=0), out=reached[:, goal])
    return begin + places(reached)


def _moved(driven: Driven, signals: Tensor, begin: Tensor, offsets: Tensor) -> Tensor:
    """The samples ``(n, S, H)`` of ``signals (T, S)`` from ``begin (S, H)`` on; any ``(n, S)`` where nothing moves."""
    if driven.still:
        return signals[: len(offsets)]
    own = torch.arange(signals.shape[1], device=begin.device)[:, None]
    return signals[(begin + offsets).clamp(max=len(signals) - 1), own]
