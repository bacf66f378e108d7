"""Drift of a metric's distribution between two checks."""

import math

import pytest
import torch
from torch import nn

import lstm_monitor as lm
from lstm_monitor.metrics.distributions import finite


def metrics(cells: torch.Tensor, layer: str = "rnn") -> lm.Metrics:
    item = lm.Metric("activity", "std", cells[None], torch.zeros(1, len(cells), dtype=torch.uint8), ("",), cells)
    return lm.Metrics(lm.LayerKey(layer), (item,))


def drift(now: torch.Tensor, earlier: torch.Tensor) -> lm.Drift:
    (found,) = lm.compare(metrics(now), metrics(earlier))
    return found


def test_a_shift_by_the_spread_is_one() -> None:
    cells = torch.linspace(0, 1, 101, dtype=torch.float64)
    pooled = torch.cat([cells, cells + 0.5]).quantile(0.9) - torch.cat([cells, cells + 0.5]).quantile(0.1)
    found = drift(cells + 0.5, cells)
    assert found.distance == pytest.approx(0.5 / float(pooled))
    assert found.quantiles == pytest.approx((0.6, 1.0, 1.4))
    assert found.earlier == pytest.approx((0.1, 0.5, 0.9))


def test_scale_does_not_matter_and_nothing_moved_is_zero() -> None:
    one, other = torch.randn(40).double(), torch.randn(40).double() + 1
    assert drift(one * 100, other * 100).distance == pytest.approx(drift(one, other).distance)
    assert drift(one, one).distance == 0


def test_undefined_cells_are_left_out_and_too_few_are_nan() -> None:
    nan = float("nan")
    one = torch.tensor([1.0, nan, 2.0, 3.0])
    assert drift(one, torch.tensor([2.0, 3.0, 1.0, nan])).distance == 0
    assert math.isnan(drift(one, torch.tensor([nan, nan, 1.0, nan])).distance)
    assert drift(torch.ones(4), torch.zeros(4)).distance == 1
    assert math.isnan(drift(torch.ones(40), torch.cat([torch.ones(39), torch.zeros(1)])).distance)
    assert len(finite(one)) == 3


def test_only_metrics_that_both_have_and_only_one_layer() -> None:
    with pytest.raises(ValueError, match="earlier=other.l0 is another layer"):
        lm.compare(metrics(torch.ones(3)), metrics(torch.ones(3), "other"))


def test_reports_are_compared_layer_by_layer() -> None:
    both = lm.characterize(nn.GRU(2, 4, num_layers=2), horizon=16)
    one = lm.characterize(nn.GRU(2, 4), horizon=16)
    found = lm.compare(both, one)
    assert repr(found) == repr(both.drift_from(one))  # NaN is not itself
    assert set(found) == {"l0"}
    assert {d.metric for d in found["l0"]} == set(one["l0"].metrics.paths())


@pytest.mark.parametrize("wrong", ["report", None, lm.LSTMMonitor(), nn.LSTM(2, 3)])
def test_nothing_else_is_compared(wrong: object) -> None:
    report = lm.Report(())
    with pytest.raises(TypeError, match="cannot be compared; give two reports, or the metrics of one layer"):
        lm.compare(report, wrong)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match=f"now={type(wrong).__name__} and earlier=Report"):
        lm.compare(wrong, report)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="now=Metrics and earlier=Report"):
        lm.compare(metrics(torch.ones(3)), report)  # type: ignore[call-overload]
