"""What a registered module received in one call, what it returned, and the state that it starts in."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

from lstm_monitor.core.undisturbed import random_states
from lstm_monitor.layers.registered.registry import Registration
from lstm_monitor.layers.registered.weights import mapped_weights


@dataclass(frozen=True, eq=False)
class Received:
    """One call: ``inputs (N, T, I)``, ``lengths (N,)`` if packed, and the states as a stack of layers, ``(L, N, ...)``.

    ``state`` is empty where none was given that could be read. ``final``: whatever it returned that may be a state.
    ``outputs (N, T, W)``: its first result, in the precision in which it was computed, if it has a value at each step.
    """

    inputs: Tensor
    lengths: Tensor | None
    state: tuple[Tensor, ...]
    final: tuple[Tensor, ...]
    outputs: Tensor | None


def received(
    registration: Registration, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any
) -> Received:
    """What a module received, in one layout.

    Raises:
        TypeError: its first argument is no tensor of features.
    """
    values = _values(module, args, kwargs)
    inputs, lengths = _as_sequences(registration, module, values[0] if values else None)
    count = inputs.shape[0]
    first = next(iter(output), None) if isinstance(output, tuple | list) else output
    given = list(_tensors(values[1])) if len(values) > 1 else []
    results = [tensor for tensor in _tensors(output) if tensor is not first or inputs.shape[1] == 1]
    return Received(
        inputs,
        lengths,
        _state(registration, module, given, count),
        tuple(form for tensor in results for form in _forms(tensor, count)),
        None if module.training else _outputs(registration, module, first, inputs),
    )


def _values(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Any]:
    """The arguments in the order of the module's ``forward``."""
    names = inspect.signature(module.forward).parameters
    return [*args, *(kwargs[name] for name in names if name in kwargs)]


def _as_sequences(registration: Registration, module: nn.Module, value: Any) -> tuple[Tensor, Tensor | None]:
    if isinstance(value, PackedSequence):
        return pad_packed_sequence(value, batch_first=True)
    if not isinstance(value, Tensor) or not value.is_floating_point() or value.dim() not in (1, 2, 3):
        what = f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(
            f"{type(module).__name__} received {what} first; a module that is registered by register_cell takes its "
            "inputs first: (N, I), whole sequences of three dimensions, or a packed sequence"
        )
    return _by_sequence(registration, module, value), None


def _by_sequence(registration: Registration, module: nn.Module, value: Tensor) -> Tensor:
    """``(N, T, W)`` of a tensor with a value for each sequence and step, as the module takes and returns them."""
    if value.dim() == 3:
        return value if registration.is_batch_first(module) else value.transpose(0, 1)
    if value.dim() == 2 and registration.reads_sequences(module):
        return value[None]
    return value.reshape(-1, 1, value.shape[-1])


def _outputs(registration: Registration, module: nn.Module, first: Any, inputs: Tensor) -> Tensor | None:
    if isinstance(first, PackedSequence):
        first = pad_packed_sequence(first, batch_first=True)[0]
    elif isinstance(first, Tensor) and first.dim() in (1, 2, 3):
        first = _by_sequence(registration, module, first)
    if not isinstance(first, Tensor) or not first.is_floating_point() or first.shape[:2] != inputs.shape[:2]:
        return None
    device = first.device.type
    return first.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else first


def _state(registration: Registration, module: nn.Module, given: list[Tensor], count: int) -> tuple[Tensor, ...]:
    """The given state as a stack ``(L, N, ...)``; empty if its parts are not those of the registered state."""
    if not given:
        return ()
    if registration.step is not None:
        start, _ = start_of(registration, module)
        shapes = [(1, count, *part.shape[1:]) for part in start]
    else:
        weights = list(mapped_weights(registration, module).values())
        sizes = [weights[0].weight_hh.shape[1], len(weights[0].weight_ih) // 4][: 1 + (weights[0].kind == "lstm")]
        shapes = [(len(weights), count, size) for size in sizes]
    if len(given) != len(shapes):
        return ()
    found = [tensor.reshape(shape) for tensor, shape in zip(given, shapes, strict=True) if _is(tensor, shape)]
    return tuple(found) if len(found) == len(shapes) else ()


def _is(tensor: Tensor, shape: tuple[int, ...]) -> bool:
    """Whether a tensor has this shape, with or without axes of length 1 in front."""
    given = tuple(tensor.shape)
    return next((given[k:] for k in range(len(given)) if given[k] != 1), ()) == next(
        (shape[k:] for k in range(len(shape)) if shape[k] != 1), ()
    )


def _forms(tensor: Tensor, count: int) -> Iterator[Tensor]:
    """A result in every way in which it may be given back as a stack of states ``(L, N, ...)``."""
    if tensor.dim() == 1 and count == 1:
        yield tensor[None, None]
    if tensor.dim() > 1 and tensor.shape[0] == count:
        yield tensor[None]
    if tensor.dim() > 2 and tensor.shape[1] == count:
        yield tensor
    if tensor.dim() == 2 and count == 1:
        yield tensor[:, None]


def _tensors(value: Any) -> Iterator[Tensor]:
    """Every tensor of floating point in nested tuples, lists and mappings."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, Mapping):
        yield from (tensor for part in value.values() for tensor in _tensors(part))
    elif isinstance(value, tuple | list):
        yield from (tensor for part in value for tensor in _tensors(part))


def start_of(registration: Registration, cell: nn.Module) -> tuple[tuple[Tensor, ...], bool]:
    """The state of one sequence before its first step, each part ``(1, ...)``; and whether it is a tensor by itself.

    Raises:
        ValueError: ``state=`` failed or returned something else; without it, a cell that does not tell its size.
    """
    given = _zeros(registration, cell) if registration.state is None else _asked(registration, cell)
    bare = isinstance(given, Tensor)
    parts = tuple(given) if isinstance(given, tuple | list) else (given,)
    if not parts or not all(isinstance(part, Tensor) and part.dim() and len(part) == 1 for part in parts):
        shapes = [tuple(part.shape) if isinstance(part, Tensor) else type(part).__name__ for part in parts]
        raise ValueError(
            f"state= registered for {registration.cls.__name__} returned {shapes} for n=1; it must return a tensor "
            "(n, ...) or a tuple of such"
        )
    return tuple(part.detach() for part in parts), bare


def _asked(registration: Registration, cell: nn.Module) -> Any:
    assert registration.state is not None
    try:
        with random_states():
            return registration.state(cell, 1)
    except Exception as error:
        raise ValueError(
            f"state= registered for {registration.cls.__name__} failed: {type(error).__name__}: {error}"
        ) from error


def _zeros(registration: Registration, cell: nn.Module) -> Tensor:
    names = ("hidden_size", "state_size", "units")
    size = next((size for name in names if isinstance(size := getattr(cell, name, None), int)), None)
    if size is None:
        raise ValueError(
            f"{registration.cls.__name__} has no {', '.join(names)}; give register_cell(state=lambda cell, n: "
            "torch.zeros(n, size))"
        )
    return torch.zeros(1, size)
