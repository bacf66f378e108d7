"""The budget: what there is room for, on a time of its own, and in trainings by the clock's own numbers."""

from __future__ import annotations

import logging
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import lstm_monitor as lm
from lstm_monitor.monitor import budget as module
from lstm_monitor.monitor.budget import MARGIN, Clock, Governor
from lstm_monitor.report.report import Report
from tests.helpers import trainings


class Time:
    now = 100.0

    def perf_counter(self) -> float:
        return self.now


class Training:
    """A made-up training: seconds pass, and checks that are due are made where there is room."""

    def __init__(self, time: Time, budget: float | None) -> None:
        self.time, self.clock, self.governor = time, Clock(), Governor(budget)
        self.clock.start()
        self.checks: list[int] = []
        self.drawn: list[int] = []

    def check(self, at: int, takes: float, *, once: float = 0.0, pictures: float = 0.0) -> None:
        draws = not self.checks or self.governor.allows_pictures(self.clock)
        drawing = 0.0
        with self.clock.check(periodic=bool(self.checks)):
            with self.clock.once():
                self.time.now += once
            self.time.now += takes
            before = self.time.now
            with self.clock.writing(lambda: drawing + self.time.now - before):
                self.time.now += pictures if draws else 0.0
        self.checks.append(at)
        self.drawn += [at] if draws and pictures else []
        self.governor.checked(self.clock, steps=0, epochs=at)

    def run(self, epochs: int, *, epoch: float, takes: float, every: int = 1, pictures: float = 0.0) -> None:
        first = self.checks[-1] + 1
        for count in range(first, first + epochs):
            self.time.now += epoch
            if count % every == 0 and self.governor.allows(self.clock, "epochs", count):
                self.check(count, takes, pictures=pictures)
                budget = self.governor.budget
                assert budget is None or self.clock.periodic <= budget * self.clock.elapsed() * (1 + 1e-9)


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> Time:
    time = Time()
    monkeypatch.setattr(module, "time", time)
    return time


def between(counts: list[int]) -> set[int]:
    return {later - earlier for earlier, later in pairwise(counts)}


@pytest.mark.parametrize(("takes", "every"), [(0.004, 1), (0.05, 5), (0.2, 20), (3.0, 300)])
def test_the_interval_is_what_the_budget_pays_for(time: Time, takes: float, every: int) -> None:
    training = Training(time, budget=0.01)
    training.check(0, takes)
    training.run(3000, epoch=1.0, takes=takes)
    assert between(training.checks[1:]) <= {every - 1, every, every + 1}
    assert len(training.checks) == pytest.approx(3000 / every, rel=0.1)
    assert training.checks[1] <= max(1, MARGIN * every + 1), "one waits for the margin, not for good"


def test_it_is_never_shorter_than_asked_for(time: Time) -> None:
    training = Training(time, budget=0.01)
    training.check(0, 0.001)
    training.run(100, epoch=1.0, takes=0.001, every=10)
    assert training.checks == [*range(0, 101, 10)]


def test_it_becomes_shorter_again_when_there_is_room(time: Time) -> None:
    training = Training(time, budget=0.01)
    training.check(0, 0.2)
    training.run(100, epoch=1.0, takes=0.2)
    before = len(training.checks)
    training.run(300, epoch=1.0, takes=0.002)
    assert between(training.checks[before + 2 :]) == {1}


def test_what_compiling_took_keeps_no_check_waiting(time: Time) -> None:
    training = Training(time, budget=0.01)
    training.check(0, 0.05, once=30.0)
    training.run(20, epoch=1.0, takes=0.05)
    assert training.checks[1] == 8


def test_an_outlier_is_paid_back_and_forgotten(time: Time) -> None:
    training = Training(time, budget=0.01)
    training.check(0, 0.01)
    training.run(50, epoch=1.0, takes=0.01)
    with training.clock.check(periodic=True):
        time.now += 1.0
    assert training.clock.expected() == pytest.approx(1.0)
    training.checks.append(51)
    training.run(300, epoch=1.0, takes=0.01)
    assert training.clock.expected() == pytest.approx(0.01)
    assert training.clock.periodic <= 0.01 * training.clock.elapsed()


def test_pictures_are_left_out_before_checks_are(time: Time) -> None:
    training = Training(time, budget=0.01)
    training.check(0, 0.005, pictures=0.5)
    training.run(1000, epoch=1.0, takes=0.005, pictures=0.5)
    assert between(training.checks[1:]) == {1}, "none waits"
    assert training.drawn[0] == 0
    assert 5 <= len(training.drawn) <= 10, "the other half of 10 s pays for 10 at most"


def test_checks_that_need_all_of_the_budget_leave_no_room_for_pictures(time: Time) -> None:
    training = Training(time, budget=0.01)
    training.check(0, 0.1, pictures=0.1)
    training.run(1000, epoch=1.0, takes=0.1, pictures=0.1)
    assert training.drawn == [0]
    assert between(training.checks[1:]) <= {9, 10, 11}


def test_without_a_budget_everything_asked_for_is_made(time: Time) -> None:
    training = Training(time, budget=None)
    training.check(0, 5.0, pictures=5.0)
    training.run(20, epoch=1.0, takes=5.0, pictures=5.0)
    assert training.checks == training.drawn == [*range(21)]


