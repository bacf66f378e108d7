"""The training never dies of the monitor: a fault of ours is one warning, or an error where that is asked for."""

from __future__ import annotations

import contextlib
import logging
import signal
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import lstm_monitor as lm
from lstm_monitor.integrations.lightning_callback import hooks
from lstm_monitor.studies.ablation.check import AblationCheck
from tests.helpers import trainings
from tests.helpers.trainings import PACKAGES, callback, differences, loader, modules, seed_all, trace

LIGHTNING = PACKAGES[0]


class PlantedError(RuntimeError):
    """The fault."""


def fail(*args: Any, **kwargs: Any) -> Any:
    raise PlantedError("planted")


class Failing(lm.MemorySink):
    """A sink that fails in one method, and counts its calls."""

    def __init__(self, method: str) -> None:
        super().__init__()
        self.closed = 0
        setattr(self, method, fail)

    def close(self) -> None:
        self.closed += 1


def train(folder: Path, *ours: Any, module: str = "Plain", **options: Any) -> dict[str, Any]:
    """A short training with a checkpoint every epoch, which asks callbacks for their state."""
    seed_all()
    model = getattr(modules(LIGHTNING), module)()
    runner = trainings.trainer(LIGHTNING, folder, *ours, **{"enable_checkpointing": True} | options)
    runner.fit(model, loader(shuffle=True), loader(1))
    return trace(runner, model)


@contextlib.contextmanager
def warned() -> Iterator[list[str]]:
    """The texts of our warnings inside."""
    texts: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield texts
    texts += [str(warning.message) for warning in caught if issubclass(warning.category, lm.MonitorWarning)]


PATCHED = (
    "integrations.lightning_callback.hooks.sinks_of",
    "integrations.lightning_callback.hooks.find_layers",
    "integrations.lightning_callback.hooks.watched_by_trainer",
    "monitor.sinks.FanOut",
    "monitor.sinks.history_beside",
    "integrations.lightning_callback.hooks.LightningHooks._reach_loggers",
    "integrations.lightning_callback.hooks.LightningHooks._start",
    "integrations.lightning_callback.hooks.LightningHooks._count_steps",
    "integrations.lightning_callback.hooks.LightningHooks._count_epochs",
    "integrations.lightning_callback.hooks.LightningHooks._finish",
    "integrations.lightning_callback.hooks.LightningHooks._ablate",
    "integrations.lightning_callback.hooks.lightning_study",
    "integrations.lightning_callback.ablation.first_batches",
    "integrations.lightning_callback.ablation.make_study",
    "integrations.lightning_callback.hooks.LightningHooks._prepare_recorder",
    "integrations.lightning_callback.hooks.LightningHooks._attach",
    "integrations.lightning_callback.hooks.LightningHooks._keep_recordings",
    "integrations.lightning_callback.hooks.LightningHooks._wants_recordings",
    "integrations.lightning_callback.hooks.LightningHooks._waits",
    "integrations.lightning_callback.hooks.LightningHooks._check",
    "integrations.lightning_callback.hooks.LightningHooks._may_leave_out",
    "integrations.lightning_callback.hooks.LightningHooks._as_tensors",
    "integrations.lightning_callback.network_call.CallRecorder.__init__",
    "integrations.lightning_callback.network_call.CallRecorder.attach",
    "integrations.lightning_callback.network_call.CallRecorder.runs",
    "integrations.lightning_callback.network_call.CallRecorder._keep",
    "snapshots.recorder.Recorder.__init__",
    "snapshots.recorder.Recorder.attach",
    "snapshots.recorder.Recorder.detach",
    "snapshots.recorder.Recorder.full",
    "snapshots.recorder.Recorder.recordings",
    "snapshots.recorder._as_call",
    "snapshots.recorder.joined",
    "monitor.check.find_layers",
    "monitor.check.snapshot",
    "monitor.check.examine",
    "monitor.state.first_memory",
    "monitor.state.next_memory",
    "monitor.monitor.LSTMMonitor.due",
    "monitor.monitor.LSTMMonitor.check",
    "monitor.monitor.LSTMMonitor.add_study",
    "monitor.monitor.LSTMMonitor.state_dict",
    "monitor.state.to_plain",
    "monitor.state.agreement",
    "monitor.state.compare",
    "monitor.budget.Clock.start",
    "monitor.budget.Clock.check",
    "monitor.budget.Clock.cost",
    "characterization.shared",
    "characterization.together",
    "characterization.simulate",
    "characterization.simulate_alone",
    "responses.probing.measure_facts",
    "responses.probing.linear_metrics",
    "responses.probing.respond",
    "characterization.rank",
    "responses.probing.StepSummary",
    "metrics.measuring.SineSummary",
    "metrics.activity.std",
    "report.report.Report.scalars",
)
OPTIONS: dict[str, Callable[[], dict[str, Any]]] = {
    "a sink's write": lambda: {"sinks": [Failing("write")]},
    "a sink's close": lambda: {"sinks": [Failing("close")]},
    "the schedule of epochs": lambda: {"every_n_epochs": fail},
    "the schedule of steps": lambda: {"every_n_steps": fail},
    "forward": lambda: {"held_out": trainings.sequences(), "forward": fail},
    "a glob that matches nothing": lambda: {"layers": "nett.*"},
    "data that does not fit": lambda: {"held_out": torch.zeros(2, 5, 7)},
}
"""Faults that come with an argument."""


