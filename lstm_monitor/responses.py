"""Run stimuli through a snapshot, coupled (the layer as trained) or alone (every cell by itself)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lstm_monitor.errors import choose
from lstm_monitor.kernels.engines import in_mode, run, zero_state
from lstm_monitor.kernels.fused import State
from lstm_monitor.kernels.gates import cell_of, gates_of
from lstm_monitor.reasons import Thresholds
from lstm_monitor.records import CellWeights, LayerWeights, Mode, Response, Sequences, Snapshot, Stimulus
from lstm_monitor.snapshots import start_of

Runnable = LayerWeights | CellWeights
BATCH = 16
SETTLE_CHUNK = 64
SETTLE_MOST = 256
SETTLE_TAIL = 8


@dataclass(frozen=True, eq=False)
class Rest:
    """The state before a stimulus: of one sequence, ``(1, H)`` each; and of each cell the hidden state ``(H,)`` then.

    ``settled (H,)``: whether each cell is at rest.
    """

    state: State
    settled: Tensor
    hidden: Tensor


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
    cell, gates = _traces(weights, inputs, hidden, start, record)
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
    coded = weights.from_mean(snapshot.point.mean)
    parts = [
        _respond_to_batch(coded, stimuli[start : start + BATCH], rest.state, mode, record)
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
    weights: Runnable, stimuli: tuple[Stimulus, ...], rest: State, mode: Mode, record: Sequence[str]
) -> dict[str, Tensor]:
    compact, inputs = _compact(weights, stimuli)
    start = tuple(part.expand(len(stimuli), *part.shape[1:]) for part in rest)
    hidden, _ = run(compact, mode, inputs, start)
    cell, gates = _traces(compact, inputs, hidden, start, record)
    traces = {"hidden": _axes(hidden), **gates}
    return traces if cell is None else {**traces, "cell": cell}


def _compact(weights: Runnable, stimuli: tuple[Stimulus, ...]) -> tuple[Runnable, Tensor]:
    """Rank-1 inputs in their own few coordinates: ``W_ih (signal * direction) = signal * (W_ih direction)``, exact."""
    directions: list[Tensor] = []
    inputs = weights.like.new_zeros(len(stimuli[0].signal), len(stimuli), len(stimuli))
    for s, stimulus in enumerate(stimuli):
        d = next((k for k, known in enumerate(directions) if torch.equal(known, stimulus.direction)), len(directions))
        directions += [stimulus.direction] if d == len(directions) else []
        inputs[:, s, d] = stimulus.signal
    return weights.along(torch.stack(directions, dim=1)), inputs[..., : len(directions)].contiguous()


def settle(snapshot: Snapshot, mode: Mode, thresholds: Thresholds) -> Rest:
    """Where the cells come to rest: up to 256 steps from zero at the operating point, without stimulus."""
    weights = in_mode(snapshot.weights, mode, snapshot.hidden_mean).from_mean(snapshot.point.mean)
    still = weights.along(weights.like.new_zeros(weights.input_size, 1))
    inputs = weights.like.new_zeros(SETTLE_CHUNK, 1, 1)
    state, hidden = zero_state(weights, 1), inputs
    settled = torch.zeros(weights.hidden_size, dtype=torch.bool)
    for _ in range(SETTLE_MOST // SETTLE_CHUNK):
        hidden, state = run(still, mode, inputs, state)
        tail = hidden[-SETTLE_TAIL:, 0]
        settled = tail.amax(0) - tail.amin(0) <= thresholds.unsettled
        if bool(settled.all()):
            break
    return Rest(state, settled, hidden[-1, 0])


def _traces(
    weights: Runnable, inputs: Tensor, hidden: Tensor, start: State, record: Sequence[str]
) -> tuple[Tensor | None, Mapping[str, Tensor]]:
    """The cell state and the gates, where they are to be recorded."""
    if not record or isinstance(weights, CellWeights):
        return None, {}
    gates = gates_of(weights, inputs, hidden, start[0])
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
