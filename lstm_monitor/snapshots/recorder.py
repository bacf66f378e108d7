"""Record what recurrent modules receive, by hooks that live for one forward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence
from torch.utils.hooks import RemovableHandle

from lstm_monitor.core.changes import Change, changed
from lstm_monitor.core.guard import Guard
from lstm_monitor.layers.inner_calls import InnerHandle, inner_now
from lstm_monitor.layers.registered.calls import received
from lstm_monitor.layers.registered.registry import Registration, registration_of
from lstm_monitor.snapshots.recording import (
    HELD_OUT_STEPS,
    LEAST_SEQUENCES,
    MAX_STEPS,
    RecordedCall,
    Recording,
    append,
    continues,
    copied,
    joined,
    masked,
)


class Recorder:
    """Collects the inputs of some modules, about `max_steps` sequence steps a module.

    Sequences are kept from the first batches on, each cut to its first 1,024 steps. Calls that carry the state of
    the call before (cells, rollouts with T = 1, truncated sequences) are joined in time.
    """

    def __init__(
        self, modules: Iterable[nn.Module], max_steps: int = HELD_OUT_STEPS, *, keep_outputs: bool = False
    ) -> None:
        """Record these modules once attached; nothing is attached yet. With `keep_outputs` what they return as well."""
        self.modules = list(modules)
        self.max_steps, self.keep_outputs = max_steps, keep_outputs
        self._calls: dict[nn.Module, list[RecordedCall]] = {module: [] for module in self.modules}
        self._new: dict[nn.Module, list[RecordedCall]] = {}
        self._error: Exception | None = None

    @contextmanager
    def batch(self, mask: Tensor | None = None) -> Iterator[None]:
        """Record one forward pass inside; `mask (N, T)` marks the steps that count in statistics."""
        self._new = {module: [] for module in self.modules}
        try:
            with changed([Change(handle, handle.hang, handle.remove) for handle in self._handles()]):
                yield
        finally:
            self.detach([], mask)

    def attach(self) -> list[RemovableHandle]:
        """Start recording one forward pass."""
        self._new = {module: [] for module in self.modules}
        handles = self._handles()
        with ExitStack() as stack:
            stack.callback(_remove, handles)
            for handle in handles:
                handle.hang()
            stack.pop_all()
        return [*handles]

    def _handles(self) -> list[InnerHandle]:
        """A hook for each module not observed enough yet, on the call of torch's own forward; not there yet."""
        wanting = [module for module in self.modules if self._room(module) > 0]
        return [InnerHandle(module, self._observer(module)) for module in wanting]

    def _observer(self, module: nn.Module) -> Callable[..., None]:
        registration = registration_of(module)
        own = self._hook if registration is None else partial(self._observe_registered, registration)
        return partial(own, module)

    def detach(self, handles: Iterable[RemovableHandle], mask: Tensor | None = None) -> None:
        """End the forward pass: hooks off, what was received kept."""
        _remove(handles)
        for module, calls in self._new.items():
            self._calls[module].extend(masked(call, mask) for call in calls)
        self._new = {}

    def full(self) -> bool:
        """Whether every module has as many steps as asked for."""
        return all(self._room(module) <= 0 for module in self.modules)

    def recordings(self) -> dict[nn.Module, Recording]:
        """What each module received; modules that received nothing are left out.

        Raises:
            TypeError: a registered module received what cannot be read.
            ValueError: what was registered for it failed.
        """
        if self._error is not None:
            raise self._error
        return {module: joined(calls) for module, calls in self._calls.items() if calls}

    def _room(self, module: nn.Module) -> int:
        calls = [*self._calls[module], *self._new.get(module, ())]
        return self.max_steps - sum(call.count * call.steps for call in calls)

    def _hook(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        values = (*args, *(kwargs[name] for name in ("input", "hx") if name in kwargs))
        with torch.inference_mode(False), torch.no_grad():
            call = _as_call(module, values[0], values[1] if len(values) > 1 else None, output)
            if self.keep_outputs:
                call.returned = _returned(module, call, output)
            self._add(module, call)

    def _observe_registered(
        self, registration: Registration, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        """A user's function that fails is told of by `recordings`, not in the middle of the forward pass."""
        with torch.inference_mode(False), torch.no_grad():
            try:
                self._add(module, _as_registered_call(registration, module, args, kwargs, output))
            except Exception as error:
                self._error = self._error or error

    def _add(self, module: nn.Module, call: RecordedCall) -> None:
        calls = self._new[module]
        if calls and continues(calls[-1], call):
            append(calls[-1], call, self.max_steps)
        elif (room := self._room(module)) > 0:
            call.count = min(call.count, max(room // call.steps, LEAST_SEQUENCES))
            call.pieces = [piece[: call.count].clone() for piece in call.pieces]
            call.returned = [piece[: call.count].clone() for piece in call.returned]
            call.state, call.final = copied(call.state, call.count), copied(call.final, call.count)
            calls.append(call)


class GuardedRecorder(Recorder):
    """A recorder inside the user's own forward pass: an error of ours must not end that."""

    def __init__(self, modules: Iterable[nn.Module], max_steps: int, guard: Guard) -> None:
        """As a recorder, with the guard of the monitor that it is for."""
        super().__init__(modules, max_steps)
        self.guard = guard

    def _hook(self, *given: Any) -> None:
        with self.guard.protect("Recording held-out inputs"):
            super()._hook(*given)


def _remove(handles: Iterable[RemovableHandle]) -> None:
    """Each, even where another fails."""
    with ExitStack() as stack:
        for handle in handles:
            stack.callback(handle.remove)


def _as_call(module: nn.Module, inputs: Tensor | PackedSequence, hx: Any, output: Any) -> RecordedCall:
    state = _batched(hx, module)
    lengths = None
    if isinstance(inputs, PackedSequence):
        inputs, lengths = pad_packed_sequence(inputs, batch_first=True)
    elif not isinstance(module, nn.RNNBase):
        inputs = inputs.reshape(-1, 1, inputs.shape[-1])
    elif inputs.dim() == 2:
        inputs = inputs[None]
    elif not module.batch_first:
        inputs = inputs.transpose(0, 1)
    final = _batched(output[1] if isinstance(module, nn.RNNBase) else output, module)
    kept, called = inputs.detach()[:, :MAX_STEPS], (inputs.shape[0], inputs.shape[1])
    return RecordedCall([kept], kept.shape[1], lengths, state, final, inputs.shape[0], called)


def _returned(module: nn.Module, call: RecordedCall, output: Any) -> list[Tensor]:
    """What a sequence module of torch returned ``(N, T, W)``, if its own weights and nothing else made it.

    Not of what reads backwards where sequences were cut, or may go on in the next call: their ends are then others.
    """
    if not isinstance(module, nn.RNNBase) or not _is_plain(module) or (module.bidirectional and call.state):
        return []
    outputs = output[0]
    if isinstance(outputs, PackedSequence):
        outputs, _ = pad_packed_sequence(outputs, batch_first=True)
    elif outputs.dim() == 2:
        outputs = outputs[None]
    elif not module.batch_first:
        outputs = outputs.transpose(0, 1)
    return [] if module.bidirectional and outputs.shape[1] != call.steps else [outputs.detach()[:, : call.steps]]


def _is_plain(module: nn.RNNBase) -> bool:
    """Whether what it returns is what its own weights make: parameters, no dropout, and no one else's hook."""
    own_weights = all(isinstance(weight, nn.Parameter) for weight in module._flat_weights)
    dropping = module.training and module.dropout > 0
    return own_weights and not dropping and len(inner_now(module)._forward_hooks) == 1


def _as_registered_call(
    registration: Registration, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
) -> RecordedCall:
    got = received(registration, module, args, kwargs, output)
    kept, called = got.inputs.detach()[:, :MAX_STEPS], (got.inputs.shape[0], got.inputs.shape[1])
    state, final = (tuple(part.detach() for part in parts) for parts in (got.state, got.final))
    call = RecordedCall([kept], kept.shape[1], got.lengths, state, final, called[0], called)
    if got.outputs is not None:
        call.outputs = [got.outputs.detach()[:LEAST_SEQUENCES, :MAX_STEPS].clone()]
    return call


def _batched(hx: Any, module: nn.Module) -> tuple[Tensor, ...]:
    """A state as a tuple of ``(layers * directions, N, size)``; empty for None."""
    tensors: Sequence[Tensor] = () if hx is None else hx if isinstance(hx, tuple | list) else (hx,)
    batched = tensors
    if isinstance(module, nn.RNNBase):
        batched = [t if t.dim() == 3 else t[:, None] for t in tensors]
    else:
        batched = [t.reshape(1, -1, t.shape[-1]) for t in tensors]
    return tuple(t.detach() for t in batched)
