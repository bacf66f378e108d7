"""The compiled entries: blocks of cells times stimuli, one after the other; a trace never leaves the cache.

Imported on demand, since it imports numba and compiles, or reads what it compiled once from its cache. A *source* is a
tuple ``(kind, weights, drive, signals, way, hidden, strides)`` from `layout.py`: cells as ``weights (B, R, 64)``
with ``drive (D, B, G, 64)`` on ``signals (S, T)`` along ``way (S,)``; or for the kind `COPY` responses in flat memory
``hidden``, with ``strides (2,)`` of time and stimulus.
"""

from __future__ import annotations

import numpy as np
from numba import njit  # noqa: TID253  # this module is imported only where numba is used

from lstm_monitor.engines.numba_engine.compile import compiled
from lstm_monitor.engines.numba_engine.facts import sine_facts, step_facts
from lstm_monitor.engines.numba_engine.layout import COPY, GRU, LANES, LSTM, RELU, ROWS, Array, Indices, Source
from lstm_monitor.engines.numba_engine.lone_cells import run_gru, run_lstm, run_rnn

_SOURCE = (
    "Tuple((int64, float32[:, :, ::1], float32[:, :, :, ::1], float32[:, ::1], int64[::1], float32[::1], int64[::1]))"
)


@njit(error_model="numpy")
def fill(source: Source, item: int, steps: int, size: int, trace: Array, last: Array) -> None:
    """The trace of a block of cells and a stimulus: number ``block * S + stimulus``, of `size` cells in all."""
    kind, weights, drive, signals, way, hidden, strides = source
    block, row = divmod(item, len(way))
    if kind == COPY:
        start = row * strides[1] + block * LANES
        copy(hidden[start:], strides[0], min(LANES, size - block * LANES), steps, trace)
    elif kind == LSTM:
        run_lstm(weights[block], drive[way[row], block], signals[row], trace, last)
    elif kind == GRU:
        run_gru(weights[block], drive[way[row], block], signals[row], trace)
    else:
        run_rnn(weights[block], drive[way[row], block], signals[row], trace, kind == RELU)
    for k in range(steps * LANES, len(trace)):
        trace[k] = trace[k - LANES]


@njit(error_model="numpy")
def copy(hidden: Array, stride: int, width: int, steps: int, trace: Array) -> None:
    """`width` cells at every `stride` into a trace; its other lanes repeat the last."""
    for t in range(steps):
        y, row = trace[t * LANES : (t + 1) * LANES], hidden[t * stride : t * stride + width]
        if width == LANES:
            for i in range(LANES):
                y[i] = row[i]
        else:
            for i in range(LANES):
                y[i] = row[min(i, width - 1)]


@njit(error_model="numpy")
def turn(trace: Array, width: int, out: Array) -> None:
    """The first `width` cells of a flat trace as rows ``(width, n)``, flat too."""
    count = len(trace) // LANES
    for i in range(width):
        for t in range(count):
            out[i * count + t] = trace[t * LANES + i]


@compiled(f"void({_SOURCE}, int64[::1], int64, float32[::1], float32[::1], int64, float32[:, :, ::1])")
def simulate_steps(
    source: Source, items: Indices, steps: int, initial: Array, limits: Array, tail: int, out: Array
) -> None:
    """Facts ``out (11, S, H)`` of the items from the first to before the second."""
    trace, last = np.empty((steps + ROWS) * LANES, np.float32), np.empty(LANES, np.float32)
    found, start = np.empty((len(out), LANES), np.float32), np.zeros(LANES, np.float32)
    rows, size = out.shape[1:]
    for item in range(items[0], items[1]):
        row, first = item % rows, item // rows * LANES
        width = min(LANES, size - first)
        for i in range(width):
            start[i] = initial[first + i]
        fill(source, item, steps, size, trace, last)
        step_facts(trace, steps, start, limits, tail, found)
        for k in range(len(out)):
            for i in range(width):
                out[k, row, first + i] = found[k, i]


@compiled(f"void({_SOURCE}, int64[::1], int64, int64[:, ::1], float32[::1], float32[:, ::1], float32[::1])")
def simulate_sines(
    source: Source, items: Indices, steps: int, windows: Indices, folded: Array, std: Array, kept: Array
) -> None:
    """Mean periods, flat and one stimulus after the other, and ``std (S, H)``; the flat window of one in `kept`.

    ``windows (S, 5)``: first sample, end, period, where in `folded` its own begin, 1 where it is kept.
    """
    longest = 0
    for row in range(len(windows)):
        longest = max(longest, windows[row, 2])
    trace, last = np.empty((steps + ROWS) * LANES, np.float32), np.empty(LANES, np.float32)
    mean, spread = np.empty(longest * LANES, np.float32), np.empty(LANES, np.float32)
    rows, size = std.shape
    for item in range(items[0], items[1]):
        row, first = item % rows, item // rows * LANES
        width, (start, stop, period, own, is_kept) = min(LANES, size - first), windows[row]
        fill(source, item, steps, size, trace, last)
        sine_facts(trace, start, stop, mean[: period * LANES], spread)
        for i in range(width):
            std[row, first + i] = spread[i]
        turn(mean[: period * LANES], width, folded[own + first * period :])
        if is_kept:
            turn(trace[start * LANES : stop * LANES], width, kept[first * (stop - start) :])


@compiled(f"void({_SOURCE}, int64[::1], float32[:, :, ::1], float32[:, ::1])")
def simulate_trace(source: Source, items: Indices, hidden: Array, cell: Array) -> None:
    """The responses ``hidden (T, S, H)`` themselves, and of an LSTM the last ``cell (S, H)``."""
    steps, rows, size = hidden.shape
    trace, last = np.empty((steps + ROWS) * LANES, np.float32), np.zeros(LANES, np.float32)
    for item in range(items[0], items[1]):
        row, first = item % rows, item // rows * LANES
        width = min(LANES, size - first)
        fill(source, item, steps, size, trace, last)
        for i in range(width):
            cell[row, first + i] = last[i]
        for t in range(steps):
            y = trace[t * LANES : (t + 1) * LANES]
            for i in range(width):
                hidden[t, row, first + i] = y[i]
