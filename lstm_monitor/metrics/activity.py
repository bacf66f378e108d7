"""Metrics of held-out activity ``y (N, H, T)`` with ``mask (N, T)``: what a cell does on real sequences."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lstm_monitor.metrics.step import undefined
from lstm_monitor.reasons import Reason, Thresholds

DEFAULT = Thresholds()


def mean(y: Tensor, mask: Tensor) -> Tensor:
    """Mean ``(H,)`` over the steps that count."""
    weights = mask[:, None].to(y)
    return (y * weights).sum((0, 2)) / weights.sum()


def std(y: Tensor, mask: Tensor) -> Tensor:
    """Standard deviation ``(H,)`` over the steps that count, centred before it is squared."""
    return rms(y - mean(y, mask)[:, None], mask)


def rms(y: Tensor, mask: Tensor) -> Tensor:
    """Root mean square ``(H,)`` over the steps that count."""
    weights = mask[:, None].to(y)
    return ((y * weights).square().sum((0, 2)) / weights.sum()).sqrt()


def dead(y: Tensor, mask: Tensor, thresholds: Thresholds = DEFAULT) -> Tensor:
    """Whether each cell ``(H,)`` is dead: std under 1e-3 on held-out data."""
    return std(y, mask) < thresholds.dead


def autocorrelation_time(y: Tensor, mask: Tensor, thresholds: Thresholds = DEFAULT) -> Tensor:
    """First lag in steps at which the pooled autocorrelation is under 1/e, shape ``(H,)``.

    Each lag's mean product runs over all pairs of steps that count, centred by the pooled mean, over the pooled
    variance. NaN if no lag is, or if the cell is dead.
    """
    return undefined(*autocorrelation_time_with_reason(y, mask, thresholds))


def autocorrelation_time_with_reason(
    y: Tensor, mask: Tensor, thresholds: Thresholds = DEFAULT
) -> tuple[Tensor, Tensor]:
    """`autocorrelation_time` before it is made NaN, with its reasons."""
    weights = mask[:, None].to(y)
    centred = (y - mean(y, mask)[:, None]) * weights
    pairs = _lagged(weights).round()
    products = _lagged(centred) / pairs.clamp(min=1)
    under = (products < products[:, :1] / math.e) & (pairs >= 1)
    time = under.to(torch.uint8).argmax(-1).to(y)
    reason = (~under.any(-1)).to(torch.uint8) * int(Reason.NEVER)
    reason[products[:, 0].clamp(min=0).sqrt() < thresholds.dead] = Reason.SILENT
    reason[~torch.isfinite(products[:, 0])] = Reason.NONFINITE
    return time, reason


def _lagged(values: Tensor) -> Tensor:
    """Sums ``(H, T)`` over n and t of ``values[n, h, t] * values[n, h, t + lag]``."""
    steps = values.shape[-1]
    spectrum = torch.fft.rfft(values, n=2 * steps)
    power = (spectrum.real.square() + spectrum.imag.square()).sum(0)
    return torch.fft.irfft(power, n=2 * steps)[:, :steps]
