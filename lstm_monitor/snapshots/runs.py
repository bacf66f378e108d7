"""Runs of a model on held-out data, checked and not yet made, and what its recurrent layers receive in them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from lstm_monitor.core.changes import changed, uncompiled
from lstm_monitor.layers.layer import Layers
from lstm_monitor.snapshots.held_out import Forward, batches_of, check_batch, masks_of, tensors_in, to_device_of
from lstm_monitor.snapshots.recorder import Recorder
from lstm_monitor.snapshots.recording import HELD_OUT_STEPS, Recording


def record_held_out(
    model: nn.Module,
    layers: Layers,
    held_out: Any,
    *,
    forward: Forward | None = None,
    lengths: Any = None,
    mask: Any = None,
    max_steps: int = HELD_OUT_STEPS,
) -> dict[nn.Module, Recording]:
    """Run `model` on held-out batches and record what each layer's module receives.

    Call it inside `undisturbed(model)`: it runs the model as it is. See `characterize` for the arguments.
    """
    recorder = Recorder(dict.fromkeys(layer.module for layer in layers), max_steps, keep_outputs=True)
    for run in runs_of(model, layers, held_out, forward=forward, lengths=lengths, mask=mask):
        if not recorder.full():
            with recorder.batch(run.mask), changed([uncompiled()]):  # compiled code would compile our hooks into it
                run.call()
    recordings = recorder.recordings()
    if not recordings:
        raise ValueError(_nothing_received(layers))
    return recordings


@dataclass(frozen=True, eq=False)
class Run:
    """The model on one held-out batch: ``call()`` returns its output; ``mask (N, T)`` marks the steps that count.

    With a ``score`` the call is a loss or an evaluation: `score` takes from what it returns one number or ``(N,)``, one
    a sequence, and the output is what the model itself gave meanwhile, if ``watched``. ``weight`` is how much one such
    number counts beside those of other runs.
    """

    call: Callable[[], Any]
    mask: Tensor | None = None
    score: Callable[[Any], Any] | None = None
    watched: bool = True
    weight: float = 1.0


def runs_of(
    model: nn.Module,
    layers: Layers,
    held_out: Any,
    *,
    forward: Forward | None = None,
    lengths: Any = None,
    mask: Any = None,
) -> tuple[Run, ...]:
    """A run for each held-out batch, checked and not yet made. See `characterize` for the arguments."""
    batches = batches_of(held_out)
    for batch in batches:
        check_batch(batch)
    masks = masks_of(batches, isinstance(held_out, list), lengths, mask)
    check_initialized(model)
    return tuple(
        Run(partial(_on_device, model, layers, batch, forward), valid)
        for batch, valid in zip(batches, masks, strict=True)
    )


def _on_device(model: nn.Module, layers: Layers, batch: Any, forward: Forward | None) -> Any:
    return _run(model, layers, to_device_of(model, batch), forward)


def _nothing_received(layers: Layers) -> str:
    names = ", ".join(str(layer.key) for layer in layers)
    return (
        f"held_out: the model ran, but its recurrent layers ({names}) received nothing. They are seen where they are "
        "called as modules, layer(x), not layer.forward(x); or give forward=lambda model, batch: ... that reaches them"
    )


def check_initialized(model: nn.Module, argument: str = "held_out") -> None:
    """Raise ValueError if running `model` would initialize a part of it (a lazy module)."""
    lazy = [name for name, p in model.named_parameters() if nn.parameter.is_lazy(p)]
    if lazy:
        raise ValueError(
            f"{argument}: {', '.join(lazy)} is not initialized yet (lazy module); running the model would initialize "
            "it, which is for the training to do. Run one batch through the model first"
        )


def _run(model: nn.Module, layers: Layers, batch: Any, forward: Forward | None) -> Any:
    try:
        return call_model(model, batch, forward)
    except Exception as error:
        raise ValueError(_cannot_run(layers, batch, error)) from error


def call_model(model: nn.Module, batch: Any, forward: Forward | None = None) -> Any:
    """What the model gives: ``forward(model, batch)``, ``model(**dict)``, ``model(*tuple)`` or ``model(x)``."""
    if forward is not None:
        return forward(model, batch)
    if isinstance(batch, Mapping):
        return model(**batch)
    if isinstance(batch, tuple) and not isinstance(batch, PackedSequence):
        return model(*batch)
    return model(batch)


def _cannot_run(layers: Layers, batch: Any, error: Exception) -> str:
    shapes = ", ".join(str(tuple(tensor.shape)) for tensor in tensors_in(batch))
    widths = ", ".join(f"{layer.key} reads {layer.input_size or '?'}" for layer in layers)
    return (
        f"held_out: the model could not be run on a batch of {type(batch).__name__} with shapes {shapes}: "
        f"{type(error).__name__}: {error}. Features: {widths}. A tensor is given as model(x), a tuple as "
        "model(*batch), a dict as model(**batch), each item of a list in turn; leave targets out, or give "
        "forward=lambda model, batch: ..."
    )
