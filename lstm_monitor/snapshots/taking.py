"""Snapshots: detached copies of layers, with what they receive."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from math import isfinite
from typing import Any

import torch
from torch import Tensor, nn

from lstm_monitor.core.records import Sequences, Snapshot
from lstm_monitor.core.terms import LayerKey
from lstm_monitor.core.undisturbed import undisturbed
from lstm_monitor.core.weights import CellWeights, LayerWeights
from lstm_monitor.engines.fused import State
from lstm_monitor.engines.gates import gate_values
from lstm_monitor.engines.registered import run_from_data, state_from
from lstm_monitor.engines.run import run, zero_state
from lstm_monitor.layers.finding import custom_layers, find_layers
from lstm_monitor.layers.layer import CustomLayer, Layer, Layers
from lstm_monitor.layers.outgoing_weights import outgoing_norms
from lstm_monitor.layers.registered.registry import check_outputs
from lstm_monitor.layers.registered.weights import mapped_weights
from lstm_monitor.snapshots.held_out import Forward
from lstm_monitor.snapshots.operating_point import default_point, held_out_mean, operating_point
from lstm_monitor.snapshots.recording import HELD_OUT_STEPS, Recording
from lstm_monitor.snapshots.registered_copy import copied_cell
from lstm_monitor.snapshots.runs import record_held_out


def snapshot(
    model: nn.Module,
    held_out: Any = None,
    *,
    layers: str | Sequence[str] | Layers = "*",
    forward: Forward | None = None,
    lengths: Any = None,
    mask: Any = None,
    max_steps: int = HELD_OUT_STEPS,
    recordings: Mapping[nn.Module, Recording] | None = None,
) -> tuple[Snapshot, ...]:
    """Copy every recurrent layer of `model` at this moment, on its device, without any change to the model.

    Args:
        model: any torch module.
        held_out: data to run the model on; see `characterize`. Without it, the operating point is zero and one.
        layers: glob or globs over layer names, or what `find_layers` returned.
        forward: called as ``forward(model, batch)`` instead of the model itself.
        lengths: (N,) steps of each held-out sequence that are no padding.
        mask: (N, T) True for the steps that count.
        max_steps: about how many sequence steps of the held-out data are used.
        recordings: what the modules received, where it was recorded already; `held_out` is then not used.

    Returns:
        One snapshot a layer and direction: float32 (float64 kept), detached, the projection folded into the
        recurrence; a reverse direction's sequences are in the order in which it reads them.

    Raises:
        TypeError: `model` is no torch module; held-out data that are no tensors.
        ValueError: no recurrent layer; weights that are NaN or infinite; held-out data that the model cannot be run on;
            lengths or a mask that do not fit.
    """
    if held_out is None and recordings is None and not (lengths is None and mask is None):
        raise ValueError("lengths= or mask= was given without held_out=; they say which held-out steps are no padding")
    found = layers if isinstance(layers, Layers) else find_layers(model, layers)
    with undisturbed(model):
        if recordings is None:
            recordings = {}
            if held_out is not None:
                options = {"forward": forward, "lengths": lengths, "mask": mask, "max_steps": max_steps}
                recordings = record_held_out(model, found, held_out, **options)
        modules = list(dict.fromkeys(layer.module for layer in found))
        snaps = {snap.key: snap for m in modules for snap in _snap_module(model, m, found, recordings.get(m))}
    return tuple(snaps[layer.key] for layer in found)


def _snap_module(model: nn.Module, module: nn.Module, found: Layers, recording: Recording | None) -> Iterator[Snapshot]:
    """Every direction of every layer of one module, the inputs of a layer being the outputs of the one below."""
    wanted = {layer.key for layer in found}
    stages = stages_of(module, next(layer for layer in found if layer.module is module))
    for stage in stages:
        known = None if recording is None or stage is not stages[-1] else recording.returned
        snaps = [_snap(layer, recording, model, known) for layer in stage]
        yield from (snap for snap in snaps if snap.key in wanted)
        if recording is not None and (stage is not stages[-1] or recording.outputs is not None):
            recording = replace(recording, inputs=torch.cat([_outputs(snap) for snap in snaps], dim=-1))
    if recording is not None and recording.outputs is not None:
        _check_custom(stages[0][0], recording)


def _check_custom(layer: Layer, recording: Recording) -> None:
    """Compare what the last layer of a registered module hands on, the recording's inputs now, with its outputs."""
    if isinstance(layer, CustomLayer) and layer.registration.verify and recording.outputs is not None:
        name = layer.key.path or type(layer.module).__name__
        check_outputs(layer.registration, name, recording.inputs, recording.outputs, recording.mask)


