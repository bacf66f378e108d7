"""Run stimuli through a snapshot, coupled (the layer as trained) or alone (every cell by itself)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lstm_monitor.core.definitions import Thresholds
from lstm_monitor.core.errors import choose
from lstm_monitor.core.records import Response, Sequences, Snapshot, Stimulus
from lstm_monitor.core.terms import Mode
from lstm_monitor.core.weights import CellWeights, LayerWeights
from lstm_monitor.engines.choice import engine_for
from lstm_monitor.engines.fused import State
from lstm_monitor.engines.gates import cell_of, gates_of, named
from lstm_monitor.engines.lone_cells import cells_of
from lstm_monitor.engines.run import in_mode, run
from lstm_monitor.responses.rest import Rest, settle
from lstm_monitor.snapshots.taking import start_of

Runnable = LayerWeights | CellWeights
BATCH = 16


def respond(
    snapshot: Snapshot,
    stimuli: Stimulus | Sequence[Stimulus] | Sequences,
    mode: Mode = "coupled",
    *,
    record: Sequence[str] = (),
    thresholds: Thresholds | None = None,
    rest: Rest | None = None,
) -> Response:
    """Every cell's response to every stimulus, from rest at the operating point; or to sequences.

    Args:
        snapshot: the layer.
        stimuli: one stimulus, or several of one horizon T; or `Sequences` (held-out or random ones), which start in
            their own state.
        mode: "coupled" is the layer as trained. "alone" keeps each cell's own recurrence, and freezes what it
            receives from the other cells at their held-out mean (zero without data).
        record: also keep "cell" (the cell state, LSTM only) and "gates".
        thresholds: when a baseline counts as unsettled.
        rest: what `settle` returned for this snapshot and mode, where it is known already.

    Returns:
        ``hidden (S, H, T)``; with a projection the units before it.

    Raises:
        ValueError: horizons that differ, directions or sequences of another width than the layer's, an unknown `mode`
            or `record`, the cell state of a layer that has none.
    """
    choose("mode", mode, ("coupled", "alone"))
    for name in record:
        choose("record", name, ("cell", "gates"))
    if "cell" in record and snapshot.kind != "lstm":
        raise ValueError(f"record='cell' asks for a cell state, which a {snapshot.kind} layer ({snapshot.key}) has not")
    with torch.no_grad():
        weights = in_mode(snapshot.weights, mode, snapshot.hidden_mean)
        if isinstance(stimuli, Sequences):
            return _respond_to_sequences(snapshot, weights, stimuli, mode, record)
        start = rest or settle(snapshot, mode, thresholds or Thresholds())
        given = (stimuli,) if isinstance(stimuli, Stimulus) else tuple(stimuli)
        return _respond_to_stimuli(snapshot, weights, given, mode, record, start)


def _respond_to_sequences(
    snapshot: Snapshot, weights: Runnable, sequences: Sequences, mode: Mode, record: Sequence[str]
) -> Response:
    if sequences.inputs.dim() != 3 or sequences.inputs.shape[-1] != weights.input_size:
        raise ValueError(
            f"stimuli: sequences of shape {tuple(sequences.inputs.shape)} do not fit a layer that reads "
            f"{weights.input_size} features; give inputs of shape (N, T, {weights.input_size})"
        )
    inputs = sequences.inputs.transpose(0, 1).to(weights.like)
    start = start_of(weights, sequences)
    known = mode == "coupled" and sequences is snapshot.held_out
    hidden = snapshot.held_out_hidden if known else None
    if hidden is None:
        hidden, _ = run(weights, mode, inputs, start)
    values = snapshot.held_out_gates if known else None
    cell, gates = _traces(weights, inputs, hidden, start, record, values)
    return Response(
        snapshot.key,
        snapshot.kind,
        mode,
        _axes(hidden),
        mask=sequences.mask,
        source=sequences.source,
        cell=cell,
        gates=gates,
    )


def _respond_to_stimuli(
    snapshot: Snapshot,
    weights: Runnable,
    stimuli: tuple[Stimulus, ...],
    mode: Mode,
    record: Sequence[str],
    rest: Rest,
) -> Response:
    _check_stimuli(stimuli, weights)
    parts = [
        _respond_to_batch(snapshot, weights, stimuli[start : start + BATCH], rest.state, mode, record)
        for start in range(0, len(stimuli), BATCH)
    ]
    traces = {name: torch.cat([part[name] for part in parts]) if parts[1:] else parts[0][name] for name in parts[0]}
    return Response(
        snapshot.key,
        snapshot.kind,
        mode,
        traces.pop("hidden"),
        stimuli,
        baseline=rest.hidden,
        settled=rest.settled,
        cell=traces.pop("cell", None),
        gates=traces,
    )


def _respond_to_batch(
    snapshot: Snapshot,
    weights: Runnable,
    stimuli: tuple[Stimulus, ...],
    rest: State,
    mode: Mode,
    record: Sequence[str],
) -> dict[str, Tensor]:
    signals = torch.stack([stimulus.signal for stimulus in stimuli], dim=1).to(weights.like)
    directions, way = ways_of(stimuli, signals.device)
    start = tuple(part.expand(len(stimuli), *part.shape[1:]) for part in rest)
    compact = weights.from_mean(snapshot.point.mean).along(directions)
    if mode == "alone" and isinstance(snapshot.weights, LayerWeights):
        cells = cells_of(snapshot.weights, snapshot.hidden_mean, snapshot.point.mean, directions)
        hidden, _ = engine_for(signals.device, signals.dtype).cell_trace(cells, signals, way, rest)
    else:
        hidden, _ = run(compact, mode, in_ways(signals, way, directions.shape[1]), start)
    cell, gates = _traces(compact, in_ways(signals, way, directions.shape[1]), hidden, start, record)
    traces = {"hidden": _axes(hidden), **gates}
    return traces if cell is None else {**traces, "cell": cell}


def ways_of(stimuli: Sequence[Stimulus], device: torch.device) -> tuple[Tensor, Tensor]:
    """The distinct directions ``(I, D)`` of stimuli, and on this device the number of each one's own ``(S,)``.

    Rank-1 inputs in their own few coordinates are exact: ``W_ih (signal * direction) = signal * (W_ih direction)``.
    """
    directions: list[Tensor] = []
    way = []
    for stimulus in stimuli:
        mine = stimulus.direction
        d = next(
            (k for k, other in enumerate(directions) if other is mine or torch.equal(other, mine)), len(directions)
        )
        directions += [mine] if d == len(directions) else []
        way.append(d)
    return torch.stack(directions, dim=1), torch.tensor(way, device=device)


def in_ways(signals: Tensor, way: Tensor, count: int) -> Tensor:
    """Inputs ``(T, S, D)`` of ``signals (T, S)``, each along one of D directions."""
    return signals[..., None] * (way[:, None] == torch.arange(count, device=way.device))


def _traces(
    weights: Runnable,
    inputs: Tensor,
    hidden: Tensor,
    start: State,
    record: Sequence[str],
    values: Tensor | None = None,
) -> tuple[Tensor | None, Mapping[str, Tensor]]:
    """The cell state and the gates, where they are to be recorded; `values`: the gates, where they are known."""
    if not record or isinstance(weights, CellWeights):
        return None, {}
    gates = gates_of(weights, inputs, hidden, start[0]) if values is None else named(weights, values)
    cell = _axes(cell_of(gates, start[1])) if "cell" in record else None
    return cell, {name: _axes(gate) for name, gate in gates.items()} if "gates" in record else {}


def _axes(trace: Tensor) -> Tensor:
    """``(T, S, H)`` as ``(S, H, T)``, a view."""
    return trace.permute(1, 2, 0)


def _check_stimuli(stimuli: tuple[Stimulus, ...], weights: Runnable) -> None:
    for stimulus in stimuli:
        if stimulus.direction.shape != (weights.input_size,):
            raise ValueError(
                f"stimuli: {stimulus.name!r} has a direction of shape {tuple(stimulus.direction.shape)}, but the layer "
                f"reads {weights.input_size} features; give a direction of shape ({weights.input_size},)"
            )
    horizons = {len(stimulus.signal) for stimulus in stimuli}
    if len(horizons) != 1:
        raise ValueError(
            f"stimuli have horizons {sorted(horizons)}; give at least one stimulus, all of one horizon: steps and "
            "sines of different lengths are two calls of respond()"
        )
