"""Recurrent modules computed from records of weights, part by part: all cells of a layer, or some of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from lstm_monitor.core.records import Snapshot
from lstm_monitor.core.terms import GATES, Kind, LayerKey
from lstm_monitor.core.weights import LayerWeights
from lstm_monitor.engines.fused import State, run_fused, zero_state
from lstm_monitor.engines.gates import cell_states, gate_values
from lstm_monitor.importance.replay.calls import Call
from lstm_monitor.layers.layer import Layer
from lstm_monitor.snapshots.taking import flip, freeze, stages_of, start_of, unproject


@dataclass(frozen=True, eq=False)
class Part:
    """One direction of one layer, of which the cells ``kept`` run (None: all); the others stand still at ``fill (H,)``.

    ``weights`` are those of the cells that run; ``projection (P, H)`` that of all cells. ``silent (H,)`` marks cells
    that run, but are held at 0 by their weights.
    """

    layer: Layer
    weights: LayerWeights
    kept: Tensor | None = None
    fill: Tensor | None = None
    projection: Tensor | None = None
    silent: Tensor | None = None


@dataclass(frozen=True, eq=False)
class LayerRun:
    """What one part did in one call, in the order in which it reads: ``inputs (T, N, I)``, ``hidden (T, N, h)``.

    `start` and `final` are its states ``(N, h)``, the final one at the end of each sequence. ``gates (T, N, G, h)`` as
    `gate_values` gives them and an LSTM's ``cells (T, N, h)``, where they are known.
    """

    part: Part
    inputs: Tensor
    hidden: Tensor
    start: State
    final: State
    lengths: Tensor | None
    gates: Tensor | None = None
    cells: Tensor | None = None


Stages = Sequence[Sequence[Part]]


# Parts


def whole(module: nn.Module, sample: Layer, copies: Mapping[LayerKey, LayerWeights] | None = None) -> list[list[Part]]:
    """Every part of a module, all cells running: a list of layers from the first on, of their directions.

    `copies`: weights of layers that were copied already.
    """
    return [[_whole(layer, (copies or {}).get(layer.key)) for layer in stage] for stage in stages_of(module, sample)]


def _whole(layer: Layer, copied: LayerWeights | None) -> Part:
    weights = freeze(layer) if copied is None else copied
    return Part(layer, weights, projection=weights.weight_hr)


def without(part: Part, removed: Tensor, means: Tensor | None = None) -> Part:
    """A whole part with only the cells that are not ``removed``; those stand still at 0, or at their ``means (H,)``.

    What the others read from a cell at its mean is constant, and goes into their biases.
    """
    gone, held = _held(part, removed, means)
    weights, kept = held.weights, (~gone).nonzero()[:, 0]
    rows = (torch.arange(len(GATES[weights.kind]), device=kept.device)[:, None] * len(gone) + kept).reshape(-1)
    cut = replace(
        weights,
        weight_ih=weights.weight_ih[rows],
        weight_hh=weights.weight_hh[rows][:, kept],
        bias_ih=weights.bias_ih[rows],
        bias_hh=weights.bias_hh[rows],
        weight_hr=None if weights.weight_hr is None else weights.weight_hr[:, kept],
    )
    return replace(held, weights=cut, kept=kept)


def silenced(part: Part, removed: Tensor, means: Tensor | None = None) -> Part:
    """The same as `without`, computed at full size: for a few cells, since the ops like round sizes best."""
    gone, held = _held(part, removed, means)
    rows = candidate_rows(held.weights.kind, gone)
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    edited = {name: getattr(held.weights, name).index_fill(0, rows, 0) for name in names}
    return replace(held, weights=replace(held.weights, **edited), silent=gone)


def candidate_rows(kind: Kind, cells: Tensor) -> Tensor:
    """The rows of torch's weights that make the candidate values of the cells marked in ``cells (H,)``."""
    return cells.nonzero()[:, 0] + GATES[kind].index("candidate") * len(cells)


