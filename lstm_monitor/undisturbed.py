"""Compute beside a training without a trace: random states, modes, buffers and precision are put back."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator

import torch
from torch import nn


@contextlib.contextmanager
def undisturbed(model: nn.Module | None = None) -> Iterator[None]:
    """Inside: no gradients, no autocast, full float32 precision; after: every random state is as before.

    With a `model` its modules are in eval mode inside, and each module's training flag and every buffer are as
    before afterwards, also after an exception. Flags are set one by one: ``model.eval()`` may be overridden.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.no_grad())
        for device in {"cpu", *_device_types(model)}:
            stack.enter_context(torch.autocast(device, enabled=False))
        stack.enter_context(_random_states())
        stack.enter_context(_full_precision())
        if model is not None:
            stack.enter_context(_eval_mode(model))
            stack.enter_context(_buffers(model))
        yield


def _device_types(model: nn.Module | None) -> set[str]:
    return set() if model is None else {p.device.type for p in model.parameters()} - {"meta"}


@contextlib.contextmanager
def _random_states() -> Iterator[None]:
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
    cudnn = torch.backends.cudnn.allow_tf32
    matmul = torch.backends.cuda.matmul.allow_tf32
    try:
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = cudnn
        torch.backends.cuda.matmul.allow_tf32 = matmul


@contextlib.contextmanager
def _eval_mode(model: nn.Module) -> Iterator[None]:
    flags = [(module, module.training) for module in model.modules()]
    try:
        for module, _ in flags:
            module.training = False
        yield
    finally:
        for module, training in flags:
            module.training = training


@contextlib.contextmanager
def _buffers(model: nn.Module) -> Iterator[None]:
    saved = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    try:
        yield
    finally:
        for buffer, before in saved:
            if buffer.shape != before.shape or not torch.equal(buffer, before):
                buffer.copy_(before)
