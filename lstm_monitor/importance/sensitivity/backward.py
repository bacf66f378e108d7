"""Back through one call of a recurrent module: every layer of it, both directions, projections, given states."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lstm_monitor.engines.backward import Reversed, reverse
from lstm_monitor.engines.fused import State
from lstm_monitor.importance.replay.stages import LayerRun, Part, spread
from lstm_monitor.snapshots.taking import flip

Runs = Sequence[Sequence[LayerRun]]


def through(runs: Runs, came: Sequence[Tensor], *, for_inputs: bool) -> tuple[list[tuple[LayerRun, Tensor]], State]:
    """From derivatives by what a call returned to those by its hidden states, and by what it received.

    Args:
        runs: what its parts did, on n sequences.
        came: derivatives by the outputs ``(T, V, n, W)`` and the final states ``(layers * directions, V, n, size)``.
        for_inputs: whether those by the inputs are wanted.

    Returns:
        Every part with its ``total (T, V, n, h)``, the last layer first; and the derivatives by the inputs
        ``(T, V, n, I)`` (those of the first layer's outputs if they are not wanted) and by the given states.
    """
    direct, ends = came[0], came[1:]
    totals: list[tuple[LayerRun, Tensor]] = []
    starts: list[State] = []
    for depth in range(len(runs) - 1, -1, -1):
        stage, first = runs[depth], depth * len(runs[depth])
        pieces = direct.split([_width(run.part) for run in stage], dim=-1)
        done = [
            through_part(run, piece, tuple(end[first + place] for end in ends), for_inputs=for_inputs or depth > 0)
            for place, (run, piece) in enumerate(zip(stage, pieces, strict=True))
        ]
        totals += [(run, item.total) for run, item in zip(stage, done, strict=True)]
        starts = [item.start for item in done] + starts
        inputs = [item.inputs for item in done if item.inputs is not None]
        direct = torch.stack(inputs).sum(0) if len(inputs) > 1 else inputs[0] if inputs else direct
    return totals, (direct, *(torch.stack(parts) for parts in zip(*starts, strict=True)))


def through_part(run: LayerRun, direct: Tensor, end: State, *, for_inputs: bool) -> Reversed:
    """The same for one part; what it hands on and reads is in the order of the original time."""
    part = run.part
    direct = _turned(run, direct)
    end = (_by_cells(part, end[0]), *(_kept(part, values) for values in end[1:]))
    if part.weights.hidden_size == 0:
        nothing = direct.new_zeros(*direct.shape[:3], part.weights.input_size)
        return Reversed(_by_cells(part, direct), nothing, _by_given(part, end))
    by_cells = _by_cells(part, direct)
    states = (run.inputs, run.hidden, run.start)
    known: dict[str, Any] = {"gates": run.gates, "cells": run.cells, "for_inputs": for_inputs}
    done = reverse(part.weights, *states, by_cells, end, run.lengths, **known)
    inputs = None if done.inputs is None else _turned(run, done.inputs)
    return Reversed(done.total, inputs, _by_given(part, done.start))


def first_rows(run: LayerRun, rows: int) -> LayerRun:
    """A run on its first sequences only."""
    return replace(
        run,
        inputs=run.inputs[:, :rows],
        hidden=run.hidden[:, :rows],
        start=tuple(state[:rows] for state in run.start),
        final=tuple(state[:rows] for state in run.final),
        lengths=None if run.lengths is None else run.lengths[:rows],
        gates=None if run.gates is None else run.gates[:, :rows],
        cells=None if run.cells is None else run.cells[:, :rows],
    )


def _width(part: Part) -> int:
    """How wide the outputs of a part are: H or P."""
    size = part.layer.module.hidden_size if part.projection is None else part.projection.shape[0]
    assert isinstance(size, int)
    return size


def _turned(run: LayerRun, values: Tensor) -> Tensor:
    """``(T, V, N, size)`` between the original time and the order in which a part reads."""
    if not run.part.layer.key.reverse:
        return values
    return flip(values.permute(2, 0, 1, 3), run.lengths).permute(1, 2, 0, 3)


def _by_cells(part: Part, values: Tensor) -> Tensor:
    """From derivatives by what a part hands on ``(..., H or P)`` to those by its cells ``(..., h)``."""
    return _kept(part, values if part.projection is None else values @ part.projection)


def _kept(part: Part, values: Tensor) -> Tensor:
    return values if part.kept is None else values[..., part.kept]


def _by_given(part: Part, start: State) -> State:
    """From derivatives by the cells' states at the start ``(V, N, h)`` to those by the states that were given."""
    if part.silent is not None:
        start = tuple(values.masked_fill(part.silent, 0) for values in start)
    full = tuple(spread(part, values) for values in start)
    return full if part.projection is None else (full[0] @ torch.linalg.pinv(part.projection), *full[1:])
