"""Let a Keras model run with its recurrent layers computed by torch, with Keras's masks, orders and states."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from lstm_monitor.core.changes import Change, changed
from lstm_monitor.integrations.keras_callback.layers import KerasLayers, Site

Modules = Mapping[str, nn.RNNBase]


@contextmanager
def computed_by(layers: KerasLayers, modules: Modules) -> Iterator[None]:
    """Inside, every recurrent layer is computed by the modules of its stacks; afterwards each is as it was."""
    replaced: list[tuple[Any, str, Callable[..., Any]]] = []
    for site in layers.sites:
        own = [modules[stack.path] for stack in site.stacks]
        replaced += _pair_calls(site, own[0]) if site.two else [(site.layer, "call", _Call(site.layer, own))]
    for pair in layers.pairs:
        replaced += [(pair, name, _never) for name in vars(type(pair)) if name.startswith("_can_attempt_fused")]
    with changed([_replacing(*item) for item in replaced]):
        yield


def _replacing(owner: Any, name: str, value: Any) -> Change:
    attributes = vars(owner)
    before = attributes.get(name)

    def undo() -> None:
        if before is None:
            attributes.pop(name, None)
        else:
            attributes[name] = before

    return Change((id(owner), name), lambda: attributes.update({name: value}), undo)


def _never(*_: Any, **__: Any) -> bool:
    return False


# Calls as Keras makes them


@dataclass(frozen=True, eq=False)
class _Call:
    """The ``call`` of an RNN layer, computed by modules of torch one after the other."""

    layer: Any
    modules: list[nn.RNNBase]

    def __call__(self, sequences: Any, initial_state: Any = None, mask: Any = None, training: Any = False) -> Any:
        import keras

        given = [] if initial_state is None else [to_torch(part) for part in keras.tree.flatten(initial_state)]
        reading = Reading.of(to_torch(sequences), mask, backwards=self.layer.go_backwards)
        values, final = reading.inputs, []
        for module in self.modules:
            own, given = _take(given, module)
            values, states = reading.run(module, values, own)
            final += states
        return shown(self.layer, reading.spread(values), final)


def _take(given: States, module: nn.RNNBase) -> tuple[States, States]:
    """The states that are this module's, and those that are left for the next."""
    count = module.num_layers * (2 if isinstance(module, nn.LSTM) else 1)
    return given[:count], given[count:]


def _pair_calls(site: Site, module: nn.RNNBase) -> list[tuple[Any, str, Callable[..., Any]]]:
    """The calls of a Bidirectional and of its two layers: the first computes both, Keras merges what they return."""
    pair, done = site.layer, {}
    layers = (pair.forward_layer, pair.backward_layer)

    def both(sequences: Any, initial_state: Any = None, mask: Any = None, training: Any = None) -> Any:
        import keras

        given = [] if initial_state is None else [to_torch(part) for part in keras.tree.flatten(initial_state)]
        reading = Reading.of(to_torch(sequences), mask)
        values, final = reading.run(module, reading.inputs, given)
        half = len(final) // 2
        for direction, (layer, part) in enumerate(zip(layers, values.chunk(2, dim=-1), strict=True)):
            own = final[direction * half : (direction + 1) * half]
            done[layer] = shown(layer, reading.spread(part, backwards=bool(direction)), own)
        return type(pair).call(pair, sequences, initial_state=initial_state, mask=mask, training=training)

    return [(pair, "call", both), *((layer, "call", _Given(done, layer)) for layer in layers)]


@dataclass(frozen=True, eq=False)
class _Given:
    done: dict[Any, Any]
    layer: Any

    def __call__(self, sequences: Any, initial_state: Any = None, mask: Any = None, training: Any = False) -> Any:
        return self.done[self.layer]


def shown(layer: Any, reading: tuple[Tensor, Tensor | None], states: States) -> Any:
    """What the layer returns: its outputs or the last one, zero where masked if it says so, and its states."""
    values, mask = reading
    if mask is not None and layer.zero_output_for_mask:
        values = values * mask[..., None].to(values)
    outputs = from_torch(values if layer.return_sequences else values[:, -1], layer.compute_dtype)
    if not layer.return_state:
        return outputs
    return outputs, *_nested(layer, [from_torch(state, layer.compute_dtype) for state in states])


def _nested(layer: Any, states: list[Any]) -> list[Any]:
    """The states of a stack of cells: a list for each cell that has two."""
    cells = getattr(layer.cell, "cells", None)
    if cells is None:
        return states
    left = list(states)
    taken = [[left.pop(0) for _ in range(_count(cell))] for cell in cells]
    return taken[0] if len(taken) == 1 else taken


def _count(cell: Any) -> int:
    return len(cell.state_size) if isinstance(cell.state_size, list | tuple) else 1


