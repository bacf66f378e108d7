"""Registered cells, step by step: as they are, or every cell alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from lstm_monitor.core.undisturbed import random_states
from lstm_monitor.core.weights import CellWeights
from lstm_monitor.engines.fused import State

MOST_VALUES = 2**22
"""Values of one part of the state that are computed at once where every cell runs alone."""


def own_parts(weights: CellWeights) -> tuple[bool, ...]:
    """Of each part of the state, whether it is the cells' own, ``(N, H, ...)``; else it is shared by all."""
    return tuple(
        part.is_floating_point() and part.dim() > 1 and part.shape[1] == weights.hidden_size for part in weights.start
    )


def start_state(weights: CellWeights, count: int) -> State:
    """The state of `count` sequences before their first step; where cells run alone, a shared part for each of them."""
    return _for_cells(weights, tuple(part.expand(count, *part.shape[1:]) for part in weights.start))


def state_from(weights: CellWeights, given: Sequence[Tensor | None], count: int) -> State:
    """The start of `count` sequences with the parts that were given, where they are all of its parts."""
    start = tuple(part.expand(count, *part.shape[1:]) for part in weights.start)
    if len(start) > len(given):
        return _for_cells(weights, start)
    pairs = zip(start, given, strict=False)
    fits = [part if mine is None or mine.shape != part.shape else mine.to(part) for part, mine in pairs]
    return _for_cells(weights, tuple(fits))


def _for_cells(weights: CellWeights, state: State) -> State:
    if not weights.alone:
        return state
    size = weights.hidden_size
    return tuple(
        part if own else part[:, None].expand(-1, size, *part.shape[1:])
        for part, own in zip(state, own_parts(weights), strict=True)
    )


@torch.no_grad()
def run_cell(weights: CellWeights, inputs: Tensor, state: State) -> tuple[Tensor, State]:
    """Run ``inputs (T, N, D)`` from ``state``; returns ``hidden (T, N, H)`` and the state at the end.

    Where cells run alone, each is a sequence of its own in which all others stand still: H times as much to compute.
    """
    with random_states():
        if weights.alone:
            return _run_alone(weights, inputs, state)
        hidden = []
        for now, after in _walk(weights, inputs, state):
            hidden.append(now)
            state = after
        return torch.stack(hidden), state


@torch.no_grad()
def run_from_data(weights: CellWeights, inputs: Tensor, state: State, mask: Tensor) -> tuple[CellWeights, Tensor]:
    """The cell with its mean state over the steps that ``mask (N, T)`` counts in `held`; and ``hidden (T, N, H)``."""
    own, hidden = own_parts(weights), []
    sums = [torch.zeros_like(part[0]) for part in weights.start]
    with random_states():
        for (now, after), counted in zip(_walk(weights, inputs, state), mask.T, strict=True):
            hidden.append(now)
            for k in range(len(sums)):
                if own[k]:
                    sums[k] += after[k][counted].sum(0)
    held = [
        (total / mask.sum())[None] if mine else part for total, mine, part in zip(sums, own, weights.start, strict=True)
    ]
    return replace(weights, held=tuple(held)), torch.stack(hidden)


def _walk(weights: CellWeights, inputs: Tensor, state: State) -> Iterator[tuple[Tensor, State]]:
    for x in inputs:
        hidden, state = one_step(weights, _read(weights, x), state)
        yield hidden, state


def _read(weights: CellWeights, x: Tensor) -> Tensor:
    return weights.offset + (x if weights.basis is None else x @ weights.basis.T)


def _run_alone(weights: CellWeights, inputs: Tensor, state: State) -> tuple[Tensor, State]:
    """In groups of cells, so that all their states fit into memory."""
    at_once = max(1, MOST_VALUES // (inputs.shape[1] * weights.hidden_size))
    groups = torch.arange(weights.hidden_size, device=inputs.device).split(at_once)
    parts = [_run_group(weights, inputs, tuple(part[:, group] for part in state), group) for group in groups]
    final = zip(*(after for _, after in parts), strict=True)
    return torch.cat([hidden for hidden, _ in parts], dim=-1), tuple(torch.cat(pieces, dim=1) for pieces in final)


def _run_group(weights: CellWeights, inputs: Tensor, state: State, cells: Tensor) -> tuple[Tensor, State]:
    """Each of C cells alone: of its own parts only its column moves, ``(N, C, ...)``."""
    count, size = inputs.shape[1], len(cells)
    own, place, hidden = own_parts(weights), torch.arange(size, device=cells.device), []
    for x in inputs:
        full = [_among_others(weights, k, part, cells) if own[k] else part for k, part in enumerate(state)]
        rows = _read(weights, x).repeat_interleave(size, dim=0)
        now, after = one_step(weights, rows, tuple(part.flatten(0, 1) for part in full))
        hidden.append(now.unflatten(0, (count, size))[:, place, cells])
        split = [part.unflatten(0, (count, size)) for part in after]
        state = tuple(part[:, place, cells] if own[k] else part for k, part in enumerate(split))
    return torch.stack(hidden), state


def _among_others(weights: CellWeights, k: int, part: Tensor, cells: Tensor) -> Tensor:
    """``(N, C, H, ...)``: the C cells' own columns ``(N, C, ...)``, each among all others as they are held."""
    count, size = part.shape[:2]
    full = weights.held[k][:, None].expand(count, size, *weights.held[k].shape[1:]).clone()
    full[:, torch.arange(size, device=cells.device), cells] = part
    return full


def one_step(weights: CellWeights, x: Tensor, state: State) -> tuple[Tensor, State]:
    """``hidden (N, H)`` and the new state.

    Raises:
        ValueError: `step` failed, or returned something else.
    """
    who = f"step= registered for {type(weights.cell).__name__}"
    try:
        hidden, new = weights.step(weights.cell, x, state[0] if weights.bare else state)
    except Exception as error:
        shapes = ", ".join(str(tuple(part.shape)) for part in state)
        raise ValueError(
            f"{who} failed on inputs {tuple(x.shape)} and state {shapes}: {type(error).__name__}: {error}; it must "
            "return (hidden, new_state). Where the cell takes another first state, such as a tuple (h, c), register it "
            "with state=lambda cell, n: ..."
        ) from error
    parts = tuple(new) if isinstance(new, tuple | list) else (new,)
    if not isinstance(hidden, Tensor) or hidden.dim() != 2 or len(hidden) != len(x):
        what = f"{tuple(hidden.shape)}" if isinstance(hidden, Tensor) else type(hidden).__name__
        raise ValueError(f"{who} returned hidden {what}; it must return a tensor (N, H), here N={len(x)}")
    if [getattr(part, "shape", None) for part in parts] != [part.shape for part in state]:
        given, returned = (", ".join(str(tuple(getattr(p, "shape", ()))) for p in those) for those in (state, parts))
        raise ValueError(f"{who} was given the state {given} and returned {returned}; its shapes must stay")
    return hidden, parts
