"""The training is untouched: weights, optimizers and generators are the same bits with and without the callback."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import lstm_monitor as lm
from lstm_monitor.monitor import check as monitor_module
from tests.helpers import trainings
from tests.helpers.trainings import (
    PACKAGES,
    Endless,
    callback,
    differences,
    loader,
    modules,
    seed_all,
    sequences,
    trace,
)

LIGHTNING = PACKAGES[0]
HELD_OUT = sequences(5, 8)


def train(
    folder: Path,
    *ours: Any,
    package: str = LIGHTNING,
    module: str = "Plain",
    noisy: bool = False,
    train_loader: Callable[[], Any] = loader,
    others: Callable[[], list[Any]] = list,
    logger: Callable[[Path], Any] = lambda folder: False,
    **options: Any,
) -> dict[str, Any]:
    """One short training from fixed seeds, and all that it left behind."""
    seed_all()
    model = getattr(modules(package), module)(**({"noisy": True} if noisy else {}))
    runner = trainings.trainer(package, folder, *ours, *others(), logger=logger(folder), **options)
    runner.fit(model, train_loader(), loader(1, 16))
    return trace(runner, model)


def early_stopping() -> list[Any]:
    from lightning.pytorch.callbacks import EarlyStopping

    return [EarlyStopping("val_loss", patience=1, min_delta=10.0)]


def loggers(folder: Path) -> list[Any]:
    from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

    return [TensorBoardLogger(folder, name="tb"), CSVLogger(folder, name="csv")]


SHUFFLED = {"train_loader": lambda: loader(shuffle=True)}
RUNS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}),
    "dropout and batch norm": ({"noisy": True}, {}),
    "dropout, batch norm, held-out": ({"noisy": True}, {"held_out": HELD_OUT}),
    "dropout, batch norm, no sanity check": ({"noisy": True, "num_sanity_val_steps": 0}, {}),
    "two workers": ({"train_loader": lambda: loader(shuffle=True, num_workers=2), "noisy": True}, {}),
    "bf16-mixed": ({"precision": "bf16-mixed", "noisy": True}, {}),
    "bf16-mixed, held-out": ({"precision": "bf16-mixed", "noisy": True}, {"held_out": HELD_OUT}),
    "bf16-true": ({"precision": "bf16-true"}, {}),
    "accumulation": ({"accumulate_grad_batches": 3, **SHUFFLED}, {"every_n_steps": 1}),
    "two optimizers": ({"module": "Two"}, {"every_n_steps": 3}),
    "early stopping": ({"others": early_stopping, "max_epochs": 4}, {}),
    "held-out, given": (SHUFFLED, {"held_out": [HELD_OUT[:4], HELD_OUT[4:]]}),
    "steps, scheduled": ({"noisy": True, **SHUFFLED}, {"every_n_steps": lm.every(3)}),
    "epochs, scheduled": (SHUFFLED, {"every_n_epochs": lambda epoch: epoch == 2}),
    "TensorBoard and CSV": ({"logger": loggers, "noisy": True, **SHUFFLED}, {"pictures_every": 1}),
    "shuffled": (SHUFFLED, {}),
    "endless loader": ({"train_loader": lambda: torch.utils.data.DataLoader(Endless(), batch_size=None),
                        "limit_train_batches": 4}, {}),
    "late model": ({"module": "Late"}, {}),
}  # fmt: skip


OFTEN = (
    "plain", "dropout and batch norm", "two workers", "bf16-mixed, held-out", "two optimizers", "early stopping",
    "steps, scheduled", "TensorBoard and CSV", "late model",
)  # fmt: skip


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in OFTEN else pytest.mark.thorough) for name in RUNS]
)
def test_every_bit_is_the_same_with_and_without(name: str, tmp_path: Path) -> None:
    run, options = RUNS[name]
    ours = callback(LIGHTNING, **options)
    without, with_it = train(tmp_path / "a", **run), train(tmp_path / "b", ours, **run)
    assert ours.report is not None
    assert ours.report.checks > 1
    assert differences(without, with_it) == []


def test_the_same_for_pytorch_lightning(tmp_path: Path) -> None:
    ours = callback(PACKAGES[1], every_n_steps=2)
    run: dict[str, Any] = {"package": PACKAGES[1], "noisy": True, **SHUFFLED}
    assert differences(train(tmp_path, **run), train(tmp_path, ours, **run)) == []


def resumed(folder: Path, first: list[Any], second: list[Any]) -> dict[str, Any]:
    """Two epochs, a checkpoint, and two more from it in a new module."""
    seed_all()
    model = modules(LIGHTNING).Plain(noisy=True)
    begun = trainings.trainer(LIGHTNING, folder, *first)
    begun.fit(model, loader(shuffle=True), loader(1))
    begun.save_checkpoint(folder / "stopped.ckpt")
    seed_all(1)
    again = modules(LIGHTNING).Plain(noisy=True)
    going_on = trainings.trainer(LIGHTNING, folder, *second, max_epochs=4)
    going_on.fit(again, loader(shuffle=True), loader(1), ckpt_path=folder / "stopped.ckpt")
    return trace(going_on, again)


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`:UserWarning")  # the callback is missing there
@pytest.mark.parametrize("where", ["in both", "before", "after"])
def test_a_resumed_run_is_the_same(where: str, tmp_path: Path) -> None:
    first = [] if where == "after" else [callback(LIGHTNING)]
    second = [] if where == "before" else [callback(LIGHTNING)]
    assert differences(resumed(tmp_path, [], []), resumed(tmp_path, first, second)) == []


PLANTED: dict[str, tuple[Callable[[Any], Any], str]] = {
    "a draw of torch's generator": (lambda model: torch.randn(1), "/random/torch"),
    "a draw of numpy's generator": (lambda model: np.random.rand(), "/random/numpy"),
    "a draw of Python's generator": (lambda model: random.random(), "/random/python"),
    "eval mode": (lambda model: model.eval(), "/modes"),
    "a gradient switched off": (lambda model: model.net.head.weight.requires_grad_(False), "/trainable"),
    "a weight edited": (lambda model: model.net.head.weight.data.mul_(1 + 1e-6), "/weights"),
    "a hook left on": (lambda model: model.register_forward_hook(lambda *_: None), "/hooks"),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_disturbance_is_caught(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    act, where = PLANTED[name]
    model_of_check: list[Any] = []
    find_layers = monitor_module.find_layers

    def disturbing(model: Any, *select: Any) -> Any:
        model_of_check.append(model)
        act(model)  # a stage that runs outside of undisturbed()
        return find_layers(model, *select)

    run: dict[str, Any] = {"noisy": True, **SHUFFLED}
    without = train(tmp_path, **run)
    monkeypatch.setattr(monitor_module, "find_layers", disturbing)
    found = differences(without, train(tmp_path, callback(LIGHTNING), **run))
    assert len(model_of_check) == 3
    assert any(path.startswith(where) for path in found), found


def test_a_planted_eval_changes_the_weights_that_are_compared(tmp_path: Path) -> None:
    class Evaluating(lm.MemorySink):
        def write(self, report: lm.Report) -> None:
            model.eval()

    def fit(*ours: Any) -> dict[str, Any]:
        runner = trainings.trainer(LIGHTNING, tmp_path, *ours)
        runner.fit(model, loader(), loader(1))
        return trace(runner, model)

    seed_all()
    model = modules(LIGHTNING).Plain(noisy=True)
    without = fit()
    seed_all()
    model = modules(LIGHTNING).Plain(noisy=True)
    found = differences(without, fit(callback(LIGHTNING, sinks=[Evaluating()], every_n_steps=1)))
    assert "/weights/net.head.weight" in found
    assert any(path.startswith("/optimizers") for path in found)


FRESH = """
import sys
from pathlib import Path
from tests.integrations.test_untouched import *
from tests.helpers.trainings import *

folder, with_it = Path(sys.argv[1]), sys.argv[2] == "with"
ours = [callback(LIGHTNING, every_n_steps=3, pictures_every=1)] if with_it else []
torch.save(train(folder, *ours, noisy=True, logger=loggers, **SHUFFLED), folder / "trace.pt")
"""


@pytest.mark.thorough
def test_the_first_import_of_every_library_inside_a_check_leaves_no_trace(tmp_path: Path) -> None:
    root = Path(trainings.__file__).parents[2]
    folders = [tmp_path / which for which in ("with", "without")]
    for folder in folders:
        folder.mkdir()
    runs = [
        subprocess.Popen([sys.executable, "-W", "ignore", "-c", FRESH, folder, folder.name], cwd=root)
        for folder in folders
    ]
    assert [run.wait() for run in runs] == [0, 0]
    traces = [torch.load(folder / "trace.pt", weights_only=False) for folder in folders]
    assert differences(*traces) == []
