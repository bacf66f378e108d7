"""Remove each cell by itself, run after run."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from lstm_monitor.core.distributed import processes, shared
from lstm_monitor.core.terms import LayerKey
from lstm_monitor.importance.removal.network import Network
from lstm_monitor.importance.removal.outcomes import score_weights, weighted_mean

Rows = dict[int, tuple[Tensor, Tensor]]
"""By cell: the change of the output ``(N,)`` and of the score, ``(N,)`` or (1,)."""


@dataclass(frozen=True, eq=False)
class Singles:
    """What removing each cell by itself changes: the output ``(H, N)`` and the score ``(H, M)``, a column a sequence.

    ``weights (M,)``: how much each column of the score counts. NaN in cells that were not reached in time; ``runs``:
    how many of the network's runs were made for all cells.
    """

    output: Tensor
    score: Tensor
    weights: Tensor
    runs: int

    def output_effects(self) -> Tensor:
        """Mean squared change of the output ``(H,)``; NaN where none is known."""
        return self.output.mean(1) if self.output.shape[1] else torch.full_like(self.output.sum(1), torch.nan)

    def score_changes(self) -> Tensor:
        """Change of the score ``(H,)``; NaN where none is known."""
        return weighted_mean(self.score, self.weights)


def singles(
    network: Network,
    key: LayerKey,
    deadline: float = float("inf"),
    tick: Callable[[], None] = lambda: None,
) -> Singles:
    """Remove each cell by itself, run after run, until the time is over; at least on the first run, as far as it goes.

    All cells see the same sequences, so that their effects can be compared. A run that is not watched comes last and
    only gives the score: half of the time is left for it. Processes that share (`together`) take some cells each.
    """
    size = network.parts[key].weights.hidden_size
    parts = min(processes(), size)
    jobs = [partial(_measured, network, key, range(part, size, parts), deadline, tick) for part in range(parts)]
    by_run = [_joined(rows) for rows in zip(*shared(jobs), strict=True)]
    outputs, scores, weights = [], [], []
    for run, rows in zip(network.runs, by_run, strict=True):
        if rows is not None:
            output, score = _filled(rows, size)
            outputs.append(output)
            scores.append(score)
            weights.append(score_weights(run, score[0]))
    return Singles(torch.cat(outputs, 1), torch.cat(scores, 1), torch.cat(weights), len(outputs))


def _measured(
    network: Network, key: LayerKey, cells: Sequence[int], deadline: float, tick: Callable[[], None]
) -> list[Rows | None]:
    """The changes by cell of each run; None of one that was not made."""
    until = _watched_until(network, deadline)
    found: list[Rows | None] = []
    for index, run in enumerate(network.runs):
        if run.watched and None in found:
            found.append(None)  # no time for another
            continue
        whole, end = index > 0 and run.watched, until if run.watched else deadline
        found.append(_in_time(network, key, index, cells, end, whole=whole, tick=tick))
    return found


def _joined(parts: Sequence[Rows | None]) -> Rows | None:
    """What several processes found in one run; None unless all of them made it."""
    joined: Rows = {}
    for rows in parts:
        if rows is None:
            return None
        joined |= rows
    return joined


def _watched_until(network: Network, deadline: float) -> float:
    """When the watched runs have to be done."""
    now = time.perf_counter()
    return deadline if all(run.watched for run in network.runs) else now + (deadline - now) / 2


def _in_time(
    network: Network,
    key: LayerKey,
    index: int,
    cells: Sequence[int],
    deadline: float,
    *,
    whole: bool,
    tick: Callable[[], None],
) -> Rows | None:
    """The changes by cell; None if a run that has to be made whole cannot be."""
    rows: Rows = {}
    for cell in cells:
        if rows and time.perf_counter() > deadline:
            return None if whole else rows
        rows[cell] = network.changes(index, {key: torch.tensor([cell])})
        tick()
    return rows


def _filled(rows: Rows, size: int) -> tuple[Tensor, Tensor]:
    output, score = next(iter(rows.values()))
    blank = torch.full_like(output.double(), torch.nan), torch.full_like(score.double(), torch.nan)
    found = [rows.get(cell, blank) for cell in range(size)]
    return torch.stack([pair[0].double() for pair in found]), torch.stack([pair[1].double() for pair in found])
