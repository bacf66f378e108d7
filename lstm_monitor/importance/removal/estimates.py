"""Means, errors and correlations of measured effects, and the variance that a cheap score takes out of them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

if TYPE_CHECKING:
    from numpy.typing import NDArray

FEWEST = 16
"""Sequences below which no cheap score is used: its slope would be noise."""
SIGNIFICANCE = 0.01
"""A cheap score is used where it would go along with the effects as well by chance in fewer than so many cases."""
SHUFFLES = 499
SPLITS = 8
"""Random halves over which their agreement is averaged."""


class Rho(NamedTuple):
    """Spearman's correlation with its 95% interval; NaN where it is not defined."""

    rho: float
    low: float
    high: float


@dataclass(frozen=True, eq=False)
class Estimate:
    """Mean effects ``values (C,)`` with their standard ``errors (C,)``; whether a cheap score was ``used``.

    ``rho``: how the cheap score goes along with the effect over the sequences (Pearson's correlation within a cell, the
    mean over cells); NaN where too little is known.
    """

    values: Tensor
    errors: Tensor
    used: bool
    rho: float


def standard_error(per_sequence: Tensor) -> Tensor:
    """Standard error ``(C,)`` of the means of ``(C, N)``; NaN where there are fewer than two sequences."""
    count = per_sequence.shape[1]
    if count < 2:
        return torch.full_like(per_sequence.sum(1), math.nan)
    return per_sequence.std(1) / math.sqrt(count)


def spearman(a: Tensor, b: Tensor, resamples: int = 1000, seed: int = 0) -> Rho:
    """Spearman's rho of two scores of the same cells ``(C,)``, with its 95% bootstrap interval over cells.

    Ties get their mean rank. Only cells defined in both count; NaN with fewer than 3 of them, or if all are equal.
    """
    x, y = (_host(value) for value in (a, b))
    both = ~(np.isnan(x) | np.isnan(y))
    x, y = x[both], y[both]
    if len(x) < 3:
        return Rho(math.nan, math.nan, math.nan)
    rows = np.random.default_rng(seed).integers(0, len(x), (resamples, len(x)))
    drawn = _rank_correlation(x[rows], y[rows])
    drawn = drawn[~np.isnan(drawn)]
    rho = float(_rank_correlation(x[None], y[None])[0])
    if len(drawn) == 0 or math.isnan(rho):
        return Rho(rho, math.nan, math.nan)
    low, high = np.quantile(drawn, (0.025, 0.975))
    return Rho(rho, float(low), float(high))


def _host(values: Tensor) -> NDArray[np.float64]:
    return values.detach().cpu().double().numpy()


