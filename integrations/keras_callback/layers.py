"""Recurrent layers of a Keras model: where they are, which can be characterized, and why others cannot."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from lstm_monitor.core.records import Skipped
from lstm_monitor.core.terms import Kind

_TAKEN = ("", "layers", "stacks")
"""What a mirror calls its own."""


@dataclass(frozen=True, eq=False)
class Stack:
    """What becomes one module of torch: ``cells[index][direction]``, all of one kind and size, the last with torch."""

    path: str
    kind: Kind
    cells: tuple[tuple[Any, ...], ...]


@dataclass(frozen=True, eq=False)
class Site:
    """A recurrent layer of Keras, or a Bidirectional of two, and the stacks that compute it one after the other."""

    path: str
    layer: Any
    stacks: tuple[Stack, ...]

    @property
    def two(self) -> bool:
        """Whether it is a Bidirectional whose directions are one stack."""
        return not hasattr(self.layer, "cell")


@dataclass(frozen=True, eq=False)
class KerasLayers:
    """What a model contains, in its order: recurrent ``sites``, ``readers`` (Dense layers by path), and the skipped.

    ``order`` are the paths of both. ``pairs`` are all Bidirectional layers: their fused calls would go past the sites.
    """

    sites: tuple[Site, ...]
    readers: dict[str, Any]
    pairs: tuple[Any, ...]
    skipped: tuple[Skipped, ...]
    order: tuple[str, ...]


def find_keras_layers(model: Any) -> KerasLayers:
    """Every recurrent layer of a Keras model: LSTM, GRU, SimpleRNN, RNN of their cells, Bidirectional of these.

    Paths are Keras's own names, joined by dots from the model's children on.

    Raises:
        ValueError: there is none; the error lists what looks recurrent and is not supported.
    """
    import keras

    sites: list[Site] = []
    readers: dict[str, Any] = {}
    pairs, skipped, order = [], [], []
    for path, layer in _walk(model, "", {id(model)}):
        reason: str | None = None
        found: list[Site] = []
        if isinstance(layer, keras.layers.Bidirectional):
            pairs.append(layer)
            reason, found = _of_pair(path, layer)
        elif isinstance(layer, keras.layers.RNN):
            reason, found = _of_rnn(path, layer)
        elif isinstance(layer, keras.layers.Dense):
            readers |= {path: layer} if layer.built else {}
        else:
            reason = against_stranger(layer)
        if reason is not None:
            skipped.append(Skipped(path, type(layer).__name__, reason))
        sites += found
        order += [stack.path for site in found for stack in site.stacks] or [path] * (path in readers)
    if not sites:
        raise ValueError(_nothing_found(model, skipped))
    return KerasLayers(tuple(sites), readers, tuple(pairs), tuple(skipped), tuple(order))


def _walk(parent: Any, prefix: str, seen: set[int]) -> Iterator[tuple[str, Any]]:
    """Every layer once, by its path; what is inside recurrent layers is left to them."""
    import keras

    names: set[str] = set()
    for layer in parent._flatten_layers(include_self=False, recursive=False):
        if id(layer) in seen:
            continue
        seen.add(id(layer))
        path = prefix + _free_name(str(layer.name), names)
        yield path, layer
        if not isinstance(layer, keras.layers.RNN | keras.layers.Bidirectional):
            yield from _walk(layer, f"{path}.", seen)


def _free_name(name: str, names: set[str]) -> str:
    """A name that is new among its siblings and can be the name of a torch module."""
    from torch import nn

    plain = name.replace(".", "_").replace("/", "_")
    count, free = 1, plain
    while free in names or free in _TAKEN or hasattr(nn.Module(), free):
        free = f"{plain}_{count}"
        count += 1
    names.add(free)
    return free


# Sites


def _of_rnn(path: str, layer: Any) -> tuple[str | None, list[Site]]:
    reason = against(layer)
    if reason is not None:
        return reason, []
    cells = cells_in(layer)
    if _alike(cells):
        return None, [Site(path, layer, (Stack(path, kind_of(cells[0]), tuple((cell,) for cell in cells)),))]
    stacks = (Stack(f"{path}.cell_{index}", kind_of(cell), ((cell,),)) for index, cell in enumerate(cells))
    return None, [Site(path, layer, tuple(stacks))]


def _of_pair(path: str, pair: Any) -> tuple[str | None, list[Site]]:
    """One stack where torch has such a layer, else the two directions by themselves."""
    import keras

    layers = (pair.forward_layer, pair.backward_layer)
    for layer in layers:
        reason = against(layer) if isinstance(layer, keras.layers.RNN) else no_rnn(layer)
        if reason is not None:
            return f"{layer.name}: {reason}", []
    if type(pair).call is not keras.layers.Bidirectional.call:
        return "its call is overridden, so its cells may compute something else", []
    cells = [cells_in(layer) for layer in layers]
    turned = bool(pair.backward_layer.go_backwards) and not pair.forward_layer.go_backwards
    if turned and all(len(column) == 1 for column in cells) and _alike([column[0] for column in cells]):
        both = tuple(column[0] for column in cells)
        return None, [Site(path, pair, (Stack(path, kind_of(both[0]), (both,)),))]
    named = zip(("forward_layer", "backward_layer"), layers, strict=True)
    return None, [site for name, layer in named for site in _of_rnn(f"{path}.{name}", layer)[1]]


def _alike(cells: Sequence[Any]) -> bool:
    """Whether one module of torch can hold these cells as its layers or directions."""
    return len({(kind_of(cell), cell.units, cell.use_bias) for cell in cells}) == 1


def kind_of(cell: Any) -> Kind:
    """The kind of a supported cell."""
    import keras

    if isinstance(cell, keras.layers.LSTMCell):
        return "lstm"
    if isinstance(cell, keras.layers.GRUCell):
        return "gru"
    return "rnn_relu" if activation_name(cell.activation) == "relu" else "rnn_tanh"


def _nothing_found(model: Any, skipped: Sequence[Skipped]) -> str:
    held = ", ".join(dict.fromkeys(type(layer).__name__ for layer in model._flatten_layers(include_self=False)))
    lines = [
        f"model={model.name!r} ({type(model).__name__}) has no recurrent layer that can be characterized. It contains: "
        f"{held or 'nothing'}."
    ]
    lines += [f"Looks recurrent, but is not supported: {item}." for item in skipped]
    lines.append("Give a model with keras.layers.LSTM, GRU, SimpleRNN, or RNN of their cells.")
    return "\n".join(lines)


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
    """Why a layer of another class is not supported."""
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