States = list[Tensor]
"""The states of cells, each ``(N, H)``; an LSTM cell has two, one after the other."""


@dataclass(frozen=True, eq=False)
class Reading:
    """Sequences ``inputs (N, T, I)`` in the order in which a layer reads them, and its mask ``(N, T)`` in that order.

    Keras carries state and output over masked steps: the same as if these steps were not there. So what is run are the
    steps that are left, moved together; sequences without any are not run.
    """

    inputs: Tensor
    mask: Tensor | None

    @staticmethod
    def of(sequences: Tensor, mask: Any, *, backwards: bool = False) -> Reading:
        """The sequences as they are given, or from their ends on."""
        valid = None if mask is None else to_torch(mask).bool()
        if valid is not None and bool(valid.all()):
            valid = None
        if backwards:
            sequences, valid = sequences.flip(1), None if valid is None else valid.flip(1)
        if valid is None:
            return Reading(sequences, None)
        order = (~valid).int().argsort(dim=1, stable=True)
        return Reading(sequences.take_along_dim(order[..., None], dim=1), valid)

    def run(self, module: nn.RNNBase, values: Tensor, given: States) -> tuple[Tensor, States]:
        """Outputs ``(N, T, W)``, moved together, and final states; states are those of cells, each ``(N, H)``."""
        values = values.to(module.get_parameter("weight_ih_l0").dtype)
        hx = _stacked(module, [state.to(values) for state in given])
        if self.mask is None:
            outputs, final = module(values, hx)
            return outputs, _single(final)
        lengths = self.mask.sum(1)
        rows = lengths.nonzero()[:, 0]
        width = module.hidden_size * (1 + module.bidirectional)
        outputs = values.new_zeros(*values.shape[:2], width)
        start = [values.new_zeros(len(values), module.hidden_size)] * _states(module) if hx is None else _single(hx)
        if len(rows) == 0:
            return outputs, start
        own = None if hx is None else _each(hx, lambda state: state[:, rows].contiguous())
        packed = pack_padded_sequence(values[rows], lengths[rows].cpu(), batch_first=True, enforce_sorted=False)
        ran, final = module(packed, own)
        padded, _ = pad_packed_sequence(ran, batch_first=True, total_length=values.shape[1])
        ends = [begin.index_copy(0, rows, end) for begin, end in zip(start, _single(final), strict=True)]
        return outputs.index_copy(0, rows, padded), ends

    def spread(self, values: Tensor, *, backwards: bool = False) -> tuple[Tensor, Tensor | None]:
        """``values (N, T, W)`` at the steps that they belong to, a masked step repeating the one before; and the mask.

        `backwards`: both from the end of the sequences on.
        """
        if self.mask is None:
            return (values.flip(1) if backwards else values), None
        mask = self.mask.flip(1) if backwards else self.mask
        places = mask.cumsum(1) - 1
        if backwards:
            places = torch.where(places < 0, places, self.mask.sum(1, keepdim=True) - 1 - places)
        found = values.take_along_dim(places.clamp(min=0)[..., None], dim=1)
        return found.masked_fill((places < 0)[..., None], 0), mask


def _states(module: nn.RNNBase) -> int:
    return module.num_layers * (1 + module.bidirectional) * (2 if isinstance(module, nn.LSTM) else 1)


def _stacked(module: nn.RNNBase, given: States) -> Any:
    """The states of cells, one after the other, as torch takes them; None where none are given."""
    if not given:
        return None
    if not isinstance(module, nn.LSTM):
        return torch.stack(given)
    return torch.stack(given[::2]), torch.stack(given[1::2])


def _single(state: Any) -> States:
    """The states of cells one after the other, as Keras has them."""
    if isinstance(state, Tensor):
        return list(state)
    return [part for pair in zip(*state, strict=True) for part in pair]


def _each(state: Any, act: Callable[[Tensor], Tensor]) -> Any:
    return act(state) if isinstance(state, Tensor) else tuple(map(act, state))


# Tensors


def to_torch(value: Any) -> Tensor:
    """A tensor of Keras's backend as one of torch; itself where torch is the backend."""
    import keras

    if isinstance(value, Tensor):
        return value
    if keras.backend.backend() == "torch":
        return keras.ops.convert_to_tensor(value)
    import numpy as np

    return torch.from_numpy(np.array(keras.ops.convert_to_numpy(value)))


def from_torch(value: Tensor, dtype: str) -> Any:
    """A tensor of torch as one of Keras's backend."""
    import keras

    if keras.backend.backend() == "torch":
        return keras.ops.cast(value, dtype)
    return keras.ops.convert_to_tensor(value.cpu().numpy(), dtype=dtype)
