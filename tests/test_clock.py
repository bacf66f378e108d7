"""The clock's arithmetic, on a time of its own."""

from contextlib import suppress

import pytest

from lstm_monitor import clock as module
from lstm_monitor.clock import Clock


class Time:
    now = 100.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> Time:
    time = Time()
    monkeypatch.setattr(module, "time", time)
    return time


def spend(clock: Clock, time: Time, seconds: float, *, periodic: bool) -> None:
    with clock.check(periodic=periodic):
        time.now += seconds


def test_checks_are_no_training_time(time: Time) -> None:
    clock = Clock()
    assert (clock.cost(), clock.elapsed()) == (None, 0)
    clock.start()
    spend(clock, time, 2, periodic=False)
    assert (clock.cost(), clock.elapsed()) == (None, 0)
    time.now += 40
    spend(clock, time, 1, periodic=True)
    assert clock.elapsed() == 40
    assert clock.cost() == 3 / 40


def test_a_budget_counts_periodic_checks_and_one_more(time: Time) -> None:
    clock = Clock()
    clock.start()
    spend(clock, time, 50, periodic=False)
    time.now += 100
    spend(clock, time, 1, periodic=True)
    assert clock.affords(0.02)
    assert not clock.affords(0.019)


def test_a_resumed_run_goes_on_counting(time: Time) -> None:
    clock = Clock()
    clock.start()
    time.now += 10
    spend(clock, time, 1, periodic=True)
    resumed = Clock(**clock.plain())
    assert resumed.plain() == clock.plain() == {"trained": 11, "spent": 1, "periodic": 1, "last": 1}
    resumed.start()
    time.now += 10
    assert resumed.elapsed() == 20
    assert resumed.cost() == 1 / 20


def test_a_check_that_fails_is_counted_too(time: Time) -> None:
    clock = Clock()
    with suppress(ValueError), clock.check(periodic=True):
        time.now += 3
        raise ValueError("wrong")
    assert clock.spent == clock.periodic == clock.last == 3
