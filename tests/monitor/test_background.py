"""A job in a thread of its own, and a whole training whose checks are worked out there (on the CPU, for the test)."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import lstm_monitor as lm
from lstm_monitor.core.undisturbed import beside, undisturbed
from lstm_monitor.monitor import background
from lstm_monitor.monitor import check as module
from lstm_monitor.monitor.background import BackgroundCheck
from tests.helpers import trainings


def test_a_job_runs_in_a_thread_that_ends() -> None:
    before = threading.active_count()
    background, go = BackgroundCheck[str](), threading.Event()
    background.start(lambda: threading.current_thread().name if go.wait(9) else "nothing")
    assert not background.ready()
    go.set()
    assert background.collect() == "lstm_monitor"
    assert background.ready()
    assert background.seconds > 0
    assert threading.active_count() == before


@pytest.mark.parametrize("error", [ValueError("planted"), KeyboardInterrupt()])
def test_what_a_job_raises_is_raised_where_it_is_collected(error: BaseException) -> None:
    def fail() -> None:
        raise error

    background = BackgroundCheck[None]()
    background.start(fail)
    with pytest.raises(type(error)) as raised:
        background.collect()
    assert raised.value is error


def test_a_process_that_was_forked_meanwhile_has_no_result(monkeypatch: pytest.MonkeyPatch) -> None:
    background, go = BackgroundCheck[bool](), threading.Event()
    background.start(lambda: go.wait(9))
    with monkeypatch.context() as patched:
        patched.setattr(os, "getpid", lambda: 1)
        with pytest.raises(RuntimeError, match="stays in the process that began it"):
            background.collect()
    go.set()
    assert background.collect()


def test_beside_a_training_what_all_threads_share_is_left_alone() -> None:
    """The training draws random numbers meanwhile: to put the states back would be to draw them twice."""

    def job() -> tuple[bool, bool]:
        with beside(), undisturbed():
            torch.rand(3)
            return torch.is_grad_enabled(), torch.backends.mkldnn.matmul.fp32_precision == precision

    state, precision = torch.get_rng_state(), torch.backends.mkldnn.matmul.fp32_precision
    with torch.random.fork_rng():
        background = BackgroundCheck[tuple[bool, bool]]()
        background.start(job)
        assert background.collect() == (False, True)
        assert not torch.equal(torch.get_rng_state(), state)
    with undisturbed():
        assert torch.backends.mkldnn.matmul.fp32_precision == "ieee"


# A training whose periodic checks are worked out in a thread, as on CUDA


@pytest.fixture
def deferred(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Makes periodic checks go to a thread, which waits for the event; the training has TF32 on, as torch has it."""
    go, examine = threading.Event(), module.examine
    monkeypatch.setattr(module, "_cuda_device", lambda model: torch.device("cuda"))
    monkeypatch.setattr(module, "BackgroundCheck", lambda device: BackgroundCheck())
    monkeypatch.setattr("lstm_monitor.monitor.budget._synchronise", lambda device: None)

    def waiting(*args: Any) -> Any:
        assert threading.current_thread() is threading.main_thread() or go.wait(9)
        return examine(*args)

    monkeypatch.setattr(module, "examine", waiting)
    return go


def training(
    after: Callable[[lm.LSTMMonitor, int], object], *, steps: int = 6, **options: Any
) -> tuple[lm.LSTMMonitor, lm.MemorySink, nn.Module]:
    """Dropout makes the training draw random numbers while checks are worked out."""
    trainings.seed_all()
    model, sink = trainings.Network(noisy=True), lm.MemorySink()
    settings = {"every_n_steps": 2, "budget": None, "horizon": 16, "on_error": "raise"} | options
    monitor = lm.LSTMMonitor(model, trainings.sequences(1, 8), sinks=[sink], **settings)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    with monitor:
        for step in range(1, steps + 1):
            optimizer.zero_grad()
            model(trainings.sequences(step, 4)).square().mean().backward()
            optimizer.step()
            monitor.on_train_batch_end(0)
            after(monitor, step)
    return monitor, sink, model


def values(sink: lm.MemorySink) -> list[dict[str, float]]:
    timed = "lstm_monitor/_run/cost"
    return [{key: value for key, value in report.scalars().items() if key != timed} for report in sink.reports]


def test_the_same_reports_arrive_later(deferred: threading.Event) -> None:
    seen: list[int] = []

    def look(monitor: lm.LSTMMonitor, step: int) -> None:
        seen.append(monitor.checks)
        if step == 3:
            deferred.set()

    _, late, model = training(look)
    assert seen[:3] == [1, 1, 1], "the check of step 2 is worked out while step 3 is made"
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(module, "_cuda_device", lambda model: None)
        _, direct, alone = training(lambda monitor, step: None)
    assert [report.step for report in late.reports] == [0, 2, 4, 6]
    assert values(late) == values(direct)
    assert trainings.differences(model.state_dict(), alone.state_dict()) == []
    assert not [thread for thread in threading.enumerate() if thread.name == "lstm_monitor"]


