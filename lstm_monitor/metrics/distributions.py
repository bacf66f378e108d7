"""The distribution of a metric over a layer's cells: its finite values, their quantiles, and a distance between two."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Values = NDArray[np.float64]


def finite(cells: Tensor) -> Values:
    """The finite values of ``cells (H,)`` on the host, ascending, float64."""
    values = cells.detach().cpu().double().numpy()
    return np.sort(values[np.isfinite(values)])


def quantiles(ascending: Values) -> tuple[float, float, float]:
    """p10, p50 and p90 by linear interpolation of ascending values; three NaN if there are none."""
    if len(ascending) == 0:
        return (float("nan"),) * 3
    return _quantile(ascending, 0.1), _quantile(ascending, 0.5), _quantile(ascending, 0.9)


def _quantile(ascending: Values, share: float) -> float:
    place = share * (len(ascending) - 1)
    low = int(place)
    high = min(low + 1, len(ascending) - 1)
    return float(ascending[low] + (place - low) * (ascending[high] - ascending[low]))


# Of many distributions at once


def ascending_rows(metrics: Sequence[Tensor]) -> Values:
    """``(M, H)``: the finite values of M metrics ``(H,)`` on the host, ascending, float64; NaN last for the others."""
    rows = np.stack([cells.detach().cpu().numpy() for cells in metrics]).astype(np.float64)
    rows = np.where(np.isfinite(rows), rows, np.nan)
    rows.sort(axis=1)
    return rows


def quantile_rows(ascending: Values) -> Values:
    """``(M, 3)``: what `quantiles` gives for each of the rows that `ascending_rows` returned."""
    place = np.array([0.1, 0.5, 0.9]) * (_counts(ascending) - 1).clip(0)
    low = place.astype(np.intp)
    below, above = (np.take_along_axis(ascending, at, axis=1) for at in (low, np.ceil(place).astype(np.intp)))
    return below + (place - low) * (above - below)


def relative_distances(ones: Values, others: Values) -> Values:
    """``(M,)``: Wasserstein's distance of each two rows, over the p90 - p10 of both together.

    The distance is the area between the two distribution functions, which are counted in whole cells. NaN for fewer
    than two values in either, and where the spread is 0 and the distance is not.
    """
    count, other = _counts(ones), _counts(others)
    both = np.concatenate([ones, others], axis=1)
    order = both.argsort(axis=1, kind="stable")
    both = np.take_along_axis(both, order, axis=1)
    between = np.where(order < ones.shape[1], other, -count).cumsum(axis=1)[:, :-1]  # times count * other
    with np.errstate(invalid="ignore", divide="ignore"):
        distance = np.nansum(np.abs(between) * np.diff(both), axis=1) / (count * other)[:, 0]
        low, _, high = quantile_rows(both).T
        relative = np.where(high > low, distance / (high - low), np.nan)
    enough = np.minimum(count, other)[:, 0] >= 2
    return np.where(enough, np.where(distance == 0, 0.0, relative), np.nan)


def relative_distance(one: Values, other: Values) -> float:
    """The same for two ascending samples without NaN, of which either may be empty."""
    return float(relative_distances(one[None], other[None])[0]) if min(len(one), len(other)) > 1 else float("nan")


def _counts(ascending: Values) -> NDArray[np.int64]:
    """``(M, 1)``: how many values of each row are not NaN."""
    return np.isfinite(ascending).sum(axis=1, keepdims=True)
