"""The callback in both Lightning packages: when it checks, at which step, what others see of it, how it is copied."""

from __future__ import annotations

import copy
import csv
import itertools
import math
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

import lstm_monitor as lm
from lstm_monitor import characterization, integrations
from lstm_monitor.integrations.lightning_callback import hooks
from lstm_monitor.monitor.budget import Governor
from lstm_monitor.report.keys import key
from tests.helpers import trainings
from tests.helpers.trainings import HORIZON, PACKAGES, Endless, callback, loader, modules, sequences

LIGHTNING = PACKAGES[0]
TIME = key("net.rnn.l0", "step_alone", "settling_time", "p50")
RESPONSE = key("net.rnn.l0", "step", "peak_response", "p50")
both_packages = pytest.mark.parametrize("package", PACKAGES)


def fit(
    folder: Path,
    *callbacks: Any,
    package: str = LIGHTNING,
    module: str = "Plain",
    train: Any = None,
    val: Any = True,
    ckpt_path: Path | None = None,
    **options: Any,
) -> Any:
    """A training of 4 batches an epoch, with validation; returns the Trainer."""
    runner = trainings.trainer(package, folder, *callbacks, **options)
    data = loader() if train is None else train
    runner.fit(getattr(modules(package), module)(), data, loader(1, 16) if val is True else val, ckpt_path=ckpt_path)
    return runner


def checks(folder: Path, module: str = "Plain", ours: dict[str, Any] | None = None, **run: Any) -> list[Any]:
    """(step, epochs done) of every report."""
    sink = lm.MemorySink()
    fit(folder, callback(LIGHTNING, sinks=[sink], **(ours or {})), module=module, **run)
    return [(report.step, report.epoch) for report in sink.reports]


# When


