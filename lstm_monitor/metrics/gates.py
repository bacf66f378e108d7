"""Metrics of gates on held-out data, ``gate (N, H, T)`` with ``mask (N, T)``."""

from __future__ import annotations

import torch
from torch import Tensor

from lstm_monitor.core.definitions import Thresholds
from lstm_monitor.core.float64 import doubled
from lstm_monitor.metrics.activity import mean

DEFAULT = Thresholds()


def saturation(gate: Tensor, mask: Tensor, *, candidate: bool = False, thresholds: Thresholds = DEFAULT) -> Tensor:
    """Share of the steps ``(H,)`` at which a gate is saturated: a sigmoid outside 0.05..0.95, abs(candidate) > 0.95."""
    size = gate.abs() if candidate else (gate - 0.5).abs_()
    limit = thresholds.candidate_saturated if candidate else 0.5 - thresholds.saturated
    return mean(size.gt_(limit), mask)


def tau_f(forget: Tensor, mask: Tensor) -> Tensor:
    """The time constant ``(H,)`` in steps of the mean forget gate (for a GRU the update gate): -1 / ln(mean).

    NaN where the gate is 1 to the last digit at every step: the cell never forgets.
    """
    exact = doubled(forget)  # in float32 a mean near 1 would be lost in rounding
    closing = mean(1 - exact, mask.to(exact.device))
    return torch.where(closing > 0, -1 / torch.log1p(-closing), torch.nan).to(forget)
