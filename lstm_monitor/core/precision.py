"""How precise products of float32 are: torch's switches, and products of our own where these must stay as they are.

On a GPU torch may round the factors of float32 products to 10 bits (TF32); in cuDNN's recurrent layers it does by
default.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from lstm_monitor.core.changes import Change, changed

_THREAD = threading.local()
PRODUCTS = {
    *("matmul", "__rmatmul__", "mm", "mv", "bmm", "dot", "vdot", "inner", "einsum", "tensordot", "linear"),
    *("addmm", "addmm_", "addmv", "addmv_", "baddbmm", "baddbmm_"),
}
"""torch's functions that multiply matrices, by name. The recurrent ones are `run_fused`'s to care for."""
Switch = tuple[Callable[[], Any], Callable[[Any], object], object]
"""How to read one, how to write it, and its value for full precision."""


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


@contextlib.contextmanager
def full_precision() -> Iterator[None]:
    """No TF32 and no bfloat16 inside float32 products, by the switches that this torch has.

    By the older ones first, inside and after: where they differ from the newer ones torch raises as soon as they are
    read, which ``torch.backends.cudnn.flags`` in anybody's forward does.
    """
    switches = [*_older_precision(), *(_switch(*place) for place in _precision() if place[1] != "allow_tf32")]
    before = [read() for read, _, _ in switches]
    exact = [value for _, _, value in switches]

    def write(values: Sequence[object]) -> None:
        for (_, put, _), value in zip(switches, values, strict=True):
            put(value)

    with changed([Change("precision", partial(write, exact), partial(write, before))]):
        yield


def _switch(owner: Any, name: str, exact: object) -> Switch:
    read = partial(_own_value, owner) if name == "fp32_precision" else partial(getattr, owner, name)
    return read, partial(setattr, owner, name), exact


def _older_precision() -> list[Switch]:
    """The switches of every torch, where they can be read: not where the newer ones were already set otherwise."""
    matmul = (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, "highest")
    readable: list[Switch] = []
    for switch in (_switch(torch.backends.cudnn, "allow_tf32", False), matmul):
        with contextlib.suppress(RuntimeError):
            switch[0]()
            readable.append(switch)
    return readable


def _precision() -> list[tuple[Any, str, object]]:
    """Where the precision of float32 products is set, by which name, and to what; those of CUDA first."""
    backends: Any = torch.backends
    if hasattr(backends.cudnn, "rnn"):  # torch 2.9 and later: mixing in the older switches can raise
        cudnn, mkldnn = backends.cudnn, backends.mkldnn
        new = (cudnn.rnn, backends.cuda.matmul, cudnn.conv, mkldnn.rnn, mkldnn.matmul)
        return [(owner, "fp32_precision", "ieee") for owner in new]
    return [(owner, "allow_tf32", False) for owner in (backends.cudnn, backends.cuda.matmul)]


def _own_value(owner: Any) -> str:
    """What to write into a newer switch to have it as it is: "none" where it shows the value of the one above it.

    With that value in it it would no longer follow when somebody sets the one above. A switch that nobody has set may
    follow and yet show another value, its default; nothing but that value can be written back then.
    """
    above, shown = _above(owner), str(owner.fp32_precision)
    if above is None or shown == "none" or shown != above.fp32_precision:
        return shown
    kept = _own_value(above)
    above.fp32_precision = "ieee" if shown == "tf32" else "tf32"
    follows = owner.fp32_precision != shown
    above.fp32_precision = kept
    return "none" if follows else shown


def _above(owner: Any) -> Any:
    """The switch that holds where this one is not set; that of mkldnn cannot be written in torch 2.9 to 2.13."""
    backends: Any = torch.backends
    if owner is backends:
        return None
    return backends.cudnn if owner in (backends.cudnn.rnn, backends.cudnn.conv, backends.cuda.matmul) else backends
