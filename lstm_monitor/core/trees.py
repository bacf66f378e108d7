"""Bring a record with all its tensors to the host in one copy."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

R = TypeVar("R")


def to_host(record: R) -> R:
    """The same frozen record (or tuple of records) with every tensor on the CPU: one transfer for all of them."""
    tensors = list({id(t): t for t in tensors_of(record) if t.device.type != "cpu"}.values())
    moved = dict(zip(map(id, tensors), _move(tensors), strict=True))
    result: R = _rebuild(record, moved)
    return result


def tensors_of(value: Any) -> Iterator[Tensor]:
    """Every tensor in a record, or in a tuple, list or dict of them."""
    if isinstance(value, Tensor):
        yield value
    elif is_dataclass(value):
        for field in fields(value):
            yield from tensors_of(getattr(value, field.name))
    elif isinstance(value, tuple | list):
        for item in value:
            yield from tensors_of(item)
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors_of(item)


def _move(tensors: list[Tensor]) -> list[Tensor]:
    """All tensors as bytes in one buffer, largest items first so that every view is aligned."""
    if not tensors:
        return []
    order = sorted(range(len(tensors)), key=lambda k: -tensors[k].element_size())
    raw = [tensors[k].detach().contiguous().reshape(-1).view(torch.uint8) for k in order]
    pieces = torch.cat(raw).cpu().split([len(piece) for piece in raw])
    moved = {k: piece.view(tensors[k].dtype).reshape(tensors[k].shape) for k, piece in zip(order, pieces, strict=True)}
    return [moved[k] for k in range(len(tensors))]


def _rebuild(value: Any, moved: Mapping[int, Tensor]) -> Any:
    if isinstance(value, Tensor):
        return moved.get(id(value), value)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{f.name: _rebuild(getattr(value, f.name), moved) for f in fields(value)})
    if isinstance(value, tuple | list):
        return type(value)(_rebuild(item, moved) for item in value)
    if isinstance(value, Mapping):
        return {name: _rebuild(item, moved) for name, item in value.items()}
    if isinstance(value, nn.Module) and any(p.device.type != "cpu" for p in value.parameters()):
        return copy.deepcopy(value).cpu()  # the copy of a registered cell
    return value
