"""Why recurrent layers of Keras cannot be characterized."""

from __future__ import annotations

import re
from typing import Any

_RECURRENT_NAME = re.compile(r"lstm|gru|rnn|recurrent", re.IGNORECASE)


def cells_in(layer: Any) -> list[Any]:
    """The cells of an RNN layer, from the first on."""
    return list(getattr(layer.cell, "cells", None) or [layer.cell])


def against(layer: Any) -> str | None:
    """Why a layer that is an RNN cannot be characterized; None if it can."""
    import keras

    reason = next(filter(None, map(_against_cell, cells_in(layer))), None)
    if reason is not None:
        return reason
    kinds = (keras.layers.LSTM, keras.layers.GRU, keras.layers.SimpleRNN, keras.layers.RNN)
    base = next(kind for kind in kinds if isinstance(layer, kind))
    overridden = [name for name in ("call", "inner_loop") if getattr(type(layer), name) is not getattr(base, name)]
    if overridden:
        return f"its {overridden[0]} is overridden, so its cells may compute something else"
    if any(getattr(cell, "recurrent_kernel", None) is None for cell in cells_in(layer)):
        return "it is not built yet: the model has never called it"
    return None


def _against_cell(cell: Any) -> str | None:
    import keras

    kinds = (keras.layers.LSTMCell, keras.layers.GRUCell, keras.layers.SimpleRNNCell)
    base = next((kind for kind in kinds if isinstance(cell, kind)), None)
    if base is None:
        return f"its cell {type(cell).__name__} is none of LSTMCell, GRUCell and SimpleRNNCell"
    if type(cell).call is not base.call:
        return f"the call of its cell {type(cell).__name__} is overridden"
    if base is keras.layers.GRUCell and not cell.reset_after:
        return "reset_after=False; only reset_after=True, Keras's default, is supported"
    allowed = ("tanh", "relu") if base is keras.layers.SimpleRNNCell else ("tanh",)
    if (name := activation_name(cell.activation)) not in allowed:
        return f"activation={name!r}; only {' and '.join(map(repr, allowed))} is supported"
    if base is not keras.layers.SimpleRNNCell and (name := activation_name(cell.recurrent_activation)) != "sigmoid":
        return f"recurrent_activation={name!r}; only 'sigmoid' is supported"
    return None


def activation_name(function: Any) -> str:
    """The name of one of Keras's activations; that of another function with its module."""
    if function is None:
        return "linear"
    module, name = str(getattr(function, "__module__", "")), str(getattr(function, "__name__", function))
    return name if module.partition(".")[0] == "keras" else f"{module}.{name}"


def no_rnn(layer: Any) -> str:
    return f"{type(layer).__name__} is no keras.layers.RNN"


def against_stranger(layer: Any) -> str | None:
    """Why a layer that looks recurrent, and holds no recurrent layer, is not supported; None if it does not."""
    import keras

    if isinstance(layer, keras.layers.LSTMCell | keras.layers.GRUCell | keras.layers.SimpleRNNCell):
        return "a cell that your own code calls step by step; in keras.layers.RNN(cell) it would be seen"
    looks = hasattr(layer, "state_size") or _RECURRENT_NAME.search(type(layer).__name__)
    inner = layer._flatten_layers(include_self=False)
    if looks and not any(hasattr(part, "state_size") or isinstance(part, keras.layers.RNN) for part in inner):
        return "a custom layer; it is no keras.layers.LSTM, GRU, SimpleRNN or RNN and holds none"
    return None