def stages_of(module: nn.Module, sample: Layer) -> list[list[Layer]]:
    """Every direction of every layer of a module, from the first layer on, from one of them."""
    if sample.is_cell:
        return [[sample]]
    if isinstance(sample, CustomLayer):
        layers = custom_layers(sample.key.path, module, sample.registration)
        return [list(stage) for _, stage in groupby(layers, key=lambda layer: layer.key.index)]
    assert isinstance(module, nn.RNNBase)
    directions = (False, True)[: 1 + module.bidirectional]
    path = sample.key.path
    return [
        [replace(sample, key=LayerKey(path, index, reverse)) for reverse in directions]
        for index in range(module.num_layers)
    ]


def _snap(layer: Layer, recording: Recording | None, model: nn.Module, known: Tensor | None) -> Snapshot:
    """One direction of one layer; `known`: what its module returned, if this is its last layer."""
    weights = _frozen(layer, recording)
    held_out = None if recording is None else _sequences(layer, weights, recording)
    hidden = None
    if held_out is not None:
        hidden = None if known is None else _hidden_in(known, layer, weights, held_out.lengths)
        if hidden is None:
            weights, hidden = _on_held_out(weights, held_out)
    outgoing, reader = outgoing_norms(model, layer, weights)
    return Snapshot(
        key=layer.key,
        weights=weights,
        point=default_point(weights) if held_out is None else operating_point(held_out),
        hidden_mean=weights.like.new_zeros(weights.hidden_size) if hidden is None else held_out_mean(hidden, held_out),
        held_out=held_out,
        held_out_hidden=hidden,
        outgoing=outgoing,
        reader=reader,
        frozen=not any(parameter.requires_grad for parameter in layer.module.parameters()),
    )


def _frozen(layer: Layer, recording: Recording | None) -> LayerWeights | CellWeights:
    if isinstance(layer, CustomLayer) and layer.is_step:
        features = None if recording is None else recording.inputs.shape[-1]
        return copied_cell(layer.registration, layer.module, features, str(layer.key))
    return freeze(layer)


def _on_held_out(
    weights: LayerWeights | CellWeights, sequences: Sequences
) -> tuple[LayerWeights | CellWeights, Tensor]:
    """The hidden states ``(T, N, H)``, and the weights: a registered cell with what it learnt of its mean state."""
    if isinstance(weights, CellWeights):
        inputs = sequences.inputs.transpose(0, 1)
        return run_from_data(weights, inputs, start_of(weights, sequences), sequences.mask)
    return weights, run_sequences(weights, sequences)


def _hidden_in(
    returned: Tensor, layer: Layer, weights: LayerWeights | CellWeights, lengths: Tensor | None
) -> Tensor | None:
    """The hidden states ``(T, N, H)`` in what a module returned; None where it holds others, or in another type."""
    if isinstance(weights, CellWeights) or weights.weight_hr is not None or returned.dtype != weights.like.dtype:
        return None
    if not getattr(layer.module, "bidirectional", False):
        return returned.transpose(0, 1).contiguous()
    own = returned.chunk(2, dim=-1)[layer.key.reverse]
    return (flip(own, lengths) if layer.key.reverse else own).transpose(0, 1).contiguous()


def freeze(layer: Layer) -> LayerWeights:
    """A detached float32 (float64 kept) copy of a layer's weights, the projection folded into the recurrence.

    Raises:
        ValueError: a weight is NaN or infinite.
    """
    live = layer.weights()
    dtype = torch.float64 if live.weight_ih.dtype == torch.float64 else torch.float32
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")
    given = {name: getattr(live, name).detach() for name in names if getattr(live, name) is not None}
    _check_finite(layer, given)
    copies = {name: tensor.to(dtype, copy=True) for name, tensor in given.items()}
    if "weight_hr" in copies:
        copies["weight_hh"] = copies["weight_hh"] @ copies["weight_hr"]
    return LayerWeights(live.kind, **copies)


def with_own_weights(model: nn.Module, found: Layers, bare: Sequence[Snapshot]) -> tuple[Snapshot, ...]:
    """Snapshots from another process, that came without what this one has: weights, registered cells and steps."""
    layers = {layer.key: layer for layer in found}
    with undisturbed(model):
        return tuple(replace(snap, weights=_own(layers[snap.key], snap.weights)) for snap in bare)


