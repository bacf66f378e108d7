"""A device that is not the host, where there is no GPU: tensors of host memory that say "meta", and may not be mixed.

Only what Python sees of a device is shown in this way: where tensors are, not how fast they are or what CUDA computes.
"""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

from lstm_monitor.core import trees

PLACE = "meta"
PRODUCTS = (
    "mm",
    "addmm",
    "bmm",
    "baddbmm",
    "mv",
    "addmv",
    "dot",
    "vdot",
    "lstm",
    "gru",
    "rnn",
    "convolution",
    "linear",
)
"""What multiplies matrices, as it arrives at a device; what is rounded there by torch's switches of precision."""
READING = ("aten._local_scalar_dense", "aten.equal", "aten.nonzero", "aten.is_nonzero", "aten.item")
"""What makes the host wait for a device, besides copies from it."""
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
        Elsewhere.waits.append("tolist")
        return self.held.tolist()

    @classmethod
    def __torch_dispatch__(cls, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(op, args, kwargs or {})


class Elsewhere(TorchDispatchMode):
    """Inside, such tensors can be made, moved and computed with; to mix them with the host's is an error.

    With ``double=False`` the device knows no float64. ``rounded``: the products of float32 that were made there;
    ``waits``: for what the host waited.
    """

    rounded: ClassVar[list[str]] = []
    waits: ClassVar[list[str]] = []
    double: ClassVar[bool] = True

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, double: bool = True) -> None:
        super().__init__()
        for name, value in (("rounded", []), ("waits", []), ("double", double)):
            monkeypatch.setattr(Elsewhere, name, value)
        make = torch.tensor  # which would make a tensor without values at once

        def tensor(values: Any, *, dtype: Any = None, device: Any = None) -> Tensor:
            made = make(values, dtype=dtype, device="cpu")
            return made if device is None else made.to(device)

        monkeypatch.setattr(torch, "tensor", tensor)

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(op, args, kwargs or {})


def sent(record: Any) -> Any:
    """The same record with all its tensors there."""
    return trees._rebuild(record, {id(tensor): There(tensor.clone()) for tensor in trees.tensors_of(record)})


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
    empty = [tuple(t.shape) for t in tensors if not isinstance(t, There) and t.device.type == PLACE]
    assert not empty, f"{name} has tensors {empty} that torch made there by itself, from a list: they hold no values"
    if there:
        _noted(name, tensors, kwargs)
    given = kwargs if place is None else {**kwargs, "device": torch.device("cpu")}
    found = op(*tree_map(_here, args), **tree_map(_here, given))
    stays = not there if place is None else torch.device(place).type != PLACE
    return found if stays else tree_map(lambda value: there[id(value)] if id(value) in there else _there(value), found)


def _noted(name: str, tensors: list[Tensor], kwargs: dict[str, Any]) -> None:
    kind = name.split(".")[1].strip("_")
    if kind in PRODUCTS and any(t.dtype == torch.float32 for t in tensors):
        Elsewhere.rounded.append(name)
    leaves = name.startswith("aten._to_copy") and torch.device(kwargs.get("device") or PLACE).type != PLACE
    if leaves or name.startswith(READING):
        Elsewhere.waits.append(name)


def _here(value: Any) -> Any:
    return value.held if isinstance(value, There) else value


def _there(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    if value.dtype == torch.float64 and not Elsewhere.double:
        raise TypeError("Cannot convert a tensor to float64: this device has none")
    return There(value)
