"""What the recurrent layers of a model did on held-out runs: which steps count, and the mean at each step."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lstm_monitor.core.records import Snapshot
from lstm_monitor.core.terms import GATES, LayerKey
from lstm_monitor.core.weights import LayerWeights
from lstm_monitor.importance.replay.stages import LayerRun, Part, Stages, run_of, whole
from lstm_monitor.importance.sensitivity.tracing import TracedCall, TracedRun, trace
from lstm_monitor.layers.finding import removable_layers
from lstm_monitor.layers.layer import Layers
from lstm_monitor.snapshots.recording import LEAST_SEQUENCES
from lstm_monitor.snapshots.runs import Run
from lstm_monitor.snapshots.taking import flip

Means = Mapping[tuple[LayerKey, int], Tensor]
"""A layer's mean hidden state ``(T, h)`` at each step of its k-th call, over sequences."""


@dataclass(frozen=True, eq=False)
class Observed:
    """Runs of a model with the calls in them, each with how many of its sequences to follow.

    ``parts``: every part that ran, ``sizes``: the number of cells of the layers asked for.
    """

    traces: tuple[tuple[TracedRun, int], ...]
    parts: Mapping[LayerKey, Part]
    sizes: Mapping[LayerKey, int]

    @property
    def names(self) -> str:
        """The layers asked for, in words."""
        return ", ".join(map(str, self.sizes))


def observe(
    model: nn.Module,
    layers: Layers,
    runs: Sequence[Run],
    max_steps: int | None,
    stages: Mapping[nn.Module, Stages] | None = None,
    snaps: Sequence[Snapshot] = (),
) -> Observed:
    """Run the model on runs, from the first on, until about `max_steps` steps (None: all) can be followed.

    Every recurrent module is computed from a copy of its weights, also those that were not asked for; those in `stages`
    from these parts. Modules of registered classes run as they are. With `snaps` of layers as they are now, their
    copies are used, and what they did on held-out data is not computed again.

    Raises:
        ValueError: a weight is NaN or infinite; the layers received nothing.
    """
    samples = {layer.module: layer for layer in (*removable_layers(model), *layers)}
    copies = {snap.key: snap.weights for snap in snaps if isinstance(snap.weights, LayerWeights)}
    own = {module: whole(module, sample, copies) for module, sample in samples.items()}
    used: Mapping[nn.Module, Stages] = own | dict(stages or {})
    parts = {part.layer.key: part for stages in used.values() for stage in stages for part in stage}
    whole_ones = [(parts[s.key], s) for s in snaps if s.key in parts and parts[s.key].weights is s.weights]
    known = {part.layer.key: run for part, snap in whole_ones if (run := run_of(part, snap)) is not None}
    traces = tuple(_traces(model, runs, used, known, math.inf if max_steps is None else max_steps))
    modules = {layer.module for layer in layers}
    sizes = {layer.key: layer.weights().weight_hh.shape[0] // len(GATES[layer.kind]) for layer in layers}
    if not any(call.call.module in modules for traced, _ in traces for call in traced.calls):
        raise ValueError(
            f"the model ran, but its recurrent layers ({', '.join(map(str, sizes))}) received nothing; give "
            "forward=lambda model, batch: ... that reaches them"
        )
    return Observed(traces, parts, sizes)


def _traces(
    model: nn.Module,
    runs: Sequence[Run],
    stages: Mapping[nn.Module, Stages],
    seen: Mapping[LayerKey, LayerRun],
    room: float,
) -> Iterator[tuple[TracedRun, int]]:
    for run in runs:
        if room > 0:
            done = trace(model, run, stages, seen)
            if not done.calls:
                continue
            rows = max(traced.rows for traced in done.calls)
            fitting = rows if room == math.inf else max(int(room) // done.steps, LEAST_SEQUENCES)
            room -= min(rows, fitting) * done.steps
            yield done, min(rows, fitting)


def counted_steps(traced: TracedRun, call: TracedCall, mask: Tensor | None) -> Tensor:
    """``(T, N)``, in the original time: the steps within the lengths of a call that ``mask (N, T)`` leaves in."""
    steps, rows = call.steps, call.rows
    valid = torch.ones(steps, rows, dtype=torch.bool, device=call.call.inputs.device)
    if call.call.lengths is not None:
        valid = torch.arange(steps, device=valid.device)[:, None] < call.call.lengths
    if mask is None:
        return valid
    return valid & _mask_of_call(traced, call, mask).T.to(valid.device)


def _mask_of_call(traced: TracedRun, call: TracedCall, mask: Tensor) -> Tensor:
    """The part of a mask that is for one call: all of it, or its steps where the calls follow each other in time."""
    if mask.shape == (call.rows, call.steps):
        return mask
    same = [other for other in traced.calls if other.call.module is call.call.module]
    before = sum(other.steps for other in same[: call.ordinal])
    if mask.shape != (call.rows, sum(other.steps for other in same)):
        raise ValueError(
            f"mask (from mask= or lengths=) has shape {tuple(mask.shape)}, but a layer received {call.rows} sequences "
            f"of {call.steps} steps, so it is unknown which of them are padding; select the layers that the mask is "
            "for with layers=, or give the model packed sequences"
        )
    return mask[:, before : before + call.steps]


def as_read(run: LayerRun, counted: Tensor) -> Tensor:
    """``counted (T, N)`` in the order in which a part reads."""
    return flip(counted.T, run.lengths).T if run.part.layer.key.reverse else counted


def only_counted(values: Tensor, counted: Tensor) -> Tensor:
    """``values (T, N, h)`` with 0 at the steps that are not ``counted (T, N)``, whatever is there."""
    on_host = counted.device.type == "cpu"  # to look at those of a device would be to wait for it
    return values if on_host and bool(counted.all()) else values.masked_fill(~counted[..., None], 0)


def step_means(seen: Observed) -> Means:
    """The mean hidden state at each step, over the sequences of all runs that count there.

    Where fewer than two do, it is the layer's mean over all that counts: one sequence is no deviation from itself.
    """
    sums: dict[tuple[LayerKey, int], Tensor] = {}
    for traced, _ in seen.traces:
        for call in traced.calls:
            for run in (run for stage in call.runs for run in stage if run.part.layer.key in seen.sizes):
                key = (run.part.layer.key, call.ordinal)
                counted = as_read(run, counted_steps(traced, call, traced.run.mask))
                sums[key] = _added(sums.get(key), _sum_and_count(run.hidden, counted))
    layers = {key for key, _ in sums}
    overall = {
        layer: torch.stack([total.sum(0) for (key, _), total in sums.items() if key == layer]).sum(0)
        for layer in layers
    }
    return {key: torch.where(total[:, -1:] > 1, _mean(total), _mean(overall[key[0]])) for key, total in sums.items()}


def _mean(total: Tensor) -> Tensor:
    return total[..., :-1] / total[..., -1:].clamp(min=1)


def _sum_and_count(hidden: Tensor, counted: Tensor) -> Tensor:
    """``(T, h + 1)``: the sums over the sequences that count, and their number."""
    total = only_counted(hidden, counted).sum(1)
    return torch.cat([total, counted.sum(1, keepdim=True).to(total)], dim=1)


def _added(one: Tensor | None, other: Tensor) -> Tensor:
    """The sum of two that may have different lengths."""
    if one is None:
        return other
    longer, shorter = (one.clone(), other) if len(one) >= len(other) else (other.clone(), one)
    longer[: len(shorter)] += shorter
    return longer
