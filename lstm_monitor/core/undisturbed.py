"""Compute beside a training without a trace: random states, modes, buffers and precision are put back."""

from __future__ import annotations

import contextlib
import random
import threading
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from lstm_monitor.core.changes import Change, changed
from lstm_monitor.core.float64 import own_precision
from lstm_monitor.core.precision import full_precision

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
            stack.enter_context(full_precision())
        if model is not None:
            stack.enter_context(eval_mode(model))
            stack.enter_context(tensors_put_back(model))
        yield


@contextlib.contextmanager
def beside() -> Iterator[None]:
    """Inside, in a thread beside a training, `undisturbed` leaves alone what all threads share.

    That is random states, which the training draws from meanwhile, so only what draws nothing may run there; and the
    switches of precision: products have a precision of their own.
    """
    before, _THREAD.is_beside = getattr(_THREAD, "is_beside", False), True
    try:
        with own_precision():
            yield
    finally:
        _THREAD.is_beside = before


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
