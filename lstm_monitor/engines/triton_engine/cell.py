"""One step of a block of cells alone, in Triton; imported on demand, since few machines have it.

Weights are scaled once, so that a gate is a bare power of two ``a = 2 ** z``: a sigmoid is ``1 / (1 + a)``, a tanh
``(1 - a) / (1 + a)``, and the divisions of one step merge. With z at most 40 no product of three overflows.
"""

# mypy: allow-untyped-decorators

from __future__ import annotations

import triton  # noqa: TID253 - see above
import triton.language as tl  # noqa: TID253 - see above

SIGMOID = tl.constexpr(-1.4426950408889634)
TANH = tl.constexpr(-2.8853900817779268)
MOST = tl.constexpr(40.0)


@triton.jit
def gates(  # noqa: PLR0913 - what a block of cells consists of
    own: tl.tensor,
    bias: tl.tensor,
    inner: tl.tensor,
    drive: tl.tensor,
    direction: tl.tensor,
    cell: tl.tensor,
    real: tl.tensor,
    size: tl.tensor,
    kind: tl.constexpr,
) -> tl.tuple:
    """Four gates of the cells `cell (block,)`, in torch's order; the last of a GRU is what its reset gate multiplies.

    A gate is the weight of a cell's own hidden state, what is constant, and what one unit of the signal adds.
    """
    if kind == "lstm":
        drive += direction * 4 * size
        first = _gate(own, bias, drive, cell, real, SIGMOID)
        second = _gate(own, bias, drive, size + cell, real, SIGMOID)
        third = _gate(own, bias, drive, 2 * size + cell, real, TANH)
        fourth = _gate(own, bias, drive, 3 * size + cell, real, SIGMOID)
    elif kind == "gru":
        drive += direction * 3 * size
        first = _gate(own, bias, drive, cell, real, SIGMOID)
        second = _gate(own, bias, drive, size + cell, real, SIGMOID)
        fourth = _gate(own, bias, drive, 2 * size + cell, real, TANH)
        third = (0.0, fourth[1], fourth[2])
        fourth = (fourth[0], tl.load(inner + cell, real, 0.0) * TANH, 0.0)
    else:
        drive += direction * size
        first = _gate(own, bias, drive, cell, real, TANH if kind == "rnn_tanh" else 1.0)
        second, third, fourth = first, first, first
    return first, second, third, fourth


@triton.jit
def _gate(
    own: tl.tensor, bias: tl.tensor, drive: tl.tensor, row: tl.tensor, real: tl.tensor, scale: tl.constexpr
) -> tl.tuple:
    return (
        tl.load(own + row, real, 0.0) * scale,
        tl.load(bias + row, real, 0.0) * scale,
        tl.load(drive + row, real, 0.0) * scale,
    )


@triton.jit
def step(
    h: tl.tensor,
    c: tl.tensor,
    x: tl.tensor,
    first: tl.tensor,
    second: tl.tensor,
    third: tl.tensor,
    fourth: tl.tensor,
    kind: tl.constexpr,
) -> tl.tuple:
    """The state after one step under the signal `x`; `c` stays as it is where the kind has no cell state."""
    if kind == "lstm":
        i, f = 1.0 + _power(_sum(first, x, h)), 1.0 + _power(_sum(second, x, h))
        g, o = _power(_sum(third, x, h)), 1.0 + _power(_sum(fourth, x, h))
        ig = i * (1.0 + g)
        c = tl.fma(c, ig, (1.0 - g) * f) / (ig * f)
        tanh = _power(c * TANH)
        h = (1.0 - tanh) / (o * (1.0 + tanh))
    elif kind == "gru":
        reset = 1.0 / (1.0 + _power(_sum(first, x, h)))
        z = _power(_sum(second, x, h))
        n = _power(tl.fma(reset, tl.fma(fourth[0], h, fourth[1]), tl.fma(third[2], x, third[1])))
        h = tl.fma(h, 1.0 + n, z * (1.0 - n)) / ((1.0 + z) * (1.0 + n))
    elif kind == "rnn_tanh":
        n = _power(_sum(first, x, h))
        h = (1.0 - n) / (1.0 + n)
    else:
        n = _sum(first, x, h)
        h = tl.where(n < 0.0, 0.0, n)
    return h, c


@triton.jit
def _sum(gate: tl.tensor, x: tl.tensor, h: tl.tensor) -> tl.tensor:
    return tl.fma(gate[0], h, tl.fma(gate[2], x, gate[1]))


@triton.jit
def _power(z: tl.tensor) -> tl.tensor:
    return tl.exp2(tl.minimum(z, MOST, propagate_nan=tl.PropagateNan.ALL))
