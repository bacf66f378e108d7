"""Order cells by a score, and say how two orders agree."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from lstm_monitor.core.errors import unknown
from lstm_monitor.core.records import Agreement, Metrics, Ranking, Snapshot
from lstm_monitor.core.terms import LayerKey
from lstm_monitor.core.weights import CellWeights
from lstm_monitor.metrics import activity
from lstm_monitor.metrics.catalog import CATALOG
from lstm_monitor.metrics.distributions import Values
from lstm_monitor.snapshots.operating_point import random_bank
from lstm_monitor.snapshots.taking import run_sequences

STD_OUTGOING = "std_x_outgoing"
RANDOM_STD_OUTGOING = "random_std_x_outgoing"
SENSITIVITY, UNCENTRED = "output_sensitivity", "uncentred_sensitivity"
RANDOM_SENSITIVITY = "random_output_sensitivity"
MEASURED, GREEDY = "measured", "greedy"
OF_THE_NETWORK = ("auto", SENSITIVITY, UNCENTRED, MEASURED, GREEDY)
"""Rankings for which the whole network is run."""
PAIRED = 512
"""Up to so many cells all pairs are compared at once."""


def ranking_names() -> tuple[str, ...]:
    """Everything that `rank_by` may be."""
    bare = {spec.name: None for spec in CATALOG.values()}
    return (*OF_THE_NETWORK, STD_OUTGOING, *bare, *CATALOG)


def check_ranking_name(by: str) -> str:
    """`by` itself if it is a known ranking; ValueError with the nearest match otherwise."""
    if by not in ranking_names():
        raise unknown("rank_by", by, ranking_names())
    return by


def rank(snapshot: Snapshot, metrics: Metrics, by: str = "auto") -> Ranking:
    """Order a layer's cells, descending, by how much the output needs them, or by a metric.

    Step and sine metrics describe dynamics; by themselves they are weak evidence of importance.

    Args:
        snapshot: the layer.
        metrics: its metrics.
        by: "auto" is what the whole network said of the cells where it was asked (`snapshot.importance`, filled by
            `characterize` and by the monitor: centred output sensitivity), else "std_x_outgoing": held-out std x
            outgoing weights, where the outgoing weights of a cell are the norms of its columns in the module that reads
            the layer and in its own recurrence, each over their mean; without held-out data the std is that on a
            random bank (then it is named "random_std_x_outgoing"). "output_sensitivity",
            "uncentred_sensitivity", "measured" and "greedy" are such importances too. Or any metric, such as
            "settling_time" or "step_alone/settling_time": the cell's value.

    Returns:
        The ranking; cells whose score is NaN come last, in their own order.

    Raises:
        ValueError: a name that is not known, or a metric that was not measured for this layer.
    """
    check_ranking_name(by)
    if by in OF_THE_NETWORK:
        return _of_the_network(snapshot, metrics)
    if by == STD_OUTGOING:
        return _std_outgoing(snapshot, metrics)
    path = by if by in CATALOG else next(path for path, spec in CATALOG.items() if spec.name == by)
    if path not in metrics:
        raise ValueError(f"rank_by={by!r} was not measured for {snapshot.key}, a {snapshot.kind} layer")
    return ranked(snapshot.key, path, f"{CATALOG[path].words} ({path})", metrics[path].cells)


def ranked(key: LayerKey, name: str, words: str, scores: Tensor) -> Ranking:
    """The ranking by these scores ``(H,)``."""
    return Ranking(key, name, words, scores, (-scores).argsort(stable=True))  # ascending puts NaN last


def _of_the_network(snapshot: Snapshot, metrics: Metrics) -> Ranking:
    """By what the network said of the cells; by std x outgoing weights, and why, where it could not be asked."""
    found = snapshot.importance
    if found is not None and found.scores is not None:
        return ranked(snapshot.key, found.name, found.words, found.scores)
    instead = _std_outgoing(snapshot, metrics)
    return instead if found is None else replace(instead, words=f"{instead.words}, since {found.words}")


def _std_outgoing(snapshot: Snapshot, metrics: Metrics) -> Ranking:
    if snapshot.held_out is not None and "activity/std" in metrics:
        name, source, std = STD_OUTGOING, "held-out std", metrics["activity/std"].cells
    else:
        bank = random_bank(snapshot.point)
        with torch.no_grad():
            hidden = run_sequences(snapshot.weights, bank)
        std = activity.std(hidden.permute(1, 2, 0), bank.mask)
        name, source = RANDOM_STD_OUTGOING, "std on random sequences"
    readers = "its own recurrence" if snapshot.reader is None else f"{snapshot.reader} and its own recurrence"
    if isinstance(snapshot.weights, CellWeights):
        if snapshot.outgoing is None:
            return ranked(snapshot.key, "activity/std", f"{source} (no module was found that reads it)", std)
        readers = str(snapshot.reader)
    words = f"{source} x outgoing weights (into {readers})"
    return ranked(snapshot.key, name, words, std * outgoing_weights(snapshot))


def outgoing_weights(snapshot: Snapshot) -> Tensor:
    """``out / mean(out) + rec / mean(rec)`` ``(H,)``: norms of outgoing columns in the reader and in ``W_hh``.

    The first alone for a registered cell, of which no ``W_hh`` is known.
    """
    weights = snapshot.weights
    parts = [] if isinstance(weights, CellWeights) else [weights.weight_hh.norm(dim=0)]
    if snapshot.outgoing is not None:
        parts.append(snapshot.outgoing)
    total = torch.zeros_like(snapshot.hidden_mean)
    for part in parts:
        total = total + part / part.mean().clamp(min=torch.finfo(part.dtype).tiny)
    return total


def agreement(now: Ranking, earlier: Ranking) -> Agreement:
    """Kendall's tau-b of the scores of the cells defined in both, and the shared part of the top tenths.

    Both are NaN for rankings by different scores. tau is NaN if fewer than two cells are defined in both, or if all
    scores of one ranking are equal.
    """
    if now.name != earlier.name:
        return Agreement(float("nan"), float("nan"))
    a, b = now.scores.cpu().double().numpy(), earlier.scores.cpu().double().numpy()
    both = ~((a != a) | (b != b))
    tau = _tau(a[both], b[both]) if both.sum() > 1 else float("nan")
    top = max(1, round(len(a) / 10))
    shared = set(now.order[:top].tolist()) & set(earlier.order[:top].tolist())
    return Agreement(tau, len(shared) / top)


def _tau(a: Values, b: Values) -> float:
    """Kendall's tau-b: of few cells from all pairs, which takes a tenth of the time of scipy's way for many."""
    if len(a) > PAIRED:
        from scipy.stats import kendalltau

        return float(kendalltau(a, b).statistic)
    ours, theirs = (np.subtract(x[:, None] > x, x[:, None] < x, dtype=np.int8) for x in (a, b))
    untied = math.sqrt(np.count_nonzero(ours) * np.count_nonzero(theirs))
    return int((ours * theirs).sum()) / untied if untied > 0 else math.nan


def ranks_of(order: Tensor) -> Tensor:
    """The place ``(H,)`` of each cell in an order, 0 the first, as int16."""
    ranks = torch.empty_like(order, dtype=torch.int16)
    ranks[order] = torch.arange(len(order), dtype=torch.int16, device=order.device)
    return ranks