def plant(name: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Plant the fault; the callback's options that it takes."""
    if name in OPTIONS:
        return OPTIONS[name]()
    monkeypatch.setattr(f"lstm_monitor.{name}", fail)
    steps = {"every_n_steps": 3} if name.endswith(("_count_steps", "due")) else {}
    return steps | {"ablation": AblationCheck(rankings=["measured"], random_orders=1, points=3)}


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a training without us leaves behind."""
    return train(tmp_path_factory.mktemp("without"))


@pytest.mark.parametrize("name", [*PATCHED, *OPTIONS])
def test_a_fault_is_one_warning_and_the_training_ends_as_without_us(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, untouched: dict[str, Any]
) -> None:
    ours = callback(LIGHTNING, on_error="warn", **plant(name, monkeypatch))
    with warned() as texts:
        found = train(tmp_path, ours, logger=False)
    assert differences(untouched, found) == []
    assert len(texts) == 1
    rests = "lstm_monitor rests from now on; the training goes on."
    alone = {"a sink's write": "Failing failed", "a sink's close": "Failing failed"}
    alone["monitor.sinks.history_beside"] = "The history failed"
    assert texts[0].startswith(alone.get(name, rests))


@pytest.mark.parametrize("name", [*[pytest.param(name, marks=pytest.mark.thorough) for name in PATCHED], *OPTIONS])
def test_the_same_fault_is_raised_where_that_is_asked_for(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = callback(LIGHTNING, on_error="raise", **plant(name, monkeypatch))
    with pytest.raises((PlantedError, ValueError), match=r"planted|nett|held_out"):
        train(tmp_path, ours, logger=False)


def test_python_warnings_turned_into_errors_end_in_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, untouched: dict[str, Any]
) -> None:
    plant("monitor.check.examine", monkeypatch)
    warnings.simplefilter("error", lm.MonitorWarning)  # pytest puts the filters back
    with caplog.at_level(logging.ERROR, "lstm_monitor"):
        found = train(tmp_path, callback(LIGHTNING, on_error="warn"))
    assert differences(untouched, found) == []
    told = [record.getMessage() for record in caplog.records if record.name == "lstm_monitor"]
    assert len(told) == 1
    assert "PlantedError: planted" in told[0]


def test_a_checkpoint_that_cannot_be_read_is_one_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = trainings.trainer(LIGHTNING, tmp_path, callback(LIGHTNING))
    begun.fit(modules(LIGHTNING).Plain(), loader(), loader(1))
    begun.save_checkpoint(tmp_path / "c.ckpt")
    plant("monitor.monitor.LSTMMonitor.load_state_dict", monkeypatch)
    going_on = trainings.trainer(LIGHTNING, tmp_path, callback(LIGHTNING, on_error="warn"), max_epochs=3)
    with warned() as texts:
        going_on.fit(modules(LIGHTNING).Plain(), loader(), loader(1), ckpt_path=tmp_path / "c.ckpt")
    assert going_on.current_epoch == 3
    assert len(texts) == 1
    assert "Reading the checkpoint failed" in texts[0]


def test_a_sink_that_fails_keeps_the_report_from_no_other_and_all_are_closed(tmp_path: Path) -> None:
    memory, failing = lm.MemorySink(), Failing("write")
    with warned() as texts:
        train(tmp_path, callback(LIGHTNING, on_error="warn", sinks=[failing, memory]))
    assert len(texts) == 1
    assert len(memory.reports) == 3
    assert failing.closed == 1


@pytest.mark.parametrize("sanity", [0, 2])
def test_a_module_without_recurrent_layers(sanity: int, tmp_path: Path) -> None:
    without = train(tmp_path, module="Linear")
    with warned() as texts:
        found = train(tmp_path, callback(LIGHTNING, on_error="warn"), module="Linear", num_sanity_val_steps=sanity)
    assert differences(without, found) == []
    assert len(texts) == 1
    assert "no recurrent layer" in texts[0]
    assert "Linear" in texts[0]


class AtBatch:
    """Does something to the module after one batch of the training."""

    def __init__(self, batch: int, act: Callable[[Any], Any]) -> None:
        self.batch, self.act = batch, act

    def callback(self) -> Any:
        from lightning.pytorch.callbacks import Callback

        at = self

        class Acting(Callback):
            def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
                if trainer.global_step == at.batch:
                    at.act(pl_module)

        return Acting()


def _diverge(module: Any) -> None:
    with torch.no_grad():
        module.net.rnn.weight_hh_l0[0] = float("nan")


def test_weights_that_become_nan(tmp_path: Path) -> None:
    ours = callback(LIGHTNING, on_error="warn")
    with warned() as texts:
        found = train(tmp_path, AtBatch(6, _diverge).callback(), ours)
    assert found["counts"] == [8, 2]
    assert len(texts) == 1
    assert "are NaN or infinite; the network has diverged" in texts[0]
    assert ours.report.step == 3  # the check before


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


@pytest.fixture
def _ctrl_c() -> Iterator[None]:
    """Lightning ignores SIGINT from a Ctrl-C on."""
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_ctrl_c")
@pytest.mark.parametrize("where", ["training", "validation"])
def test_ctrl_c_closes_the_sinks_and_leaves_no_hook(where: str, tmp_path: Path) -> None:
    sink = Failing("unused")
    model = modules(LIGHTNING).Plain()
    if where == "validation":
        model.validation_step = _interrupt
    stop = [AtBatch(6, _interrupt).callback()] if where == "training" else []
    ours = callback(LIGHTNING, sinks=[sink])
    runner = trainings.trainer(LIGHTNING, tmp_path, *stop, ours)
    with pytest.raises(SystemExit):
        runner.fit(model, loader(), loader(1))
    assert sink.closed == 1
    assert len(sink.reports) == (2 if where == "training" else 0)
    assert not any(part._forward_hooks for part in model.modules())
    assert ours._monitor is None


def test_a_users_own_error_is_passed_on_and_the_sinks_are_closed(tmp_path: Path) -> None:
    sink = Failing("unused")
    with pytest.raises(PlantedError):
        train(tmp_path, AtBatch(2, fail).callback(), callback(LIGHTNING, sinks=[sink]))
    assert sink.closed == 1


def test_every_hook_of_ours_that_lightning_calls_has_its_fault_here() -> None:
    parts = {name for name in vars(hooks.LightningHooks) if name.startswith("_") and not name.startswith("__")}
    planted = {name.rsplit(".", 1)[1] for name in PATCHED}
    plain = {"_monitor", "_do", "_forget", "_restore", "_end", "_remove_hooks", "_give_values"}
    assert parts - planted == plain
