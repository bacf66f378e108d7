"""Record what recurrent modules receive, by hooks that live for one forward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence
from torch.utils.hooks import RemovableHandle

from lstm_monitor.changes import Change, changed
from lstm_monitor.custom.calls import received
from lstm_monitor.custom.registry import Registration, registration_of
from lstm_monitor.guard import Guard
from lstm_monitor.inner import InnerHandle, inner_now

MAX_STEPS = 1024
LEAST_SEQUENCES = 4
HELD_OUT_STEPS = 1024


@dataclass(frozen=True, eq=False)
class Recording:
    """What one module received: ``inputs (N, T, I)``, ``mask (N, T)``, ``lengths (N,)`` if any differ or were packed.

    ``h0`` and ``c0`` are as the module takes them, ``(layers * directions, N, size)``, zero where none was given;
    None where none ever was. ``outputs (n, T, W)``: what a registered module put out for the first sequences.
    ``returned (N, T, W)``: what one of torch's own put out for all of them, where it was kept and can be relied on.
    """

    inputs: Tensor
    mask: Tensor
    lengths: Tensor | None
    h0: Tensor | None
    c0: Tensor | None
    outputs: Tensor | None = None
    returned: Tensor | None = None


@dataclass(eq=False)
class _Run:
    """One call of a module, or several that carry their state on: pieces ``(N, t, I)``, of which `count` rows are used.

    `called` is the (N, T) that the module received; T is cut to 1,024 `steps`.
    """

    pieces: list[Tensor]
    steps: int
    lengths: Tensor | None
    state: tuple[Tensor, ...]
    final: tuple[Tensor, ...]
    count: int
    called: tuple[int, int]
    mask: Tensor | None = None
    outputs: list[Tensor] = field(default_factory=list)
    returned: list[Tensor] = field(default_factory=list)

    @property
    def inputs(self) -> Tensor:
        """``(N, T, I)`` of the sequences that are used."""
        return torch.cat([piece[: self.count] for piece in self.pieces], dim=1)


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
        self._runs: dict[nn.Module, list[_Run]] = {module: [] for module in self.modules}
        self._new: dict[nn.Module, list[_Run]] = {}
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
        """A hook for each module that has not been heard enough, on the call of torch's own forward; not there yet."""
        wanting = [module for module in self.modules if self._room(module) > 0]
        return [InnerHandle(module, self._hearing(module)) for module in wanting]

    def _hearing(self, module: nn.Module) -> Callable[..., None]:
        registration = registration_of(module)
        own = self._hook if registration is None else partial(self._hear_custom, registration)
        return partial(own, module)

    def detach(self, handles: Iterable[RemovableHandle], mask: Tensor | None = None) -> None:
        """End the forward pass: hooks off, what was received kept."""
        _remove(handles)
        for module, runs in self._new.items():
            self._runs[module].extend(_masked(run, mask) for run in runs)
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
        return {module: _join(runs) for module, runs in self._runs.items() if runs}

    def _room(self, module: nn.Module) -> int:
        runs = [*self._runs[module], *self._new.get(module, ())]
        return self.max_steps - sum(run.count * run.steps for run in runs)

    def _hook(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        values = (*args, *(kwargs[name] for name in ("input", "hx") if name in kwargs))
        with torch.inference_mode(False), torch.no_grad():
            run = _as_run(module, values[0], values[1] if len(values) > 1 else None, output)
            if self.keep_outputs:
                run.returned = _returned(module, run, output)
            self._add(module, run)

    def _hear_custom(
        self, registration: Registration, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        """A user's function that fails is told of by `recordings`, not in the middle of the forward pass."""
        with torch.inference_mode(False), torch.no_grad():
            try:
                self._add(module, _as_custom_run(registration, module, args, kwargs, output))
            except Exception as error:
                self._error = self._error or error

    def _add(self, module: nn.Module, run: _Run) -> None:
        runs = self._new[module]
        if runs and _continues(runs[-1], run):
            _append(runs[-1], run, self.max_steps)
        elif (room := self._room(module)) > 0:
            run.count = min(run.count, max(room // run.steps, LEAST_SEQUENCES))
            run.pieces = [piece[: run.count].clone() for piece in run.pieces]
            run.returned = [piece[: run.count].clone() for piece in run.returned]
            run.state, run.final = _copied(run.state, run.count), _copied(run.final, run.count)
            runs.append(run)


class GuardedRecorder(Recorder):
    """A recorder inside the user's own forward pass: an error of ours must not end that."""

    def __init__(self, modules: Iterable[nn.Module], max_steps: int, guard: Guard) -> None:
        """As a recorder, with the guard of the monitor that it is for."""
        super().__init__(modules, max_steps)
        self.guard = guard

    def _hook(self, *call: Any) -> None:
        with self.guard.protect("Recording held-out inputs"):
            super()._hook(*call)


def _remove(handles: Iterable[RemovableHandle]) -> None:
    """Each, even where another fails."""
    with ExitStack() as stack:
        for handle in handles:
            stack.callback(handle.remove)


def _copied(states: tuple[Tensor, ...], count: int) -> tuple[Tensor, ...]:
    return tuple(state[:, :count].clone() for state in states)


def _as_run(module: nn.Module, inputs: Tensor | PackedSequence, hx: Any, output: Any) -> _Run:
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
    return _Run([kept], kept.shape[1], lengths, state, final, inputs.shape[0], called)


def _returned(module: nn.Module, run: _Run, output: Any) -> list[Tensor]:
    """What a sequence module of torch returned ``(N, T, W)``, if its own weights and nothing else made it.

    Not of what reads backwards where sequences were cut, or may go on in the next call: their ends are then others.
    """
    if not isinstance(module, nn.RNNBase) or not _is_plain(module) or (module.bidirectional and run.state):
        return []
    outputs = output[0]
    if isinstance(outputs, PackedSequence):
        outputs, _ = pad_packed_sequence(outputs, batch_first=True)
    elif outputs.dim() == 2:
        outputs = outputs[None]
    elif not module.batch_first:
        outputs = outputs.transpose(0, 1)
    return [] if module.bidirectional and outputs.shape[1] != run.steps else [outputs.detach()[:, : run.steps]]


def _is_plain(module: nn.RNNBase) -> bool:
    """Whether what it returns is what its own weights make: parameters, no dropout, and no one else's hook."""
    own_weights = all(isinstance(weight, nn.Parameter) for weight in module._flat_weights)
    dropping = module.training and module.dropout > 0
    return own_weights and not dropping and len(inner_now(module)._forward_hooks) == 1


def _as_custom_run(
    registration: Registration, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
) -> _Run:
    call = received(registration, module, args, kwargs, output)
    kept, called = call.inputs.detach()[:, :MAX_STEPS], (call.inputs.shape[0], call.inputs.shape[1])
    state, final = (tuple(part.detach() for part in parts) for parts in (call.state, call.final))
    run = _Run([kept], kept.shape[1], call.lengths, state, final, called[0], called)
    if call.outputs is not None:
        run.outputs = [call.outputs.detach()[:LEAST_SEQUENCES, :MAX_STEPS].clone()]
    return run


def _batched(hx: Any, module: nn.Module) -> tuple[Tensor, ...]:
    """A state as a tuple of ``(layers * directions, N, size)``; empty for None."""
    tensors: Sequence[Tensor] = () if hx is None else hx if isinstance(hx, tuple | list) else (hx,)
    batched = tensors
    if isinstance(module, nn.RNNBase):
        batched = [t if t.dim() == 3 else t[:, None] for t in tensors]
    else:
        batched = [t.reshape(1, -1, t.shape[-1]) for t in tensors]
    return tuple(t.detach() for t in batched)


def _continues(before: _Run, run: _Run) -> bool:
    if not run.state or before.lengths is not None or run.lengths is not None:
        return False
    count = before.count
    return all(
        now.shape[1] >= count and any(torch.equal(now[:, :count], then[:, :count]) for then in before.final)
        for now in run.state
    )


def _append(before: _Run, run: _Run, max_steps: int) -> None:
    """Join a call that carries the state on; of a growing sequence fewer rows are kept."""
    piece = run.pieces[0][: before.count, : MAX_STEPS - before.steps].to(before.pieces[0], copy=True)
    before.pieces.append(piece)
    before.outputs += [part[:, : piece.shape[1]] for part in run.outputs]
    before.returned += [part[: before.count, : piece.shape[1]].clone() for part in run.returned]
    before.steps += piece.shape[1]
    before.final = _copied(run.final, before.count)
    before.called = (before.called[0], before.called[1] + run.called[1])
    before.count = min(before.count, max(max_steps // before.steps, LEAST_SEQUENCES))


def _masked(run: _Run, mask: Tensor | None) -> _Run:
    if mask is not None:
        if tuple(mask.shape) != run.called:
            raise ValueError(
                f"mask (from mask= or lengths=) has shape {tuple(mask.shape)}, but a layer received {run.called[0]} "
                f"sequences of {run.called[1]} steps, so it is unknown which of them are padding; select the layers "
                "that the mask is for with layers=, or give the model packed sequences"
            )
        run.mask = mask[: run.count, : run.steps].to(run.pieces[0].device, torch.bool)
    return run


def _join(runs: list[_Run]) -> Recording:
    steps = max(run.steps for run in runs)
    ragged = any(run.lengths is not None or run.steps != steps for run in runs)
    lengths = torch.cat([_lengths(run) for run in runs])
    valid = torch.arange(steps, device=lengths.device) < lengths[:, None]
    masks = [_pad(valid.new_ones(run.count, run.steps) if run.mask is None else run.mask, steps) for run in runs]
    return Recording(
        inputs=torch.cat([_pad(run.inputs, steps) for run in runs]),
        mask=valid & torch.cat(masks),
        lengths=lengths if ragged else None,
        h0=_join_states(runs, 0),
        c0=_join_states(runs, 1),
        outputs=_first_outputs(runs[0]),
        returned=_all_returned(runs, steps),
    )


def _all_returned(runs: list[_Run], steps: int) -> Tensor | None:
    """``(N, T, W)``: what the module returned for all that was kept of its calls; None where some is not known."""
    if any(len(run.returned) != len(run.pieces) for run in runs):
        return None
    joined = [torch.cat([piece[: run.count] for piece in run.returned], dim=1) for run in runs]
    return torch.cat([_pad(values, steps) for values in joined])


def _first_outputs(run: _Run) -> Tensor | None:
    """What a registered module put out for the first sequences that were kept, if it did at every step."""
    if len(run.outputs) != len(run.pieces):
        return None
    rows = min(len(part) for part in run.outputs)
    return torch.cat([part[: min(rows, run.count)] for part in run.outputs], dim=1)


def _lengths(run: _Run) -> Tensor:
    full = torch.full((run.count,), run.steps, device=run.pieces[0].device)
    return full if run.lengths is None else run.lengths[: run.count].clamp(max=run.steps).to(full)


def _pad(values: Tensor, steps: int) -> Tensor:
    missing = values.new_zeros(values.shape[0], steps - values.shape[1], *values.shape[2:])
    return torch.cat([values, missing], dim=1)


def _join_states(runs: list[_Run], which: int) -> Tensor | None:
    given = next((run.state[which] for run in runs if len(run.state) > which), None)
    if given is None:
        return None
    states = [
        run.state[which][:, : run.count].to(given)
        if len(run.state) > which
        else given.new_zeros(given.shape[0], run.count, *given.shape[2:])
        for run in runs
    ]
    return torch.cat(states, dim=1)