def _own(layer: Layer, bare: LayerWeights | CellWeights | None) -> LayerWeights | CellWeights:
    if not isinstance(bare, CellWeights) or not isinstance(layer, CustomLayer):
        return freeze(layer)
    mine = copied_cell(layer.registration, layer.module, bare.input_size, str(layer.key))
    return replace(bare, cell=mine.cell, step=mine.step)


def _check_finite(layer: Layer, given: Mapping[str, Tensor]) -> None:
    """One look at all of them: the host waits for a device that often."""
    if isfinite(torch.stack([tensor.sum().float() for tensor in given.values()]).sum()):
        return  # so is every value; a sum may overflow
    for name, tensor in given.items():
        bad = int((~torch.isfinite(tensor)).sum())
        if bad > 0:
            raise ValueError(
                f"{layer.key}: {bad} of {tensor.numel()} values of {name}{layer.suffix} are NaN or infinite; "
                "the network has diverged, so its cells have no response"
            )


def _sequences(layer: Layer, weights: LayerWeights | CellWeights, recording: Recording) -> Sequences:
    inputs, index = recording.inputs.to(weights.like), _row(layer)
    h0 = None if recording.h0 is None else recording.h0[index].to(weights.like)
    c0 = None if recording.c0 is None else recording.c0[index].to(weights.like)
    if h0 is not None and isinstance(weights, LayerWeights):
        h0 = unproject(weights, h0)
    mask = recording.mask.to(inputs.device)
    if layer.key.reverse:
        inputs, mask = flip(inputs, recording.lengths), flip(mask, recording.lengths)
    return Sequences(inputs, mask, recording.lengths, h0, c0)


def _row(layer: Layer) -> int:
    """The row of a layer in the states that its module is given, ``(layers * directions, N, size)``."""
    if isinstance(layer, CustomLayer) and not layer.is_step:
        return list(mapped_weights(layer.registration, layer.module)).index(layer.place)
    if layer.is_cell:
        return 0
    two = bool(getattr(layer.module, "bidirectional", False))
    return (1 + two) * (layer.key.index or 0) + layer.key.reverse


def unproject(weights: LayerWeights, h0: Tensor) -> Tensor:
    """A state ``(N, H)`` of the cells that the projection maps to ``h0 (N, P)``; `h0` itself without projection."""
    if weights.weight_hr is None:
        return h0
    return h0 @ torch.linalg.pinv(weights.weight_hr).T


def flip(values: Tensor, lengths: Tensor | None) -> Tensor:
    """``values (N, T, ...)`` reversed in time, each sequence within its own length."""
    if lengths is None:
        return values.flip(1)
    steps = torch.arange(values.shape[1], device=values.device)
    ends = lengths.to(values.device)[:, None]
    index = torch.where(steps < ends, ends - 1 - steps, steps)
    return values[torch.arange(len(values), device=values.device)[:, None], index]


def with_gates(snap: Snapshot) -> Snapshot:
    """The snapshot with its gates on the held-out sequences, where it has any."""
    if snap.held_out is None or snap.held_out_hidden is None or isinstance(snap.weights, CellWeights):
        return snap
    inputs, start = snap.held_out.inputs.transpose(0, 1), start_of(snap.weights, snap.held_out)
    return replace(snap, held_out_gates=gate_values(snap.weights, inputs, snap.held_out_hidden, start[0]))


def start_of(weights: LayerWeights | CellWeights, sequences: Sequences) -> State:
    """The state in which the sequences start: their own, or zeros (what a registered cell starts with)."""
    if isinstance(weights, CellWeights):
        return state_from(weights, (sequences.h0, sequences.c0), len(sequences.inputs))
    zeros = zero_state(weights, len(sequences.inputs))
    given = (sequences.h0, sequences.c0)
    return tuple(zero if state is None else state for zero, state in zip(zeros, given, strict=False))


def run_sequences(weights: LayerWeights | CellWeights, sequences: Sequences) -> Tensor:
    """The hidden states ``(T, N, H)`` on sequences; beyond a sequence's length they mean nothing."""
    inputs = sequences.inputs.transpose(0, 1).to(weights.like)
    hidden, _ = run(weights, "coupled", inputs, start_of(weights, sequences))
    return hidden


def _outputs(snap: Snapshot) -> Tensor:
    """What the layer hands on, ``(N, T, H or P)``, in the order of the original time."""
    assert snap.held_out is not None
    assert snap.held_out_hidden is not None
    outputs = snap.held_out_hidden.transpose(0, 1)
    if isinstance(snap.weights, LayerWeights) and snap.weights.weight_hr is not None:
        outputs = outputs @ snap.weights.weight_hr.T
    return flip(outputs, snap.held_out.lengths) if snap.key.reverse else outputs
