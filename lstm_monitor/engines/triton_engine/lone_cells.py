"""Cells alone on CUDA: a program is a block of cells under one stimulus, and all that it finds stays in registers.

A response is run twice, since the band around its final value is known only when it is over; the second run repeats the
first to the last bit, if no addition is fused but where the code says so. Imported on demand, since few machines have
Triton.
"""

# mypy: allow-untyped-decorators

from __future__ import annotations

import triton  # noqa: TID253 - see above
import triton.language as tl  # noqa: TID253 - see above

from lstm_monitor.engines.triton_engine.cell import gates, step

NAN = tl.constexpr(float("nan"))
INFINITE = tl.constexpr(float("inf"))
SIZES = ["steps", "count", "size", "row", "main", "start", "tail_from", "before_from"]
"""Whole numbers that vary: one compiled kernel serves them all."""


@triton.jit(do_not_specialize=SIZES)
def trace(  # noqa: PLR0913 - all that it reads and writes
    own: tl.tensor,
    bias: tl.tensor,
    inner: tl.tensor,
    drive: tl.tensor,
    direction: tl.tensor,
    signals: tl.tensor,
    hidden: tl.tensor,
    state: tl.tensor,
    row: tl.tensor,
    traced: tl.tensor,
    last_hidden: tl.tensor,
    last_state: tl.tensor,
    steps: tl.tensor,
    count: tl.tensor,
    size: tl.tensor,
    kind: tl.constexpr,
    block: tl.constexpr,
) -> None:
    """The responses ``traced (T, S, H)``, and the state after each of the S stimuli."""
    stimulus = tl.program_id(1)
    cell = tl.program_id(0) * block + tl.arange(0, block)
    real = cell < size
    a, b, c, d = gates(own, bias, inner, drive, tl.load(direction + stimulus), cell, real, size, kind)
    h, s = tl.load(hidden + stimulus * row + cell, real, 0.0), tl.load(state + stimulus * row + cell, real, 0.0)
    for t in range(steps):
        at = t * count + stimulus
        h, s = step(h, s, tl.load(signals + at), a, b, c, d, kind)
        tl.store(traced + at.to(tl.int64) * size + cell, h, real)
    tl.store(last_hidden + stimulus * size + cell, h, real)
    if kind == "lstm":
        tl.store(last_state + stimulus * size + cell, s, real)


@triton.jit(do_not_specialize=SIZES)
def steps_alone(  # noqa: PLR0913, PLR0915 - all that it reads and writes, one loop after another
    own: tl.tensor,
    bias: tl.tensor,
    inner: tl.tensor,
    drive: tl.tensor,
    direction: tl.tensor,
    signals: tl.tensor,
    hidden: tl.tensor,
    state: tl.tensor,
    before_stimulus: tl.tensor,
    facts: tl.tensor,
    steps: tl.tensor,
    before_from: tl.tensor,
    tail_from: tl.tensor,
    before_share: tl.tensor,
    tail_share: tl.tensor,
    silent: tl.tensor,
    washout: tl.tensor,
    band: tl.tensor,
    count: tl.tensor,
    size: tl.tensor,
    kind: tl.constexpr,
    block: tl.constexpr,
) -> None:
    """The twelve ``facts (12, S, H)`` of `StepFacts`; the means are taken of the distances from the initial value."""
    stimulus = tl.program_id(1)
    cell = tl.program_id(0) * block + tl.arange(0, block)
    real = cell < size
    a, b, c, d = gates(own, bias, inner, drive, tl.load(direction + stimulus), cell, real, size, kind)
    initial = tl.load(before_stimulus + cell, real, 0.0)

    h, s = tl.load(hidden + cell, real, 0.0), tl.load(state + cell, real, 0.0)
    top, bottom = tl.full([block], -INFINITE, tl.float32), tl.full([block], INFINITE, tl.float32)
    tail_top, tail_bottom = top, bottom
    before_sum, tail_sum = tl.zeros([block], tl.float32), tl.zeros([block], tl.float32)
    for t in range(steps):
        h, s = step(h, s, tl.load(signals + t * count + stimulus), a, b, c, d, kind)
        top, bottom = _higher(top, h), _lower(bottom, h)
        if t >= tail_from:
            tail_top, tail_bottom = _higher(tail_top, h), _lower(tail_bottom, h)
            tail_sum += h - initial
        elif t >= before_from:
            before_sum += h - initial
    last = h

    final, before = initial + tail_sum * tail_share, initial + before_sum * before_share
    up, down = top - initial, initial - bottom
    peak = _higher(up, down)
    returns = (tl.abs(final - initial) < washout * peak) & (peak >= silent)
    width = band * tl.where(returns, peak, tl.abs(final - initial))
    farthest_high, farthest_low = tl.where(up >= down, top, INFINITE), tl.where(down >= up, bottom, -INFINITE)
    side = tl.where(final > initial, 1.0, -1.0)
    first, second = side * (initial + 0.1 * (final - initial)), side * (initial + 0.9 * (final - initial))

    h, s = tl.load(hidden + cell, real, 0.0), tl.load(state + cell, real, 0.0)
    never = tl.zeros([block], tl.int32) + steps
    peak_at, rise_from, rise_to, outside = never, never, never, tl.full([block], -1, tl.int32)
    for t in range(steps):
        h, s = step(h, s, tl.load(signals + t * count + stimulus), a, b, c, d, kind)
        peak_at = tl.minimum(peak_at, tl.where((h >= farthest_high) | (h <= farthest_low), t, steps))
        rise_from = tl.minimum(rise_from, tl.where(side * h >= first, t, steps))
        rise_to = tl.minimum(rise_to, tl.where(side * h >= second, t, steps))
        outside = tl.where((h > final + width) | (h < final - width), t, outside)

    finite = (top < INFINITE) & (bottom > -INFINITE)
    found = initial, top, bottom, final, before, last, tail_top, tail_bottom, peak_at, rise_from, rise_to, outside
    for number in tl.static_range(12):
        value = tl.where(finite, found[number].to(tl.float32), NAN)
        tl.store(facts + (number * count + stimulus) * size + cell, value, real)


