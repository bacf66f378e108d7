"""How a module's network is called in the Trainer's own validation, and what its layers receive there."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils.hooks import RemovableHandle

from lstm_monitor.core.changes import changed, uncompiled
from lstm_monitor.core.guard import LOG, Guard
from lstm_monitor.core.undisturbed import undisturbed
from lstm_monitor.importance.ranking import OF_THE_NETWORK
from lstm_monitor.monitor.monitor import LSTMMonitor
from lstm_monitor.snapshots.recorder import Recorder
from lstm_monitor.snapshots.recording import Recording
from lstm_monitor.snapshots.runs import Run

MOST_BYTES = 64 * 2**20
"""Inputs that take more are not kept."""


class CallRecorder:
    """Keeps the inputs of the outermost module that holds the recurrent ones, in one validation batch.

    Hooks live for that batch. What is compiled is not looked into: a hook there is compiled in, and stays.
    """

    def __init__(self, model: nn.Module, recurrent: Iterable[nn.Module], guard: Guard) -> None:
        """Nothing is attached yet; an error of ours must not end the user's forward pass, so `guard` holds it."""
        self.model, self.recurrent, self.guard = model, set(recurrent), guard
        self._depth = 0
        self._outermost: list[nn.Module] = []
        self._kept: tuple[Any, Any] | None = None
        self._reason = ""

    def attach(self) -> list[RemovableHandle]:
        """Start recording one batch."""
        if getattr(self.model, "_compiler_ctx", None) is not None:  # Lightning compiles the whole validation_step
            self._reason = "the module is compiled"
            return []
        handles = []
        for module in _uncompiled(self.model):
            handles.append(module.register_forward_pre_hook(self._enter, with_kwargs=True))
            handles.append(module.register_forward_hook(self._leave, always_call=True))
        return handles

    def runs(self) -> tuple[Run, ...]:
        """The call of the batch as a run that can be made again; empty, with a line in the log, where it cannot."""
        reason = self._reason or self._why_not()
        if reason or self._kept is None:
            LOG.info("lstm_monitor cannot run the network again to rank its cells: %s", reason or "it was not called")
            return ()
        args, kwargs = self._kept
        return (Run(partial(_again, self._network()[0], args, kwargs)),)

    def _network(self) -> list[nn.Module]:
        return [module for module in self._outermost if self._holds(module)]

    def _holds(self, module: nn.Module) -> bool:
        return any(part in self.recurrent for part in module.modules())

    def _why_not(self) -> str:
        """What the module called must be one network whose output nothing with weights reads."""
        networks = self._network()
        if not networks:
            compiled = any(getattr(part, "_compiled_call_impl", None) is not None for part in self.model.modules())
            return "the network is compiled in place" if compiled else "validation_step does not call it as a module"
        if len(networks) > 1:
            return "validation_step calls modules with recurrent layers more than once a batch"
        if networks[0] in self.recurrent:
            return "validation_step calls a recurrent layer by itself, so its output is not the network's"
        weighted = [module for module in self._outermost if next(module.parameters(), None) is not None]
        if weighted[-1] is not networks[0]:
            return "validation_step calls other modules on the output of the one that holds the recurrent layers"
        return ""

    def _enter(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        with self.guard.protect("Recording how the network is called"):
            self._depth += 1
            if self._depth > 1:
                return
            self._outermost.append(module)
            if self._kept is None and self._holds(module):
                self._keep(module, args, kwargs)

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        self._depth -= 1

    def _keep(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        size = sum(tensor.numel() * tensor.element_size() for tensor in _tensors((args, kwargs)))
        if size > MOST_BYTES:
            self._reason = f"a batch takes {size / 2**20:.0f} MiB (at most {MOST_BYTES // 2**20} are kept)"
            return
        own = next((p.dtype for p in module.parameters() if p.is_floating_point()), torch.float32)
        with torch.inference_mode(False), torch.no_grad():
            self._kept = _clone(args, own), _clone(kwargs, own)


def _again(module: nn.Module, args: Any, kwargs: Any) -> Any:
    return module(*copy.deepcopy(args), **copy.deepcopy(kwargs))


def _uncompiled(module: nn.Module) -> Iterator[nn.Module]:
    """A module and its parts, each once, without what is compiled and lies in it."""
    yield from dict.fromkeys(_visible(module))


def _visible(module: nn.Module) -> Iterator[nn.Module]:
    if getattr(module, "_compiled_call_impl", None) is not None:
        return
    yield module
    if not hasattr(module, "_orig_mod"):
        for child in module.children():
            yield from _visible(child)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, PackedSequence):
        yield value.data
    elif isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict | list | tuple):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _tensors(part)


def _clone(value: Any, own: torch.dtype) -> Any:
    """A copy in which floating-point tensors of less precision, from an autocast, have that of the module's `own`."""
    if isinstance(value, PackedSequence):
        return PackedSequence(_clone(value.data, own), *(None if part is None else part.clone() for part in value[1:]))
    if isinstance(value, Tensor):
        fits = not value.is_floating_point() or value.element_size() >= own.itemsize
        return value.detach().clone() if fits else value.detach().to(own)
    if type(value) is dict:
        return {name: _clone(part, own) for name, part in value.items()}
    if isinstance(value, list | tuple):
        parts = [_clone(part, own) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    return copy.deepcopy(value)


class FirstCall:
    """The call of the network in the first validation batch of a fit, for rankings that need its output."""

    def __init__(self) -> None:
        """Nothing is recorded yet."""
        self.runs: tuple[Run, ...] = ()
        self._recorder: CallRecorder | None = None
        self._over = False

    def attach(self, monitor: LSTMMonitor, recurrent: Iterable[nn.Module]) -> list[RemovableHandle]:
        """Record this batch, if it is the first and the ranking needs it."""
        if self._over or monitor.model is None or monitor.rank_by not in OF_THE_NETWORK:
            return []
        self._over = True
        self._recorder = CallRecorder(monitor.model, recurrent, monitor.guard)
        return self._recorder.attach()

    def recordings(self, monitor: LSTMMonitor, recurrent: Iterable[nn.Module]) -> dict[nn.Module, Recording]:
        """What the layers receive in that batch now, with the weights as they are."""
        recorder = Recorder(recurrent, monitor.held_out_steps)
        with undisturbed(monitor.model):
            for run in self.runs:
                with recorder.batch(run.mask), changed([uncompiled()]):
                    run.call()
        return recorder.recordings()

    def detach(self) -> None:
        """The batch is over."""
        recorder, self._recorder = self._recorder, None
        if recorder is not None:
            self.runs = recorder.runs()
