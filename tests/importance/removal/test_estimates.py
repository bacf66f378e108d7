"""Errors and correlations against numpy and scipy, and estimates against a truth that is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from lstm_monitor.importance.removal.estimates import (
    FEWEST,
    estimate,
    half_correlation,
    slopes,
    spearman,
    standard_error,
)

NAN = float("nan")


def planted(count: int, seed: int, noise: float, slope: Tensor | float = 1.0, cells: int = 40) -> tuple[Tensor, Tensor]:
    """Effects ``(C, count)`` and a cheap score of them that has another mean; of widely different cells."""
    generator = torch.Generator().manual_seed(seed)
    scale = torch.linspace(-2, 1, cells, dtype=torch.float64).exp()[:, None]
    cheap = torch.randn(cells, count, generator=generator, dtype=torch.float64) * scale
    rest = torch.randn(cells, count, generator=generator, dtype=torch.float64) * scale
    return torch.as_tensor(slope) * cheap + noise * rest + torch.arange(cells)[:, None] / 20, cheap - 3


def test_standard_errors_are_those_of_means() -> None:
    values = torch.randn(4, 9).double()
    expected = stats.sem(values.numpy(), axis=1)
    np.testing.assert_allclose(standard_error(values).numpy(), expected, rtol=1e-12)


def test_standard_errors_of_one_or_no_sequence_are_nan() -> None:
    assert standard_error(torch.ones(3, 1)).isnan().tolist() == [True] * 3
    assert standard_error(torch.ones(3, 0)).isnan().tolist() == [True] * 3


# Spearman's rho


def test_rho_equals_scipy_with_ties() -> None:
    a, b = torch.tensor([1.0, 2, 2, 3, 5, 5, 5, 8]), torch.tensor([2.0, 1, 4, 4, 4, 9, 7, 8])
    assert spearman(a, b).rho == pytest.approx(float(stats.spearmanr(a, b).statistic), abs=1e-12)


def test_the_interval_is_that_of_plain_resampling() -> None:
    a = torch.arange(40).double()
    b = a + 15 * torch.randn(40).double()
    found, generator = spearman(a, b, resamples=4000), np.random.default_rng(1)
    drawn = []
    for _ in range(2000):
        rows = generator.integers(0, 40, 40)
        drawn.append(stats.spearmanr(a.numpy()[rows], b.numpy()[rows]).statistic)
    low, high = np.quantile(drawn, (0.025, 0.975))
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.03)
    assert found.low < found.rho < found.high


def test_cells_that_are_not_defined_in_both_are_left_out() -> None:
    a, b = torch.tensor([1.0, NAN, 2, 3, 4]), torch.tensor([2.0, 5, 1, NAN, 3])
    rho, low, high = spearman(a, b)
    assert rho == pytest.approx(0.5)
    assert -1 <= low <= high <= 1


@pytest.mark.parametrize("a", [[1.0, 2.0, NAN], [5.0, 5.0, 5.0], []])
def test_rho_is_nan_for_too_few_cells_or_equal_scores(a: list[float]) -> None:
    assert all(math.isnan(value) for value in spearman(torch.tensor(a), torch.arange(len(a)).double()))


def test_without_resamples_there_is_no_interval() -> None:
    rho, low, high = spearman(torch.arange(5), torch.arange(5), resamples=0)
    assert rho == pytest.approx(1)
    assert math.isnan(low)
    assert math.isnan(high)


def test_the_same_seed_gives_the_same_interval_and_leaves_the_random_states() -> None:
    a, b = torch.randn(20), torch.randn(20)
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    assert spearman(a, b, seed=3) == spearman(a, b, seed=3)
    assert half_correlation(torch.stack([a, b])) != half_correlation(torch.stack([a, b]))  # NaN: two cells
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert (np.random.get_state()[1] == numpy_state).all()


# Halves


def test_halves_agree_where_effects_differ_more_than_their_noise() -> None:
    effects = torch.arange(30)[:, None] + torch.randn(30, 200)
    assert half_correlation(effects) > 0.99
    assert abs(half_correlation(torch.randn(30, 200))) < 0.5


def test_halves_leave_out_cells_that_were_not_measured() -> None:
    effects = torch.arange(30)[:, None] + torch.randn(30, 50)
    effects[3] = NAN
    assert half_correlation(effects) > 0.97


@pytest.mark.parametrize("shape", [(30, 1), (30, 0), (2, 50)])
def test_too_little_for_halves_is_nan(shape: tuple[int, int]) -> None:
    assert math.isnan(half_correlation(torch.randn(shape)))


# Estimates


def test_a_cheap_score_that_goes_along_makes_the_errors_smaller() -> None:
    effects, cheap = planted(2000, 0, noise=0.2)
    found = estimate(effects[:, :100], cheap[:, :100], cheap.mean(1))
    assert found.used
    assert found.rho > 0.9
    truth, plain = effects.mean(1), effects[:, :100].mean(1)
    assert (found.values - truth).square().mean() < 0.1 * (plain - truth).square().mean()
    assert (found.errors < 0.3 * standard_error(effects[:, :100])).all()


def test_the_errors_hold_what_they_say() -> None:
    inside = []
    for seed in range(60):
        effects, cheap = planted(4000, seed, noise=0.4)
        found = estimate(effects[:, :64], cheap[:, :64], cheap.mean(1))
        assert found.used
        inside.append(((found.values - effects.mean(1)).abs() < 1.96 * found.errors).double().mean())
    assert 0.92 < float(torch.stack(inside).mean()) < 0.97


def test_a_score_that_does_not_go_along_is_not_used() -> None:
    used = 0
    for seed in range(200):
        effects, _ = planted(40, seed, noise=0.3)
        _, other = planted(40, 1000 + seed, noise=0.3)
        found = estimate(effects, other, other.mean(1) + 100)
        used += found.used
        if not found.used:
            assert torch.equal(found.values, effects.mean(1))
            assert torch.equal(found.errors, standard_error(effects))
    assert used <= 8  # 1% of 200, and what chance adds to that


def test_few_sequences_are_not_corrected() -> None:
    effects, cheap = planted(FEWEST - 1, 0, noise=0.0)
    found = estimate(effects, cheap, cheap.mean(1) + 1)
    assert not found.used
    assert math.isnan(found.rho)
    assert torch.equal(found.values, effects.mean(1))


def test_cells_with_nan_stay_nan_and_others_are_corrected() -> None:
    effects, cheap = planted(100, 0, noise=0.1)
    effects[3, 5], cheap[4, 6] = NAN, NAN
    found = estimate(effects, cheap, cheap.nanmean(1) + 1)
    assert found.used
    assert found.values.isnan().nonzero()[:, 0].tolist() == [3]
    assert float(found.values[4]) == pytest.approx(float(effects[4].mean()))
    others = [cell for cell in range(40) if cell not in (3, 4)]
    torch.testing.assert_close(found.values[others], effects.mean(1)[others] + 1, rtol=0, atol=0.1)


def test_where_nothing_moves_nothing_is_corrected() -> None:
    found = estimate(torch.ones(5, 50), torch.randn(5, 50), torch.zeros(5))
    assert not found.used
    assert found.values.tolist() == [1.0] * 5
    still = planted(50, 0, noise=0.1)[0]
    assert not estimate(still, torch.ones_like(still), torch.ones(40).double() * 9).used


def test_shapes_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match=r"shapes \(3, 5\), \(3, 4\), \(3,\); give \(C, n\), \(C, n\) and \(C,\)"):
        estimate(torch.ones(3, 5), torch.ones(3, 4), torch.ones(3))


def centred(values: Tensor) -> Tensor:
    return values - values.mean(1, keepdim=True)


def test_slopes_that_differ_are_the_cells_own() -> None:
    true = torch.linspace(-1, 1, 40, dtype=torch.float64)
    effects, cheap = map(centred, planted(400, 0, noise=0.1, slope=true[:, None]))
    own = (effects * cheap).sum(1) / cheap.square().sum(1)
    torch.testing.assert_close(slopes(effects, cheap), own, rtol=0, atol=2e-3)


def test_slopes_that_only_seem_to_differ_are_drawn_together() -> None:
    effects, cheap = map(centred, planted(20, 0, noise=1.0))
    own = (effects * cheap).sum(1) / cheap.square().sum(1)
    assert (slopes(effects, cheap) - 1).square().mean() < 0.5 * (own - 1).square().mean()
