"""The ablation check at the end of a Lightning training: its score is the Trainer's own, and nothing of it stays."""

from __future__ import annotations

import contextlib
import copy
import logging
import pickle
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torchmetrics
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import lstm_monitor as lm
from lstm_monitor.report.keys import key
from lstm_monitor.studies.ablation.check import AblationCheck
from tests.helpers import trainings
from tests.helpers.clocks import QuietClock
from tests.helpers.trainings import PACKAGES, callback, differences, loader, modules, seed_all, sequences, trace

LIGHTNING = PACKAGES[0]
QUICK = {"rankings": ("measured",), "random_orders": 1, "points": 3}
both_packages = pytest.mark.parametrize("package", PACKAGES)


def quick(**options: Any) -> AblationCheck:
    """A check that takes a fraction of a second."""
    return AblationCheck(**QUICK | options)


# Modules that log in the ways that people log


class Dicts:
    """Batches are dicts, which the step takes apart; everything is logged by `log_dict`."""

    def training_step(self: Any, batch: Any, batch_idx: int) -> Tensor:
        return self.loss((batch["x"], batch["y"]))

    def validation_step(self: Any, batch: Any, batch_idx: int) -> None:
        target = batch.pop("y")
        batch["x"] *= 0.5  # in place
        loss = self.loss((batch["x"], target))
        self.log_dict({"val_loss": loss, "val_twice": 2 * loss})

    @staticmethod
    def data(seed: int) -> Any:
        x = sequences(seed, 20)
        rows = [{"x": row, "y": row[-1:, 0]} for row in x]
        return DataLoader(rows, batch_size=8)  # type: ignore[arg-type]  # a list is a data set


class Weighted:
    """Batches count as the module says, not as their sizes do; several reductions."""

    def validation_step(self: Any, batch: Any, batch_idx: int) -> None:
        loss = self.loss(batch)
        self.log("val_loss", loss, batch_size=1 + 3 * batch_idx)
        self.log("val_worst", loss, reduce_fx="max")
        self.log("val_least", loss, reduce_fx=torch.min)
        self.log("val_sum", loss, reduce_fx="sum")
        self.log("val_both", loss, on_step=True, on_epoch=True)
        self.log("val_twice_a_batch", loss)
        self.log("val_twice_a_batch", loss + 1)
        self.log("val_integer", len(batch[0]) + 0.5)


class Metrics:
    """Metric objects, one by itself and some in a collection."""

    def __init__(self: Any) -> None:
        super().__init__()
        self.accuracy = torchmetrics.Accuracy("binary")
        kinds = {"f1": torchmetrics.F1Score("binary"), "precision": torchmetrics.Precision("binary")}
        self.several = torchmetrics.MetricCollection(kinds, prefix="val_")
        self.error = torchmetrics.MeanSquaredError(squared=False)

    def validation_step(self: Any, batch: Any, batch_idx: int) -> None:
        output = self.forward(batch[0])
        target = (batch[1] > 0).int()
        self.accuracy(output.sigmoid(), target)
        self.several.update(output.sigmoid(), target)
        self.error.update(output, batch[1])
        self.log("val_acc", self.accuracy)
        self.log("val_rmse", self.error)
        self.log_dict(self.several)


class AtTheEnd:
    """The score is made of all batches in `on_validation_epoch_end`, from lists on the module."""

    def __init__(self: Any) -> None:
        super().__init__()
        self.validation_step_outputs: list[Tensor] = []
        self.kept: dict[str, list[Tensor]] = {"targets": []}
        self.loose = [torchmetrics.MeanMetric()]  # no part of the module

    def validation_step(self: Any, batch: Any, batch_idx: int) -> Tensor:
        self.validation_step_outputs.append(self.forward(batch[0]))
        self.kept["targets"].append(batch[1])
        self.loose[0].update(batch[1])
        return self.validation_step_outputs[-1]

    def on_validation_epoch_end(self: Any) -> None:
        output, target = torch.cat(self.validation_step_outputs), torch.cat(self.kept["targets"])
        self.log("val_correlation", torch.corrcoef(torch.cat([output, target], 1).T)[0, 1])
        if self.logger is not None:
            self.logger.experiment.add_text("kept", "once a validation", self.global_step)
        self.validation_step_outputs.clear()
        self.kept["targets"].clear()


