"""Let a Keras model run with its recurrent layers computed by torch, with Keras's masks, orders and states."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from lstm_monitor.changes import Change, changed
from lstm_monitor.integrations._keras_layers import KerasLayers, Site
from lstm_monitor.integrations._keras_reading import Reading, States, from_torch, to_torch

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
