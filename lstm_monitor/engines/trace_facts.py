"""What metrics need of a trace ``hidden (T, S, H)``, as the engines lay it out: time first.

Block extremes read the trace once at memory speed; the searches along time follow in one gathered block a cell.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lstm_monitor.core.definitions import Thresholds
from lstm_monitor.engines.facts import SineFacts, StepFacts, joined_facts, window_of

LANES = {"cpu": 1 << 15, "cuda": 1 << 20}
"""Stimuli times cells that are searched at a time, so that the search takes little memory."""


def step_facts(hidden: Tensor, initial: Tensor, thresholds: Thresholds) -> StepFacts:
    """Of the responses ``hidden (T, S, H)`` to steps, in the trace's own type; ``initial (H,)`` before them."""
    _, count, size = hidden.shape
    wide = max(1, LANES.get(hidden.device.type, LANES["cpu"]) // count)
    parts = [slice(start, start + wide) for start in range(0, max(size, 1), wide)]
    return joined_facts([_step_facts(hidden[..., part], initial[part], thresholds) for part in parts])


def _step_facts(hidden: Tensor, initial: Tensor, thresholds: Thresholds) -> StepFacts:
    steps, tail = len(hidden), tail_of(len(hidden), thresholds)
    size = _block(steps)
    tops, bottoms = _extremes(hidden, size)
    top, bottom, end = tops.amax(0), bottoms.amin(0), hidden[-tail:]
    y0, final = initial.expand_as(top), end.mean(0)
    goals = goals_of(y0, final, top, bottom, thresholds)
    block = blocks_reaching(goals, tops, bottoms)
    start = (block.clamp(0, len(tops) - 1) * size).clamp(max=steps - size)
    samples = hidden[:, None].expand(-1, len(start), -1, -1).gather(0, start + _offsets(size, hidden))
    times = times_of(block, len(tops), start + places(reaching(goals, samples)), steps)
    means = [final, hidden[-2 * tail : -tail].mean(0), hidden[-1], end.amax(0), end.amin(0)]
    return step_record(steps, [y0, top, bottom, *means, *times])


def sine_facts(hidden: Tensor, frequencies: Sequence[float], main: int | None) -> SineFacts:
    """Of the responses ``hidden (T, S, H)`` to sines, one a frequency; `main`: whose window is kept, None for none."""
    return late_sine_facts(hidden[len(hidden) // 2 :], len(hidden), frequencies, main)


def late_sine_facts(late: Tensor, steps: int, frequencies: Sequence[float], main: int | None) -> SineFacts:
    """As `sine_facts`, of the samples ``late (T - T // 2, S, H)`` after the first half of `steps`."""
    sizes = [window_of(steps, frequency) for frequency in frequencies]
    found = [_fold(late[: window.size, k], window.period) for k, window in enumerate(sizes)]
    kept = None if main is None else late[: sizes[main].size, main].T.contiguous()
    folded = tuple(period for period, _ in found)
    return SineFacts(steps, tuple(frequencies), folded, torch.stack([std for _, std in found]), kept)


def _fold(samples: Tensor, period: int) -> tuple[Tensor, Tensor]:
    """The mean period ``(H, period)`` and the standard deviation ``(H,)`` of ``samples (n, H)``."""
    folded = samples.unflatten(0, (-1, period)).mean(0)
    spread = (samples - folded.mean(0)).square_().mean(0)
    return folded.T.contiguous(), spread.sqrt()


def tail_of(steps: int, thresholds: Thresholds) -> int:
    """L, the samples that make the final value."""
    return max(thresholds.tail_least, steps // thresholds.tail_share)


def goals_of(y0: Tensor, final: Tensor, top: Tensor, bottom: Tensor, limits: Thresholds) -> tuple[Tensor, Tensor]:
    """What to look for, as ``low`` and ``high (4, S, H)``: a sample at or under the one, or at or over the other.

    The first at the peak, the first at either end of the rise, and the last outside the settling band.
    """
    up, down, delta = top - y0, y0 - bottom, final - y0
    peak, far = torch.maximum(up, down), delta.abs()
    washout = (far < limits.washout * peak) & (peak >= limits.silent)
    band = limits.band * torch.where(washout, peak, far)
    never = torch.full_like(y0, torch.inf)
    rising, start, end = delta > 0, y0 + 0.1 * delta, y0 + 0.9 * delta
    low = [torch.where(down >= up, bottom, -never), *(torch.where(rising, -never, goal) for goal in (start, end))]
    high = [torch.where(up >= down, top, never), *(torch.where(rising, goal, never) for goal in (start, end))]
    low.append(torch.nextafter(final - band, -never))  # the band's edges are inside
    high.append(torch.nextafter(final + band, never))
    return torch.stack(low), torch.stack(high)


def reaching(goals: tuple[Tensor, Tensor], samples: Tensor) -> Tensor:
    """Which of ``samples (n, 4, S, H)`` are what each of four goals looks for."""
    low, high = goals
    return (samples >= high).logical_or_(samples <= low)


def blocks_reaching(goals: tuple[Tensor, Tensor], tops: Tensor, bottoms: Tensor) -> Tensor:
    """The block ``(4, S, H)``, of those with the extremes ``(B, S, H)``, in which each goal is; -1 or B for none."""
    low, high = goals
    return places((tops[:, None] >= high).logical_or_(bottoms[:, None] <= low))


def places(flags: Tensor) -> Tensor:
    """Of ``flags (n, 4, S, H)`` the index of the first True in three rows, else n; of the last in the fourth, else -1.

    The largest of ascending or descending numbers: a reduction over bytes is fast.
    """
    count = len(flags)
    kind = next(kind for kind in (torch.int8, torch.int16, torch.int32) if count <= torch.iinfo(kind).max)
    first = torch.arange(count, 0, -1, dtype=kind, device=flags.device)
    order = torch.stack([first, first, first, first.flip(0)], dim=1)[..., None, None]
    best = (flags.view(torch.int8) * order).amax(0).long()
    return torch.cat([count - best[:3], best[3:] - 1])


def times_of(block: Tensor, blocks: int, found: Tensor, steps: int) -> Tensor:
    """The index ``(4, S, H)`` of each goal: `steps`, and -1 in the fourth row, where no block has it."""
    missing = torch.tensor([steps, steps, steps, -1], device=block.device).reshape(-1, 1, 1)
    return torch.where((block < 0) | (block == blocks), missing, found)


def step_record(steps: int, facts: Sequence[Tensor]) -> StepFacts:
    """The record of ``facts``, each ``(S, H)`` in its order; NaN where the largest or smallest sample is not finite."""
    together = torch.stack([fact.to(facts[0].dtype) for fact in facts])
    finite = torch.isfinite(together[1] - together[2])
    return StepFacts(steps, *torch.where(finite, together, torch.nan).unbind())


def _block(steps: int) -> int:
    """Samples a block: longer ones make the searches dearer, shorter ones the comparisons between blocks."""
    return min(steps, 8 if steps <= 256 else 16)


def _offsets(size: int, like: Tensor) -> Tensor:
    return torch.arange(size, device=like.device).reshape(-1, 1, 1, 1)


def _extremes(hidden: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Largest and smallest sample ``(B, S, H)`` of each block; the last block ends at T and may overlap another."""
    whole = len(hidden) // size * size
    parts = [hidden[:whole].unflatten(0, (-1, size))] + ([hidden[None, -size:]] if whole < len(hidden) else [])
    tops, bottoms = [part.amax(1) for part in parts], [part.amin(1) for part in parts]
    return (torch.cat(tops), torch.cat(bottoms)) if parts[1:] else (tops[0], bottoms[0])