def _rank_correlation(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """Spearman's rho ``(R,)`` of the rows of two ``(R, C)``; NaN where all values of a row are equal."""
    from scipy.stats import rankdata

    a, b = (rankdata(values, axis=1) - (values.shape[1] + 1) / 2 for values in (x, y))
    scale = np.sqrt((a * a).sum(1) * (b * b).sum(1))
    return np.divide((a * b).sum(1), scale, out=np.full(len(a), np.nan), where=scale > 0)


def half_correlation(per_sequence: Tensor, seed: int = 0) -> float:
    """Spearman's rho of the mean effects ``(C, N)`` on one random half of the sequences with those on the other.

    The mean over 8 ways to halve them. NaN with fewer than two sequences, or fewer than 3 cells that are defined.
    """
    count, generator = per_sequence.shape[1], torch.Generator().manual_seed(seed)
    if count < 2:
        return math.nan
    found = []
    for _ in range(SPLITS):
        order = torch.randperm(count, generator=generator).to(per_sequence.device)
        first, second = (per_sequence[:, part].mean(1) for part in (order[: count // 2], order[count // 2 :]))
        found.append(spearman(first, second, resamples=0).rho)
    return sum(found) / SPLITS


# A cheap score as a control variate


def estimate(pilot: Tensor, cheap_pilot: Tensor, cheap_mean: Tensor, seed: int = 0) -> Estimate:
    """Mean effects over all sequences from a few, corrected by a cheap score that is known for all of them.

    The correction is ``slope * (cheap_mean - mean of cheap_pilot)`` for each cell. The slope is the cell's own, drawn
    towards that of all cells together by how uncertain it is. The score is used only if it goes along with the effects
    significantly (a permutation test over the sequences, p < 0.01) and there are at least 16 sequences; and then for
    the cells whose error gets smaller. Else the values are the plain means of the pilot.

    Args:
        pilot: exact effects ``(C, n)`` of each cell on each sequence of the pilot.
        cheap_pilot: the cheap score ``(C, n)`` of the same.
        cheap_mean: its mean ``(C,)`` over all sequences.
        seed: of the generator that shuffles.

    Returns:
        The estimate; its errors are those of the mean over all sequences. A cell with NaN is NaN.

    Raises:
        ValueError: shapes that do not fit.

    Source: control variates, S. Asmussen and P. Glynn, Stochastic Simulation (2007), section V.2; the slopes are this
    project's definition.
    """
    _check(pilot, cheap_pilot, cheap_mean)
    plain = Estimate(pilot.mean(1), standard_error(pilot), used=False, rho=math.nan)
    good = pilot.isfinite().all(1) & cheap_pilot.isfinite().all(1) & cheap_mean.isfinite()
    if pilot.shape[1] < FEWEST or not bool(good.any()):
        return plain
    exact, cheap = (_centred(values[good].double()) for values in (pilot, cheap_pilot))
    rho = _correlation(exact, cheap)
    if not _significant(exact, cheap, seed):
        return replace(plain, rho=rho)
    slope = slopes(exact, cheap)
    missing = cheap_mean[good].double() - cheap_pilot[good].double().mean(1)
    values, errors = plain.values.double(), plain.errors.double()
    corrected = standard_error(exact - slope[:, None] * cheap)
    better = corrected < errors[good]
    values[good] += torch.where(better, slope * missing, 0.0)
    errors[good] = torch.where(better, corrected, errors[good])
    return Estimate(values, errors, used=True, rho=rho)


def slopes(exact: Tensor, cheap: Tensor) -> Tensor:
    """What an effect changes with a cheap score, for each cell ``(C,)``, from centred ``(C, n)`` of both.

    A cell's own slope of least squares, drawn towards the slope of all cells (each in units of its own spread) by the
    share that its error has in the spread of slopes. 0 where the cheap score does not move.

    Source: random effects by the method of moments, R. DerSimonian and N. Laird, Meta-analysis in clinical trials,
    Controlled Clinical Trials 1986; errors that allow for unequal spread, H. White, Econometrica 1980.
    """
    moving = cheap.square().sum(1)
    own = _ratio((exact * cheap).sum(1), moving)
    residual = exact - own[:, None] * cheap
    error = _ratio((cheap * residual).square().sum(1), moving.square())
    weights = _ratio(torch.ones_like(moving), exact.square().sum(1))
    shared = _ratio((weights * own * moving).sum(), (weights * moving).sum())
    spread = ((own - shared).square() - error)[moving > 0].clamp(max=1).mean().clamp(min=0).nan_to_num()
    return torch.where(moving > 0, shared + (own - shared) * _ratio(spread, spread + error), 0.0)


def _significant(exact: Tensor, cheap: Tensor, seed: int) -> bool:
    """Whether centred ``(C, n)`` go together more than when the sequences of one are shuffled, all cells alike.

    A permutation test of the sum of the cells' correlations: nothing is assumed of how they are distributed, nor of how
    cells go together.
    """
    products = (normalize(exact, dim=1).T @ normalize(cheap, dim=1)).cpu()
    generator, places = torch.Generator().manual_seed(seed), torch.arange(len(products))
    shuffled = torch.rand(SHUFFLES, len(products), generator=generator).argsort(1)
    chance = products[places, shuffled].sum(1).abs() >= products.trace().abs()
    return float(1 + chance.sum()) / (1 + SHUFFLES) < SIGNIFICANCE


def _correlation(a: Tensor, b: Tensor) -> float:
    """Pearson's correlation within cells: the mean over cells that move in both; NaN without any."""
    scale = (a.square().sum(1) * b.square().sum(1)).sqrt()
    found = ((a * b).sum(1) / scale)[scale > 0]
    return float(found.mean())


def _centred(values: Tensor) -> Tensor:
    return values - values.mean(1, keepdim=True)


def _ratio(top: Tensor, bottom: Tensor) -> Tensor:
    """0 where there is nothing to divide by."""
    return torch.where(bottom > 0, top / torch.where(bottom > 0, bottom, 1.0), 0.0)


def _check(pilot: Tensor, cheap_pilot: Tensor, cheap_mean: Tensor) -> None:
    if pilot.dim() != 2 or pilot.shape != cheap_pilot.shape or cheap_mean.shape != pilot.shape[:1]:
        shapes = ", ".join(str(tuple(value.shape)) for value in (pilot, cheap_pilot, cheap_mean))
        raise ValueError(f"pilot, cheap_pilot and cheap_mean have shapes {shapes}; give (C, n), (C, n) and (C,)")
