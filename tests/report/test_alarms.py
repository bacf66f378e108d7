"""Alarms: each is raised by a training with the fault planted, and by none without."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import lstm_monitor as lm
from lstm_monitor.report.alarms import alarms, seen

STEPS = 40


class Net(nn.Module):
    def __init__(self, kind: type[nn.RNNBase] = nn.LSTM, cells: int = 12) -> None:
        super().__init__()
        self.rnn = kind(2, cells, batch_first=True)
        self.head = nn.Linear(cells, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0])[..., 0]


def sequences(scale: float = 1.0) -> Tensor:
    return scale * torch.randn(16, 24, 2, generator=torch.Generator().manual_seed(1))


def train(
    net: nn.Module, *, rate: float = 1e-2, learns: Callable[[nn.Module], nn.Module] = lambda net: net, checks: int = 3
) -> list[lm.Report]:
    """Sum two features over time; the reports of the first check and of some during the training."""
    sink = lm.MemorySink()
    monitor = lm.LSTMMonitor(
        net, sequences(), sinks=[sink], horizon=32, budget=None, on_error="raise", every_n_steps=STEPS
    )
    optimizer = torch.optim.SGD(learns(net).parameters(), lr=rate)
    x = sequences()
    monitor.on_train_begin()
    for batch in range((checks - 1) * STEPS):
        optimizer.zero_grad()
        (net(x) - x.sum(-1).cumsum(1) / 5).square().mean().backward()
        optimizer.step()
        monitor.on_train_batch_end(batch)
    monitor.on_train_end()
    return sink.reports


def net(kind: type[nn.RNNBase] = nn.LSTM) -> Net:
    torch.manual_seed(0)
    return Net(kind)


def names(report: lm.Report) -> list[str]:
    return [alarm.name for alarm in report.alarms]


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_a_healthy_training_raises_none(kind: type[nn.RNNBase]) -> None:
    assert [names(report) for report in train(net(kind))] == [[], [], []]


def test_a_layer_that_no_optimizer_has_is_told_at_the_second_check(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "lstm_monitor"):
        reports = train(net(), learns=lambda net: net.get_submodule("head"))
    assert [names(report) for report in reports] == [[], ["unchanged"], ["unchanged"]]
    told = [record.getMessage() for record in caplog.records if "optimizer" in record.getMessage()]
    assert told == [f"lstm_monitor at step {STEPS}: {reports[1].alarms[0]}"], "once, when it is new"
    assert "give its parameters to the optimizer" in repr(reports[1])
    assert reports[1].scalars()["lstm_monitor/_run/alarms"] == 1


def test_a_layer_that_is_frozen_on_purpose_is_none() -> None:
    module = net()
    module.rnn.requires_grad_(False)
    assert [names(report) for report in train(module, learns=lambda net: net.get_submodule("head"))] == [[], [], []]


def test_a_check_without_a_step_between_is_none() -> None:
    monitor = lm.LSTMMonitor(net(), sequences(), horizon=32, on_error="raise")
    monitor.check()
    assert monitor.check() is not None
    assert monitor.report is not None
    assert monitor.report.alarms == ()


def test_a_learning_rate_that_saturates_the_gates() -> None:
    module = net()
    with torch.no_grad():
        module.rnn.weight_ih_l0.mul_(60)
    report = lm.LSTMMonitor(module, sequences(), horizon=32, on_error="raise").check()
    assert report is not None
    assert "saturated" in names(report)
    assert "% of its gate activations are saturated" in report.alarms[0].words


def forget_bias(value: float) -> lm.LayerReport:
    module = net()
    with torch.no_grad():
        module.rnn.bias_ih_l0[12:24] = value
    return lm.characterize(module, sequences(), horizon=32)["rnn.l0"]


def test_time_scales_that_collapse_or_run_away() -> None:
    assert "collapsed" in seen(forget_bias(-6.0))
    away = forget_bias(6.0)
    assert [alarm.name for alarm in alarms(away)] == ["runaway"]
    assert alarms(away, at_first=["runaway"]) == (), "an initialization that is meant so"


def test_half_of_the_cells_dead() -> None:
    module = net()
    with torch.no_grad():
        for name in ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"):
            getattr(module.rnn, name).view(4, 12, -1)[2, :6] = 0
    layer = lm.characterize(module, sequences(), horizon=32)["rnn.l0"]
    assert [alarm.name for alarm in alarms(layer)] == ["dead"]
    assert alarms(layer)[0].words == "6 of its 12 cells hardly move on held-out data"
    assert alarms(layer, at_first=["dead"]) == (), "learning wakes cells"


def test_without_data_nothing_can_be_seen() -> None:
    layer = lm.characterize(net(), horizon=32)["rnn.l0"]
    assert seen(layer) == {}
    assert [alarm.name for alarm in alarms(layer, earlier=layer.metrics)] == ["unchanged"]
    assert alarms(replace(layer, frozen=True), earlier=layer.metrics) == ()


def test_a_resumed_run_knows_what_held_at_its_first_check() -> None:
    module = net()
    with torch.no_grad():
        module.rnn.bias_ih_l0[12:24] = 6.0
    monitor = lm.LSTMMonitor(module, sequences(), horizon=32, on_error="raise")
    monitor.check()
    going_on = lm.LSTMMonitor(module, sequences(), horizon=32, on_error="raise")
    going_on.load_state_dict(monitor.state_dict())
    report = going_on.check(step=1)
    assert report is not None
    assert report.alarms == ()
