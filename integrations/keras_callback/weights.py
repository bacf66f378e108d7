"""Keras's weights as torch's, and back: transposed, and for a GRU with the gates in another order."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lstm_monitor.core.terms import Kind

Array = npt.NDArray[Any]

_ORDER: dict[Kind, tuple[int, ...]] = {"lstm": (0, 1, 2, 3), "gru": (1, 0, 2), "rnn_tanh": (0,), "rnn_relu": (0,)}
"""Which of Keras's blocks each of torch's is: LSTM i, f, c, o as i, f, g, o; GRU z, r, h as r, z, n; self-inverse."""
CLOSED = -1e4
"""The bias of a gate that is shut: its sigmoid is exactly 0."""


def as_array(variable: Any) -> Array:
    """A copy of the value of a Keras variable, or tensor, on the host, in float32 where it is a half."""
    import keras

    value = getattr(variable, "value", variable)
    if isinstance(value, Tensor):
        tensor = value.detach().cpu()
        return (tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor).numpy().copy()
    values = np.array(keras.ops.convert_to_numpy(value))
    half = values.dtype.kind not in "biu" and values.dtype.itemsize < 4
    return values.astype(np.float32) if half else values


def to_torch(kind: Kind, cell: Any) -> dict[str, Array]:
    """A cell's weights by torch's names: ``weight_ih (G*H, I)``, ``weight_hh (G*H, H)``, biases if it has any."""
    found = {
        "weight_ih": _permuted(kind, as_array(cell.kernel).T),
        "weight_hh": _permuted(kind, as_array(cell.recurrent_kernel).T),
    }
    if cell.use_bias:
        bias = as_array(cell.bias)
        pair = bias if kind == "gru" else (bias, np.zeros_like(bias))
        found |= {"bias_ih": _permuted(kind, pair[0]), "bias_hh": _permuted(kind, pair[1])}
    return found


def to_keras(kind: Kind, cell: Any, weights: Mapping[str, Array]) -> list[tuple[Any, Array]]:
    """The cell's variables, each with the value that these weights of torch are to it."""
    pairs = [
        (cell.kernel, _permuted(kind, weights["weight_ih"]).T),
        (cell.recurrent_kernel, _permuted(kind, weights["weight_hh"]).T),
    ]
    if cell.use_bias:
        ih, hh = (_permuted(kind, weights[name]) for name in ("bias_ih", "bias_hh"))
        pairs.append((cell.bias, np.stack([ih, hh]) if kind == "gru" else ih + hh))
    return pairs


def sealed(kind: Kind, weights: Mapping[str, Array], removed: Array) -> dict[str, Array]:
    """The weights without the cells marked in ``removed (H,)``, whatever state they are given at the start.

    Their rows are 0, so is what the others read from them, and the gate that keeps a state is shut (with a bias).
    """
    blocks = len(_ORDER[kind])
    rows = np.tile(removed, blocks)
    cut = {name: np.where(rows.reshape(-1, *[1] * (value.ndim - 1)), 0, value) for name, value in weights.items()}
    cut["weight_hh"] = np.where(removed, 0, cut["weight_hh"])
    if blocks > 1 and "bias_ih" in cut:
        keeping = np.zeros((blocks, 1), dtype=bool)
        keeping[1] = True  # forget of i, f, g, o; update of r, z, n
        cut["bias_ih"] = np.where((keeping & removed).reshape(-1), CLOSED, cut["bias_ih"])
    return {name: value.astype(weights[name].dtype) for name, value in cut.items()}


def _permuted(kind: Kind, values: Array) -> Array:
    """The row blocks in the other library's order."""
    blocks = np.split(values, len(_ORDER[kind]))
    return np.concatenate([blocks[place] for place in _ORDER[kind]])
