"""A failure becomes one warning, and the monitor rests."""

import logging
import warnings

import pytest

from lstm_monitor import MonitorWarning
from lstm_monitor.core.guard import Guard, switched_off


def fail(guard: Guard, error: BaseException) -> None:
    with guard.protect("the check"):
        raise error


def test_the_first_error_becomes_a_warning_and_later_ones_nothing() -> None:
    guard = Guard()
    assert not guard.idle
    with pytest.warns(MonitorWarning, match="the check failed: ValueError: wrong"):
        fail(guard, ValueError("wrong"))
    assert guard.idle
    fail(guard, ValueError("again"))  # a warning would fail the test


def test_warnings_that_are_errors_go_to_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with warnings.catch_warnings(), caplog.at_level(logging.ERROR, "lstm_monitor"):
        warnings.simplefilter("error")
        fail(Guard(), ValueError("wrong"))
    assert "the training goes on" in caplog.text


def test_raise_raises_and_interrupts_always_pass() -> None:
    guard = Guard("raise")
    with pytest.raises(ValueError, match="wrong"):
        fail(guard, ValueError("wrong"))
    assert not guard.resting
    with pytest.raises(KeyboardInterrupt):
        fail(Guard(), KeyboardInterrupt())
    with pytest.raises(ValueError, match="on_error='wran' is not known. Did you mean 'warn'"):
        Guard("wran")  # type: ignore[arg-type]


@pytest.mark.parametrize(("value", "off"), [("off", True), (" OFF ", True), ("0", True), ("", False), ("on", False)])
def test_the_environment_switches_it_off(monkeypatch: pytest.MonkeyPatch, value: str, off: bool) -> None:
    monkeypatch.setenv("LSTM_MONITOR", value)
    assert switched_off() is off
    assert Guard().idle is off