@triton.jit(do_not_specialize=SIZES)
def sines_alone(  # noqa: PLR0913 - all that it reads and writes
    own: tl.tensor,
    bias: tl.tensor,
    inner: tl.tensor,
    drive: tl.tensor,
    direction: tl.tensor,
    signals: tl.tensor,
    hidden: tl.tensor,
    state: tl.tensor,
    windows: tl.tensor,
    folded: tl.tensor,
    std: tl.tensor,
    window: tl.tensor,
    main: tl.tensor,
    start: tl.tensor,
    count: tl.tensor,
    size: tl.tensor,
    kind: tl.constexpr,
    block: tl.constexpr,
) -> None:
    """The parts of `SineFacts`, cells last: ``folded`` of one sine after another, ``std (S, H)``, ``window (n, H)``.

    ``folded`` is zero before. ``windows (3, S)``: samples of each window, and of each mean period, and of those before
    it. What is added up there a thread added itself: it always has the same cell.
    """
    stimulus = tl.program_id(1)
    cell = tl.program_id(0) * block + tl.arange(0, block)
    real = cell < size
    a, b, c, d = gates(own, bias, inner, drive, tl.load(direction + stimulus), cell, real, size, kind)
    samples, period = tl.load(windows + stimulus), tl.load(windows + count + stimulus)
    folded += tl.load(windows + 2 * count + stimulus).to(tl.int64) * size + cell
    signals += stimulus

    h, s = tl.load(hidden + cell, real, 0.0), tl.load(state + cell, real, 0.0)
    for t in range(start):
        h, s = step(h, s, tl.load(signals + t * count), a, b, c, d, kind)

    entering_h, entering_s = h, s
    share = period.to(tl.float32) / samples.to(tl.float32)
    total = tl.zeros([block], tl.float32)
    for t in range(samples):
        at = folded + (t % period) * size
        earlier = tl.load(at, real, 0.0)
        h, s = step(h, s, tl.load(signals + (start + t) * count), a, b, c, d, kind)
        total += h - entering_h
        tl.store(at, earlier + h * share, real)

    mean = entering_h + total / samples.to(tl.float32)
    h, s = entering_h, entering_s
    square = tl.zeros([block], tl.float32)
    for t in range(samples):
        h, s = step(h, s, tl.load(signals + (start + t) * count), a, b, c, d, kind)
        square += (h - mean) * (h - mean)
        if stimulus == main:
            tl.store(window + t * size + cell, h, real)
    tl.store(std + stimulus * size + cell, tl.sqrt_rn(square / samples.to(tl.float32)), real)


@triton.jit
def _higher(one: tl.tensor, other: tl.tensor) -> tl.tensor:
    return tl.maximum(one, other, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _lower(one: tl.tensor, other: tl.tensor) -> tl.tensor:
    return tl.minimum(one, other, propagate_nan=tl.PropagateNan.ALL)
