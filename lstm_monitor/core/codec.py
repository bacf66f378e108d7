"""Frozen records as plain values that JSON can hold, and back again by their type hints."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import torch
from torch import Tensor

Put = Callable[[Any, str, Tensor], Any]
"""What stands for a tensor: called with the record that holds it, the way to it (``weights/weight_ih``), and itself."""
Take = Callable[[Any], Tensor]
"""The tensor that something plain stands for."""


def written(owner: Any, path: str, tensor: Tensor) -> dict[str, Any]:
    """A tensor value by value, for the few that are small."""
    values = to_plain(tensor.reshape(-1).tolist())
    return {"dtype": dtype_name(tensor), "shape": list(tensor.shape), "values": values}


def read(plain: Mapping[str, Any]) -> Tensor:
    """The tensor that `written` wrote."""
    dtype = dtype_of(plain["dtype"])
    values = [float(value) for value in plain["values"]] if dtype.is_floating_point else plain["values"]
    return torch.tensor(values, dtype=dtype).reshape(plain["shape"])


def to_plain(value: Any, put: Put = written, path: str = "") -> Any:
    """Dicts, lists, strings, numbers, True, False and None; numbers that are not finite as ``"nan"``, ``"inf"``."""
    if value is None or isinstance(value, str | int):
        return value
    if is_dataclass(value):
        return {f.name: _of_field(value, f.name, put, f"{path}/{f.name}".lstrip("/")) for f in fields(value)}
    if isinstance(value, Mapping):
        return {str(name): to_plain(item, put, f"{path}/{name}") for name, item in value.items()}
    if isinstance(value, tuple | list):
        return [to_plain(item, put, f"{path}/{place}") for place, item in enumerate(value)]
    if hasattr(value, "item"):  # numpy's numbers
        return to_plain(value.item())
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _of_field(owner: Any, name: str, put: Put, path: str) -> Any:
    value = getattr(owner, name)
    return put(owner, path, value) if isinstance(value, Tensor) else to_plain(value, put, path)


def from_plain(hint: Any, plain: Any, take: Take = read) -> Any:
    """The value of the type `hint` that `to_plain` made plain.

    A field that is not there keeps its default, one that is not known is left out: newer files stay readable.
    """
    if plain is None:
        return None
    if hint is Tensor:
        return take(plain)
    if isinstance(hint, type) and is_dataclass(hint):
        known = {name: part for name, part in _hints(hint).items() if name in plain}
        return hint(**{name: from_plain(part, plain[name], take) for name, part in known.items()})
    if get_origin(hint) in (Union, UnionType):
        return from_plain(next(part for part in get_args(hint) if part is not NoneType), plain, take)
    return _of_parts(hint, plain, take)


def _of_parts(hint: Any, plain: Any, take: Take) -> Any:
    parts = get_args(hint)
    if get_origin(hint) is tuple:
        each = [parts[0]] * len(plain) if parts[-1] is Ellipsis else parts
        return tuple(from_plain(part, item, take) for part, item in zip(each, plain, strict=True))
    if get_origin(hint) is Mapping:
        return {name: from_plain(parts[1], item, take) for name, item in plain.items()}
    return float(plain) if hint is float else plain


@cache
def _hints(record: type[Any]) -> dict[str, Any]:
    hints = get_type_hints(record)
    return {field.name: hints[field.name] for field in fields(record)}


def dtype_name(tensor: Tensor) -> str:
    """``float32`` for torch.float32."""
    return str(tensor.dtype).removeprefix("torch.")


def dtype_of(name: str) -> torch.dtype:
    """torch.float32 for ``float32``."""
    dtype: torch.dtype = getattr(torch, name)
    return dtype