def test_it_is_said_once_and_again_when_much_has_changed(time: Time, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    training = Training(time, budget=0.01)
    training.check(0, 0.05)
    training.run(100, epoch=1.0, takes=0.05)
    assert [record.message for record in caplog.records] == [
        "lstm_monitor: a check takes 0.05 s, 5% of the training since the last one; to stay within budget=0.01 it "
        "checks about every 5 epochs from now on; budget=None checks at every interval asked for"
    ]
    training.run(1000, epoch=1.0, takes=0.06)
    assert len(caplog.records) == 1
    training.run(5000, epoch=0.01, takes=0.06)
    training.run(500, epoch=1.0, takes=0.005)
    assert ["every 600 epochs" in caplog.messages[1], "every epoch" in caplog.messages[-1]] == [True, True]
    assert len(caplog.records) <= 4


def test_nothing_is_said_where_every_check_is_made_or_only_one_waits(
    time: Time, caplog: pytest.LogCaptureFixture
) -> None:
    training = Training(time, budget=0.01)
    training.check(0, 0.009)
    training.run(100, epoch=1.0, takes=0.009)
    assert training.checks[1] == 2, "the margin"
    assert caplog.messages == []


def test_a_training_shorter_than_a_check_is_told_so(time: Time, caplog: pytest.LogCaptureFixture) -> None:
    training = Training(time, budget=0.01)
    training.check(0, 0.05)
    training.run(3, epoch=0.01, takes=0.05)
    [line] = caplog.messages
    assert "takes 0.05 s, more than the training since the last one" in line
    assert "about every 500 epochs" in line


def test_a_resumed_run_goes_on_within_the_budget(time: Time) -> None:
    training = Training(time, budget=0.01)
    training.check(0, 0.1, pictures=1.0)
    training.run(95, epoch=1.0, takes=0.1)
    resumed = Training(time, budget=0.01)
    resumed.clock = Clock.restored(training.clock.plain())
    resumed.clock.start()
    resumed.checks = [training.checks[-1]]
    resumed.run(100, epoch=1.0, takes=0.1, pictures=1.0)
    assert between(resumed.checks) <= {9, 10, 11}
    assert resumed.drawn == []


# Trainings


class Clocked(lm.MemorySink):
    """What the clock says at each check, before it is counted."""

    clock: Clock

    def __init__(self, budget: float) -> None:
        super().__init__()
        self.budget = budget
        self.had_room: list[bool] = []

    def write(self, report: Report) -> None:
        super().write(report)
        self.had_room.append(self.clock.affords(self.budget))


def one_batch_epochs(epochs: int, sink: Clocked, **options: Any) -> lm.LSTMMonitor:
    torch.manual_seed(0)
    model, x = nn.LSTM(2, 3, batch_first=True), torch.randn(4, 6, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    monitor = lm.LSTMMonitor(model, x, sinks=[sink], horizon=16, on_error="raise", **options)
    sink.clock = monitor.clock
    with monitor:
        for epoch in range(epochs):
            optimizer.zero_grad()
            model(x)[0].square().mean().backward()
            optimizer.step()
            monitor.on_train_batch_end(0)
            monitor.on_epoch_end(epoch)
    return monitor


def test_a_hundred_epochs_of_one_batch_stay_within_the_default_budget() -> None:
    sink = Clocked(0.01)
    monitor = one_batch_epochs(100, sink)
    assert [report.epoch for report in sink.reports] == [0, 100]
    assert monitor.clock.periodic == 0
    assert monitor.clock.spent > 0


def test_a_larger_budget_pays_for_more_and_each_check_had_room() -> None:
    sink = Clocked(1.0)
    monitor = one_batch_epochs(100, sink, budget=1.0)
    assert 2 <= len(sink.reports) < 102
    assert all(sink.had_room[1:-1])
    assert monitor.clock.periodic <= monitor.clock.spent


def test_a_trainer_stays_within_the_default_budget(tmp_path: Path) -> None:
    sink = lm.MemorySink()
    ours = trainings.callback(trainings.PACKAGES[0], budget=module.BUDGET, every_n_epochs=1, sinks=[sink])
    runner = trainings.trainer(trainings.PACKAGES[0], tmp_path, ours, max_epochs=30, limit_train_batches=1)
    runner.fit(trainings.modules(trainings.PACKAGES[0]).Plain(), trainings.loader(), trainings.loader(1))
    clock = ours.monitor.clock
    assert [sink.reports[0].step, sink.reports[-1].epoch] == [0, 30]
    assert clock.periodic <= module.BUDGET * clock.elapsed() + (clock.recent[-1] if clock.periodic else 0)
    assert len(sink.reports) < 31


def test_a_check_that_the_user_asks_for_is_apart_from_the_budget() -> None:
    monitor = lm.LSTMMonitor(nn.LSTM(2, 3), horizon=16, on_error="raise")
    monitor.on_train_begin()
    assert monitor.check() is not None
    assert monitor.check() is not None
    assert monitor.clock.periodic == 0


def test_the_first_check_knows_what_a_later_one_takes() -> None:
    monitor = lm.LSTMMonitor(nn.LSTM(2, 3, batch_first=True), torch.randn(4, 6, 2), horizon=16, on_error="raise")
    monitor.check()
    assert 0 < monitor.clock.expected() < monitor.clock.spent


def test_a_loop_that_does_not_say_when_it_begins_is_timed_from_its_first_step() -> None:
    monitor = lm.LSTMMonitor(nn.LSTM(2, 3), horizon=16, on_error="raise")
    assert not monitor.clock.running
    monitor.on_train_batch_end(0)
    assert monitor.clock.running
    monitor.on_epoch_end(0)
    monitor.on_train_end()
    assert not monitor.clock.running
    assert monitor.clock.elapsed() == monitor.clock.elapsed() > 0
