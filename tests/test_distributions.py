"""Finite values, their quantiles and their distance."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import wasserstein_distance

from lstm_monitor.distributions import finite, quantiles, wasserstein
from tests import oracles


def test_finite_values_ascend_in_float64() -> None:
    values = finite(torch.tensor([3.0, math.nan, -math.inf, 1.0, math.inf]).requires_grad_())
    assert values.dtype == np.float64
    assert values.tolist() == [1, 3]


@pytest.mark.parametrize("seed", range(20))
def test_wasserstein_equals_scipy_and_the_naive_one(seed: int) -> None:
    random = np.random.default_rng(seed)
    one, other = (
        np.sort(random.normal(size=random.integers(1, 40))),
        np.sort(random.normal(1, 2, random.integers(1, 40))),
    )
    assert wasserstein(one, other) == pytest.approx(wasserstein_distance(one, other))
    assert wasserstein(one, other) == pytest.approx(oracles.wasserstein(one, other))


@pytest.mark.parametrize("size", [1, 2, 3, 10, 97])
def test_quantiles_equal_numpys(size: int) -> None:
    values = np.sort(np.random.default_rng(size).normal(size=size))
    np.testing.assert_allclose(quantiles(values), np.quantile(values, [0.1, 0.5, 0.9]))


def test_no_values_have_no_quantiles() -> None:
    assert all(map(math.isnan, quantiles(np.array([]))))
