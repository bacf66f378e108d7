"""Run a model on an example, listen to what its modules receive, and compare two such runs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, is_dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lstm_monitor.heldout import Forward, call_model
from lstm_monitor.pruning.split_layers import over_data
from lstm_monitor.undisturbed import undisturbed

Hear = Callable[[str, Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Run:
    """What a model gave, and what its readers received in the order of their calls: (path, tensor)."""

    outputs: list[Any]
    received: list[tuple[str, Tensor]]


def run_listening(
    model: nn.Module, readers: Mapping[str, nn.Module], example: Any, forward: Forward | None, hear: Hear
) -> Run:
    """Run the model on the example without a trace.

    Args:
        model: the model.
        readers: path -> the modules to listen at.
        example: a batch, or a list of batches.
        forward: how the model is run on a batch; None for the model's own call.
        hear: is given a reader's path and what it receives, and gives what it shall receive.
    """
    received: list[tuple[str, Tensor]] = []

    def note(path: str, tensor: Tensor) -> Tensor:
        heard = hear(path, tensor)
        received.append((path, heard.clone()))
        return heard

    with undisturbed(model), contextlib.ExitStack() as stack:
        for path, reader in readers.items():
            handle = reader.register_forward_pre_hook(partial(_pass_on, partial(note, path)), with_kwargs=True)
            stack.callback(handle.remove)
        batches = example if isinstance(example, list) else [example]
        outputs = [leaf for batch in batches for leaf in _leaves(call_model(model, batch, forward))]
        return Run([leaf.clone() if isinstance(leaf, Tensor) else leaf for leaf in outputs], received)


def _pass_on(hear: Callable[[Tensor], Tensor], _: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
    """A hook that lets `hear` see, and replace, the tensor (or the data of the packed sequence) that a module reads."""
    if args:
        return (over_data(hear, args[0]), *args[1:]), kwargs
    return args, {**kwargs, "input": over_data(hear, kwargs["input"])}


def _leaves(output: Any) -> Iterator[Any]:
    """The tensors and plain values in what a model gives."""
    if isinstance(output, Mapping):
        output = tuple(output.values())
    elif is_dataclass(output):
        output = tuple(getattr(output, name, None) for name in output.__dataclass_fields__)
    if isinstance(output, tuple | list):
        for part in output:
            yield from _leaves(part)
    else:
        yield output


def same_runs(a: Run, b: Run) -> bool:
    """Whether two runs gave and received the same; a run that gave nothing proves nothing."""
    pairs = [(x, y) for (_, x), (_, y) in zip(a.received, b.received, strict=False)] + list(
        zip(a.outputs, b.outputs, strict=False)
    )
    complete = len(a.received) == len(b.received) and len(a.outputs) == len(b.outputs)
    return complete and any(leaf is not None for leaf in a.outputs) and all(_close(x, y) for x, y in pairs)


def _close(a: Any, b: Any) -> bool:
    """Equal; floating point up to half the digits, for the sums are over fewer terms. NaN is like nothing."""
    if not (isinstance(a, Tensor) and isinstance(b, Tensor)):
        return type(a) is type(b) and bool(a == b)
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if not (a.is_floating_point() or a.is_complex()):
        return torch.equal(a, b)
    finite = a[a.isfinite()].abs()
    scale = float(finite.max()) if finite.numel() else 0.0
    return torch.allclose(a, b, rtol=0.0, atol=torch.finfo(a.dtype).eps ** 0.5 * scale)
