"""Compute beside a training without a trace: changes to live objects are always undone, whatever interrupts."""

from __future__ import annotations

import contextlib
import random
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn


@dataclass(eq=False)
class Change:
    """Something done to `key`, and how it is undone. Undoing twice, or what was not done, must do no harm."""

    key: object
    apply: Callable[[], object]
    undo: Callable[[], object]
    over: bool = False


_OPEN: dict[object, list[Change]] = {}


@contextmanager
def changed(changes: Sequence[Change]) -> Iterator[None]:
    """Inside, the changes are in force; afterwards each is undone, also after an error or an interrupt.

    Changes of one key end in reverse order: where contexts are left in another order, one that is left early lasts
    until those that began after it have ended. An interrupt while they are undone is raised when all are undone.
    """
    try:
        for change in changes:
            _OPEN.setdefault(change.key, []).append(change)
            change.apply()
        yield
    finally:
        interrupt = None
        while True:
            try:
                _end_all(changes)
                break
            except KeyboardInterrupt as error:
                interrupt = error
        if interrupt is not None:
            raise interrupt


def _end_all(changes: Sequence[Change]) -> None:
    """The last first; each, even where another fails."""
    with ExitStack() as stack:
        for change in changes:
            stack.callback(_end, change)


def _end(change: Change) -> None:
    change.over = True
    waiting = _OPEN.get(change.key, [])
    while waiting and waiting[-1].over:
        waiting[-1].undo()
        waiting.pop()
    if not waiting:
        _OPEN.pop(change.key, None)


def uncompiled() -> Change:
    """Compiled code sees no hook and no forward that came later, so it runs uncompiled (torch 2.6 and later).

    Nothing is to be done where nothing can be compiled yet: importing the compiler takes a second.
    """
    if "torch._dynamo" not in sys.modules or not hasattr(torch.compiler, "set_stance"):
        return Change("stance", lambda: None, lambda: None)
    from torch._dynamo import eval_frame

    before = eval_frame._stance  # not by leaving set_stance: an interrupt on the way into it would keep it for ever
    return Change("stance", lambda: torch.compiler.set_stance("force_eager"), lambda: eval_frame._set_stance(before))


_THREAD = threading.local()


@contextlib.contextmanager
def undisturbed(model: nn.Module | None = None) -> Iterator[None]:
    """Inside: no gradients, no autocast, full float32 precision; after: every random state is as before.

    With a `model` its modules are in eval mode inside. Afterwards each module's attributes (lists, sets, dicts and
    tensors in them too, one level deep) and every buffer are as before, also after an exception. Flags are set one by
    one: ``model.eval()`` may be overridden.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.no_grad())
        for device in {"cpu", *_device_types(model)}:
            stack.enter_context(torch.autocast(device, enabled=False))
        if not getattr(_THREAD, "is_beside", False):
            stack.enter_context(random_states())
            stack.enter_context(_full_precision())
        if model is not None:
            stack.enter_context(eval_mode(model))
            stack.enter_context(tensors_put_back(model))
        yield


@contextlib.contextmanager
def beside() -> Iterator[None]:
    """Inside, in a thread beside a training, `undisturbed` leaves alone what all threads share.

    That is random states, which the training draws from meanwhile, and the precision of products: only what draws
    nothing may run there, and only where `is_exact`.
    """
    _THREAD.is_beside = True
    try:
        yield
    finally:
        _THREAD.is_beside = False


def is_exact() -> bool:
    """Whether the training itself has full float32 precision on CUDA: by default cuDNN's recurrent layers do not."""
    return all(getattr(owner, name) in ("ieee", "none", False) for owner, name, _ in _precision()[:2])


def _device_types(model: nn.Module | None) -> set[str]:
    return set() if model is None else {p.device.type for p in model.parameters()} - {"meta"}


@contextlib.contextmanager
def random_states() -> Iterator[None]:
    """The random states of torch, numpy and Python, as before."""
    import numpy as np

    python, legacy_numpy = random.getstate(), np.random.get_state()
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []
    try:
        with torch.random.fork_rng(devices=list(devices)):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(legacy_numpy)


@contextlib.contextmanager
def _full_precision() -> Iterator[None]:
    """No TF32 and no bfloat16 inside float32 products, by the switches that this torch has.

    By the older ones first, inside and after: where they differ from the newer ones torch raises as soon as they are
    read, which ``torch.backends.cudnn.flags`` in anybody's forward does.
    """
    switches = [*_older_precision(), *(_attribute(*switch) for switch in _precision() if switch[1] != "allow_tf32")]
    before = [read() for read, _, _ in switches]
    try:
        for _, write, exact in switches:
            write(exact)
        yield
    finally:
        for (_, write, _), value in zip(switches, before, strict=True):
            write(value)


Switch = tuple[Callable[[], Any], Callable[[Any], object], object]
"""How to read one, how to write it, and its value for full precision."""


def _attribute(owner: Any, name: str, exact: object) -> Switch:
    return partial(getattr, owner, name), partial(setattr, owner, name), exact


def _older_precision() -> list[Switch]:
    """The switches of every torch, where they can be read: not where the newer ones were already set otherwise."""
    matmul = (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, "highest")
    readable: list[Switch] = []
    for switch in (_attribute(torch.backends.cudnn, "allow_tf32", False), matmul):
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


@contextlib.contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Every module's flag off inside; afterwards its attributes, and what they hold one level deep, are as before."""
    kept = [(vars(module), dict(vars(module))) for module in model.modules()]
    values = {id(value): value for _, attributes in kept for value in attributes.values()}.values()
    containers = [(value, value.copy()) for value in values if type(value) in (dict, list, set)]

    def switch() -> None:
        for attributes, _ in kept:
            attributes["training"] = False

    def put_back() -> None:
        for attributes, before in kept:
            _refill(attributes, before)
        for container, content in containers:
            container.clear()
            (container.extend if isinstance(container, list) else container.update)(content)

    with changed([Change(object(), switch, put_back)]):
        yield


def _refill(attributes: dict[str, Any], before: dict[str, Any]) -> None:
    """As before, in the order of before; at no moment is one of them missing."""
    attributes.update(before)
    for name in [name for name in attributes if name not in before]:
        attributes.pop(name, None)
    if [*attributes] != [*before]:
        attributes.clear()
        attributes.update(before)


@contextlib.contextmanager
def tensors_put_back(model: nn.Module) -> Iterator[None]:
    """The values of every buffer and of tensors that are plain attributes, as before; parameters need no copy."""
    plain = [value for module in model.modules() for value in vars(module).values() if isinstance(value, torch.Tensor)]
    held = [tensor for tensor in (*model.buffers(), *plain) if not nn.parameter.is_lazy(tensor)]
    saved = [(tensor, tensor.detach().clone()) for tensor in held if not isinstance(tensor, nn.Parameter)]

    def put_back() -> None:
        for tensor, before in saved:
            if tensor.shape != before.shape or not torch.equal(tensor, before):
                tensor.detach().copy_(before)

    with changed([Change(object(), lambda: None, put_back)]):
        yield