def _held(part: Part, removed: Tensor, means: Tensor | None) -> tuple[Tensor, Part]:
    """Which cells ``(H,)`` are gone, and the part in which the others read them at 0 or at their means."""
    weights = part.weights
    gone = torch.zeros(weights.hidden_size, dtype=torch.bool, device=weights.weight_hh.device)
    gone[removed] = True
    if means is None:
        return gone, part
    fill = torch.where(gone, means.to(weights.weight_hh), 0)
    bias = weights.bias_hh + weights.weight_hh @ fill
    return gone, replace(part, weights=replace(weights, bias_hh=bias), fill=fill)


# Runs


def run_module(
    call: Call,
    stages: Stages,
    known: Sequence[Sequence[LayerRun]] | None = None,
    seen: Mapping[LayerKey, LayerRun] | None = None,
) -> tuple[Tensor, State, list[list[LayerRun]]]:
    """Outputs ``(T, N, W)``, final states, and the run of every part; dropout between layers is off.

    `known`: what the same call gave before; then only the parts that changed and what is above them are computed.
    `seen`: runs on inputs that may be those of this call; then they are taken.
    """
    inputs, changed = call.inputs, known is None
    runs: list[list[LayerRun]] = []
    for level, stage in enumerate(stages):
        before = [] if changed or known is None else known[level]
        same = [run.part is part for part, run in zip(stage, before, strict=False)] or [False] * len(stage)
        done = [
            before[place] if same[place] else run_part(part, call, inputs, len(stage) * level + place, seen)
            for place, part in enumerate(stage)
        ]
        changed = changed or not all(same)
        inputs = outputs_of(done, call)
        runs.append(done)
    return inputs, final_of(runs, call.inputs.dtype), runs


def outputs_of(runs: Sequence[LayerRun], call: Call) -> Tensor:
    """What one layer hands on, ``(T, N, W)``, both directions side by side, in the type of the call."""
    outputs = [output_of(run) for run in runs]
    return (outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=-1)).to(call.inputs.dtype)


def run_part(
    part: Part, call: Call, inputs: Tensor, place: int, seen: Mapping[LayerKey, LayerRun] | None = None
) -> LayerRun:
    """Run one part on ``inputs (T, N, I)`` of a call, with the state given at its place, unless it was `seen` so."""
    weights = part.weights
    inputs = inputs.to(weights.weight_ih)
    if part.layer.key.reverse:
        inputs = flip(inputs.transpose(0, 1), call.lengths).transpose(0, 1)
    start = _start(part, call, place, inputs.shape[1])
    if weights.hidden_size == 0:  # every cell of it removed
        return LayerRun(part, inputs, inputs.new_zeros(*inputs.shape[:2], 0), start, start, call.lengths)
    before = (seen or {}).get(part.layer.key)
    if before is not None and _is_of(before, part, inputs, start, call.lengths):
        return before
    hidden, final = run_fused(weights, inputs.contiguous(), start)
    if call.lengths is not None:
        final = _at_ends(weights, inputs, hidden, start, call.lengths)
    return LayerRun(part, inputs, hidden, start, final, call.lengths)


def _is_of(run: LayerRun, part: Part, inputs: Tensor, start: State, lengths: Tensor | None) -> bool:
    """Whether a run is that of this part on just these inputs, from this state."""
    pairs = [(run.inputs, inputs), *zip(run.start, start, strict=True)]
    if (run.lengths is None) != (lengths is None):
        return False
    if run.lengths is not None and lengths is not None:
        pairs.append((run.lengths.to(lengths), lengths))
    if run.part is not part or any(mine.shape != other.shape for mine, other in pairs):
        return False
    return bool(torch.stack([(mine == other).all() for mine, other in pairs]).all())  # one look at a device for all


