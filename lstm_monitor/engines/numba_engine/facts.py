"""What metrics need of a small trace in the cache, compiled. See `engines/facts.py` for the meaning of each value.

Imported on demand, since it imports numba. A *trace* is flat memory of 64 lanes a sample; after its last sample there
is room for `ROWS` more, which repeat it, so that a search in chunks needs no rest. Sums are of differences from one
sample, so that a response that stands still has exactly that mean.
"""

from __future__ import annotations

import numpy as np
from numba import njit  # noqa: TID253  # this module is imported only where numba is used

from lstm_monitor.engines.numba_engine.layout import LANES, ROWS, Array

TOP, BOTTOM, FINAL, BEFORE, LAST, TAIL_TOP, TAIL_BOTTOM, PEAK_AT, RISE_FROM, RISE_TO, OUTSIDE = range(11)

_ZERO, _INF, _NAN = np.float32(0), np.float32(np.inf), np.float32(np.nan)
_TENTH, _NINE_TENTHS = np.float32(0.1), np.float32(0.9)
_NONE, _ALL = np.float32(-1), np.float32(ROWS)


@njit(error_model="numpy")
def step_facts(trace: Array, steps: int, initial: Array, limits: Array, tail: int, found: Array) -> None:
    """All of `StepFacts` but `initial`, into ``found (11, 64)``; `limits`: silent, washout, band."""
    low, high = np.empty(LANES, np.float32), np.empty(LANES, np.float32)
    extremes(trace, 0, steps, found[TOP], found[BOTTOM])
    tails(trace, steps, tail, found)
    for i in range(LANES):
        up, down = found[TOP, i] - initial[i], initial[i] - found[BOTTOM, i]
        low[i] = found[BOTTOM, i] if down >= up else -_INF
        high[i] = found[TOP, i] if up >= down else _INF
    first_outside(trace, steps, low, high, found[PEAK_AT])
    for at, share in ((RISE_FROM, _TENTH), (RISE_TO, _NINE_TENTHS)):
        for i in range(LANES):
            delta = found[FINAL, i] - initial[i]
            goal = initial[i] + share * delta
            low[i] = -_INF if delta > _ZERO else goal
            high[i] = goal if delta > _ZERO else _INF
        first_outside(trace, steps, low, high, found[at])
    for i in range(LANES):
        delta = abs(found[FINAL, i] - initial[i])
        up, down = found[TOP, i] - initial[i], initial[i] - found[BOTTOM, i]
        peak = down if down > up else up
        is_washout = (peak >= limits[0]) & (delta < limits[1] * peak)
        band = limits[2] * (peak if is_washout else delta)
        low[i], high[i] = found[FINAL, i] - band, found[FINAL, i] + band
    last_outside(trace, steps, low, high, found[OUTSIDE])
    for i in range(LANES):
        if not np.isfinite(found[TOP, i]):
            for k in range(len(found)):
                found[k, i] = _NAN


@njit(error_model="numpy")
def tails(trace: Array, steps: int, tail: int, found: Array) -> None:
    """The mean and the extremes of the last samples, the mean of those before them, the last sample."""
    start, last = max(steps - tail, 0), trace[(steps - 1) * LANES : steps * LANES]
    extremes(trace, start, steps, found[TAIL_TOP], found[TAIL_BOTTOM])
    mean(trace, start, steps, last, found[FINAL])
    mean(trace, max(start - tail, 0), start, last, found[BEFORE])
    for i in range(LANES):
        found[LAST, i] = last[i]


@njit(fastmath={"contract"}, error_model="numpy")
def extremes(trace: Array, start: int, steps: int, top: Array, bottom: Array) -> None:
    """The largest and the smallest sample ``(64,)``; NaN where a sample is not finite."""
    nothing = np.zeros(LANES, np.float32)
    for i in range(LANES):
        top[i], bottom[i] = -_INF, _INF
    for t in range(start, steps, ROWS):
        y = trace[t * LANES : (t + ROWS) * LANES]
        for i in range(LANES):
            high, low, none = top[i], bottom[i], nothing[i]
            for k in range(ROWS):
                value = y[k * LANES + i]
                high = value if value > high else high
                low = value if value < low else low
                none += value * _ZERO
            top[i], bottom[i], nothing[i] = high, low, none
    for i in range(LANES):
        top[i] += nothing[i]
        bottom[i] += nothing[i]