def test_in_several_processes_a_check_stays_at_the_hook(
    deferred: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They do in one order what they do together."""
    monkeypatch.setattr(background, "in_processes", lambda: True)
    seen: list[int] = []
    training(lambda monitor, step: seen.append(monitor.checks), steps=4)
    assert seen == [1, 2, 2, 3]


def test_the_environment_keeps_checks_at_the_hook(deferred: threading.Event, monkeypatch: pytest.MonkeyPatch) -> None:
    """For trainings that capture CUDA graphs meanwhile."""
    monkeypatch.setenv("LSTM_MONITOR_BACKGROUND", "off")
    seen: list[int] = []
    training(lambda monitor, step: seen.append(monitor.checks), steps=4)
    assert seen == [1, 2, 2, 3]


class Scaled(nn.Module):
    """A cell of the user's own."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden_size, self.weight = 2, nn.Parameter(torch.ones(2))

    def forward(self, x: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.weight * h + x)


def test_registered_cells_which_run_the_users_code_are_checked_at_the_hook(deferred: threading.Event) -> None:
    def step(cell: nn.Module, x: torch.Tensor, h: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        h = cell(x, h)
        return h, h

    with lm.register_cell(Scaled, step=step, input_size=2):
        model = nn.ModuleDict({"own": Scaled(), "rnn": nn.LSTM(2, 3)})
        monitor = lm.LSTMMonitor(model, every_n_steps=1, budget=None, horizon=8, on_error="raise")
        monitor.on_train_begin()
        monitor.on_train_batch_end(0)
        assert monitor.checks == 2


def test_ctrl_c_while_a_hook_waits_for_a_check_does_not_lose_it(
    deferred: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    join, sinks = threading.Thread.join, []

    def interrupted(thread: threading.Thread, *given: Any) -> None:
        if thread.name == "lstm_monitor" and not deferred.is_set():
            deferred.set()
            raise KeyboardInterrupt
        join(thread, *given)

    def save(monitor: lm.LSTMMonitor, step: int) -> None:
        sinks.append(monitor.sinks[0])
        if step == 2:
            monitor.state_dict()

    monkeypatch.setattr(threading.Thread, "join", interrupted)
    with pytest.raises(KeyboardInterrupt):
        training(save)
    assert [report.step for report in sinks[0].reports] == [0, 2]
    assert not [thread for thread in threading.enumerate() if thread.name == "lstm_monitor"]


def test_a_checkpoint_waits_for_the_check(deferred: threading.Event) -> None:
    states: list[dict[str, Any]] = []

    def save(monitor: lm.LSTMMonitor, step: int) -> None:
        if step == 2:
            threading.Timer(0.05, deferred.set).start()
            states.append(monitor.state_dict())

    training(save, steps=3)
    assert (states[0]["checks"], states[0]["last_step"]) == (2, 2)


def test_its_cost_is_counted_as_one_check(deferred: threading.Event) -> None:
    deferred.set()
    monitor, sink, _ = training(lambda monitor, step: monitor.settle(), steps=4)
    assert len(sink.reports) == 3
    assert len(monitor.clock.recent) == 2
    assert sum(monitor.clock.recent) == pytest.approx(monitor.clock.periodic)


def test_an_error_comes_at_a_later_hook_and_is_one_warning(
    deferred: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    deferred.set()
    done = module.examine

    def fail(*args: Any) -> Any:
        if threading.current_thread() is not threading.main_thread():
            raise ValueError("planted")
        return done(*args)

    monkeypatch.setattr(module, "examine", fail)
    with pytest.warns(lm.MonitorWarning, match="rests from now on.*A check failed: ValueError: planted") as caught:
        monitor, sink, _ = training(lambda monitor, step: None, on_error="warn")
    assert len(caught) == 1
    assert [report.step for report in sink.reports] == [0]
    assert monitor.report is sink.reports[0]


def test_after_ctrl_c_the_check_that_was_begun_is_still_written(deferred: threading.Event) -> None:
    def stop(monitor: lm.LSTMMonitor, step: int) -> None:
        sinks.append(monitor.sinks[0])
        if step == 2:
            deferred.set()
            raise KeyboardInterrupt

    sinks: list[Any] = []
    with pytest.raises(KeyboardInterrupt):
        training(stop)
    assert [report.step for report in sinks[0].reports] == [0, 2]
    assert not [thread for thread in threading.enumerate() if thread.name == "lstm_monitor"]


def test_a_check_that_the_user_asks_for_is_finished_at_once(deferred: threading.Event) -> None:
    deferred.set()
    reports: list[Any] = []
    training(lambda monitor, step: reports.append(monitor.check() if step == 3 else None), steps=4)
    assert [report and report.step for report in reports] == [None, None, 3, None]


def test_an_adapter_hands_on_what_arrives_later(deferred: threading.Event) -> None:
    deferred.set()
    handed: list[int | None] = []

    def begin(monitor: lm.LSTMMonitor, step: int) -> None:
        monitor.hand_on = lambda report: handed.append(report.step)

    training(begin)
    assert handed == [2, 4, 6]
