"""Held-out data as people give it: a tensor, a tuple, a dict, a packed sequence, or a list of such batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils.data import DataLoader

from lstm_monitor.changes import changed, uncompiled
from lstm_monitor.layers import Layers
from lstm_monitor.recordings import HELD_OUT_STEPS, Recorder, Recording

Forward = Callable[[nn.Module, Any], Any]


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
    batches = _batches(held_out)
    for batch in batches:
        _check(batch)
    masks = _masks(batches, isinstance(held_out, list), lengths, mask)
    check_initialized(model)
    return tuple(
        Run(partial(_on_device, model, layers, batch, forward), valid)
        for batch, valid in zip(batches, masks, strict=True)
    )


def _on_device(model: nn.Module, layers: Layers, batch: Any, forward: Forward | None) -> Any:
    return _run(model, layers, _to_device_of(model, batch), forward)


def _nothing_received(layers: Layers) -> str:
    names = ", ".join(str(layer.key) for layer in layers)
    return (
        f"held_out: the model ran, but its recurrent layers ({names}) received nothing. They are seen where they are "
        "called as modules, layer(x), not layer.forward(x); or give forward=lambda model, batch: ... that reaches them"
    )


def _batches(held_out: Any) -> list[Any]:
    batches = held_out if isinstance(held_out, list) else [held_out]
    if not batches:
        raise ValueError("held_out=[] is empty; give at least one batch of sequences")
    return batches


def _masks(batches: list[Any], listed: bool, lengths: Any, mask: Any) -> list[Tensor | None]:
    if lengths is not None and mask is not None:
        raise ValueError("lengths= and mask= were both given; give one of them")
    name, given = ("mask", mask) if lengths is None else ("lengths", lengths)
    if given is None:
        return [None] * len(batches)
    values = list(given) if listed else [given]
    if len(values) != len(batches):
        raise ValueError(f"{name} has {len(values)} entries for {len(batches)} held-out batches; give one a batch")
    make = _mask_of_lengths if mask is None else _mask_as_given
    return [make(torch.as_tensor(value), batch) for value, batch in zip(values, batches, strict=True)]


def _mask_as_given(mask: Tensor, batch: Any) -> Tensor:
    if mask.dim() != 2:
        raise ValueError(f"mask has shape {tuple(mask.shape)}; give (N, T), True for the steps that count")
    return mask.bool()


def _mask_of_lengths(lengths: Tensor, batch: Any) -> Tensor:
    if lengths.dim() != 1 or lengths.numel() == 0 or lengths.is_floating_point() or int(lengths.min()) < 1:
        raise ValueError(
            f"lengths has shape {tuple(lengths.shape)} and dtype {lengths.dtype}; give one integer of at least 1 a "
            "sequence"
        )
    steps = _steps_of(batch, len(lengths))
    if int(lengths.max()) > steps:
        raise ValueError(f"lengths holds {int(lengths.max())}, but the held-out sequences have {steps} steps")
    return torch.arange(steps, device="cpu") < lengths[:, None].cpu()


def _steps_of(batch: Any, count: int) -> int:
    """T of a batch of `count` sequences: the other one of the first two axes of its first tensor that has them."""
    for tensor in _tensors(batch):
        if tensor.dim() >= 2 and count in tensor.shape[:2]:
            return tensor.shape[1] if tensor.shape[0] == count else tensor.shape[0]
    shapes = ", ".join(str(tuple(tensor.shape)) for tensor in _tensors(batch))
    raise ValueError(f"lengths is for {count} sequences, but held_out has shapes {shapes}; give one length a sequence")


def _check(batch: Any) -> None:
    if type(batch).__module__.split(".")[0] in ("numpy", "pandas") or isinstance(batch, DataLoader):
        raise TypeError(
            f"held_out={type(batch).__name__}: give tensors, such as torch.as_tensor(array, dtype=torch.float32), "
            "or a list of batches of a loader, such as [x for x, y in loader]"
        )
    for tensor in _tensors(batch):
        if tensor.numel() == 0:
            raise ValueError(f"held_out is empty: it holds a tensor of shape {tuple(tensor.shape)}")
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            bad = int((~torch.isfinite(tensor)).sum())
            raise ValueError(
                f"held_out holds {bad} values that are NaN or infinite (of {tensor.numel()}); "
                "fill or drop them, as for the training itself"
            )


def check_initialized(model: nn.Module, argument: str = "held_out") -> None:
    """Raise ValueError if running `model` would initialize a part of it (a lazy module)."""
    lazy = [name for name, p in model.named_parameters() if nn.parameter.is_lazy(p)]
    if lazy:
        raise ValueError(
            f"{argument}: {', '.join(lazy)} is not initialized yet (lazy module); running the model would initialize "
            "it, which is for the training to do. Run one batch through the model first"
        )


def _tensors(batch: Any) -> Iterator[Tensor]:
    if isinstance(batch, PackedSequence):
        yield batch.data
    elif isinstance(batch, Tensor):
        yield batch
    elif isinstance(batch, Mapping):
        yield from _all_tensors(batch.values())
    elif isinstance(batch, tuple | list):
        yield from _all_tensors(batch)


def _all_tensors(parts: Iterable[Any]) -> Iterator[Tensor]:
    for part in parts:
        yield from _tensors(part)


def _to_device_of(model: nn.Module, batch: Any) -> Any:
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    if isinstance(batch, PackedSequence):
        return batch.to(device)  # type: ignore[arg-type]  # its stub knows dtypes only
    if isinstance(batch, Tensor):
        return batch.to(device)
    if isinstance(batch, Mapping):
        return {name: _to_device_of(model, part) for name, part in batch.items()}
    if isinstance(batch, tuple | list):
        parts = [_to_device_of(model, part) for part in batch]
        return type(batch)(*parts) if hasattr(batch, "_fields") else type(batch)(parts)
    return batch


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
    shapes = ", ".join(str(tuple(tensor.shape)) for tensor in _tensors(batch))
    widths = ", ".join(f"{layer.key} reads {layer.input_size or '?'}" for layer in layers)
    return (
        f"held_out: the model could not be run on a batch of {type(batch).__name__} with shapes {shapes}: "
        f"{type(error).__name__}: {error}. Features: {widths}. A tensor is given as model(x), a tuple as "
        "model(*batch), a dict as model(**batch), each item of a list in turn; leave targets out, or give "
        "forward=lambda model, batch: ..."
    )
