"""Schedules: functions of a count."""

import pickle
from typing import Any

import pytest
import torch

import lstm_monitor as lm
from lstm_monitor.monitor.schedule import as_schedule


@pytest.mark.parametrize(
    ("schedule", "due"),
    [
        (lm.every(1), list(range(1, 13))),
        (lm.every(5), [5, 10]),
        (lm.every(5, start=1), [1, 6, 11]),
        (lm.every(5, start=2, stop=7), [2, 7]),
        (lm.every(5, stop=9), [5]),
    ],
)
def test_every_nth_count_from_start_through_stop(schedule: Any, due: list[int]) -> None:
    assert [count for count in range(1, 13) if schedule(count)] == due
    assert pickle.loads(pickle.dumps(schedule)) == schedule


@pytest.mark.parametrize("wrong", [0, -2, 1.5, True, "3"])
def test_no_interval(wrong: Any) -> None:
    with pytest.raises(ValueError, match="must be an integer of at least 1"):
        lm.every(wrong)
    with pytest.raises(ValueError, match="every_n_steps=.* must be an integer of at least 1, or a function"):
        as_schedule("every_n_steps", wrong)


def test_a_number_or_a_function_or_never() -> None:
    assert as_schedule("every_n_steps", None) is None
    assert as_schedule("every_n_steps", callable) is callable
    assert as_schedule("every_n_steps", 4) == lm.every(4)


def test_a_model_in_the_place_of_an_interval() -> None:
    with pytest.raises(ValueError, match=r"every_n_epochs=Linear\(...\) is a module"):
        as_schedule("every_n_epochs", torch.nn.Linear(1, 1))