def run_of(part: Part, snap: Snapshot) -> LayerRun | None:
    """What a whole part did on the held-out sequences of its layer's snapshot; None where its gates are not known."""
    held_out, hidden, gates, weights = snap.held_out, snap.held_out_hidden, snap.held_out_gates, part.weights
    if held_out is None or hidden is None or gates is None:
        return None
    start = start_of(weights, held_out)
    lengths = None if held_out.lengths is None else held_out.lengths.to(hidden.device)
    cells = cell_states(weights, gates, start[1]) if weights.kind == "lstm" else None
    final = _final(hidden, cells, lengths)
    return LayerRun(part, held_out.inputs.transpose(0, 1), hidden, start, final, lengths, gates, cells)


def _final(hidden: Tensor, cells: Tensor | None, lengths: Tensor | None) -> State:
    """The state at the last step of each sequence, from that at all steps."""
    states = [values for values in (hidden, cells) if values is not None]
    if lengths is None:
        return tuple(values[-1] for values in states)
    rows = torch.arange(len(lengths), device=lengths.device)
    return tuple(values[lengths - 1, rows] for values in states)


def _start(part: Part, call: Call, place: int, count: int) -> State:
    if not call.state:
        return zero_state(part.weights, count)
    given = tuple(state[place].to(part.weights.weight_hh) for state in call.state)
    if part.projection is not None:
        return (_before_projection(part, given[0]), *(_running(part, state) for state in given[1:]))
    return tuple(_running(part, state) for state in given)


def _running(part: Part, state: Tensor) -> Tensor:
    """``(N, h)`` of ``(N, H)``: the cells that run; those that are silent at 0."""
    if part.silent is not None:
        state = state.masked_fill(part.silent, 0)
    return state if part.kept is None else state[:, part.kept]


def _before_projection(part: Part, h0: Tensor) -> Tensor:
    """A state ``(N, h)`` of the cells that run, which together with the others at rest projects to ``h0 (N, P)``."""
    assert part.projection is not None
    assert part.weights.weight_hr is not None
    moved = h0 if part.fill is None else h0 - part.fill @ part.projection.T
    own = part.weights.weight_hr if part.silent is None else part.weights.weight_hr.masked_fill(part.silent, 0)
    return unproject(replace(part.weights, weight_hr=own), moved)


def _at_ends(weights: LayerWeights, inputs: Tensor, hidden: Tensor, start: State, lengths: Tensor) -> State:
    """The state at the last step of each sequence, for which an LSTM's cell is computed at all steps."""
    if weights.kind != "lstm":
        return _final(hidden, None, lengths)
    gates = gate_values(weights, inputs, hidden, start[0])
    return _final(hidden, cell_states(weights, gates, start[1]), lengths)


def output_of(run: LayerRun) -> Tensor:
    """What a part hands on, ``(T, N, H or P)``, in the order of the original time."""
    outputs = emitted(run.part, run.hidden)
    return flip(outputs.transpose(0, 1), run.lengths).transpose(0, 1) if run.part.layer.key.reverse else outputs


def emitted(part: Part, hidden: Tensor) -> Tensor:
    """All H cells, or their projection, from the ``(..., h)`` that run."""
    full = spread(part, hidden, part.fill)
    return full if part.projection is None else full @ part.projection.T


def spread(part: Part, values: Tensor, fill: Tensor | None = None) -> Tensor:
    """``(..., H)`` from the ``(..., h)`` of the cells that run; the others at `fill`, or 0."""
    if part.kept is None:
        return values if fill is None else values + fill
    size = part.layer.module.hidden_size
    assert isinstance(size, int)
    full = values.new_zeros(*values.shape[:-1], size) if fill is None else fill.expand(*values.shape[:-1], size).clone()
    return full.index_copy_(-1, part.kept, values)


def final_of(runs: Sequence[Sequence[LayerRun]], dtype: torch.dtype) -> State:
    """The final states of a module, each ``(layers * directions, N, size)``."""
    flat = [run for stage in runs for run in stage]
    hidden = torch.stack([emitted(run.part, run.final[0]) for run in flat]).to(dtype)
    if len(flat[0].final) == 1:
        return (hidden,)
    return hidden, torch.stack([spread(run.part, run.final[1]) for run in flat]).to(dtype)
