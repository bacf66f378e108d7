"""The cells of a metric counted into bins, for every logger that shows histograms."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lstm_monitor.distributions import Values


def counted(values: Values, bins: int) -> tuple[NDArray[np.int64], Values]:
    """How many of finite, ascending ``values (N,)``, N > 0, lie in each of equal bins: counts ``(bins,)``, edges."""
    low, high = float(values[0]), float(values[-1])
    margin = 1e-9 + 1e-6 * max(abs(low), abs(high))
    counts, edges = np.histogram(values, bins=bins, range=(low - margin, high + margin))
    return counts, edges
