"""The output of a network, as one tensor, and as a row a sequence."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

Select = Callable[[Any], Tensor]


def output_tensor(output: Any, select: Select | None = None) -> Tensor:
    """The first floating-point tensor in what a model returned, or what `select` takes from it.

    A packed sequence is padded with zeros, ``(N, T, ...)``.

    Raises:
        TypeError: `select` returned no floating-point tensor.
        ValueError: there is none.
    """
    if select is not None:
        chosen = select(output)
        if not isinstance(chosen, Tensor) or not chosen.is_floating_point():
            raise TypeError(f"output= returned {type(chosen).__name__}; it must return a tensor of floating point")
        return chosen
    for tensor in _tensors(output):
        if tensor.is_floating_point():
            return tensor
    raise ValueError(
        f"the model returned {type(output).__name__}, in which no tensor of floating point was found; "
        "give output=lambda result: ... that selects one"
    )


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, PackedSequence):
        yield pad_packed_sequence(value, batch_first=True)[0]
    elif isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from (tensor for part in value.values() for tensor in _tensors(part))
    elif isinstance(value, tuple | list):
        yield from (tensor for part in value for tensor in _tensors(part))
    elif hasattr(value, "__dataclass_fields__"):
        yield from (tensor for name in value.__dataclass_fields__ for tensor in _tensors(getattr(value, name, None)))


def batch_axis(output: Tensor, count: int) -> int | None:
    """The first axis of length `count`, the number of sequences; None if there is none."""
    return next((axis for axis, size in enumerate(output.shape) if size == count), None)


def by_sequence(output: Tensor, count: int, mask: Tensor | None = None) -> Tensor:
    """``(N, D)``: everything that belongs to a sequence in one row; a single row where no axis has length `count`.

    Where the output has a value at each step, steps that ``mask (N, T)`` leaves out are 0.
    """
    axis = batch_axis(output, count)
    if axis is None:
        return output.reshape(1, -1)
    rows = output.movedim(axis, 0)
    if mask is not None and rows.dim() > 1 and tuple(rows.shape[:2]) == tuple(mask.shape):
        rows = rows * mask.to(rows).reshape(*mask.shape, *(1,) * (rows.dim() - 2))
    return rows.reshape(count, -1)
