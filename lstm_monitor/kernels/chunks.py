"""Facts of steps without a trace: the cells run chunk after chunk of steps through one small buffer.

Exact all the same: the state at the start of each chunk is kept, and when it is known what to look for, each cell runs
again over the one chunk in which it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from lstm_monitor.kernels.elementwise import Driven, scan
from lstm_monitor.kernels.facts import StepFacts
from lstm_monitor.kernels.fused import State
from lstm_monitor.kernels.trace_facts import blocks_reaching, goals_of, places, step_record, tail_of, times_of
from lstm_monitor.reasons import Thresholds


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
    last, sums = _play(plan, kept, driven, signals, state)
    top, bottom, y0, end = tops.amax(0), bottoms.amin(0), initial.expand_as(last), plan.first_of(1)
    final = sums[0] / min(plan.tail, steps)
    before = sums[1] / min(plan.tail, max(steps - plan.tail, 0))  # 0 / 0 where there are no such samples
    goals = goals_of(y0, final, top, bottom, thresholds)
    chunk = blocks_reaching(goals, tops, bottoms)
    found = _again(plan, kept, driven, signals, chunk.clamp(0, len(tops) - 1), goals)
    times = times_of(chunk, len(tops), found, steps)
    ends = [last, tops[end:].amax(0), bottoms[end:].amin(0)]
    return step_record(steps, [y0, top, bottom, final, before, *ends, *times])


def _play(plan: Plan, kept: Kept, driven: Driven, signals: Tensor, state: State) -> tuple[Tensor, Tensor]:
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
