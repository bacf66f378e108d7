"""Cells that are each alone, linearised where they rest: small signals in closed form, without running anything.

In numpy on the host: vectors so short take torch several times as long, and some GPUs know no float64.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from lstm_monitor.engines.lone_cells import LoneCells

Values = NDArray[np.float64]

NEWTON_STEPS = 4
EXACT = 1e-12


@dataclass(frozen=True, eq=False)
class Linear:
    """H cells for small inputs, in float64: ``H(w) = (direct + delayed w) / (1 - trace w + product w^2)``, w = 1 / z.

    ``direct`` and ``delayed (H,)``: the input acts on the hidden state in its own step. ``trace`` and ``product
    (H,)``: sum and product of the poles; a cell with one state has one pole, and product 0. ``rest (H,)``: the hidden
    state at rest, and ``left (H,)``: how far from there this was found.
    """

    direct: Values
    delayed: Values
    trace: Values
    product: Values
    rest: Values
    left: Values


@np.errstate(all="ignore")
def linearize(cells: LoneCells, hidden: Tensor) -> Linear:
    """The cells around the rest that is next to ``hidden (H,)``, for inputs along the first direction.

    The rest is found by Newton's method. Where there is none next to it, `left` is large or NaN, or `rest` is far from
    `hidden`.
    """
    exact = _Exact(*(_exact(part) for part in (cells.own, cells.bias, cells.drive[0], cells.inner)))
    around, h = _AROUND[cells.kind], _exact(hidden)
    for _ in range(NEWTON_STEPS):
        linear, step = around(exact, h)
        left, h = np.abs(step), h + step
        if (left <= EXACT).all():
            break
    return Linear(*linear, h, left)


@dataclass(frozen=True, eq=False)
class _Exact:
    """As `LoneCells`, in float64, with one direction: ``own``, ``bias`` and ``drive (G, H)``, ``inner (H,)``."""

    own: Values
    bias: Values
    drive: Values
    inner: Values


def _exact(values: Tensor | None) -> Values:
    return np.zeros(0) if values is None else values.detach().cpu().double().numpy()


Around = tuple[tuple[Values, Values, Values, Values], Values]
"""Direct, delayed, trace and product; and how far it is to rest by these."""


def _lstm(cells: _Exact, h: Values) -> Around:
    """With the cell state that the hidden state brings about in the long run."""
    z = cells.bias + cells.own * h
    gates, g = _sigmoid(z), np.tanh(z[2])
    i, f, _, o = gates
    closed = _sigmoid(-z)  # 1 - gates would lose a slow cell's digits
    steep, fades = gates * closed, closed[1]
    c = i * g / fades
    seen = np.tanh(c)
    to_c = np.stack([steep[0] * g, steep[1] * c, i - i * g * g])
    back, fed = (to_c * cells.own[:3]).sum(0), (to_c * cells.drive[:3]).sum(0)
    by_o, through = steep[3] * seen, o - o * seen * seen
    output, opened = by_o * cells.own[3], by_o * cells.drive[3]
    trace, product = output + through * back + f, f * output
    step = (o * seen - h) * fades / (fades * (1 - output) - through * back)
    return (opened + through * fed, -f * opened, trace, product), step


def _gru(cells: _Exact, h: Values) -> Around:
    r, z = _sigmoid(cells.bias[:2] + cells.own[:2] * h)
    inside = cells.inner + cells.own[2] * h
    n = np.tanh(cells.bias[2] + r * inside)
    to_r, to_n, to_z = r * (1 - r) * inside, (1 - z) * (1 - n * n), z * (1 - z) * (h - n)
    slope = z + to_n * (to_r * cells.own[0] + r * cells.own[2]) + to_z * cells.own[1]
    direct = to_n * (to_r * cells.drive[0] + cells.drive[2]) + to_z * cells.drive[1]
    return _one_state(direct, slope, (1 - z) * (n - h))


def _rnn_tanh(cells: _Exact, h: Values) -> Around:
    new = np.tanh(cells.bias[0] + cells.own[0] * h)
    steep = 1 - new * new
    return _one_state(steep * cells.drive[0], steep * cells.own[0], new - h)


def _rnn_relu(cells: _Exact, h: Values) -> Around:
    new = np.maximum(cells.bias[0] + cells.own[0] * h, 0)
    steep = (new > 0).astype(np.float64)
    return _one_state(steep * cells.drive[0], steep * cells.own[0], new - h)


def _one_state(direct: Values, slope: Values, change: Values) -> Around:
    none = np.zeros_like(slope)
    return (direct, none, slope, none), change / (1 - slope)


def _sigmoid(z: Values) -> Values:
    found: Values = 1 / (1 + np.exp(-z))
    return found


_AROUND = {"lstm": _lstm, "gru": _gru, "rnn_tanh": _rnn_tanh, "rnn_relu": _rnn_relu}


@np.errstate(all="ignore")
def dominant_pole(linear: Linear) -> NDArray[np.complex128]:
    """The pole of the larger magnitude ``(H,)``, complex; of a pair the upper one. The other is ``trace`` minus it."""
    half = linear.trace / 2
    apart = half * half - linear.product
    root, is_pair = np.sqrt(np.abs(apart)), apart < 0
    return np.where(is_pair, half, half + np.copysign(root, half)) + 1j * (root * is_pair)


def is_stable(linear: Linear) -> NDArray[np.bool_]:
    """Whether both poles are inside the unit circle, ``(H,)``: Jury's criterion."""
    return (linear.product < 1) & (np.abs(linear.trace) < 1 + linear.product)


@np.errstate(all="ignore")
def transfer(linear: Linear, frequencies: Values) -> NDArray[np.complex128]:
    """The transfer function ``(F, H)``, complex, at ``frequencies (F,)`` in cycles per step."""
    back = np.exp(-2j * math.pi * frequencies)[:, None]
    found: NDArray[np.complex128] = (linear.direct + linear.delayed * back) / (
        1 - (linear.trace - linear.product * back) * back
    )
    return found


@np.errstate(all="ignore")
def cutoff(linear: Linear) -> Values:
    """Where the gain first falls under 1/sqrt(2) of that at frequency 0, cycles per step ``(H,)``; NaN if never.

    With ``u = sin(pi f)^2`` the squares of the numerator and of the denominator are polynomials, ``m^2 - 4 n0 n1 u``
    and ``e^2 - 4 u (4 p - s (1 + p)) + 16 p u^2``: u is the lowest positive root of ``a u^2 + b u + 1``.
    """
    direct, delayed, s, p = linear.direct, linear.delayed, linear.trace, linear.product
    at_zero, in_all = (1 - s + p) ** 2, (direct + delayed) ** 2
    a = -16 * p / at_zero
    b = (16 * p - 4 * s * (1 + p)) / at_zero - 8 * direct * delayed / in_all
    u = 2 / (np.sqrt(b * b - 4 * a) - b)
    found: Values = np.arcsin(np.sqrt(u)) / math.pi
    return found