@njit(error_model="numpy")
def mean(trace: Array, start: int, stop: int, pivot: Array, found: Array) -> None:
    """The mean over time ``(64,)``, summed as differences from `pivot`; NaN if there is no sample."""
    sums, count = np.zeros(LANES, np.float32), np.float32(stop - start)
    for t in range(start, stop):
        y = trace[t * LANES : (t + 1) * LANES]
        for i in range(LANES):
            sums[i] += y[i] - pivot[i]
    for i in range(LANES):
        found[i] = pivot[i] + sums[i] / count


@njit(error_model="numpy")
def first_outside(trace: Array, steps: int, low: Array, high: Array, at: Array) -> None:
    """Index of the first sample with y <= low or y >= high; T if there is none."""
    none = np.float32(steps)
    for i in range(LANES):
        at[i] = none
    for t in range(0, steps, ROWS):
        y, now, left = trace[t * LANES : (t + ROWS) * LANES], np.float32(t), 0
        for i in range(LANES):
            first = _ALL
            for j in range(ROWS):
                k = ROWS - 1 - j
                value = y[k * LANES + i]
                first = np.float32(k) if (value <= low[i]) | (value >= high[i]) else first
            at[i] = now + first if (first < _ALL) & (at[i] == none) else at[i]
            left += at[i] == none
        if left == 0:
            return


@njit(error_model="numpy")
def last_outside(trace: Array, steps: int, low: Array, high: Array, at: Array) -> None:
    """Index of the last sample with y < low or y > high; -1 if there is none."""
    for i in range(LANES):
        at[i] = _NONE
    for end in range(steps, 0, -ROWS):
        t = max(end - ROWS, 0)
        y, now, left = trace[t * LANES : (t + ROWS) * LANES], np.float32(t), 0
        for i in range(LANES):
            last = _NONE
            for k in range(ROWS):
                value = y[k * LANES + i]
                last = np.float32(k) if (value < low[i]) | (value > high[i]) else last
            at[i] = now + last if (last >= _ZERO) & (at[i] < _ZERO) else at[i]
            left += at[i] < _ZERO
        if left == 0:
            break
    for i in range(LANES):
        at[i] = min(at[i], np.float32(steps - 1))


@njit(error_model="numpy")
def sine_facts(trace: Array, start: int, stop: int, folded: Array, spread: Array) -> None:
    """Of a window: its mean period, flat in `folded`, and its standard deviation ``spread (64,)``."""
    middle, sums, squares = np.zeros(LANES, np.float32), np.zeros(LANES, np.float32), np.zeros(LANES, np.float32)
    if stop == start:
        fill_nan(folded)
        fill_nan(spread)
        return
    fold(trace, start, stop, folded)
    mean(folded, 0, len(folded) // LANES, folded[:LANES], middle)
    count = np.float32(stop - start)
    for t in range(start, stop):
        y = trace[t * LANES : (t + 1) * LANES]
        for i in range(LANES):
            distance = y[i] - middle[i]
            sums[i] += distance
            squares[i] += distance * distance
    for i in range(LANES):
        off = sums[i] / count
        rest = squares[i] / count - off * off
        spread[i] = np.sqrt(_ZERO if rest < _ZERO else rest)


@njit(error_model="numpy")
def fill_nan(values: Array) -> None:
    """NaN everywhere."""
    for k in range(len(values)):
        values[k] = _NAN


@njit(error_model="numpy")
def fold(trace: Array, start: int, stop: int, folded: Array) -> None:
    """The mean period of a whole number of them, flat in `folded`."""
    period = len(folded) // LANES
    for k in range(len(folded)):
        folded[k] = _ZERO
    for t in range(start + period, stop):
        phase = (t - start) % period
        y, sums = trace[t * LANES : (t + 1) * LANES], folded[phase * LANES : (phase + 1) * LANES]
        first = trace[(start + phase) * LANES : (start + phase + 1) * LANES]
        for i in range(LANES):
            sums[i] += y[i] - first[i]
    count = np.float32((stop - start) // period)
    for k in range(period * LANES):
        folded[k] = trace[start * LANES + k] + folded[k] / count
