"""What a run of a network gives, its outputs and its score, and how two of them differ."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lstm_monitor.core.float64 import doubled
from lstm_monitor.snapshots.outputs import by_sequence
from lstm_monitor.snapshots.runs import Run


@dataclass(frozen=True, eq=False)
class Outcome:
    """What one run gave: the network's outputs, a row a sequence ``(N, D)`` for each time it was called, and the score.

    ``score`` is ``(N,)`` or ``(1,)``, empty where nothing was scored; ``outputs`` is empty where none was caught.
    """

    outputs: tuple[Tensor, ...]
    score: Tensor


def output_change(now: Outcome, then: Outcome) -> Tensor:
    """Mean squared change per element of each sequence's output, ``(N,)``."""
    pairs = zip(now.outputs, then.outputs, strict=True)
    changes = [(doubled(a) - doubled(b)).square().mean(1) for a, b in pairs]
    return torch.cat(changes).cpu() if changes else torch.empty(0, device="cpu")


def check_alike(now: Outcome, then: Outcome) -> None:
    """Refuse outputs and scores that cannot be held against the intact network's."""
    if [rows.shape for rows in now.outputs] != [rows.shape for rows in then.outputs]:
        raise ValueError(
            "without some cells the network's output has another shape, or comes another number of times, so its "
            "change is not defined; give held_out= for the output's change, or output=lambda result: ... that selects "
            "a tensor whose shape stays"
        )
    if now.score.shape != then.score.shape:
        raise ValueError(
            f"evaluate returned {len(now.score)} values without some cells, {len(then.score)} for the whole network; "
            "it must return one number, or one for each of the same sequences"
        )


def output_variance(outcomes: Sequence[Outcome]) -> float:
    """The mean over the output's elements of their variance over the sequences, in its own unit squared.

    With one sequence, the variance over the elements. NaN without outputs, or if nothing varies.
    """
    rows = [doubled(rows) for outcome in outcomes for rows in outcome.outputs]
    if not rows:
        return math.nan
    spread = [part.var(0, correction=0) if len(part) > 1 else part.var(correction=0).expand(1) for part in rows]
    weights = torch.cat([torch.full_like(part, len(whole)) for part, whole in zip(spread, rows, strict=True)])
    variance = float((torch.cat(spread) * weights).sum() / weights.sum())
    return variance if variance > 0 else math.nan


def score_weights(run: Run, score: Tensor) -> Tensor:
    """How much each value of a run's score counts ``(M,)``: the run's weight where it is one number for all of it."""
    return torch.full_like(score, run.weight if len(score) == 1 else 1.0)


def weighted_mean(values: Tensor, weights: Tensor) -> Tensor:
    """Mean of ``(..., M)`` over columns that count ``(M,)``; NaN without columns."""
    return (values * weights).sum(-1) / weights.sum()


def rows_of(tensor: Tensor, counts: Sequence[int], mask: Tensor | None) -> Tensor:
    """A row a sequence: by the number of sequences that is the length of the output's first axis, or of another."""
    tensor = tensor.detach().float() if tensor.dtype != torch.float64 else tensor.detach()
    first = next((count for count in counts if tensor.dim() > 0 and tensor.shape[0] == count), None)
    count = next((count for count in counts if count in tensor.shape), 0) if first is None else first
    return by_sequence(tensor, count, mask).clone()


def as_score(value: Any) -> Tensor:
    """A score ``(N,)`` or ``(1,)`` as float64 on the host; TypeError if it is no number."""
    try:
        given = value if isinstance(value, Tensor) else torch.as_tensor(value, dtype=torch.float64)
        return given.detach().reshape(-1).cpu().double()
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"evaluate (or loss) returned {type(value).__name__}; it must return one number, or a tensor (N,) with one "
            "for each sequence"
        ) from error
