"""Loops for held-out data, compiled: cell states, one step back, lagged products; float32 on the CPU.

Imported on demand, since it imports numba, and compiled then (numba keeps the result on disk). Every innermost loop
runs over cells, which lie side by side in memory. They release Python's lock.
"""

from __future__ import annotations

import numpy as np
from numba import njit  # noqa: TID253  # this module is imported only where numba is used
from numpy.typing import NDArray

from lstm_monitor.engines.numba_engine.compile import compiled
from lstm_monitor.engines.numba_engine.layout import Array
from lstm_monitor.engines.numba_engine.lone_cells import exp2

Sums = NDArray[np.float64]

LANES = 64
_ONE, _ZERO = np.float32(1), np.float32(0)
_TWICE = np.float32(-2 / np.log(2))
_FAST = {"contract", "nsz"}


@njit(inline="always")
def _tanh(x: float) -> float:
    e = exp2(_TWICE * x)
    return (_ONE - e) / (_ONE + e)


@compiled("void(float32[:, :, :, ::1], float32[:, ::1], float32[:, :, ::1])", fastmath=_FAST)
def cell_states(gates: Array, start: Array, cells: Array) -> None:
    """An LSTM's cell states ``(T, N, H)`` from its gates ``(T, N, 4, H)`` and the state before ``(N, H)``."""
    for t in range(len(gates)):
        for n in range(gates.shape[1]):
            before, g, c = cells[t - 1, n] if t > 0 else start[n], gates[t, n], cells[t, n]
            for k in range(len(c)):
                c[k] = g[1, k] * before[k] + g[0, k] * g[2, k]


@compiled(
    "void(float32[:, :, ::1], float32[:, ::1], float32[:, ::1], float32[:, :, ::1], float32[:, :, ::1], "
    "float32[:, :, :, ::1])",
    fastmath=_FAST,
)
def lstm_back(gates: Array, cells: Array, before: Array, total: Array, by_cell: Array, out: Array) -> None:
    """One step back through an LSTM's gates ``(N, 4, H)`` and its cell states after and before it, ``(N, H)``.

    From ``total (V, N, H)``, derivatives by the hidden state, and ``by_cell (V, N, H)``, by the cell through later
    steps, to those by the gates' sums, ``out (V, N, 4, H)``, and by the cell before, in place.
    """
    count, size = cells.shape
    slope = np.empty((5, size), np.float32)
    for n in range(count):
        i, f, g, o, c, c_before = gates[n, 0], gates[n, 1], gates[n, 2], gates[n, 3], cells[n], before[n]
        for k in range(size):
            s = _tanh(c[k])
            slope[0, k] = g[k] * i[k] * (_ONE - i[k])
            slope[1, k] = c_before[k] * f[k] * (_ONE - f[k])
            slope[2, k] = i[k] * (_ONE - g[k] * g[k])
            slope[3, k] = s * o[k] * (_ONE - o[k])
            slope[4, k] = o[k] * (_ONE - s * s)
        for v in range(len(total)):
            d, dc, made = total[v, n], by_cell[v, n], out[v, n]
            for k in range(size):
                by = dc[k] + d[k] * slope[4, k]
                made[0, k], made[1, k], made[2, k] = by * slope[0, k], by * slope[1, k], by * slope[2, k]
                made[3, k] = d[k] * slope[3, k]
                dc[k] = by * f[k]


@njit(fastmath=_FAST, error_model="numpy")
def _mean_products(y: Array, lag: int, pairs: float, mean: Sums) -> None:
    """Sums over sequences in float32, over steps in float64."""
    steps, count, width = y.shape
    part = np.empty(LANES, np.float32)
    mean[:] = 0
    for t in range(steps - lag):
        part[:] = _ZERO
        for n in range(count):
            a, b = y[t, n], y[t + lag, n]
            for k in range(width):
                part[k] += a[k] * b[k]
        for k in range(width):
            mean[k] += part[k]
    for k in range(width):
        mean[k] /= pairs


@njit(fastmath=_FAST, error_model="numpy")
def _note(mean: Sums, lag: int, share: float, least: float, time: Array, variance: Array) -> bool:
    """What one lag says; whether a cell waits for the next."""
    waiting = False
    for k in range(len(time)):
        if lag == 0:
            variance[k] = mean[k]
        elif time[k] < _ZERO and mean[k] < share * variance[k]:
            time[k] = lag
        waiting = waiting or (time[k] < _ZERO and variance[k] >= least)
    return waiting


@compiled("void(float32[:, :, ::1], float32[::1], float64, float64, float32[::1], float32[::1])", fastmath=_FAST)
def first_under(y: Array, pairs: Array, share: float, least: float, time: Array, variance: Array) -> None:
    """The first lag at which the mean product of ``y (T, N, H)`` is under `share` of that at lag 0, the `variance`.

    `time` comes as -1 and stays it where there is none, and where the variance is under `least`; ``pairs (T,)`` are in
    each mean. Blocks of cells go on until all of them are under.
    """
    mean = np.empty(LANES)
    for low in range(0, y.shape[2], LANES):
        high, waiting = min(low + LANES, y.shape[2]), True
        for lag in range(len(y)):
            if waiting and pairs[lag] >= _ONE:
                _mean_products(y[:, :, low:high], lag, pairs[lag], mean)
                waiting = _note(mean, lag, share, least, time[low:high], variance[low:high])
