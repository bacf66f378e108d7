"""What comes back to every cell from outputs or losses, summed over the steps: a row a sequence.

``value * derivative``, summed over time, is by how much a number would fall, to first order, without that value.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lstm_monitor.core.terms import LayerKey
from lstm_monitor.importance.replay.stages import Part
from lstm_monitor.importance.sensitivity.observing import Means, Observed, as_read, counted_steps, only_counted
from lstm_monitor.importance.sensitivity.tracing import Pulled, TracedRun, pull
from lstm_monitor.snapshots.outputs import Select, batch_axis

Weigh = Callable[[Pulled], Tensor]
"""From what came back to a part in one call to ``(V, n, h)``."""


def of_outputs(
    seen: Observed, weigh: Callable[[TracedRun], Weigh], vectors: int, seed: int, output: Select | None
) -> dict[LayerKey, list[tuple[Tensor, int]]]:
    """``mean over v of (what is weighed) ** 2``, ``(n, h)`` for each output of each run, with the values in it."""
    if vectors < 1:
        raise ValueError(f"vectors={vectors} must be 1 or more; 8 are enough for a ranking")
    generator = torch.Generator().manual_seed(seed)
    found: dict[LayerKey, list[tuple[Tensor, int]]] = {}
    for traced, followed in seen.traces:
        for tensor in traced.outputs(output):
            _check_derivative(seen, tensor, "output", "output=")
            target = _target_of(tensor, traced, followed)
            drawn = _draw(target, traced.run.mask, vectors, generator)
            for key, values in _collect(seen, traced, target, drawn, weigh(traced)).items():
                found.setdefault(key, []).append((_mean_square(values, target, vectors), target.size))
    return found


def of_losses(seen: Observed, weigh: Callable[[TracedRun], Weigh]) -> dict[LayerKey, Tensor]:
    """What is weighed with the derivative of each sequence's own loss, ``(N, h)``."""
    found: dict[LayerKey, list[Tensor]] = {}
    for traced, followed in seen.traces:
        loss = _checked_loss(traced.score())
        _check_derivative(seen, loss, "loss", "another loss=")
        target = _target_of(loss, traced, followed)
        each = torch.ones_like(loss) if loss.numel() > 1 else torch.full_like(loss, target.count)
        for key, values in _collect(seen, traced, target, [each], weigh(traced)).items():
            found.setdefault(key, []).append(values[0])
    return {key: torch.cat(parts) for key, parts in found.items()}


def _checked_loss(loss: Any) -> Tensor:
    if not isinstance(loss, Tensor) or not loss.is_floating_point():
        raise TypeError(
            f"loss returned {type(loss).__name__}; it must return a tensor computed from the model's output"
        )
    if loss.dim() > 1:
        raise ValueError(
            f"loss returned a tensor of shape {tuple(loss.shape)}; it must return one number, the mean over the "
            "sequences, or one a sequence (N,), such as losses.mean(1)"
        )
    return loss


# Where it comes from


@dataclass(frozen=True, eq=False)
class _Target:
    """A tensor of which derivatives are taken, and its sequences.

    ``axis``: where its sequences are (None: they share it, as in a mean); ``count`` how many there are, of which the
    first ``rows`` are followed; ``size``: D, the values of one sequence.
    """

    tensor: Tensor
    axis: int | None
    count: int
    rows: int
    size: int