WHEN: dict[str, tuple[dict[str, Any], dict[str, Any], list[Any]]] = {
    "every epoch by default": ({}, {}, [(0, 0), (3, 1), (7, 2)]),
    "every second epoch": ({"every_n_epochs": 2}, {"max_epochs": 4}, [(0, 0), (7, 2), (15, 4)]),
    "the last one besides": ({"every_n_epochs": 2}, {"max_epochs": 3}, [(0, 0), (7, 2), (11, 3)]),
    "lm.every": ({"every_n_epochs": lm.every(2, start=1)}, {"max_epochs": 3}, [(0, 0), (3, 1), (11, 3)]),
    "a function": ({"every_n_epochs": lambda n: n == 2}, {"max_epochs": 3}, [(0, 0), (7, 2), (11, 3)]),
    "every third step": ({"every_n_steps": 3}, {}, [(0, 0), (2, 0), (5, 1), (7, 2)]),
    "steps and epochs, never twice": (
        {"every_n_steps": 4, "every_n_epochs": 1}, {}, [(0, 0), (3, 0), (7, 1)]
    ),
    "steps under accumulation": (
        {"every_n_steps": 2}, {"accumulate_grad_batches": 2, "max_epochs": 3}, [(0, 0), (1, 0), (3, 1), (5, 2)]
    ),
    "accumulation with a rest": (
        {"every_n_steps": 2}, {"accumulate_grad_batches": 3, "max_epochs": 3}, [(0, 0), (1, 0), (3, 1), (5, 2)]
    ),
    "two optimizers, four steps in two batches": (
        {"every_n_steps": 4}, {"module": "Two"}, [(0, 0), (1, 0), (3, 0), (5, 1), (7, 1)]
    ),
    "two optimizers, three steps crossed": (
        {"every_n_steps": 3}, {"module": "Two", "max_epochs": 1}, [(0, 0), (1, 0), (2, 0), (3, 1)]
    ),
    "no sanity check": ({}, {"num_sanity_val_steps": 0}, [(3, 1), (7, 2)]),
    "no sanity check, steps": ({"every_n_steps": 3}, {"num_sanity_val_steps": 0}, [(3, 0), (5, 1), (7, 2)]),
    "no sanity check, validation every second epoch": (
        {}, {"num_sanity_val_steps": 0, "check_val_every_n_epoch": 2, "max_epochs": 3}, [(7, 2), (11, 3)]
    ),
    "no validation before the end": (
        {}, {"num_sanity_val_steps": 0, "check_val_every_n_epoch": 9, "max_epochs": 2}, [(7, 2)]
    ),
    "an empty list of validation loaders": ({}, {"val": []}, [(0, 0), (3, 1), (7, 2)]),
    "no validation loader": ({}, {"val": None}, [(0, 0), (3, 1), (7, 2)]),
    "no validation batches": ({}, {"limit_val_batches": 0}, [(0, 0), (3, 1), (7, 2)]),
    "validation every second epoch": ({}, {"check_val_every_n_epoch": 2, "max_epochs": 3}, [(0, 0), (3, 1), (7, 2),
                                                                                      (11, 3)]),
    "validation twice an epoch": ({}, {"val_check_interval": 2}, [(0, 0), (3, 1), (7, 2)]),
    "epochs of one batch": ({}, {"limit_train_batches": 1, "max_epochs": 3}, [(0, 0), (1, 1), (2, 2), (3, 3)]),
    "fast_dev_run": ({}, {"fast_dev_run": True}, [(0, 1)]),
    "max_steps": ({"every_n_steps": 2}, {"max_steps": 3, "max_epochs": -1}, [(0, 0), (1, 0), (2, 1)]),
    "an endless loader": (
        {"every_n_steps": 4},
        {"train": torch.utils.data.DataLoader(Endless(), batch_size=None), "max_steps": 6, "max_epochs": -1},
        [(0, 0), (3, 0), (5, 1)],
    ),
    "held-out data needs no validation": (
        {"held_out": sequences(2, 4)}, {"num_sanity_val_steps": 0}, [(0, 0), (3, 1), (7, 2)]
    ),
    "a late model": ({}, {"module": "Late"}, [(0, 0), (3, 1), (7, 2)]),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:Total length of `list` across ranks is zero")  # validation loaders may be []
@pytest.mark.parametrize("name", WHEN)
def test_when_it_checks(name: str, tmp_path: Path) -> None:
    ours, run, expected = WHEN[name]
    assert checks(tmp_path, ours=ours, **run) == expected


@both_packages
def test_a_check_has_the_step_of_lightnings_own_epoch_end(package: str, tmp_path: Path) -> None:
    logger = import_module(f"{package}.loggers").CSVLogger(tmp_path)
    fit(tmp_path, callback(package), package=package, logger=logger, accumulate_grad_batches=3, max_epochs=3)
    with open(Path(logger.log_dir) / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    own = [int(row["step"]) for row in rows if row["loss_epoch"]]
    assert own == [1, 3, 5]
    assert [int(row["step"]) for row in rows if row[RESPONSE]] == [0, *own]
    assert all(math.isfinite(float(row[RESPONSE])) for row in rows if row[RESPONSE])


@both_packages
def test_tensorboard_has_the_same_steps(package: str, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = import_module(f"{package}.loggers").TensorBoardLogger(tmp_path)
    fit(tmp_path, callback(package), package=package, logger=logger, accumulate_grad_batches=2)
    events = EventAccumulator(logger.log_dir, size_guidance={"scalars": 0}).Reload()
    own = [event.step for event in events.Scalars("loss_epoch")]
    assert [event.step for event in events.Scalars(RESPONSE)] == [0, *own]


@pytest.mark.parametrize("sanity", [0, 2])
@pytest.mark.parametrize("every", [1, 2])
def test_validation_gives_the_held_out_data_to_every_check(sanity: int, every: int, tmp_path: Path) -> None:
    sink = lm.MemorySink()
    ours = callback(LIGHTNING, sinks=[sink], every_n_steps=2)
    fit(tmp_path, ours, num_sanity_val_steps=sanity, check_val_every_n_epoch=every, max_epochs=3)
    assert sink.reports
    for layer in (report["net.rnn.l0"] for report in sink.reports):
        assert layer.point_source == "held_out"
        assert bool(torch.isfinite(layer.metrics["activity/std"].cells).all())


def test_the_recorded_data_is_what_characterize_takes(tmp_path: Path) -> None:
    ours = callback(LIGHTNING)
    runner = fit(tmp_path, ours)
    batches = [x for x, _ in loader(1, 16)]
    report = lm.characterize(runner.lightning_module.cpu(), held_out=batches, horizon=HORIZON)
    for path in ("activity/std", "gates/tau_f"):
        recorded, direct = (r["net.rnn.l0"].metrics[path].cells for r in (ours.report, report))
        torch.testing.assert_close(recorded, direct)


def test_a_budget_keeps_the_first_and_the_last_check(tmp_path: Path) -> None:
    assert checks(tmp_path, ours={"every_n_steps": 1, "budget": 1e-9}) == [(0, 0), (7, 2)]


@pytest.mark.parametrize(("budget", "times"), [(None, 4), (1e-9, 1)])
def test_held_out_inputs_are_recorded_where_a_check_may_follow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, budget: float | None, times: int
) -> None:
    """And always those of the last check, whose values are the same."""
    recorder, recorded = hooks.GuardedRecorder, []
    monkeypatch.setattr(hooks, "GuardedRecorder", lambda *given: recorded.append(1) or recorder(*given))
    reports = []
    for one in (budget, None):
        ours = callback(LIGHTNING, every_n_epochs=9, budget=one)
        trainings.seed_all()
        fit(tmp_path, ours, val=loader(1, 8), max_epochs=3)
        reports.append(ours.report.scalars() | {"lstm_monitor/_run/cost": 0.0})
    assert len(recorded) == times + 4, "before the training and after each epoch"
    assert reports[0] == reports[1]


@pytest.mark.parametrize("every", ["every_n_epochs", "every_n_steps"])
def test_a_check_there_is_room_for_later_has_inputs_of_its_own_validation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every: str
) -> None:
    """There is room from the midst of the second epoch on: its validation is recorded, and the check follows."""
    sink, ours = lm.MemorySink(), callback(LIGHTNING, budget=0.01, **{every: 1})
    ours.sinks = [sink]
    monkeypatch.setattr(Governor, "has_room", lambda self, clock: ours.monitor.steps >= 6)
    fit(tmp_path, ours, val=loader(1, 8), max_epochs=3)
    assert [report.step for report in sink.reports][:2] == [0, 7]


def test_no_logger_and_no_sink_still_has_a_report(tmp_path: Path) -> None:
    ours = callback(LIGHTNING)
    fit(tmp_path, ours)
    assert ours.report.checks == 3
    assert ours.report["net.rnn.l0"].previous is not None


# What other callbacks see


@both_packages
def test_early_stopping_and_checkpoints_monitor_our_values(package: str, tmp_path: Path) -> None:
    pieces = import_module(f"{package}.callbacks")
    best = pieces.ModelCheckpoint(tmp_path, monitor=RESPONSE, save_top_k=-1)
    stopping = pieces.EarlyStopping(RESPONSE, min_delta=100.0, patience=2)
    sink = lm.MemorySink()
    ours = callback(package, sinks=[sink])
    runner = fit(tmp_path, ours, stopping, best, package=package, enable_checkpointing=True, max_epochs=9)
    assert runner.current_epoch == 3
    values = [report.scalars()[RESPONSE] for report in sink.reports[1:]]
    saved = [float(value) for value in best.best_k_models.values()]
    torch.testing.assert_close(torch.tensor(saved), torch.tensor(values))
    torch.testing.assert_close(runner.callback_metrics[RESPONSE], torch.tensor(values[-1]))


def test_a_monitored_key_with_a_typo_is_told(tmp_path: Path) -> None:
    from lightning.pytorch.callbacks import EarlyStopping

    wrong = TIME.replace("settling", "setling")
    stopping = EarlyStopping(wrong, patience=9, check_on_train_epoch_end=True)
    with pytest.warns(lm.MonitorWarning, match="no key of lstm_monitor and never measured. Did you mean"):
        fit(tmp_path, callback(LIGHTNING), stopping)


@pytest.mark.parametrize("ours", [{}, {"layers": "net.*", "every_n_epochs": 5}])
@pytest.mark.parametrize("sanity", [0, 2])
def test_a_monitored_value_is_there_from_the_start(ours: dict[str, Any], sanity: int, tmp_path: Path) -> None:
    from lightning.pytorch.callbacks import EarlyStopping

    stopping = EarlyStopping(RESPONSE, check_on_train_epoch_end=False)  # in the first validation
    runner = fit(tmp_path, stopping, callback(LIGHTNING, **ours), num_sanity_val_steps=sanity)
    assert runner.current_epoch == 2


def test_a_value_given_in_validation_can_take_part_in_a_loss() -> None:
    with torch.inference_mode():  # as the Trainer validates
        (value,) = callback(LIGHTNING)._as_tensors({TIME: 2.0}).values()
    weight = torch.ones((), requires_grad=True)
    (weight * value).backward()
    assert weight.grad == 2


def test_a_scheduler_of_learning_rates_monitors_our_value(tmp_path: Path) -> None:
    model = modules(LIGHTNING).Plain()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
    scheduler = {"scheduler": plateau, "monitor": RESPONSE, "interval": "epoch"}
    model.configure_optimizers = lambda: {"optimizer": optimizer, "lr_scheduler": scheduler}
    runner = trainings.trainer(LIGHTNING, tmp_path, callback(LIGHTNING))
    runner.fit(model, loader(), loader(1))
    assert plateau.last_epoch == 2


@both_packages
def test_switched_off_it_leaves_only_finite_values(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LSTM_MONITOR", "off")
    pieces = import_module(f"{package}.callbacks")
    watching = [pieces.EarlyStopping(RESPONSE), pieces.ModelCheckpoint(tmp_path / "saved", monitor=TIME)]
    loggers = import_module(f"{package}.loggers")
    logger = [loggers.TensorBoardLogger(tmp_path), loggers.CSVLogger(tmp_path)]
    sink = lm.MemorySink()
    ours = callback(package, sinks=[sink])
    runner = fit(tmp_path, ours, *watching, package=package, enable_checkpointing=True, logger=logger)
    assert runner.current_epoch == 2
    assert math.isfinite(runner.callback_metrics[RESPONSE])
    assert ours.report is None
    assert sink.reports == []
    assert not [path for path in tmp_path.rglob("*lstm_monitor*")]
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if "tfevents" in path.name)
    assert b"loss" in written
    assert b"lstm_monitor" not in written
    assert "lstm_monitor" not in (Path(logger[1].log_dir) / "metrics.csv").read_text()


def seen_by(stopping: Any) -> list[float]:
    """Every value that an EarlyStopping judges."""
    seen: list[float] = []
    judge = stopping._evaluate_stopping_criteria
    stopping._evaluate_stopping_criteria = lambda value: (seen.append(float(value)), judge(value))[1]
    return seen


@pytest.mark.parametrize("mode", ["min", "max"])
def test_switched_off_it_never_ends_a_training_that_watches_it(
    mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LSTM_MONITOR", "off")
    stopping = import_module(f"{LIGHTNING}.callbacks").EarlyStopping(RESPONSE, patience=1, mode=mode)
    with pytest.warns(lm.MonitorWarning, match="is monitored, but lstm_monitor rests or is off"):
        runner = fit(tmp_path, callback(LIGHTNING), stopping, max_epochs=6)
    assert runner.current_epoch == 6


def test_a_checkpoint_keeps_no_stand_ins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LSTM_MONITOR", "off")
    ours, stopping = callback(LIGHTNING), import_module(f"{LIGHTNING}.callbacks").EarlyStopping(RESPONSE)
    with pytest.warns(lm.MonitorWarning):
        runner = fit(tmp_path, ours, stopping)
    assert abs(runner.callback_metrics[RESPONSE]) > 1e29
    assert ours.state_dict()["values"] == {}


@pytest.mark.parametrize("mode", ["min", "max"])
def test_the_first_measured_value_is_better_than_what_stood_in_for_it(mode: str, tmp_path: Path) -> None:
    stopping = import_module(f"{LIGHTNING}.callbacks").EarlyStopping(
        RESPONSE, patience=1, mode=mode, check_on_train_epoch_end=False, min_delta=-1.0
    )
    values = seen_by(stopping)
    runner = fit(tmp_path, callback(LIGHTNING), stopping, val_check_interval=0.5, num_sanity_val_steps=0, max_epochs=3)
    assert runner.current_epoch == 3
    assert [abs(value) > 1e29 for value in values] == [True, True, False, False, False, False]
    assert (values[0] > values[1] > values[2]) if mode == "min" else (values[0] < values[1] < values[2])


def test_a_monitor_that_rests_does_not_end_a_training_that_watches_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    examine, calls = characterization.examine, iter(range(9))

    def once(*args: Any, **kwargs: Any) -> Any:
        if next(calls):
            raise OSError("no space left")
        return examine(*args, **kwargs)

    monkeypatch.setattr("lstm_monitor.monitor.check.examine", once)
    stopping = import_module(f"{LIGHTNING}.callbacks").EarlyStopping(RESPONSE, patience=1, mode="min")
    with pytest.warns(lm.MonitorWarning):
        runner = fit(tmp_path, callback(LIGHTNING, on_error="warn"), stopping, max_epochs=6)
    assert runner.current_epoch == 6


def test_validation_by_batches_sets_the_operating_point_once_it_comes(tmp_path: Path) -> None:
    sink = lm.MemorySink()
    fit(
        tmp_path, callback(LIGHTNING, sinks=[sink]), check_val_every_n_epoch=None, val_check_interval=6,
        num_sanity_val_steps=0, max_epochs=4,
    )  # fmt: skip
    assert {layer.point_source for report in sink.reports for layer in report.layers} == {"held_out"}
    assert [report.epoch for report in sink.reports] == [2, 3, 4]


# Which package


@both_packages
def test_listed_and_alone(package: str, tmp_path: Path) -> None:
    for given in (callback(package), [callback(package)]):
        runner = import_module(package).Trainer(
            callbacks=given, max_epochs=1, logger=False, enable_checkpointing=False, default_root_dir=tmp_path,
            **trainings.QUIET,
        )  # fmt: skip
        runner.fit(modules(package).Plain(), loader(), loader(1))
        assert (given[0] if isinstance(given, list) else given).report.checks == 2


@both_packages
def test_with_both_loaded_one_class_serves_both(package: str, tmp_path: Path) -> None:
    for name in PACKAGES:
        assert issubclass(integrations.LSTMMonitorCallback, import_module(name).Callback)
    ours = integrations.LSTMMonitorCallback(on_error="raise", horizon=HORIZON)
    runner = import_module(package).Trainer(
        callbacks=ours, max_epochs=1, logger=False, enable_checkpointing=False, **trainings.QUIET
    )
    runner.fit(modules(package).Plain(), loader(), loader(1))
    assert ours.report.checks == 2


NONE_LOADED = """
from lstm_monitor.integrations import LSTMMonitorCallback  # before Lightning, as sorted imports have it
import lightning.pytorch, pytorch_lightning

assert issubclass(LSTMMonitorCallback, lightning.pytorch.Callback)
assert issubclass(LSTMMonitorCallback, pytorch_lightning.Callback)
"""
ONE_LOADED = """
import sys, warnings
import {package} as pl
import torch
from lstm_monitor import integrations

class Module(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.rnn = torch.nn.LSTM(2, 3, batch_first=True)

    def training_step(self, batch, batch_idx):
        return self.rnn(batch)[0].square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

ours = integrations.LSTMMonitorCallback(on_error="raise", horizon=16)
assert isinstance(ours, pl.Callback)
assert type(ours).__module__ == "lstm_monitor.integrations.lightning_callback.{module}", type(ours)
runner = pl.Trainer(callbacks=ours, max_epochs=1, logger=False, enable_checkpointing=False, accelerator="cpu",
                    enable_progress_bar=False, enable_model_summary=False)
runner.fit(Module(), torch.utils.data.DataLoader(torch.randn(8, 5, 2), batch_size=4))
assert ours.report["rnn.l0"].hidden_size == 3
assert "{other}" not in sys.modules
"""


def python(script: str, *args: Any, cwd: Path | None = None, **environment: str) -> str:
    """Run a script in a new interpreter; its output."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script, *map(str, args)],
        cwd=cwd or Path(trainings.__file__).parents[2],
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.thorough
@both_packages
def test_with_one_package_loaded_the_other_is_left_alone(package: str) -> None:
    lightning = package == LIGHTNING
    module = "of_lightning" if lightning else "of_pytorch_lightning"
    other = "pytorch_lightning" if lightning else "lightning.pytorch"
    python(ONE_LOADED.format(package=package, module=module, other=other))


@pytest.mark.thorough
def test_with_none_loaded_yet_it_serves_whichever_comes() -> None:
    python(NONE_LOADED)


# Copies, several of them, several fits


COPIES: dict[str, Callable[[Any], Any]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda ours: pickle.loads(pickle.dumps(ours)),
}


@pytest.mark.parametrize("how", COPIES)
def test_a_copy_before_the_fit_works_like_the_first(how: str, tmp_path: Path) -> None:
    first = callback(LIGHTNING, every_n_epochs=lm.every(2), layers=["net.*"], sinks=[lm.MemorySink()])
    second = COPIES[how](first)
    fit(tmp_path, second, max_epochs=3)
    assert [report.step for report in second.sinks[0].reports] == [0, 7, 11]
    assert first.report is None
    assert first.sinks[0].reports == []


@both_packages
@pytest.mark.parametrize("how", COPIES)
def test_a_copy_after_the_fit_begins_anew_and_holds_no_model(how: str, package: str, tmp_path: Path) -> None:
    first = callback(package)
    fit(tmp_path, first, package=package)
    second = COPIES[how](first)
    assert second.monitor is None
    assert not hasattr(second, "log")
    assert len(pickle.dumps(second)) < 1_000_000
    torch.testing.assert_close(second.report.scalars(), first.report.scalars())
    fit(tmp_path, second, package=package)
    assert second.report.checks == 3
    assert second.report["net.rnn.l0"].rank_history.steps.tolist() == [0, 3, 7]


def test_a_trainer_is_copied_with_its_callback(tmp_path: Path) -> None:
    runner = trainings.trainer(LIGHTNING, tmp_path, callback(LIGHTNING))
    again = copy.deepcopy(runner)
    again.fit(modules(LIGHTNING).Plain(), loader(), loader(1))
    found = [item for item in again.callbacks if hasattr(item, "report")]
    assert [item.report.checks for item in found] == [3]


def test_one_object_in_two_trainers_with_other_models(tmp_path: Path) -> None:
    ours = callback(LIGHTNING)
    fit(tmp_path, ours)
    fit(tmp_path, ours, module="Late")
    model = modules(LIGHTNING).Plain("GRU")
    runner = trainings.trainer(LIGHTNING, tmp_path, ours)
    runner.fit(model, loader(), loader(1))
    assert ours.report["net.rnn.l0"].kind == "gru"
    assert ours.report.checks == 3
    assert ours.report["net.rnn.l0"].rank_history.steps.tolist() == [0, 3, 7]


def test_one_object_fitted_twice_by_one_trainer(tmp_path: Path) -> None:
    sink = lm.MemorySink()
    runner = trainings.trainer(LIGHTNING, tmp_path, callback(LIGHTNING, sinks=[sink]))
    model = modules(LIGHTNING).Plain()
    runner.fit(model, loader(), loader(1))
    runner.fit_loop.max_epochs = 3
    runner.fit(model, loader(), loader(1))
    assert [(report.checks, report.step, report.epoch) for report in sink.reports] == [
        (1, 0, 0), (2, 3, 1), (3, 7, 2), (1, 8, 2), (2, 11, 3),
    ]  # fmt: skip


def test_one_object_listed_twice_is_lightnings_own_clear_error(tmp_path: Path) -> None:
    ours = callback(LIGHTNING)
    with pytest.raises(RuntimeError, match="state_key"):
        trainings.trainer(LIGHTNING, tmp_path, ours, ours)


def test_validate_and_test_outside_of_a_fit_do_nothing(tmp_path: Path) -> None:
    ours = callback(LIGHTNING)
    runner = fit(tmp_path, ours, max_epochs=1)
    report = ours.report
    runner.validate(runner.lightning_module, loader(1), verbose=False)
    assert ours.report is report
    assert not any(part._forward_hooks for part in runner.lightning_module.modules())


def test_two_callbacks_with_names_of_their_own(tmp_path: Path) -> None:
    one = callback(LIGHTNING, name="a", rank_by="settling_time")
    other = callback(LIGHTNING, name="b", every_n_steps=2)
    runner = fit(tmp_path, one, other)
    runner.save_checkpoint(tmp_path / "both.ckpt")
    states = torch.load(tmp_path / "both.ckpt", weights_only=True)["callbacks"]
    assert {"LSTMMonitor[a]", "LSTMMonitor[b]"} <= states.keys()
    assert (one.report.checks, other.report.checks) == (3, 5)
    assert one.report["net.rnn.l0"].ranking.name == "step/settling_time"


# Checkpoints


@pytest.fixture
def stopped(tmp_path: Path) -> Path:
    """A checkpoint after two epochs with the callback."""
    runner = fit(tmp_path, callback(LIGHTNING))
    runner.save_checkpoint(tmp_path / "stopped.ckpt")
    return tmp_path / "stopped.ckpt"


def test_a_run_resumes_without_gaps_or_doubles(stopped: Path, tmp_path: Path) -> None:
    sink = lm.MemorySink()
    fit(tmp_path, callback(LIGHTNING, sinks=[sink]), ckpt_path=stopped, max_epochs=4, num_sanity_val_steps=0)
    assert [(report.checks, report.step, report.epoch) for report in sink.reports] == [(4, 11, 3), (5, 15, 4)]
    layer = sink.reports[0]["net.rnn.l0"]
    assert layer.rank_history.steps.tolist() == [0, 3, 7, 11]
    assert layer.previous is not None
    assert layer.first is not None
    assert layer.drift


def test_a_resumed_run_gives_the_last_values_until_the_next_check(stopped: Path, tmp_path: Path) -> None:
    seen: list[float] = []

    class Looking(import_module(LIGHTNING).Callback):  # type: ignore[misc]
        def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
            seen.append(float(trainer.callback_metrics[RESPONSE]))

    saved = torch.load(stopped, weights_only=True)["callbacks"]["LSTMMonitor[lstm_monitor]"]["values"][RESPONSE]
    fit(tmp_path, callback(LIGHTNING), Looking(), ckpt_path=stopped, max_epochs=3)
    assert seen == pytest.approx([saved] * 4)


def test_lightning_reads_its_checkpoint_with_weights_only(stopped: Path, tmp_path: Path) -> None:
    ours = callback(LIGHTNING)
    runner = trainings.trainer(LIGHTNING, tmp_path, ours, max_epochs=3)
    runner.fit(modules(LIGHTNING).Plain(), loader(), loader(1), ckpt_path=stopped, weights_only=True)
    assert (ours.report.checks, ours.report.step) == (4, 11)


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`:UserWarning")  # nothing saves the second run
@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended")
def test_a_run_resumes_in_the_middle_of_an_epoch(tmp_path: Path) -> None:
    saving = import_module(f"{LIGHTNING}.callbacks").ModelCheckpoint(tmp_path, every_n_train_steps=2, save_top_k=-1)
    first, second = lm.MemorySink(), lm.MemorySink()
    fit(tmp_path, callback(LIGHTNING, every_n_steps=2, sinks=[first]), saving, enable_checkpointing=True)
    path = tmp_path / "epoch=1-step=6.ckpt"
    fit(tmp_path, callback(LIGHTNING, every_n_steps=2, sinks=[second]), ckpt_path=path, max_epochs=3)
    assert [report.checks for report in first.reports] == [1, 2, 3, 4, 5]
    assert [(report.checks, report.epoch) for report in second.reports] == [(5, 1), (6, 2), (7, 2)]
    assert second.reports[0].step == first.reports[-1].step == 7


@pytest.mark.parametrize("weights_only", [True, False])
def test_a_checkpoint_is_plain_and_loads_either_way(weights_only: bool, stopped: Path) -> None:
    states = torch.load(stopped, weights_only=weights_only)["callbacks"]["LSTMMonitor[lstm_monitor]"]
    assert states["checks"] == 3
    assert set(states["layers"]) == {"net.rnn.l0"}


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`:UserWarning")  # its state has no owner then
def test_a_checkpoint_of_ours_loads_without_the_callback(stopped: Path, tmp_path: Path) -> None:
    assert fit(tmp_path, ckpt_path=stopped, max_epochs=3).current_epoch == 3


def test_a_checkpoint_of_others_loads_with_the_callback(tmp_path: Path) -> None:
    fit(tmp_path).save_checkpoint(tmp_path / "theirs.ckpt")
    sink = lm.MemorySink()
    fit(tmp_path, callback(LIGHTNING, sinks=[sink]), ckpt_path=tmp_path / "theirs.ckpt", max_epochs=3)
    assert [(report.checks, report.step, report.epoch) for report in sink.reports] == [(1, 8, 2), (2, 11, 3)]


def test_resumed_while_switched_off_it_keeps_what_it_knew(
    stopped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as off:
        off.setenv("LSTM_MONITOR", "off")
        runner = fit(tmp_path, callback(LIGHTNING), ckpt_path=stopped, max_epochs=3)
        runner.save_checkpoint(tmp_path / "off.ckpt")
    ours = callback(LIGHTNING)
    fit(tmp_path, ours, ckpt_path=tmp_path / "off.ckpt", max_epochs=4)
    assert ours.report["net.rnn.l0"].rank_history.steps.tolist() == [0, 3, 7, 15]


# Configuration files


CONFIG = """
model:
  kind: GRU
data:
  count: 16
trainer:
  accelerator: cpu
  max_epochs: 2
  enable_progress_bar: false
  enable_model_summary: false
  log_every_n_steps: 1
  default_root_dir: {folder}
  logger:
    class_path: {package}.loggers.CSVLogger
    init_args:
      save_dir: {folder}
  callbacks:
    - class_path: lstm_monitor.integrations.LSTMMonitorCallback
      init_args:
        every_n_epochs: 2
        rank_by: settling_time
        horizon: 32
        on_error: raise
        layers:
          - net.rnn.*
"""


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Lightning calls old names of jsonargparse
@both_packages
def test_lightning_cli_takes_it_from_yaml(package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py"])
    base = import_module(package).LightningDataModule

    class Data(base):  # type: ignore[misc, valid-type]
        def __init__(self, count: int = 32) -> None:
            super().__init__()
            self.count = count

        def train_dataloader(self) -> Any:
            return loader(count=self.count)

        def val_dataloader(self) -> Any:
            return loader(1, self.count)

    config = tmp_path / "config.yaml"
    config.write_text(CONFIG.format(folder=tmp_path, package=package))
    cli = import_module(f"{package}.cli").LightningCLI(
        modules(package).Plain, Data, args=["fit", "--config", str(config)], seed_everything_default=False
    )
    ours = next(item for item in cli.trainer.callbacks if isinstance(item, integrations.LSTMMonitorCallback))
    assert ours.report["net.rnn.l0"].kind == "gru"
    assert ours.report["net.rnn.l0"].ranking.name == "step/settling_time"
    assert (ours.report.checks, ours.report.step) == (2, 3)
    logged = next(tmp_path.rglob("metrics.csv")).read_text()
    assert RESPONSE in logged
    saved = next(tmp_path.rglob("lightning_logs/**/config.yaml")).read_text()
    assert "every_n_epochs: 2" in saved


# Bad arguments


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"every_n_steps": 0}, "every_n_steps=0"),
        ({"every_n_epochs": "2"}, "every_n_epochs='2'"),
        ({"budget": 2}, "budget=2"),
        ({"rank_by": "setling_time"}, "Did you mean 'settling_time'"),
        ({"on_error": "rise"}, "Did you mean 'raise'"),
        ({"horizon": 2}, "horizon=2"),
        ({"pictures_every": -1}, "pictures_every=-1"),
        ({"held_out_steps": 0}, "held_out_steps=0"),
    ],
)
def test_bad_arguments_are_told_at_once(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        callback(LIGHTNING, **options)


def test_no_two_reports_of_one_run_are_of_the_same_weights(tmp_path: Path) -> None:
    weights: list[torch.Tensor] = []

    class Weights(lm.MemorySink):
        def write(self, report: lm.Report) -> None:
            weights.append(torch.cat([p.detach().flatten().clone() for p in model.parameters()]))

    model = modules(LIGHTNING).Plain()
    options = {"every_n_steps": 2, "every_n_epochs": 1, "sinks": [Weights()]}
    runner = trainings.trainer(LIGHTNING, tmp_path, callback(LIGHTNING, **options), max_epochs=3)
    runner.fit(model, loader(), loader(1))
    assert len(weights) == 7
    assert not any(torch.equal(one, other) for one, other in itertools.combinations(weights, 2))


def test_given_held_out_data_serve_every_check_without_any_validation(tmp_path: Path) -> None:
    sink = lm.MemorySink()
    held_out = {"held_out": sequences(2, 4), "sinks": [sink]}
    trainings.trainer(LIGHTNING, tmp_path, callback(LIGHTNING, **held_out)).fit(modules(LIGHTNING).Plain(), loader())
    for report in sink.reports:
        assert report.layers[0].dead() is not None, "activity is known"
        assert report.layers[0].ranking.name == "output_sensitivity"
