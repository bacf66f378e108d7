"""Held-out data as Keras takes it: an array, or a list, tuple or dict of arrays, the sequences on the first axis."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

BATCH = 32
"""Keras's own batch size."""


@dataclass(frozen=True, eq=False)
class KerasData:
    """Arrays as tensors, ``(N, ...)`` each, in the structure in which the model takes them; ``mask (N, T)`` if any."""

    tensors: tuple[Tensor, ...]
    structure: Any
    mask: Tensor | None = None

    @property
    def count(self) -> int:
        """How many sequences there are."""
        return len(self.tensors[0])

    def pack(self, tensors: Sequence[Tensor]) -> Any:
        """What the model takes, from tensors in their order here."""
        return _packed(self.structure, iter(tensors))

    def check_fits(self, model: Any) -> None:
        """Raise ValueError where there are more arrays than the model has inputs."""
        inputs = getattr(model, "inputs", None)
        if inputs and not isinstance(self.structure, Mapping) and len(self.tensors) > len(inputs):
            raise ValueError(
                f"held_out holds {len(self.tensors)} arrays, and the model {model.name!r} takes {len(inputs)}: give "
                "what it takes as x, such as held_out=x_val, and no targets"
            )

    def batches(self, count: int, size: int | None = None) -> tuple[list[tuple[Tensor, ...]], list[Tensor] | None]:
        """About `count` of the sequences, drawn by a generator of its own, in batches, and the masks of these.

        `size`: of each batch, where the model takes no other; a rest is then left out.
        """
        order = torch.randperm(self.count, generator=torch.Generator().manual_seed(0))[: max(count, size or 1)]
        parts = order.split(size or BATCH)
        if size is not None and len(parts) > 1:
            parts = tuple(part for part in parts if len(part) == size)
        given = [tuple(tensor[part.to(tensor.device)] for tensor in self.tensors) for part in parts]
        return given, None if self.mask is None else [self.mask[part] for part in parts]


def as_held_out(held_out: Any, lengths: Any = None, mask: Any = None) -> KerasData | None:
    """The held-out data of a Keras model.

    Raises:
        TypeError: something that holds no arrays.
        ValueError: arrays of different lengths, or none; lengths or a mask that do not fit.
    """
    if held_out is None:
        if not (lengths is None and mask is None):
            raise ValueError("lengths= or mask= was given without held_out=; they say which of its steps count")
        return None
    tensors: list[Tensor] = []
    structure = _structure(held_out, tensors)
    counts = sorted({len(tensor) if tensor.dim() else 0 for tensor in tensors})
    if len(counts) != 1 or counts == [0]:
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in tensors)
        raise ValueError(
            f"held_out has arrays of shapes {shapes or '(none)'}; give what the model takes as x, as many sequences in "
            "each array, and no targets"
        )
    return KerasData(tuple(tensors), structure, _mask(tensors, lengths, mask))


def _structure(value: Any, tensors: list[Tensor]) -> Any:
    """The structure with None for each array; the arrays are added to `tensors`."""
    if isinstance(value, Mapping):
        return {name: _structure(part, tensors) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)([_structure(part, tensors) for part in value])
    tensors.append(_tensor(value))
    return None


def _tensor(value: Any) -> Tensor:
    if isinstance(value, Tensor):
        return value.detach()
    if not hasattr(value, "__array__"):
        raise TypeError(
            f"held_out holds {type(value).__name__}: give arrays as for x in model.fit, such as x_val, or those of "
            "some batches of a data set"
        )
    array = np.asarray(value)
    if array.dtype.kind not in "biuf":
        raise TypeError(f"held_out holds values of {array.dtype}; give the numbers that the model takes")
    return torch.from_numpy(np.array(array))


def _mask(tensors: Sequence[Tensor], lengths: Any, mask: Any) -> Tensor | None:
    if lengths is not None and mask is not None:
        raise ValueError("lengths= and mask= were both given; give one of them")
    if lengths is not None:
        ends, steps = torch.as_tensor(np.asarray(lengths)), tensors[0].shape[1]
        if ends.shape != tensors[0].shape[:1] or ends.is_floating_point() or not 1 <= ends.min() <= ends.max() <= steps:
            raise ValueError(f"lengths={lengths!r}: give an integer from 1 to {steps} for each of {len(tensors[0])}")
        return torch.arange(steps) < ends[:, None]
    if mask is None:
        return None
    marks = torch.as_tensor(np.asarray(mask)).bool()
    if marks.dim() != 2 or len(marks) != len(tensors[0]):
        raise ValueError(f"mask has shape {tuple(marks.shape)}; give (N, T), a row for each of {len(tensors[0])}")
    return marks


def _packed(structure: Any, tensors: Iterator[Tensor]) -> Any:
    if isinstance(structure, Mapping):
        return {name: _packed(part, tensors) for name, part in structure.items()}
    if isinstance(structure, list | tuple):
        return type(structure)([_packed(part, tensors) for part in structure])
    return next(tensors)
