"""Cells alone on the CPU, compiled: a block of 64 cells runs through one stimulus into a small trace.

Imported on demand, since it imports numba. The weights come scaled by -log2(e), those of a tanh by twice that, so that
``sigmoid(a) = 1 / (1 + e)`` and ``tanh(a) = (1 - e) / (1 + e)`` with ``e = 2^z``; divisions are merged, two a step at
most. `z` is held within what the merged products can bear; NaN stays NaN.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, types  # noqa: TID253  # this module is imported only where numba is used
from numba.extending import intrinsic  # noqa: TID253  # as above

from lstm_monitor.engines.numba_engine.layout import LANES, Array

_ONE, _ZERO = np.float32(1), np.float32(0)
_HIGHEST, _LOWEST = np.float32(40), np.float32(-100)
_TWICE = np.float32(-2 / np.log(2))
_SHIFT = np.float32(1.5 * 2**23 + 127)  # added to z it leaves round(z) + 127, an exponent, in the lowest bits
_EXPONENT = np.int32(23)
_C1, _C2, _C3, _C4, _C5 = (  # the least maximal relative error of 2^x on [-1/2, 1/2] that is exact at 0: 8.1e-8
    np.float32(c) for c in (0.69314706, 0.24022235, 0.055506784, 0.0096719616, 0.0013274633)
)


def _read_as(target: Any) -> Any:
    """The same 32 bits as another type, in compiled code."""

    def cast(context: Any, value: Any) -> Any:
        return target(value), lambda c, builder, signature, a: builder.bitcast(a[0], c.get_value_type(target))

    return intrinsic(cast)


_bits, _float = _read_as(types.int32), _read_as(types.float32)


@njit(fastmath={"contract"})
def exp2(z: Any) -> Any:
    """2^z for -100 <= z <= 40, beyond as at the limit: a polynomial on [-1/2, 1/2] times a power of two."""
    z = _HIGHEST if z > _HIGHEST else z
    z = _LOWEST if z < _LOWEST else z
    shifted = z + _SHIFT
    x = z - (shifted - _SHIFT)
    power = _float(np.int32(_bits(shifted) << _EXPONENT))
    return (((((_C5 * x + _C4) * x + _C3) * x + _C2) * x + _C1) * x + _ONE) * power


@njit(fastmath={"contract"}, error_model="numpy")
def run_lstm(weights: Array, drive: Array, signal: Array, trace: Array, last: Array) -> None:
    """`weights`: own i, f, g, o; bias of these; h and c. `last` takes the last c."""
    w = np.zeros((14, LANES), np.float32)
    for k in range(14):
        for i in range(LANES):
            w[k, i] = weights[k, i] if k < 10 else drive[k - 10, i]
    for t in range(len(signal)):
        s, y = signal[t], trace[t * LANES : (t + 1) * LANES]
        for i in range(LANES):
            h = w[8, i]
            e_i = exp2(w[4, i] + s * w[10, i] + w[0, i] * h)
            e_f = exp2(w[5, i] + s * w[11, i] + w[1, i] * h)
            e_g = exp2(w[6, i] + s * w[12, i] + w[2, i] * h)
            e_o = exp2(w[7, i] + s * w[13, i] + w[3, i] * h)
            both, forget = (_ONE + e_i) * (_ONE + e_g), _ONE + e_f
            c = (w[9, i] * both + (_ONE - e_g) * forget) / (both * forget)
            e_c = exp2(_TWICE * c)
            h = (_ONE - e_c) / ((_ONE + e_o) * (_ONE + e_c))
            w[8, i], w[9, i], y[i] = h, c, h
    for i in range(LANES):
        last[i] = w[9, i]


@njit(fastmath={"contract"}, error_model="numpy")
def run_gru(weights: Array, drive: Array, signal: Array, trace: Array) -> None:
    """`weights`: own r, z, n; bias of these; the constant inside the reset gate's product; h."""
    w = np.zeros((11, LANES), np.float32)
    for k in range(11):
        for i in range(LANES):
            w[k, i] = weights[k, i] if k < 8 else drive[k - 8, i]
    for t in range(len(signal)):
        s, y = signal[t], trace[t * LANES : (t + 1) * LANES]
        for i in range(LANES):
            h = w[7, i]
            r = _ONE / (_ONE + exp2(w[3, i] + s * w[8, i] + w[0, i] * h))
            e_z = exp2(w[4, i] + s * w[9, i] + w[1, i] * h)
            e_n = exp2(w[5, i] + s * w[10, i] + r * (w[6, i] + w[2, i] * h))
            h = (e_z * (_ONE - e_n) + h * (_ONE + e_n)) / ((_ONE + e_z) * (_ONE + e_n))
            w[7, i], y[i] = h, h


@njit(fastmath={"contract"}, error_model="numpy")
def run_rnn(weights: Array, drive: Array, signal: Array, trace: Array, is_relu: bool) -> None:
    """`weights`: own, bias, h."""
    w = np.zeros((4, LANES), np.float32)
    for k in range(4):
        for i in range(LANES):
            w[k, i] = weights[k, i] if k < 3 else drive[0, i]
    for t in range(len(signal)):
        s, y = signal[t], trace[t * LANES : (t + 1) * LANES]
        if is_relu:
            for i in range(LANES):
                a = w[1, i] + s * w[3, i] + w[0, i] * w[2, i]
                h = _ZERO if a < _ZERO else a
                w[2, i], y[i] = h, h
        else:
            for i in range(LANES):
                e = exp2(w[1, i] + s * w[3, i] + w[0, i] * w[2, i])
                h = (_ONE - e) / (_ONE + e)
                w[2, i], y[i] = h, h
