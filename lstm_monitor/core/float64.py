"""float64 in place of float32: where a device has it, and for products that must not depend on torch's switches."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

_THREAD = threading.local()
PRODUCTS = {
    *("matmul", "__rmatmul__", "mm", "mv", "bmm", "dot", "vdot", "inner", "einsum", "tensordot", "linear"),
    *("addmm", "addmm_", "addmv", "addmv_", "baddbmm", "baddbmm_"),
}
"""torch's functions that multiply matrices, by name. The recurrent ones are `run_fused`'s to care for."""


@contextlib.contextmanager
def own_precision() -> Iterator[None]:
    """Inside, in this thread only, float32 products on another device than the host are made in float64.

    They are then exact whatever torch's switches say, also if the training sets these meanwhile, and nothing that
    other threads see is changed. That holds for the functions of `PRODUCTS`, called from Python.
    """
    before, _THREAD.in_double = getattr(_THREAD, "in_double", False), True
    try:
        with _ProductsInDouble():
            yield
    finally:
        _THREAD.in_double = before


class _ProductsInDouble(TorchFunctionMode):
    """Calls torch's functions as they are, but for products."""

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Call `func`; if it is a product, in float64."""
        given, name = dict(kwargs or {}), getattr(func, "__name__", "")
        if name not in PRODUCTS or not any(map(_is_rounded, (*args, *given.values()))):
            return func(*args, **given)
        into = args[0] if name.endswith("_") else given.pop("out", None)
        made = func(*map(_double, args), **{key: _double(value) for key, value in given.items()})
        return made.float() if into is None else into.copy_(made)


def product_type(like: Tensor) -> torch.dtype:
    """The type in which products of tensors like this one are made here; see `own_precision`."""
    return torch.float64 if getattr(_THREAD, "in_double", False) and _is_rounded(like) else like.dtype


def _is_rounded(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dtype == torch.float32 and value.device.type != "cpu"


def _double(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) else value


def has_float64(device: torch.device) -> bool:
    """Whether a device computes in float64: Apple's GPUs do not."""
    if device.type in ("cpu", "cuda"):
        return True
    try:
        return bool((torch.zeros(1, dtype=torch.float64, device=device) + 1).isfinite().all())
    except (TypeError, RuntimeError):
        return False


def doubled(values: Tensor) -> Tensor:
    """The values in float64: where they are, or on the host if their device has no float64."""
    return (values if has_float64(values.device) else values.cpu()).double()
