"""Drift: how far each metric's distribution over the cells moved between two checks."""

from __future__ import annotations

import numpy as np

from lstm_monitor.distributions import Values, finite, quantiles, wasserstein
from lstm_monitor.records import Drift, Metrics


def compare(now: Metrics, earlier: Metrics) -> tuple[Drift, ...]:
    """The drift of every metric that both checks of a layer have.

    The distance is Wasserstein's over the cells, divided by their pooled p90 - p10: 1 means that the distribution
    moved by its own spread (this project's definition). NaN if fewer than two cells are defined in either check, or
    if the pooled spread is 0 and the distributions differ; 0 if they are equal.

    Raises:
        ValueError: the two are of different layers.
    """
    if now.key != earlier.key:
        raise ValueError(f"earlier={earlier.key} is another layer than now={now.key}; compare checks of one layer")
    shared = [item for item in now.items if item.path in earlier]
    return tuple(_drift(item.path, finite(item.cells), finite(earlier[item.path].cells)) for item in shared)


def _drift(metric: str, now: Values, earlier: Values) -> Drift:
    return Drift(metric, _relative_distance(now, earlier), quantiles(now), quantiles(earlier))


def _relative_distance(now: Values, earlier: Values) -> float:
    if min(len(now), len(earlier)) < 2:
        return float("nan")
    distance = wasserstein(now, earlier)
    if distance == 0:
        return 0.0
    low, _, high = quantiles(np.sort(np.concatenate([now, earlier])))
    return distance / (high - low) if high > low else float("nan")
