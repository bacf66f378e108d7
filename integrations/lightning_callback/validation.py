"""A module's validation on a few batches, made again and again: what it logs is caught, and nothing of it stays."""

from __future__ import annotations

import copy
import inspect
from collections import defaultdict, deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from lstm_monitor.core.undisturbed import undisturbed
from lstm_monitor.integrations.lightning_callback.batches import Batch, part_of
from lstm_monitor.integrations.lightning_callback.logged import Logs

_DEEPEST, _LARGEST = 4, 1000
"""Containers are followed that deep, and into those that have no more items (a module may hold its data set)."""


class Steps:
    """The validation of a module by its Trainer, as often as needed. Use it inside `as_validating`."""

    def __init__(self, trainer: Any, module: Any) -> None:
        """Nothing is run yet."""
        self.trainer, self.module = trainer, module
        self.signature = inspect.signature(part_of(trainer, "core.module").LightningModule.log)
        self.takes = _places(module.validation_step)

    def run(self, batches: Sequence[Batch], *, hooks: bool = False) -> Logs:
        """Run ``validation_step`` on batches; with `hooks` also the module's own, as over one whole epoch.

        Metric objects begin empty, and are computed before they are put back.
        """
        with self._alone() as logs:
            self._hook(hooks, "on_validation_epoch_start")
            for batch in batches:
                self._one(batch, logs, hooks)
            logs.batch = None
            self._hook(hooks, "on_validation_epoch_end")
            logs.compute()
        return logs

    def _one(self, batch: Batch, logs: Logs, hooks: bool) -> None:
        value = copy.deepcopy(batch.value)  # steps take batches apart, or change them in place
        arguments = (value, *batch.arguments()[1:])
        logs.batch = batch
        self._hook(hooks, "on_validation_batch_start", *arguments)
        result = self.module.validation_step(*arguments[: self.takes])
        logs.returned(result)
        self._hook(hooks, "on_validation_batch_end", result, *arguments)

    def _hook(self, wanted: bool, name: str, *arguments: Any) -> None:
        if wanted:
            getattr(self.module, name)(*arguments)

    @contextmanager
    def _alone(self) -> Iterator[Logs]:
        """Whatever a step leaves on its module, in its lists or in its metrics is taken away again."""
        logs = Logs(self.signature)
        gradients = torch.is_grad_enabled()
        with ExitStack() as stack:
            for owner in (self.module, *_loose_metrics(self.module)):
                stack.enter_context(undisturbed(owner))
            stack.enter_context(_containers(self.module))
            stack.enter_context(self.trainer.precision_plugin.val_step_context())
            stack.enter_context(torch.set_grad_enabled(gradients))
            for metric in _metrics(self.module):
                metric.reset()
                metric.distributed_available_fn = None  # other processes are elsewhere
            vars(self.module)["log"] = logs.log
            yield logs


def _places(step: Any) -> int | None:
    """How many arguments a step takes by their places; None for any number."""
    parameters = inspect.signature(step).parameters.values()
    if any(parameter.kind is parameter.VAR_POSITIONAL for parameter in parameters):
        return None
    return sum(
        parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD) for parameter in parameters
    )


@contextmanager
def as_validating(trainer: Any) -> Iterator[None]:
    """The Trainer says that it validates, and its loggers take nothing: steps log pictures and texts by themselves."""
    silent = part_of(trainer, "loggers.logger").DummyLogger
    stage, loggers = trainer.state.stage, trainer.loggers
    try:
        trainer.validating = True
        trainer.loggers = [silent() for _ in loggers]
        yield
    finally:
        trainer.loggers = loggers
        trainer.state.stage = stage


@contextmanager
def _containers(module: nn.Module) -> Iterator[None]:
    """Lists, dicts and sets on the module, at any depth that people use, hold afterwards what they held before."""
    found: dict[int, tuple[Any, Any]] = {}
    for part in module.modules():
        for value in vars(part).values():
            _collect(value, found, _DEEPEST)
    try:
        yield
    finally:
        for container, content in found.values():
            container.clear()
            (container.extend if isinstance(container, list | deque) else container.update)(content)


def _collect(value: Any, found: dict[int, tuple[Any, Any]], depth: int) -> None:
    if depth == 0 or id(value) in found:
        return
    if type(value) in (dict, list, set, defaultdict, deque):
        found[id(value)] = (value, copy.copy(value))
    if type(value) in (dict, defaultdict, list, tuple, deque) and len(value) <= _LARGEST:
        for item in value.values() if isinstance(value, Mapping) else value:
            _collect(item, found, depth - 1)


def _metrics(module: nn.Module) -> list[Any]:
    return [part for part in module.modules() if _is_metric(part)]


def _loose_metrics(module: nn.Module) -> list[Any]:
    """Metrics in plain lists and dicts, which are no parts of the module."""
    found: dict[int, tuple[Any, Any]] = {}
    for value in vars(module).values():
        _collect(value, found, _DEEPEST)
    held = [item for value, _ in found.values() for item in (value.values() if isinstance(value, dict) else value)]
    parts = set(module.modules())
    return [item for item in held if _is_metric(item) and item not in parts]


def _is_metric(value: Any) -> bool:
    return any(base.__name__ == "Metric" and base.__module__.startswith("torchmetrics") for base in type(value).__mro__)
