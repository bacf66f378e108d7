"""Order cells by a score, and say how two orders agree."""

from __future__ import annotations

import torch
from torch import Tensor

from lstm_monitor.errors import unknown
from lstm_monitor.metrics import activity
from lstm_monitor.metrics.catalog import CATALOG
from lstm_monitor.records import Agreement, Metrics, Ranking, Snapshot
from lstm_monitor.responses import respond
from lstm_monitor.stimuli import random_bank

STD_OUTGOING = "std_x_outgoing"
RANDOM_STD_OUTGOING = "random_std_x_outgoing"


def ranking_names() -> tuple[str, ...]:
    """Everything that `rank_by` may be."""
    bare = {spec.name: None for spec in CATALOG.values()}
    return ("auto", STD_OUTGOING, *bare, *CATALOG)


def check_ranking_name(by: str) -> str:
    """`by` itself if it is a known ranking; ValueError with the nearest match otherwise."""
    if by not in ranking_names():
        raise unknown("rank_by", by, ranking_names())
    return by


def rank(snapshot: Snapshot, metrics: Metrics, by: str = "auto") -> Ranking:
    """Order a layer's cells, descending, by a metric or by how much they move and are read.

    Step and sine metrics describe dynamics; by themselves they are weak evidence of importance.

    Args:
        snapshot: the layer.
        metrics: its metrics.
        by: "auto" and "std_x_outgoing" are held-out std x outgoing weights, where the outgoing weights of a cell are
            the norms of its columns in the module that reads the layer and in its own recurrence, each over their
            mean; without held-out data the std is that on a random bank (then it is named
            "random_std_x_outgoing"). Or any metric, such as "settling_time" or
            "step_alone/settling_time": the cell's value.

    Returns:
        The ranking; cells whose score is NaN come last, in their own order.

    Raises:
        ValueError: a name that is not known, or a metric that was not measured for this layer.
    """
    check_ranking_name(by)
    if by in ("auto", STD_OUTGOING):
        return _std_outgoing(snapshot, metrics)
    path = by if by in CATALOG else next(path for path, spec in CATALOG.items() if spec.name == by)
    if path not in metrics:
        raise ValueError(f"rank_by={by!r} was not measured for {snapshot.key}, a {snapshot.kind} layer")
    return ranked(snapshot, path, f"{CATALOG[path].words} ({path})", metrics[path].cells)


def ranked(snapshot: Snapshot, name: str, words: str, scores: Tensor) -> Ranking:
    """The ranking by these scores ``(H,)``."""
    return Ranking(snapshot.key, name, words, scores, (-scores).argsort(stable=True))  # ascending puts NaN last


def _std_outgoing(snapshot: Snapshot, metrics: Metrics) -> Ranking:
    if snapshot.held_out is not None and "activity/std" in metrics:
        name, source, std = STD_OUTGOING, "held-out std", metrics["activity/std"].cells
    else:
        response = respond(snapshot, random_bank(snapshot.point))
        assert response.mask is not None
        std = activity.std(response.hidden, response.mask)
        name, source = RANDOM_STD_OUTGOING, "std on random sequences"
    readers = "its own recurrence" if snapshot.reader is None else f"{snapshot.reader} and its own recurrence"
    words = f"{source} x outgoing weights (into {readers})"
    return ranked(snapshot, name, words, std * outgoing_weights(snapshot))


def outgoing_weights(snapshot: Snapshot) -> Tensor:
    """``out / mean(out) + rec / mean(rec)`` ``(H,)``: norms of outgoing columns in the reader and in ``W_hh``."""
    parts = [snapshot.weights.weight_hh.norm(dim=0)]
    if snapshot.outgoing is not None:
        parts.append(snapshot.outgoing)
    total = torch.zeros_like(parts[0])
    for part in parts:
        total = total + part / part.mean().clamp(min=torch.finfo(part.dtype).tiny)
    return total


def agreement(now: Ranking, earlier: Ranking) -> Agreement:
    """Kendall's tau-b of the scores of the cells defined in both, and the shared part of the top tenths.

    Both are NaN for rankings by different scores. tau is NaN if fewer than two cells are defined in both, or if all
    scores of one ranking are equal.
    """
    from scipy.stats import kendalltau

    if now.name != earlier.name:
        return Agreement(float("nan"), float("nan"))
    a, b = now.scores.cpu().double().numpy(), earlier.scores.cpu().double().numpy()
    both = ~((a != a) | (b != b))
    tau = float(kendalltau(a[both], b[both]).statistic) if both.sum() > 1 else float("nan")
    top = max(1, round(len(a) / 10))
    shared = set(now.order[:top].tolist()) & set(earlier.order[:top].tolist())
    return Agreement(tau, len(shared) / top)
