"""The call of torch's own forward inside a module whose class overrides it: a place for hooks and for stand-ins.

A subclass that packs, masks or drops out around ``super().forward(...)`` still has the cells of torch's LSTM. What
these receive and give is only seen at that inner call.
"""

from __future__ import annotations

from functools import cache
from types import new_class
from typing import Any, cast

from torch import nn
from torch.utils.hooks import RemovableHandle

from lstm_monitor.custom.registry import registration_of
from lstm_monitor.kinds import base_of, overrides_forward, reaches_torch

_NAME = "_lstm_monitor_inner"


class _Inner(nn.Module):
    """torch's own forward of a `module`; it is stored there, but is no child of it."""

    def __init__(self, module: nn.Module, own: Any) -> None:
        super().__init__()
        vars(self).update(module=module, own=own)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return vars(self)["own"](vars(self)["module"], *args, **kwargs)


class _Opened:
    """Marks classes whose ``super().forward`` goes through an `_Inner`; it leaves registries of subclasses alone."""

    __slots__ = ()
    shut: type

    def __init_subclass__(cls, **_: Any) -> None:
        """Nothing: a class may count or check its subclasses here."""


def inner_of(module: nn.Module) -> nn.Module:
    """The module that takes hooks and another ``forward``: the module itself, or what its class calls as ``super()``.

    A module of a registered class is one whole. Call `settle` once they are off again.
    """
    outer, base = cast(Any, type(module)), cast(Any, base_of(module))
    if not overrides_forward(module) or not reaches_torch(module) or registration_of(module) is not None:
        return module
    inner = vars(module).setdefault(_NAME, _Inner(module, base.forward))
    if not isinstance(module, _Opened):
        object.__setattr__(module, "__class__", _opened(outer, base))
    assert isinstance(inner, nn.Module)
    return inner


def inner_now(module: nn.Module) -> nn.Module:
    """What `inner_of` last returned, or the module itself if that is settled; nothing is changed."""
    inner = vars(module).get(_NAME, module)
    assert isinstance(inner, nn.Module)
    return inner


def settle(module: nn.Module) -> None:
    """Leave the module as it was, unless something still hangs on its inner call."""
    inner = inner_now(module)
    if inner is module or inner._forward_hooks or inner._forward_pre_hooks or "forward" in vars(inner):
        return
    if isinstance(module, _Opened):
        object.__setattr__(module, "__class__", type(module).shut)
    vars(module).pop(_NAME, None)


@cache
def _opened(shut: type, base: type) -> type:
    """A subclass of `shut` in which a class between `shut` and `base` passes the call on.

    `shut` is the first base, so that an object may take either class; `_Opened` is looked up before it all the same.
    """
    between = new_class(base.__name__, (base,), exec_body=lambda body: body.update(forward=_pass_on))
    meta = new_class(type(shut).__name__, (type(shut),), exec_body=lambda body: body.update(mro=_mro))
    body = {"shut": shut, "__module__": shut.__module__, "__qualname__": shut.__qualname__}
    return new_class(shut.__name__, (shut, between, _Opened), {"metaclass": meta}, lambda made: made.update(body))


def _mro(made: type) -> list[type]:
    return [made, _Opened, *(cls for cls in type.mro(made)[1:] if cls is not _Opened)]


def _pass_on(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    return vars(module)[_NAME](*args, **kwargs)


class InnerHandle(RemovableHandle):
    """Takes a hook off an inner call and settles its module."""

    def __init__(self, module: nn.Module, handle: RemovableHandle) -> None:
        """Of a `handle` that was given by a hook on ``inner_of(module)``."""
        self.module, self.handle = module, handle

    def remove(self) -> None:
        """The hook off; more than once does no harm."""
        self.handle.remove()
        settle(self.module)
