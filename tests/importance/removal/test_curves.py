"""Curves of cumulative ablation, against a loop over plain copies."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lstm_monitor.core.terms import LayerKey
from lstm_monitor.core.undisturbed import undisturbed
from lstm_monitor.importance.removal.curves import (
    Scale,
    area,
    counts_to_try,
    curve,
    order_gap,
    random_orders,
    scale_of,
    value_of,
)
from lstm_monitor.importance.removal.network import Network
from lstm_monitor.layers.finding import find_layers
from lstm_monitor.snapshots.runs import Run
from tests.helpers.masked import rewritten

KEY, H = LayerKey("rnn", 0), 24


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.LSTM(2, H, batch_first=True), nn.Linear(H, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0][:, -1])


def batches() -> list[Tensor]:
    return [torch.randn(count, 5, 2).double() for count in (6, 2, 4)]


def network_of(model: nn.Module, data: list[Tensor], weights: list[float] | None = None) -> Network:
    def score(out: Tensor) -> Tensor:
        each = out.square().mean(1)
        return each if weights is None else each.mean()

    given = weights or [1.0] * len(data)
    runs = [Run(lambda x=x: model(x), score=score, weight=w) for x, w in zip(data, given, strict=True)]  # type: ignore[misc]
    return Network(model, find_layers(model), runs)


def naive(model: nn.Module, data: list[Tensor], gone: list[int], of_score: bool) -> float:
    """Mean score over all sequences, or mean squared change of the output."""
    other = rewritten(model, {"rnn.l0": gone})
    with torch.no_grad():
        now, then = (torch.cat([net(x) for x in data]) for net in (other, model))
    return float(now.square().mean()) if of_score else float((now - then).square().mean())


@pytest.mark.parametrize("of_score", [True, False])
@pytest.mark.parametrize("used", [(0, 1, 2), (1, 2), (0,)])
def test_a_curve_equals_the_naive_one(of_score: bool, used: tuple[int, ...]) -> None:
    model, data = Net().double(), batches()
    removal, counts = torch.randperm(H), counts_to_try(H, 8)
    ticks: list[int] = []
    with undisturbed(model):
        network = network_of(model, data)
        scale = scale_of(network, KEY, of_score=of_score, runs=used)
        found = curve(network, scale, removal, counts, lambda: ticks.append(1))
    mine = [data[index] for index in used]
    values = [naive(model, mine, removal[:count].tolist(), of_score) for count in counts.tolist()]
    expected = [1 - (value - values[0]) / (values[-1] - values[0]) for value in values]
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-10)
    assert (scale.intact, scale.emptied) == (pytest.approx(values[0], abs=1e-12), pytest.approx(values[-1]))
    assert found[[0, -1]].tolist() == [1.0, 0.0]
    assert len(ticks) == len(counts) - 2


def test_a_mean_for_each_batch_counts_by_its_weight() -> None:
    model, data = Net().double(), batches()
    with undisturbed(model):
        network = network_of(model, data, [6.0, 2.0, 4.0])
        found = value_of(network, {KEY: torch.tensor([3, 4])}, of_score=True, runs=(0, 1, 2))
    assert found == pytest.approx(naive(model, data, [3, 4], of_score=True), rel=1e-10)


def test_where_nothing_changes_a_curve_is_undefined() -> None:
    assert math.isnan(Scale(KEY, 2.0, 2.0, True, (0,)).kept(2.0))
    assert Scale(KEY, 1.0, 3.0, True, (0,)).kept(1.5) == 0.75
    assert Scale(KEY, 0.9, 0.1, True, (0,)).kept(0.5) == pytest.approx(0.5)
    assert Scale(KEY, 1.0, 3.0, True, (0,)).kept(0.0) == 1.5  # better than intact


@pytest.mark.parametrize(
    ("size", "points"), [(1, 16), (2, 16), (5, 16), (16, 16), (48, 16), (100, 3), (7, 2), (200, 199)]
)
def test_counts_go_from_none_to_all(size: int, points: int) -> None:
    counts = counts_to_try(size, points)
    assert counts[0] == 0
    assert counts[-1] == size
    assert len(counts) == min(size, points) + 1
    assert bool((counts.diff() > 0).all())
    assert int(counts.diff().max() - counts.diff().min()) <= 1


def test_the_area_is_that_under_the_curve() -> None:
    counts = torch.tensor([0, 1, 3, 4])
    kept = torch.tensor([1.0, 0.5, 0.25, 0.0], dtype=torch.float64)
    assert area(kept, counts) == pytest.approx(0.75 / 4 + 0.75 / 4 + 0.125 / 4)
    assert area(kept, counts) == pytest.approx(float(np.trapezoid(kept.numpy(), counts.numpy() / 4)))
    assert area(torch.linspace(1, 0, 9).double(), torch.arange(9)) == pytest.approx(0.5)
    assert math.isnan(area(kept * math.nan, counts))


def test_random_orders_are_their_own() -> None:
    before = torch.get_rng_state()
    orders = list(random_orders(30, 5, seed=3))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(sorted(order.tolist()) == list(range(30)) for order in orders)
    assert len({tuple(order.tolist()) for order in orders}) == 5
    assert all(torch.equal(a, b) for a, b in zip(orders, random_orders(30, 5, seed=3), strict=True))
    assert not torch.equal(orders[0], next(iter(random_orders(30, 1, seed=4))))
    assert list(random_orders(30, 0, seed=0)) == []


def test_how_far_random_orders_lie_apart() -> None:
    values = [0.1, 0.4, 0.45, 0.5, 0.9]
    gaps = [abs(a - b) for i, a in enumerate(values) for b in values[:i]]
    assert order_gap(values) == pytest.approx(np.quantile(gaps, 0.95))
    assert order_gap([0.3, 0.5]) == pytest.approx(0.2)
    assert math.isnan(order_gap([0.3]))
    assert math.isnan(order_gap([]))
