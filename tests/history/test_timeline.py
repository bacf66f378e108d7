"""Which checks make up a training: killed, resumed, started twice, copied, with clocks that are wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as some

from lstm_monitor.history import sink as writing
from lstm_monitor.history.loading import load_history
from lstm_monitor.history.sink import HistorySink
from lstm_monitor.history.timeline import Entry, attempts_of, timeline
from tests.helpers.histories import check_at, kept, study_at


def test_a_training_that_was_killed_and_resumed_has_no_gaps_and_no_doubles(tmp_path: Path) -> None:
    killed = HistorySink(tmp_path)
    for step in (0, 10, 20, 30, 40):
        killed.write(check_at(step))
    kept(tmp_path, *(check_at(step, epoch=1) for step in (20, 30, 40, 50)))  # from a checkpoint at 20
    history = load_history(tmp_path)
    assert history.steps == (0, 10, 20, 30, 40, 50)
    assert history.epochs == (0, 0, 1, 1, 1, 1)
    first = history.attempts[0].id
    assert any(f"attempt {first}" in note and "steps 20, 30, 40" in note for note in history.notes)
    assert load_history(tmp_path, attempt=first).steps == (0, 10, 20, 30, 40)
    assert len(list(tmp_path.iterdir())) == 9


def test_checks_that_were_rolled_back_are_found_by_their_count(tmp_path: Path) -> None:
    kept(tmp_path, *(check_at(step, checks=n) for n, step in enumerate((0, 100, 130), 1)))
    kept(tmp_path, check_at(140, checks=3), check_at(160, checks=4))  # from a checkpoint at 120, after two checks
    assert load_history(tmp_path).steps == (0, 100, 140, 160)


def test_a_monitor_without_its_state_goes_on_from_its_first_check(tmp_path: Path) -> None:
    kept(tmp_path, *(check_at(step, checks=n) for n, step in enumerate((0, 100, 200), 1)))
    kept(tmp_path, check_at(150, checks=1), check_at(250, checks=2))
    assert load_history(tmp_path).steps == (0, 100, 150, 250)


def test_a_training_started_again_from_nothing_takes_the_place_of_the_first(tmp_path: Path) -> None:
    kept(tmp_path, *(check_at(step, checks=n) for n, step in enumerate((0, 10, 20), 1)), study_at(20))
    kept(tmp_path, check_at(0), check_at(10, checks=2))
    history = load_history(tmp_path)
    assert history.steps == (0, 10)
    assert history.study is None
    assert load_history(tmp_path, attempt=history.attempts[0].id).study is not None


def test_of_two_at_the_same_time_the_one_that_goes_on_longer_counts(tmp_path: Path) -> None:
    one, other = HistorySink(tmp_path), HistorySink(tmp_path)
    for step in (0, 10):
        for sink in (one, other):
            sink.write(check_at(step))
    one.write(check_at(20))
    one.write(check_at(30))
    history = load_history(tmp_path)
    assert history.steps == (0, 10, 20, 30)
    assert [attempt.checks for attempt in history.attempts] == [2, 4]


def test_a_clock_that_goes_back_does_not_turn_the_order_around(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept(tmp_path, check_at(0), check_at(10), check_at(20))
    monkeypatch.setattr(writing.time, "time_ns", lambda: 10**15)  # 1970
    kept(tmp_path, check_at(20, epoch=1), check_at(30, epoch=1))
    history = load_history(tmp_path)
    assert history.steps == (0, 10, 20, 30)
    assert history.epochs == (0, 0, 1, 1)


def test_one_sink_of_a_training_that_goes_back_begins_a_new_attempt(tmp_path: Path) -> None:
    kept(tmp_path, *(check_at(step) for step in (0, 10, 20, 0, 10)))
    history = load_history(tmp_path)
    assert history.steps == (0, 10)
    assert [attempt.checks for attempt in history.attempts] == [3, 2]


def test_a_second_fit_that_goes_on_is_one_training(tmp_path: Path) -> None:
    sink = kept(tmp_path, check_at(0, 0, 1), check_at(10, 1, 2), study_at(10, 1))
    sink.write(check_at(10, 1, 3))
    sink.write(check_at(20, 2, 4))
    sink.close()
    history = load_history(tmp_path)
    assert history.steps == (0, 10, 20)
    assert [report.study is None for report in history.reports()] == [True, False, True]
    assert history.report(10).checks == 3


def test_a_study_made_again_at_the_same_step_is_there_once(tmp_path: Path) -> None:
    kept(tmp_path, check_at(0), check_at(10, checks=2), study_at(10))
    kept(tmp_path, check_at(10, checks=3), study_at(10))
    history = load_history(tmp_path)
    assert history.steps == (0, 10)
    assert history.notes[-1].count("steps 10;") == 1


def test_many_models_with_one_folder_are_attempts(tmp_path: Path) -> None:
    for model in range(5):
        kept(tmp_path, *(check_at(step, epoch=model if step else 0) for step in (0, 10)))
    history = load_history(tmp_path)
    assert history.epochs == (0, 4)
    for number, attempt in enumerate(history.attempts):
        assert load_history(tmp_path, attempt=attempt.id).epochs == (0, number)
    with pytest.raises(ValueError, match="attempt='nobody' is not there"):
        load_history(tmp_path, attempt="nobody")


def test_a_check_that_was_deleted_is_named(tmp_path: Path) -> None:
    kept(tmp_path, *(check_at(step) for step in (0, 10, 20)))
    next(tmp_path.glob("check-0000000010-*")).unlink()
    history = load_history(tmp_path)
    assert history.steps == (0, 20)
    assert any("its reports 2 are not there" in note for note in history.notes)


def _entry(attempt: int, number: int, step: int, written: int) -> Entry:
    name = f"{attempt}-{number}"
    return Entry(name, "check", str(attempt), "", f"{written:05d}", number, step, 0, 1, (), False, {})


@given(some.lists(some.tuples(some.integers(0, 50), some.integers(1, 20), some.integers(1, 9)), min_size=1, max_size=6))
def test_steps_always_rise_and_the_last_attempt_is_whole(attempts: list[tuple[int, int, int]]) -> None:
    entries = [
        _entry(attempt, number, first + number * every, 100 * attempt + number)
        for attempt, (first, count, every) in enumerate(attempts)
        for number in range(count)
    ]
    kept_entries = timeline(attempts_of(reversed(entries)))
    steps = [entry.step for entry in kept_entries]
    assert steps == sorted(set(steps), key=lambda step: step or 0)
    assert [e.name for e in entries if e.attempt == str(len(attempts) - 1)] == [
        e.name for e in kept_entries if e.attempt == str(len(attempts) - 1)
    ]
    below = min(entry.step or 0 for entry in kept_entries)
    assert below == min(first for first, _, _ in attempts) or below <= attempts[-1][0]
