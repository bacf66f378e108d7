"""The clock's arithmetic, on a time of its own."""

from contextlib import suppress

import pytest

from lstm_monitor.monitor import budget as module
from lstm_monitor.monitor.budget import Clock


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


def test_time_stands_still_while_a_check_is_made(time: Time) -> None:
    clock = Clock()
    clock.start()
    time.now += 10
    with clock.check(periodic=False):
        time.now += 5
        assert clock.elapsed() == 10


def test_a_budget_counts_periodic_checks_and_one_more(time: Time) -> None:
    clock = Clock()
    clock.start()
    spend(clock, time, 50, periodic=False)
    time.now += 100
    spend(clock, time, 1, periodic=True)
    assert clock.expected() == 1
    assert clock.affords(0.0251)
    assert not clock.affords(0.0249)


def test_what_a_check_takes_is_told_by_the_last_and_by_most(time: Time) -> None:
    clock, told = Clock(), []
    for seconds in (9, 2, 1, 1, 5, 1, 1, 1):
        spend(clock, time, seconds, periodic=bool(told))
        told.append(clock.expected())
    assert told == [9, 2, 1.5, 1, 5, 1, 1, 1]


def test_what_is_done_once_and_pictures_are_not_expected_again(time: Time) -> None:
    clock, drawn = Clock(), [0.0]
    with clock.check(periodic=False):
        with clock.once():
            time.now += 30
        time.now += 2
        with clock.writing(lambda: drawn[0]):
            time.now += 4
            drawn[0] += 3
    assert (clock.spent, clock.periodic, clock.expected(), clock.pictures) == (36, 0, 3, 3)
    with clock.check(periodic=True), clock.writing(lambda: drawn[0]):
        time.now += 1
    assert (clock.expected(), clock.pictures) == (1, 3)


def test_room_for_pictures_leaves_some_for_the_next_check(time: Time) -> None:
    clock = Clock(trained=100, recent=[1], pictures=4)
    assert clock.affords_pictures(0.091)
    assert not clock.affords_pictures(0.089)


def test_a_resumed_run_goes_on_counting(time: Time) -> None:
    clock = Clock()
    clock.start()
    time.now += 10
    spend(clock, time, 1, periodic=True)
    resumed = Clock.restored(clock.plain())
    kept = {"trained": 11, "spent": 1, "periodic": 1, "recent": [1], "pictures": 0}
    assert resumed.plain() == clock.plain() == kept
    resumed.start()
    time.now += 10
    assert resumed.elapsed() == 20
    assert resumed.cost() == 1 / 20


def test_what_lies_between_two_trainings_is_none(time: Time) -> None:
    clock = Clock()
    clock.start()
    time.now += 10
    clock.stop()
    time.now += 1000
    assert clock.elapsed() == 10
    clock.start()
    time.now += 5
    clock.start()
    assert clock.elapsed() == 15


def test_pictures_are_not_expected_of_a_check_that_was_worked_out_meanwhile(time: Time) -> None:
    clock, drawn = Clock(), [0.0]
    clock.start()
    spend(clock, time, 2, periodic=True)
    time.now += 30
    with clock.continued():
        clock.beside(5)
        with clock.writing(lambda: drawn[0]):
            time.now += 4
            drawn[0] += 3
    assert (clock.spent, clock.periodic, clock.expected(), clock.pictures) == (11, 11, 8, 3)


def test_the_state_of_an_earlier_version_is_taken(time: Time) -> None:
    assert Clock.restored({"trained": 11, "spent": 2, "periodic": 1, "last": 1}).elapsed() == 9


def test_a_check_that_fails_is_counted_too(time: Time) -> None:
    clock = Clock()
    with suppress(ValueError), clock.check(periodic=True):
        time.now += 3
        raise ValueError("wrong")
    assert clock.spent == clock.periodic == clock.expected() == 3