class Prepared(AtTheEnd):
    """The steps need what a hook makes, and the score is logged by another."""

    def on_validation_epoch_start(self: Any) -> None:
        self.validation_step_outputs = []

    def on_validation_batch_end(self: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.log("val_batch", nn.functional.mse_loss(outputs, batch[1]))

    def on_validation_epoch_end(self: Any) -> None:
        super().on_validation_epoch_end()
        del self.validation_step_outputs


class Returned:
    """Nothing is logged, the loss is returned."""

    def validation_step(self: Any, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        return {"loss": self.loss(batch)}


class Several:
    """More than one loader."""

    def validation_step(self: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.log("val_loss", self.loss(batch) + dataloader_idx)
        self.log(f"own_{dataloader_idx}", self.loss(batch), add_dataloader_idx=False)

    @staticmethod
    def data(seed: int) -> Any:
        return {"a": loader(seed, 20), "b": loader(seed + 1, 12)}


class Noisy:
    """Dropout and batch norm."""

    def __init__(self: Any) -> None:
        super().__init__(noisy=True)


class Drawing:
    """Samples in its validation, and a shuffled loader with a generator of its own."""

    def validation_step(self: Any, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.loss(batch) + 0.1 * torch.rand(()))

    @staticmethod
    def data(seed: int) -> Any:
        return loader(seed, 20, shuffle=True, generator=torch.Generator().manual_seed(seed))


class Heads:
    """The parts are called one by one."""

    def validation_step(self: Any, batch: Any, batch_idx: int) -> None:
        out, _ = self.net.rnn(batch[0])
        self.log("val_loss", nn.functional.mse_loss(self.net.head(out[:, -1]), batch[1]))


class Gated:
    """A GRU, which half precision computes in another order than copies in single precision."""

    def __init__(self: Any) -> None:
        super().__init__(kind="GRU")


STYLES = (Gated, Dicts, Weighted, Metrics, AtTheEnd, Prepared, Returned, Several, Noisy, Drawing, Heads)


@cache
def styles(package: str) -> SimpleNamespace:
    """The modules above for one package."""
    base = modules(package).Plain
    return SimpleNamespace(Plain=base, **{kind.__name__: type(kind.__name__, (kind, base), {}) for kind in STYLES})


def validation_of(style: str, seed: int = 1) -> Any:
    """Its validation data: 20 sequences in batches of 8, the last one smaller, unless the style has its own."""
    kind = getattr(sys.modules[__name__], style, None)
    return kind.data(seed) if hasattr(kind, "data") else loader(seed, 20)


def training_of(style: str) -> Any:
    return Dicts.data(0) if style == "Dicts" else loader()


def fit(folder: Path, *ours: Any, style: str = "Plain", package: str = LIGHTNING, **options: Any) -> Any:
    """A short training in one of the styles; returns the Trainer."""
    seed_all()
    runner = trainings.trainer(package, folder, *ours, **options)
    runner.fit(getattr(styles(package), style)(), training_of(style), validation_of(style))
    return runner


def study_of(folder: Path, check: AblationCheck, **run: Any) -> tuple[lm.Report, Any]:
    ours = callback(run.get("package", LIGHTNING), ablation=check)
    runner = fit(folder, ours, **run)
    return ours.report, runner


# The score is the Trainer's own


SCORES: dict[str, tuple[str, str | None]] = {
    "a logged loss": ("Plain", None),
    "log_dict, and a step that changes its batch": ("Dicts", None),
    "another key of log_dict": ("Dicts", "val_twice"),
    "batch sizes given": ("Weighted", "val_loss"),
    "a maximum": ("Weighted", "val_worst"),
    "a minimum": ("Weighted", "val_least"),
    "a sum": ("Weighted", "val_sum"),
    "on step and on epoch": ("Weighted", "val_both"),
    "the name of the epoch's value": ("Weighted", "val_both_epoch"),
    "twice a batch": ("Weighted", "val_twice_a_batch"),
    "a number": ("Weighted", "val_integer"),
    "a metric object": ("Metrics", "val_acc"),
    "a metric object that is no mean": ("Metrics", "val_rmse"),
    "one of a collection": ("Metrics", "val_f1"),
    "at the end, from lists": ("AtTheEnd", "val_correlation"),
    "the only key, at the end": ("AtTheEnd", None),
    "after a hook": ("Prepared", "val_correlation"),
    "in a hook of the batch": ("Prepared", "val_batch"),
    "one of two loaders": ("Several", "val_loss/dataloader_idx_1"),
    "the first of two loaders": ("Several", "val_loss/dataloader_idx_0"),
    "a loader's own key": ("Several", "own_1"),
    "dropout and batch norm": ("Noisy", None),
    "parts called one by one": ("Heads", None),
}


@pytest.mark.parametrize("name", SCORES)
def test_the_intact_score_is_the_trainers_own(name: str, tmp_path: Path) -> None:
    style, score = SCORES[name]
    report, runner = study_of(tmp_path, quick(score=score), style=style, max_epochs=1)
    own = runner.callback_metrics[score or report.study.score]
    assert report.study.intact == pytest.approx(float(own), rel=1e-5)
    assert not [note for note in report.study.notes if "Trainer" in note or "random" in note]
    assert bool(torch.isfinite(report.study["net.rnn.l0"].effects.score).all())
    assert bool((report.study["net.rnn.l0"].effects.output > 0).any())


def test_metric_objects_begin_empty(tmp_path: Path) -> None:
    class Dirty(styles(LIGHTNING).Metrics):  # type: ignore[misc, name-defined]
        def on_train_epoch_end(self) -> None:  # after the only validation
            self.accuracy.update(torch.ones(50), torch.zeros(50, dtype=torch.int))

    ours = callback(LIGHTNING, ablation=quick(score="val_acc"))
    runner = trainings.trainer(LIGHTNING, tmp_path, ours, max_epochs=1)
    runner.fit(Dirty(), loader(), loader(1, 20))
    assert ours.report.study.intact == pytest.approx(float(runner.callback_metrics["val_acc"]), rel=1e-5)
    assert int(runner.lightning_module.accuracy.tn + runner.lightning_module.accuracy.fp) == 50  # as it was


@both_packages
def test_in_both_packages(package: str, tmp_path: Path) -> None:
    for style, score in (("Plain", None), ("Metrics", "val_acc"), ("AtTheEnd", None)):
        report, runner = study_of(tmp_path, quick(score=score), style=style, package=package)
        own = runner.callback_metrics[report.study.score]
        assert report.study.intact == pytest.approx(float(own), rel=1e-5)


def test_a_returned_loss_is_the_mean_over_sequences(tmp_path: Path) -> None:
    report, runner = study_of(tmp_path, quick(), style="Returned")
    model = runner.lightning_module
    whole = torch.cat([x for x, _ in loader(1, 20)]), torch.cat([y for _, y in loader(1, 20)])
    with torch.no_grad():
        assert report.study.intact == pytest.approx(float(model.loss(whole)), rel=1e-5)
    assert (report.study.score, report.study.better) == ("loss", "lower")


@pytest.mark.parametrize("style", ["Plain", pytest.param("Gated", marks=pytest.mark.thorough)])
@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true"])
def test_in_other_precisions(precision: str, style: str, tmp_path: Path) -> None:
    report, runner = study_of(tmp_path, quick(), style=style, precision=precision)
    assert report.study.intact == pytest.approx(float(runner.callback_metrics["val_loss"]), rel=1e-5)


def test_a_compiled_network(tmp_path: Path) -> None:
    ours = callback(LIGHTNING, ablation=quick())
    model = modules(LIGHTNING).Plain()
    model.net = torch.compile(model.net, backend="eager")
    runner = trainings.trainer(LIGHTNING, tmp_path, ours)
    runner.fit(model, loader(), loader(1, 20))
    own = float(runner.callback_metrics["val_loss"])
    assert ours.report.study.intact == pytest.approx(own, rel=1e-5)


def test_loaders_that_are_read_side_by_side(tmp_path: Path) -> None:
    class Together(modules(LIGHTNING).Plain):  # type: ignore[misc]
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("val_loss", self.loss(batch["a"]) + self.loss(batch["b"]), batch_size=len(batch["a"][0]))

    from lightning.pytorch.utilities import CombinedLoader

    ours = callback(LIGHTNING, ablation=quick())
    runner = trainings.trainer(LIGHTNING, tmp_path, ours)
    data = CombinedLoader({"a": loader(1, 16), "b": loader(2, 24)}, "min_size")
    runner.fit(Together(), loader(), data)
    assert ours.report.study.intact == pytest.approx(float(runner.callback_metrics["val_loss"]), rel=1e-5)


def test_the_effects_are_those_of_removing_the_cells(tmp_path: Path) -> None:
    report, runner = study_of(tmp_path, quick())
    model = runner.lightning_module.eval()
    effects = report.study["net.rnn.l0"].effects.score
    for cell in range(trainings.CELLS):
        without = copy.deepcopy(model)
        rows = [2 * trainings.CELLS + cell]  # the candidate of the cell
        for weight in (without.net.rnn.weight_ih_l0, without.net.rnn.weight_hh_l0, without.net.rnn.bias_ih_l0,
                       without.net.rnn.bias_hh_l0):  # fmt: skip
            weight.data[rows] = 0
        assert float(effects[cell]) == pytest.approx(own_loss(without) - own_loss(model), abs=1e-6)


def own_loss(model: Any) -> float:
    with torch.no_grad():
        batches = list(loader(1, 20))
        return float(sum(model.loss(batch) * len(batch[0]) for batch in batches) / 20)


# Which score, and on how much


def test_a_part_of_the_validation_is_said(tmp_path: Path) -> None:
    report, _ = study_of(tmp_path, quick(sequences=10))
    assert report.study.sequences == 16
    assert report.study.notes[0] == "on 16 sequences, the first 2 of 3 validation batches (AblationCheck(sequences=))"


def test_the_trainers_own_limit_holds(tmp_path: Path) -> None:
    report, runner = study_of(tmp_path, quick(), limit_val_batches=1)
    assert report.study.sequences == 8
    assert report.study.intact == pytest.approx(float(runner.callback_metrics["val_loss"]), rel=1e-5)


@pytest.mark.parametrize("validated", [False, True])
def test_a_function_of_the_users_own(validated: bool, tmp_path: Path) -> None:
    def squared(model: Any) -> Tensor:
        x = sequences(9, 12)
        return (model(x) - x[:, -1:, 0]).square()[:, 0]

    ours = callback(LIGHTNING, ablation=quick(score=squared, better="lower"))
    model = modules(LIGHTNING).Plain()
    runner = trainings.trainer(LIGHTNING, tmp_path, ours)
    runner.fit(model, loader(), loader(1, 20) if validated else None)
    study = ours.report.study
    assert (study.score, study.better) == ("squared", "lower")
    assert study.sequences == (20 if validated else 12)
    with torch.no_grad():
        assert study.intact == pytest.approx(float(squared(model.eval()).mean()), rel=1e-5)
    [trial] = [trial for trial in study["net.rnn.l0"].trials if trial.ranking.name == "output_sensitivity"]
    assert bool((trial.ranking.scores > 0).all())
    assert bool(torch.isfinite(study["net.rnn.l0"].effects.score_error).all())  # a loss a sequence


def test_a_trainers_own_value_of_other_weights_is_told(tmp_path: Path) -> None:
    report, runner = study_of(tmp_path, quick(), max_epochs=3, check_val_every_n_epoch=2)
    own = float(runner.callback_metrics["val_loss"])
    assert report.study.notes == (f"the Trainer's own last validation gave val_loss = {own:.5g}",)


@pytest.mark.parametrize(
    ("style", "score", "others", "better"),
    [
        ("Metrics", "val_acc", [], "higher"),
        ("Metrics", "val_rmse", [], "lower"),
        ("AtTheEnd", None, [("ModelCheckpoint", "max")], "higher"),
        ("AtTheEnd", None, [("EarlyStopping", "min")], "lower"),
        ("Plain", None, [], "lower"),
    ],
)
def test_which_values_are_better(
    style: str, score: str | None, others: list[tuple[str, str]], better: str, tmp_path: Path
) -> None:
    kinds = import_module(f"{LIGHTNING}.callbacks")
    watching = [getattr(kinds, name)(monitor="val_correlation", mode=mode) for name, mode in others]
    ours = callback(LIGHTNING, ablation=quick(score=score))
    fit(tmp_path, ours, *watching, style=style, enable_checkpointing=True)
    assert ours.report.study.better == better


def test_the_watched_ranking_is_the_first_on_trial(tmp_path: Path) -> None:
    ours = callback(LIGHTNING, rank_by="settling_time", ablation=quick(rankings=["measured", "settling_time"]))
    fit(tmp_path, ours)
    names = [trial.ranking.name for trial in ours.report.study["net.rnn.l0"].trials]
    assert names == ["step/settling_time", "measured"]


def test_held_out_data_serves_where_there_is_no_validation(tmp_path: Path) -> None:
    ours = callback(LIGHTNING, ablation=quick(), held_out=sequences(5, 8))
    trainings.trainer(LIGHTNING, tmp_path, ours).fit(modules(LIGHTNING).Plain(), loader())
    assert (ours.report.study.score, ours.report.study.sequences) == (None, 8)


# Where it cannot be made


@contextlib.contextmanager
def told(caplog: pytest.LogCaptureFixture) -> Iterator[list[str]]:
    """Lines of our log inside; no warning of ours may come."""
    lines: list[str] = []
    with warnings.catch_warnings(), caplog.at_level(logging.WARNING, "lstm_monitor"):
        warnings.simplefilter("error", lm.MonitorWarning)
        yield lines
    lines += [record.getMessage() for record in caplog.records if record.name == "lstm_monitor"]


@pytest.mark.parametrize("how", ["no loader", "no batches", "no step"])
def test_without_validation_it_says_so_and_skips(how: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ours, model = callback(LIGHTNING, ablation=quick(), held_out=None), modules(LIGHTNING).Plain()
    if how == "no step":
        base = import_module(LIGHTNING).LightningModule
        model = type("NoStep", (modules(LIGHTNING).Plain,), {"validation_step": base.validation_step})()
    options = {"limit_val_batches": 0} if how == "no batches" else {}
    with told(caplog) as lines:
        runner = trainings.trainer(LIGHTNING, tmp_path, ours, **options)
        data = loader(1, 20) if how == "no batches" else None
        runner.fit(model, loader(), data)
    assert ours.report.study is None
    assert ours.report.checks == 3
    assert sum("makes no ablation check: the Trainer has no validation" in line for line in lines) == 1


@contextlib.contextmanager
def warned() -> Iterator[list[str]]:
    texts: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield texts
    texts += [str(warning.message) for warning in caught if issubclass(warning.category, lm.MonitorWarning)]


FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "a typo in the score": ({"score": "val_los"}, "score='val_los' is not logged by the module's validation. Did you"),
    "no such layer": ({"layers": "nett.*"}, "nett"),
    "a score that is NaN": (
        {"score": lambda model: model(sequences()).sum() * torch.nan},
        "evaluate returned NaN for the whole network",
    ),
    "a score that fails": ({"score": lambda model: 1 / 0}, "ZeroDivisionError"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_one_warning_and_costs_no_report(name: str, tmp_path: Path) -> None:
    options, words = FAULTS[name]
    memory = lm.MemorySink()
    with warned() as texts:
        ours = callback(LIGHTNING, on_error="warn", ablation=quick(**options), sinks=[memory])
        found = fit(tmp_path, ours)
    without = fit(tmp_path)
    assert differences(*[trace(runner, runner.lightning_module) for runner in (without, found)]) == []
    assert [report.step for report in memory.reports] == [0, 3, 7]
    assert ours.report.study is None
    assert len(texts) == 1
    assert "The ablation check failed" in texts[0]
    assert words in texts[0]


def test_errors_are_raised_where_that_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Did you mean 'val_loss'"):
        fit(tmp_path, callback(LIGHTNING, ablation=quick(score="val_los")))


def test_after_an_exception_or_while_it_rests_nothing_is_made(tmp_path: Path) -> None:
    called: list[Any] = []
    ours = callback(LIGHTNING, on_error="warn", ablation=quick(score=called.append), layers="nett.*")
    with warned() as texts:
        fit(tmp_path, ours)
    assert (called, len(texts)) == ([], 1)


# Nothing of it stays


def left_behind(folder: Path, *ours: Any, style: str, package: str = LIGHTNING, **options: Any) -> dict[str, Any]:
    """All that a training leaves behind, the Trainer's own state and the module's attributes too."""
    runner = fit(folder, *ours, style=style, package=package, **options)
    module = runner.lightning_module
    values = {name: value for name, value in runner.callback_metrics.items() if not name.startswith("lstm_monitor/")}
    loops = runner.fit_loop.state_dict()
    drawn = runner.val_dataloaders.generator.get_state() if style == "Drawing" else None
    lists = {name: value for name, value in vars(module).items() if isinstance(value, list | dict | int | float)}
    states = [metric.metric_state for metric in module.modules() if isinstance(metric, torchmetrics.Metric)]
    loose = [metric.metric_state for metric in getattr(module, "loose", [])]
    return trace(runner, module) | {
        "callback_metrics": values,
        "logged_metrics": {name: value for name, value in runner.logged_metrics.items() if "lstm_monitor" not in name},
        "loops": {name: part for name, part in loops.items() if "state_dict" not in name},
        "stage": str(runner.state.stage),
        "state": str(runner.state),
        "drawn": drawn,
        "names": sorted(vars(module)),
        "lists": {name: len(value) if hasattr(value, "__len__") else value for name, value in lists.items()},
        "metrics": states,
        "loose": loose,
        "loggers": len(runner.loggers),
    }


UNTOUCHED: dict[str, dict[str, Any]] = {
    "plain": {"style": "Plain"},
    "dropout and batch norm": {"style": "Noisy"},
    "random": {"style": "Drawing"},
    "dicts": {"style": "Dicts"},
    "metric objects": {"style": "Metrics"},
    "lists": {"style": "AtTheEnd"},
    "hooks": {"style": "Prepared"},
    "several loaders": {"style": "Several"},
    "bf16-mixed": {"style": "Noisy", "precision": "bf16-mixed"},
    "bf16-true": {"style": "Plain", "precision": "bf16-true"},
}


OFTEN = ("dropout and batch norm", "random", "metric objects", "bf16-mixed")


@pytest.mark.filterwarnings("ignore:Your `val_dataloader`'s sampler has shuffling enabled")
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in OFTEN else pytest.mark.thorough) for name in UNTOUCHED]
)
def test_every_bit_is_the_same_with_and_without(name: str, tmp_path: Path) -> None:
    run = UNTOUCHED[name]
    ours = callback(LIGHTNING, ablation=AblationCheck(seconds=2.0, random_orders=1, points=3))
    assert differences(left_behind(tmp_path, **run), left_behind(tmp_path, ours, **run)) == []
    assert ours.report.study is not None


def test_the_same_for_pytorch_lightning(tmp_path: Path) -> None:
    run = {"style": "Metrics", "package": PACKAGES[1]}
    ours = callback(PACKAGES[1], ablation=quick(score="val_acc"))
    assert differences(left_behind(tmp_path, **run), left_behind(tmp_path, ours, **run)) == []
    assert ours.report.study is not None


class Disturbing(Returned):
    """Leaves things on the module, and draws."""

    def validation_step(self: Any, batch: Any, batch_idx: int) -> Any:
        if self.trainer.fit_loop.epoch_progress.current.completed == 2:
            planted = PLANTED[self.planted]
            planted(self)
        return super().validation_step(batch, batch_idx)


PLANTED: dict[str, Callable[[Any], Any]] = {
    "a draw": lambda module: torch.rand(3),
    "an attribute": lambda module: setattr(module, "left", 1),
    "a buffer": lambda module: module.net.norm.running_mean.add_(1),
    "train mode": lambda module: module.train(),
    "a deep list": lambda module: module.deep["a"]["b"].append(1),
}


@pytest.mark.parametrize("name", PLANTED)
def test_what_a_step_leaves_is_taken_away(name: str, tmp_path: Path) -> None:
    base = modules(LIGHTNING).Plain
    acts: list[int] = []

    class Counting(Disturbing, base):  # type: ignore[misc, valid-type]
        planted = name

        def __init__(self) -> None:
            super().__init__(noisy=True)
            self.deep: dict[str, dict[str, list[int]]] = {"a": {"b": []}}

        def validation_step(self, batch: Any, batch_idx: int) -> Any:
            acts.append(1)
            return super().validation_step(batch, batch_idx)

    def run(*ours: Any) -> dict[str, Any]:
        seed_all()
        model = Counting()
        runner = trainings.trainer(LIGHTNING, tmp_path, *ours)
        runner.fit(model, loader(), loader(1, 20))
        return trace(runner, model) | {"deep": model.deep, "names": sorted(vars(model))}

    without, steps = run(), len(acts)
    ours = callback(LIGHTNING, ablation=quick())
    assert differences(without, run(ours)) == []
    assert len(acts) > 4 * steps
    assert ours.report.study is not None


@pytest.fixture
def _ctrl_c() -> Iterator[None]:
    """Lightning ignores SIGINT from a Ctrl-C on."""
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_ctrl_c")
@pytest.mark.parametrize("after", [1, 5, 15])
def test_ctrl_c_restores_everything_and_goes_on(after: int, tmp_path: Path) -> None:
    count = 0

    def interrupting(model: Any) -> Tensor:
        nonlocal count
        count += 1
        if count == after:
            model.net.rnn.train()
            raise KeyboardInterrupt
        return model(sequences(3, 8)).mean()

    memory = lm.MemorySink()
    ours = callback(LIGHTNING, ablation=quick(score=interrupting), sinks=[memory])
    seed_all()
    model = modules(LIGHTNING).Plain()
    runner = trainings.trainer(LIGHTNING, tmp_path, ours)
    modes: list[bool] = []
    with pytest.raises(SystemExit):
        runner.fit(model, loader(), loader(1, 20))
    assert count == after
    modes = [part.training for part in model.modules()]
    without = fit(tmp_path)
    assert modes == [part.training for part in without.lightning_module.modules()]
    assert differences(dict(without.lightning_module.state_dict()), dict(model.state_dict())) == []
    assert "forward" not in vars(model.net.rnn)
    assert "log" not in vars(model)
    assert len(memory.reports) == 3  # the last check's is there
    assert ours.report.study is None


# Where it is seen


@both_packages
def test_every_sink_has_it_once(package: str, tmp_path: Path) -> None:
    memory = lm.MemorySink()
    ours = callback(package, ablation=quick(), sinks=[memory])
    logger = import_module(f"{package}.loggers").CSVLogger(tmp_path)
    fit(tmp_path, ours, package=package, logger=logger)
    assert [len(report.layers) for report in memory.reports] == [1, 1, 1, 0]
    last, study = memory.reports[-2:]
    assert (study.step, study.epoch, study.study) == (last.step, last.epoch, ours.report.study)
    assert ours.report.layers == last.layers
    assert set(study.scalars()) == set(ours.report.scalars()) - set(last.scalars())
    assert {name.split("/")[2] for name in study.scalars()} == {"ablation"}
    logged = (Path(logger.log_dir) / "metrics.csv").read_text()
    assert logged.count(key("net.rnn.l0", "ablation", "gap", "used")) == 1


def test_tensorboard_shows_text_curves_and_values(tmp_path: Path) -> None:
    from lightning.pytorch.loggers import TensorBoardLogger
    from tensorboard.backend.event_processing.event_accumulator import DEFAULT_SIZE_GUIDANCE, EventAccumulator

    ours = callback(LIGHTNING, ablation=quick(), pictures_every=2)
    fit(tmp_path, ours, logger=TensorBoardLogger(tmp_path, name="", version=""))
    read = EventAccumulator(str(tmp_path), size_guidance=dict.fromkeys(DEFAULT_SIZE_GUIDANCE, 0)).Reload()
    for name, value in ours.report.scalars().items():
        if "/ablation/" in name:
            [event] = read.Scalars(name)
            assert (event.step, event.value) == (7, pytest.approx(value))
    [checks, *_] = [[event.step for event in read.Scalars("lstm_monitor/_run/checks")]]
    assert checks == [0, 3, 7]
    [card] = read.Tensors("lstm_monitor/_run/ablation/text_summary")
    assert "Which ranking can be trusted?" in card.tensor_proto.string_val[0].decode()
    assert [event.step for event in read.Images(key("net.rnn.l0", "pictures", "ablation"))] == [7]
    assert [event.step for event in read.Images(key("net.rnn.l0", "pictures", "bode"))] == [0, 7]
    [changes] = read.Histograms(key("net.rnn.l0", "ablation", "score_change", "cells"))
    assert changes.histogram_value.num == trainings.CELLS
    [guide] = [event.step for event in read.Tensors("lstm_monitor/_run/guide/text_summary")][1:]
    assert guide == 7


def test_steps_write_nothing_to_the_loggers_meanwhile(tmp_path: Path) -> None:
    from lightning.pytorch.loggers import TensorBoardLogger
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    ours = callback(LIGHTNING, ablation=quick())
    fit(tmp_path, ours, style="AtTheEnd", logger=TensorBoardLogger(tmp_path, name="", version=""))
    read = EventAccumulator(str(tmp_path), size_guidance={"tensors": 0}).Reload()
    assert len(read.Tensors("kept/text_summary")) == 3  # the sanity check and two epochs


def test_the_sentence_is_in_the_log_and_in_words(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "lstm_monitor"):
        report, _ = study_of(tmp_path, quick())
    [sentence] = [line for line in report.in_words().split("\n\n") if "the effect" in line or "rank" in line][-1:]
    assert f"lstm_monitor: {sentence}" in [record.getMessage() for record in caplog.records]


def test_a_progress_bar_that_is_gone_at_the_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tqdm import tqdm

    fit(tmp_path, callback(LIGHTNING, ablation=quick()), enable_progress_bar=True)
    shown = capsys.readouterr()
    assert "ablation: " in shown.out + shown.err
    assert "single cells" in shown.out + shown.err
    assert not [bar for bar in tqdm._instances if "ablation" in str(bar.desc)]


def test_no_bar_where_the_trainer_shows_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit(tmp_path, callback(LIGHTNING, ablation=quick()))
    assert "ablation: " not in "".join(capsys.readouterr())


def test_its_time_is_neither_training_nor_checks(tmp_path: Path, quiet_clock: QuietClock) -> None:
    waiting: list[float] = []

    def slow(model: Any) -> float:
        waiting.append(0.02)
        quiet_clock.wait(0.02)
        return float(model(sequences(3, 8)).mean())

    ours = callback(LIGHTNING, ablation=quick(score=slow))
    began = time.perf_counter()
    fit(tmp_path, ours)
    took = time.perf_counter() - began
    clock = ours.monitor.clock
    assert sum(waiting) > 0.3
    assert clock.plain()["trained"] < ours.report.study.seconds + 30
    assert clock.spent < sum(waiting) + 5
    assert clock.elapsed() + clock.spent < took - 0.9 * sum(waiting)


# Several processes, copies, arguments


@pytest.mark.parametrize("how", [copy.deepcopy, lambda ours: pickle.loads(pickle.dumps(ours))])
def test_copies_make_it_too(how: Callable[[Any], Any], tmp_path: Path) -> None:
    ours = how(callback(LIGHTNING, ablation=quick()))
    fit(tmp_path, ours)
    again = how(ours)
    assert again.report.study.intact == ours.report.study.intact
    fit(tmp_path, again)
    assert again.report.study.intact == ours.report.study.intact


@pytest.mark.parametrize("ablation", [None, False])
def test_it_can_be_left_out(ablation: Any, tmp_path: Path) -> None:
    ours = callback(LIGHTNING, ablation=ablation)
    fit(tmp_path, ours)
    assert ours.report.study is None


def test_bad_arguments_are_told_at_once() -> None:
    with pytest.raises(TypeError, match="ablation='yes'"):
        callback(LIGHTNING, ablation="yes")
    with pytest.raises(ValueError, match="sequences=0"):
        callback(LIGHTNING, ablation=AblationCheck(sequences=0))


def test_a_callback_after_ours_sees_a_trainer_that_trains(tmp_path: Path) -> None:
    seen: list[Any] = []

    class Looking(Callback):
        def on_train_end(self, trainer: Any, pl_module: Any) -> None:
            seen.append((trainer.training, trainer.validating, trainer.loggers, pl_module.training))

    fit(tmp_path, callback(LIGHTNING, ablation=quick()), Looking())
    assert seen == [(True, False, [], True)]


def test_persistent_workers(tmp_path: Path) -> None:
    ours = callback(LIGHTNING, ablation=quick(sequences=8))
    seed_all()
    runner = trainings.trainer(LIGHTNING, tmp_path, ours)
    data = TensorDataset(*[part[:, -1:, 0] if k else part for k, part in enumerate([sequences(1, 20)] * 2)])
    validation = DataLoader(data, batch_size=8, num_workers=1, persistent_workers=True)
    runner.fit(modules(LIGHTNING).Plain(), loader(), validation)
    assert ours.report.study.sequences == 8
