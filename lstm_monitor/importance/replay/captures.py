"""Catch what a model puts out while a function of the user's runs it: a loss, a validation step, an evaluation."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.loss import _Loss
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from lstm_monitor.core.changes import changed, uncompiled
from lstm_monitor.snapshots.outputs import Select, output_tensor


@dataclass(eq=False)
class Captured:
    """Outputs of the outermost module calls, in order, with the module that was called."""

    calls: list[tuple[nn.Module, Any]] = field(default_factory=list)

    def outputs(self, select: Select | None = None) -> list[Tensor]:
        """The network's output of each time it was run: that of the module that was called last, without losses.

        `select` takes it from what the module returned. Empty if no module gave a tensor with a sequence axis.
        """
        for module, value in reversed(self.calls):
            if _is_network(module) and _has_rows(value, select):
                own = [value for other, value in self.calls if other is module and _has_rows(value, select)]
                return [output_tensor(value, select) for value in own]
        return []


@contextmanager
def captured(model: nn.Module) -> Iterator[Captured]:
    """Inside, outputs of `model` and of its parts are caught where no other part of it is running around them."""
    parts, depth, found = set(map(id, model.modules())), 0, Captured()  # the hash of a metric changes with its state

    def enter(module: nn.Module, _: Any) -> None:
        nonlocal depth
        depth += id(module) in parts

    def leave(module: nn.Module, _: Any, output: Any) -> None:
        nonlocal depth
        if id(module) in parts:
            depth -= 1
            if depth == 0:
                found.calls.append((module, output))

    # a compiled module runs uncompiled inside; it may fire the hooks twice, which the depth allows for
    with changed([uncompiled()]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*global hooks.*")
        yield from _hooked(enter, leave, found)


def _hooked(enter: Any, leave: Any, found: Captured) -> Iterator[Captured]:
    handles = [register_module_forward_pre_hook(enter), register_module_forward_hook(leave, always_call=True)]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _is_network(module: nn.Module) -> bool:
    """Whether a module's output can be the network's: not a loss, not a metric."""
    return not isinstance(module, _Loss) and type(module).__module__.split(".")[0] != "torchmetrics"


def _has_rows(value: Any, select: Select | None) -> bool:
    try:
        return output_tensor(value, select).dim() > 0
    except (TypeError, ValueError, KeyError, IndexError, AttributeError):
        return False  # another part's output, in which there is no such tensor
