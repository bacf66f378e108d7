"""The call of torch's own forward inside a module whose class overrides it: a place for hooks and for stand-ins.

A subclass that packs, masks or drops out around ``super().forward(...)`` still has the cells of torch's LSTM. What
these receive and give is only seen at that inner call.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from types import new_class
from typing import Any, SupportsIndex, cast

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from lstm_monitor.layers.registered.registry import registration_of
from lstm_monitor.layers.torch_modules import base_of, overrides_forward, passing_on, reaches_torch

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

    def __reduce_ex__(self, protocol: SupportsIndex) -> Any:
        """Copies and pickles are of the module's own class, and without hooks; only a stand-in goes along."""
        if "forward" in vars(vars(self)[_NAME]):
            return super().__reduce_ex__(protocol)
        parts: Any = super().__reduce_ex__(1)  # later protocols want the class that the object has now
        make, arguments, state, *more = parts
        arguments = tuple(self.shut if part is type(self) else part for part in arguments)
        state = {name: value for name, value in state.items() if name != _NAME} if isinstance(state, dict) else state
        return make, arguments, state, *more


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
        _shut(module)
    vars(module).pop(_NAME, None)


def _shut(module: nn.Module) -> None:
    """The module's own class again; one derived from the opened class meanwhile, by a parametrization, stays."""
    cls: Any = type(module)
    if "shut" in vars(cls):
        object.__setattr__(module, "__class__", cls.shut)
    else:
        cls.__bases__ = tuple(base.shut if issubclass(base, _Opened) else base for base in cls.__bases__)


def _opened(shut: type, base: type) -> type:
    """A subclass of `shut` in which a class between `shut` and `base` passes the call on.

    `shut` is the first base, so that an object may take either class; `_Opened` is looked up before it all the same.
    """
    between = new_class(base.__name__, (base,), exec_body=lambda body: body.update(forward=_pass_on))
    parts = {"mro": _mro, "__new__": type.__new__, "__init__": type.__init__}  # a metaclass may count classes, too
    meta = new_class(type(shut).__name__, (type(shut),), exec_body=lambda body: body.update(parts))
    body = {"shut": shut, "__module__": shut.__module__, "__qualname__": shut.__qualname__}
    return new_class(shut.__name__, (shut, between, _Opened), {"metaclass": meta}, lambda made: made.update(body))


def _mro(made: type) -> list[type]:
    first, *others = type.mro(made)
    return [first, _Opened, *(cls for cls in others if cls is not _Opened)] if _Opened in others else [first, *others]


@passing_on
def _pass_on(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    return vars(module)[_NAME](*args, **kwargs)


class _Hook(partial[None]):
    """A forward hook of which copies and pickles of its module have nothing but a place, which needs no package."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Something of Python's own that takes any arguments and returns None."""
        return getattr, (nullcontext(), "__exit__")


class InnerHandle(RemovableHandle):
    """A forward hook on a module's inner call, which tells ``observe(args, kwargs, output)`` of each; `hang` hangs it.

    Compiled code is as it would be without: a sequence is run eagerly in its middle and is observed, a cell is not.
    """

    def __init__(self, module: nn.Module, observe: Callable[..., None]) -> None:
        """Not there yet."""
        watch = _outside_of_graphs if _runs_eagerly(module) else _unless_compiled
        self.module, self.hook = module, _Hook(watch(observe))

    def hang(self) -> None:
        """The hook on."""
        inner_of(self.module).register_forward_hook(self.hook, with_kwargs=True)

    def remove(self) -> None:
        """The hook off; more than once does no harm, nor after a `hang` that was interrupted."""
        inner = inner_now(self.module)
        for key in [key for key, hook in inner._forward_hooks.items() if hook is self.hook]:
            inner._forward_hooks.pop(key, None)
            inner._forward_hooks_with_kwargs.pop(key, None)
        settle(self.module)


def _runs_eagerly(module: nn.Module) -> bool:
    """Whether the compiler breaks off at this module, as it does at torch's sequences by default."""
    compiler = sys.modules.get("torch._dynamo")  # importing it takes a second
    return compiler is not None and isinstance(module, nn.RNNBase) and not getattr(compiler.config, "allow_rnn", False)


def _outside_of_graphs(observe: Callable[..., None]) -> Callable[..., None]:
    """A hook that the compiler does not look into."""
    outside: Callable[..., None] = torch.compiler.disable(lambda _, args, kwargs, output: observe(args, kwargs, output))
    return outside


def _unless_compiled(observe: Callable[..., None]) -> Callable[..., None]:
    """A hook of which nothing is left in compiled code: a break there can be an error, or change the results."""

    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if not torch.compiler.is_compiling():
            observe(args, kwargs, output)

    return hook
