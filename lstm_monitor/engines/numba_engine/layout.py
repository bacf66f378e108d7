"""What the compiled loops read: cells in blocks of 64 lanes with scaled weights, or a response as flat memory.

Without numba, so that a wrong argument is told before anything is compiled.
"""

from __future__ import annotations

from math import log

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lstm_monitor.engines.fused import State
from lstm_monitor.engines.lone_cells import LoneCells

Array = NDArray[np.float32]
Indices = NDArray[np.int64]
Shape = tuple[int, int, int]
Source = tuple[int, Array, Array, Array, Indices, Array, Indices]

LANES = 64
ROWS = 8  # samples that a search takes at once
COPY, LSTM, GRU, TANH, RELU = range(5)
_KINDS = {"lstm": LSTM, "gru": GRU, "rnn_tanh": TANH, "rnn_relu": RELU}
_ONCE, _TWICE = -1 / log(2), -2 / log(2)
_SCALES = {
    "lstm": (_ONCE, _ONCE, _TWICE, _ONCE),
    "gru": (_ONCE, _ONCE, _TWICE),
    "rnn_tanh": (_TWICE,),
    "rnn_relu": (1.0,),
}


def of_cells(cells: LoneCells, state: State, *given: tuple[Tensor, Tensor]) -> list[tuple[Source, Shape]]:
    """Cells from ``state``, each part ``(1, H)``, on each ``signals (T, S)`` along its ``way (S,)``.

    Raises:
        TypeError: a tensor that is not float32 on the CPU.
    """
    scale = np.array(_SCALES[cells.kind], np.float32)[:, None]
    inner = [] if cells.inner is None else [as_array(cells.inner, "inner")[None] * scale[-1]]
    start = [as_array(part, "state").reshape(1, -1) for part in state]
    rows = [as_array(cells.own, "own") * scale, as_array(cells.bias, "bias") * scale, *inner, *start]
    weights, drive = _blocks(np.concatenate(rows)), _blocks(as_array(cells.drive, "drive") * scale)
    flat, strides = np.zeros(1, np.float32), np.zeros(2, np.int64)
    found: list[tuple[Source, Shape]] = []
    for signals, way in given:
        rows_of = np.ascontiguousarray(as_array(signals, "signals").T)
        ways = np.ascontiguousarray(way.numpy(), np.int64)
        source = (_KINDS[cells.kind], weights, drive, rows_of, ways, flat, strides)
        found.append((source, (*rows_of.shape[::-1], cells.hidden_size)))
    return found


def of_response(hidden: Tensor) -> tuple[Source, Shape]:
    """A response ``hidden (T, S, H)``, read where it lies if its cells lie side by side.

    Raises:
        TypeError: it is not float32 on the CPU.
    """
    steps, rows, size = hidden.shape
    if hidden.stride(-1) != 1 and size > 1:
        hidden = hidden.contiguous()
    time, row = hidden.stride()[:2]
    extent = (steps - 1) * time + (rows - 1) * row + size if hidden.numel() else 0
    flat = as_array(hidden.detach().as_strided((extent,), (1,)), "hidden")
    blocks, signals = np.zeros((0, 0, 0, 0), np.float32), np.zeros((0, 0), np.float32)
    strides, way = np.array([time, row], np.int64), np.zeros(rows, np.int64)
    return (COPY, blocks.reshape(0, 0, 0), blocks, signals, way, flat, strides), (steps, rows, size)


def as_array(tensor: Tensor, name: str) -> Array:
    """The same memory.

    Raises:
        TypeError: the tensor is not float32 on the CPU.
    """
    if tensor.dtype != torch.float32 or tensor.device.type != "cpu":
        raise TypeError(
            f"{name} is {tensor.dtype} on {tensor.device}; the numba engine computes in float32 on the CPU: give such "
            "tensors, or use the torch engine"
        )
    return tensor.detach().numpy()


def _blocks(rows: Array) -> Array:
    """``(..., R, H)`` as ``(..., B, R, 64)``; the last cell fills the last block."""
    missing = -rows.shape[-1] % LANES
    padded = np.concatenate([rows, np.repeat(rows[..., -1:], missing, axis=-1)], axis=-1) if missing else rows
    return np.ascontiguousarray(np.swapaxes(padded.reshape(*rows.shape[:-1], -1, LANES), -3, -2))