def _target_of(tensor: Tensor, traced: TracedRun, followed: int) -> _Target:
    """Where the sequences of an output are: on an axis as long as a call had rows, the last calls first.

    All sequences are followed where two of the output's axes have their number.
    """
    counts = list(dict.fromkeys(call.rows for call in reversed(traced.calls)))
    fitting = [count for count in counts if count in tensor.shape]
    first = [count for count in fitting if tensor.shape[0] == count]
    count = (first or fitting or counts)[0]
    if not fitting:
        return _Target(tensor, None, count, min(count, followed), tensor.numel())
    rows = count if tuple(tensor.shape).count(count) > 1 else min(count, followed)
    return _Target(tensor, batch_axis(tensor, count), count, rows, tensor.numel() // count)


def _draw(target: _Target, mask: Tensor | None, number: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Vectors of the output's shape from which `_mean_square` finds the sum of squares over a sequence's values.

    `number` random ones of +-1; where a sequence has no more than `number` values D, its D unit vectors. 0 for
    sequences that are not followed and for steps that ``mask (N, T)`` leaves out.
    """
    rows = 1 if target.axis is None else target.rows
    for place in range(min(target.size, number)):
        if target.size <= number:
            values = torch.zeros(rows, target.size, device="cpu")
            values[:, place] = 1
        else:
            values = torch.randint(0, 2, (rows, target.size), generator=generator, device="cpu") * 2.0 - 1
        yield _in_place(values, target, mask)


def _mean_square(values: Tensor, target: _Target, number: int) -> Tensor:
    """The mean of ``values (V, ...) ** 2`` over all vectors of +-1: estimated, or exact from unit vectors."""
    squares = values.square()
    return squares.sum(0) if target.size <= number else squares.mean(0)


def _in_place(values: Tensor, target: _Target, mask: Tensor | None) -> Tensor:
    """``values (rows, D)`` in the shape of the output."""
    tensor, axis = target.tensor, target.axis
    if axis is None:
        return values.to(tensor).reshape(tensor.shape)
    shape = tensor.movedim(axis, 0).shape
    full = tensor.new_zeros(target.count, target.size)
    full[: target.rows] = values.to(full)
    full = full.reshape(shape)
    if mask is not None and shape[:2] == mask.shape:
        full *= mask.to(full).reshape(*mask.shape, *(1,) * (full.dim() - 2))
    return full.movedim(0, axis)


def _collect(
    seen: Observed, traced: TracedRun, target: _Target, vectors: Iterable[Tensor], weigh: Weigh
) -> dict[LayerKey, Tensor]:
    """What `weigh` gives for each layer that the target depends on, ``(V, n, h)``, added over its calls.

    Calls with different numbers of rows (words of sequences) cannot be added: their rows stand one after the other.
    """
    found: dict[LayerKey, list[Tensor]] = {}
    for pulled in pull(traced, target.tensor, vectors, {target.count: target.rows}):
        if pulled.run.part.layer.key in seen.sizes:
            found.setdefault(pulled.run.part.layer.key, []).append(weigh(pulled))
    same = {key: len({part.shape for part in parts}) == 1 for key, parts in found.items()}
    return {key: torch.stack(parts).sum(0) if same[key] else torch.cat(parts, dim=1) for key, parts in found.items()}


def _summed(total: Tensor, values: Tensor, counted: Tensor) -> Tensor:
    """``sum over t of values * total``, ``(V, n, h)``, over the steps ``counted (T, n)``, all in reading order."""
    weights = only_counted(values, counted)
    return (total * weights[:, None]).sum(0)


# What is weighed


def signed(traced: TracedRun, means: Means | None, mask: Tensor | None) -> Weigh:
    """``sum_t (h_t - mean_t) * derivative`` over the steps that count."""

    def weigh(pulled: Pulled) -> Tensor:
        values = pulled.run.hidden
        if means is not None:
            values = values - means[pulled.run.part.layer.key, pulled.traced.ordinal][: len(values), None]
        return _summed(pulled.total, values, _counted(traced, pulled, mask))

    return weigh


def absolute(traced: TracedRun) -> Weigh:
    """``sum_t abs(h_t * derivative)`` over the steps that count."""

    def weigh(pulled: Pulled) -> Tensor:
        counted = _counted(traced, pulled, traced.run.mask)
        return _summed(pulled.total.abs(), pulled.run.hidden.abs(), counted)

    return weigh


def _counted(traced: TracedRun, pulled: Pulled, mask: Tensor | None) -> Tensor:
    """``(T, n)`` in reading order: the steps that count, of the sequences that were followed."""
    counted = counted_steps(traced, pulled.traced, mask)[:, : pulled.run.hidden.shape[1]]
    return as_read(pulled.run, counted)


# What comes out


def _check_derivative(seen: Observed, tensor: Tensor, what: str, fix: str) -> None:
    if not tensor.requires_grad:
        raise ValueError(
            f"no derivative comes back from the {what} to {seen.names}: it was not computed from them, or the model's "
            "forward detaches it, or runs under torch.no_grad() or inference_mode() of its own; give "
            f"{fix} or forward=lambda model, batch: ... that runs it without"
        )


def complete(seen: Observed, rows: Mapping[LayerKey, Tensor]) -> dict[LayerKey, Tensor]:
    """``(R, H)`` for every layer asked for: NaN for removed cells, and for layers to which nothing came."""
    if not rows:
        raise ValueError(
            f"the result does not depend on {seen.names}; give output=lambda result: ... that selects a tensor "
            "computed from them, or select the layers that matter with layers="
        )
    _check_finite(rows)
    some = next(iter(rows.values()))
    nothing = {key: some.new_full((len(some), size), math.nan) for key, size in seen.sizes.items()}
    return {key: _of_all_cells(seen.parts[key], rows[key]) if key in rows else nothing[key] for key in seen.sizes}


def _check_finite(rows: Mapping[LayerKey, Tensor]) -> None:
    """One look at all layers: the host waits for a device that often."""
    found = torch.stack([(~torch.isfinite(values)).any(0).sum() for values in rows.values()]).tolist()
    for bad, (key, values) in zip(found, rows.items(), strict=True):
        if not bad:
            continue
        raise ValueError(
            f"{key}: what comes back to {bad} of {values.shape[-1]} cells is NaN or infinite; the network has "
            "diverged, or a function in it has no derivative where it is evaluated, such as sqrt at 0"
        )


def _of_all_cells(part: Part, values: Tensor) -> Tensor:
    """``(..., H)`` from the ``(..., h)`` of the cells that run; NaN for cells that were removed."""
    if part.silent is not None:
        values = values.masked_fill(part.silent, math.nan)
    if part.kept is None:
        return values
    size = part.layer.module.hidden_size
    assert isinstance(size, int)
    full = values.new_full((*values.shape[:-1], size), math.nan)
    return full.index_copy_(-1, part.kept, values)
