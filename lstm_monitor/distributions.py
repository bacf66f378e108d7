"""The distribution of a metric over a layer's cells: its finite values, their quantiles, and a distance between two."""

from __future__ import annotations

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


def wasserstein(one: Values, other: Values) -> float:
    """The Wasserstein-1 distance of two ascending samples: the area between their distribution functions."""
    if len(one) == len(other):
        return float(np.abs(one - other).mean())
    both = np.sort(np.concatenate([one, other]))
    below_one = np.searchsorted(one, both[:-1], side="right") / len(one)
    below_other = np.searchsorted(other, both[:-1], side="right") / len(other)
    return float((np.abs(below_one - below_other) * np.diff(both)).sum())
