"""Finite values, their quantiles and their distance."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import wasserstein_distance

from lstm_monitor.metrics.distributions import (
    ascending_rows,
    finite,
    quantile_rows,
    quantiles,
    relative_distance,
    relative_distances,
)
from tests.helpers import oracles


def test_finite_values_ascend_in_float64() -> None:
    values = finite(torch.tensor([3.0, math.nan, -math.inf, 1.0, math.inf]).requires_grad_())
    assert values.dtype == np.float64
    assert values.tolist() == [1, 3]


@pytest.mark.parametrize("seed", range(20))
def test_the_distance_is_scipys_and_the_naive_ones_over_the_spread(seed: int) -> None:
    random = np.random.default_rng(seed)
    one, other = random.normal(size=random.integers(2, 40)), random.normal(1, 2, random.integers(2, 40))
    low, high = np.quantile(np.concatenate([one, other]), [0.1, 0.9])
    found = relative_distance(np.sort(one), np.sort(other))
    assert found == pytest.approx(wasserstein_distance(one, other) / (high - low))
    assert found == pytest.approx(oracles.wasserstein(np.sort(one), np.sort(other)) / (high - low))


def test_rows_of_many_metrics_are_as_each_alone() -> None:
    random = np.random.default_rng(0)
    metrics = [torch.from_numpy(random.normal(size=12)) for _ in range(6)]
    later = [values * 2 + 1 for values in metrics]
    for number in range(6):
        metrics[number][random.permutation(12)[: 2 * number + 1]] = math.nan  # of the last one value is left
    rows, others = ascending_rows(metrics), ascending_rows(later)
    alone = [relative_distance(finite(a), finite(b)) for a, b in zip(metrics, later, strict=True)]
    np.testing.assert_allclose(relative_distances(rows, others), alone)
    np.testing.assert_allclose(quantile_rows(rows), [quantiles(finite(values)) for values in metrics])
    assert math.isnan(alone[-1])
    assert relative_distance(finite(metrics[0]), finite(metrics[0])) == 0


@pytest.mark.parametrize("size", [1, 2, 3, 10, 97])
def test_quantiles_equal_numpys(size: int) -> None:
    values = np.sort(np.random.default_rng(size).normal(size=size))
    np.testing.assert_allclose(quantiles(values), np.quantile(values, [0.1, 0.5, 0.9]))


def test_no_values_have_no_quantiles() -> None:
    assert all(map(math.isnan, quantiles(np.array([]))))
