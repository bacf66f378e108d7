"""Large held-out data in batches of a size that is fast, where that gives the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from lstm_monitor.layers.layer import Layers
from lstm_monitor.snapshots.held_out import Forward
from lstm_monitor.snapshots.outputs import Select, output_tensor
from lstm_monitor.snapshots.runs import runs_of

SIZE = 128
"""Sequences a batch; larger ones leave the caches of a core."""


def in_batches(
    model: nn.Module,
    layers: Layers,
    held_out: Any,
    *,
    forward: Forward | None = None,
    select: Select | None = None,
    size: int = SIZE,
    seed: int = 0,
) -> Any:
    """`held_out` as a list of batches of `size` sequences; itself where it is a list already, small, or not divisible.

    The sequences are in a random order, from a generator of its own: data are often sorted, and what is measured on the
    first batches has to stand for all. It can be divided if the model's output on the second batch is what it is there
    on all of it: then sequences do not depend on each other, and the first axis is theirs. Call it inside
    `undisturbed(model)`.
    """
    count = sequences_of(held_out)
    if count is None or count <= size:
        return held_out
    one = _part(held_out, torch.arange(count)[size : 2 * size])
    whole, second = (_output(model, layers, data, forward, select) for data in (held_out, one))
    if whole is None or second is None or whole.dim() == 0 or whole.shape[0] != count:
        return held_out
    expected = whole[size : 2 * size]
    if expected.shape != second.shape or not _close(expected, second):
        return held_out
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return [_part(held_out, order[start : start + size]) for start in range(0, count, size)]


def _close(a: Tensor, b: Tensor) -> bool:
    scale = float(a.abs().max())
    return torch.allclose(a, b, rtol=1e-4, atol=1e-5 * scale)


def sequences_of(held_out: Any) -> int | None:
    """The length of the first axis that all tensors share; None where there is no such thing."""
    if isinstance(held_out, Tensor):
        return held_out.shape[0] if held_out.dim() > 1 else None
    if isinstance(held_out, PackedSequence | list):
        return None
    parts = held_out.values() if isinstance(held_out, Mapping) else held_out if isinstance(held_out, tuple) else ()
    sizes = {part.shape[0] if isinstance(part, Tensor) and part.dim() else None for part in parts}
    return sizes.pop() if len(sizes) == 1 else None


def _part(held_out: Any, rows: Tensor) -> Any:
    """Some of the sequences, by their numbers."""
    if isinstance(held_out, Tensor):
        return held_out[rows.to(held_out.device)]
    if isinstance(held_out, Mapping):
        return {name: _part(part, rows) for name, part in held_out.items()}
    parts = [_part(part, rows) for part in held_out]
    return type(held_out)(*parts) if hasattr(held_out, "_fields") else tuple(parts)


def _output(
    model: nn.Module, layers: Layers, data: Any, forward: Forward | None, select: Select | None
) -> Tensor | None:
    (run,) = runs_of(model, layers, data, forward=forward)
    try:
        return output_tensor(run.call(), select)
    except (ValueError, TypeError):
        return None
