"""Metrics of held-out activity ``y (N, H, T)`` with ``mask (N, T)``: what a cell does on real sequences."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lstm_monitor.core.definitions import Reason, Thresholds
from lstm_monitor.engines.choice import loops_for
from lstm_monitor.metrics.step import undefined

DEFAULT = Thresholds()


def mean(y: Tensor, mask: Tensor) -> Tensor:
    """Mean ``(H,)`` over the steps that count."""
    return _only(y, mask).sum((0, 2)) / mask.sum()


def std(y: Tensor, mask: Tensor) -> Tensor:
    """Standard deviation ``(H,)`` over the steps that count, centred before it is squared."""
    return rms(y - mean(y, mask)[:, None], mask)


def rms(y: Tensor, mask: Tensor) -> Tensor:
    """Root mean square ``(H,)`` over the steps that count."""
    return (_only(y, mask).square().sum((0, 2)) / mask.sum()).sqrt()


def _only(y: Tensor, mask: Tensor) -> Tensor:
    """``y`` with 0 at the steps that do not count."""
    return y if bool(mask.all()) else y * mask[:, None]


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
    centred = _only(y - mean(y, mask)[:, None], mask)
    pairs = _pairs(mask).to(y)
    find = _first_under if loops_for(centred) is None else _first_under_compiled
    time, variance = find(centred, pairs, thresholds.dead)
    reason = (time < 0).to(torch.uint8) * int(Reason.NEVER)
    reason[variance.sqrt() < thresholds.dead] = Reason.SILENT
    reason[~torch.isfinite(variance)] = Reason.NONFINITE
    return time.clamp(min=0), reason


def _first_under(centred: Tensor, pairs: Tensor, _: float) -> tuple[Tensor, Tensor]:
    """The first lag ``(H,)`` whose mean product is under 1/e of that at lag 0, -1 if none is; and that at lag 0."""
    products = _lagged(centred) / pairs.clamp(min=1)
    under = (products < products[:, :1] / math.e) & (pairs >= 1)
    first = under.to(torch.uint8).argmax(-1)
    return torch.where(under.any(-1), first, -1).to(centred), products[:, 0].clamp(min=0)


def _first_under_compiled(centred: Tensor, pairs: Tensor, dead: float) -> tuple[Tensor, Tensor]:
    """The same, lag by lag until every cell that is not dead is under."""
    time, variance = centred.new_full(centred.shape[1:2], -1), centred.new_full(centred.shape[1:2], math.nan)
    rows = centred.permute(2, 0, 1).contiguous().numpy()
    loops_for(centred).first_under(rows, pairs.numpy(), 1 / math.e, dead**2, time.numpy(), variance.numpy())
    return time, variance


def _pairs(mask: Tensor) -> Tensor:
    """How many steps ``(T,)`` that count are each lag apart."""
    if bool(mask.all()):
        return len(mask) * torch.arange(mask.shape[1], 0, -1, device=mask.device)
    return _lagged(mask[:, None].float()).round()[0]


def _lagged(values: Tensor) -> Tensor:
    """Sums ``(H, T)`` over n and t of ``values[n, h, t] * values[n, h, t + lag]``."""
    steps = values.shape[-1]
    spectrum = torch.fft.rfft(values, n=2 * steps)
    power = (spectrum.real.square() + spectrum.imag.square()).sum(0)
    return torch.fft.irfft(power, n=2 * steps)[:, :steps]
