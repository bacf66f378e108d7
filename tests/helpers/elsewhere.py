"""A device that is not the host, where there is no GPU: tensors of host memory that say "meta", and may not be mixed.

Only what Python sees of a device is shown in this way: where tensors are, not how fast they are or what CUDA computes.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

from lstm_monitor.core import trees

PLACE = "meta"
INDEXING = ("aten.index.Tensor", "aten.index_put_.default", "aten._unsafe_index.Tensor")
"""What CUDA lets the host's tensors take part in, besides copies and single numbers."""


class There(Tensor):
    """A tensor that is there; what it holds is here, in ``held``."""

    held: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held: Tensor) -> There:
        given: dict[str, Any] = {"strides": held.stride(), "dtype": held.dtype, "device": PLACE}
        made: There = torch.Tensor._make_wrapper_subclass(cls, held.size(), **given)  # type: ignore[attr-defined]
        made.held = held
        return made

    def tolist(self) -> Any:
        return self.held.tolist()

    @classmethod
    def __torch_dispatch__(cls, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(op, args, kwargs or {})


class Elsewhere(TorchDispatchMode):
    """Inside, such tensors can be made, moved and computed with; to mix them with the host's is an error."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        make = torch.tensor  # which would make a tensor without values at once

        def tensor(values: Any, *, dtype: Any = None, device: Any = None) -> Tensor:
            made = make(values, dtype=dtype, device="cpu")
            return made if device is None else made.to(device)

        monkeypatch.setattr(torch, "tensor", tensor)

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(op, args, kwargs or {})


def sent(record: Any) -> Any:
    """The same record with all its tensors there."""
    return trees._rebuild(record, {id(tensor): There(tensor.clone()) for tensor in trees._tensors(record)})


def moved(model: nn.Module) -> nn.Module:
    """The same module with its parameters there."""
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = nn.Parameter(There(parameter.detach().clone()))
        if isinstance(module, nn.RNNBase):
            module._flat_weights = [getattr(module, name) for name in module._flat_weights_names]
    return model


def _run(op: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    tensors = [value for value in tree_flatten((args, kwargs))[0] if isinstance(value, Tensor)]
    there = {id(tensor.held): tensor for tensor in tensors if isinstance(tensor, There)}
    name, place = str(op), kwargs.get("device")
    if there and not name.startswith(("aten._to_copy", "aten.copy_", *INDEXING)):
        mixed = [tuple(t.shape) for t in tensors if not isinstance(t, There) and t.dim() > 0]
        assert not mixed, f"{name} has tensors of the host, {mixed}, beside those of another device"
    given = kwargs if place is None else {**kwargs, "device": torch.device("cpu")}
    found = op(*tree_map(_here, args), **tree_map(_here, given))
    stays = not there if place is None else torch.device(place).type != PLACE
    return found if stays else tree_map(lambda value: there[id(value)] if id(value) in there else _there(value), found)


def _here(value: Any) -> Any:
    return value.held if isinstance(value, There) else value


def _there(value: Any) -> Any:
    return There(value) if isinstance(value, Tensor) else value
