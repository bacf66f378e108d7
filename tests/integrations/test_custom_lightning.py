"""Registered cells in a Lightning training: seen in the Trainer's own validation, monitored, resumed, drawn."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import pytest
import torch
from torch import Tensor, nn

import lstm_monitor as lm
from lstm_monitor.layers.registered import registry
from tests.helpers.custom_modules import H, NormCell, Stepper, start, step
from tests.helpers.trainings import callback, loader, trainer

PACKAGE = "lightning.pytorch"


class Module(lightning.LightningModule):
    """A forecaster whose only recurrent module is a cell of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Stepper(NormCell())

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def loss(self, batch: Any) -> Tensor:
        return nn.functional.mse_loss(self(batch[0]), batch[1])

    def training_step(self, batch: Any) -> Tensor:
        return self.loss(batch)

    def validation_step(self, batch: Any) -> None:
        self.log("val_loss", self.loss(batch))

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), 0.01)


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    with lm.register_cell(NormCell, step=step, state=start):
        yield
    assert not registry._REGISTERED


def fit(folder: Path, *callbacks: Any, resume: Path | None = None, **options: Any) -> tuple[Any, Module]:
    torch.manual_seed(0)
    module, runner = Module(), trainer(PACKAGE, folder, *callbacks, **options)
    runner.fit(module, loader(), loader(1), ckpt_path=resume)
    return runner, module


def test_untouched_and_seen_in_the_validation(tmp_path: Path) -> None:
    sink = lm.MemorySink()
    _, plain = fit(tmp_path)
    runner, module = fit(tmp_path, callback(PACKAGE, sinks=[sink]))
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), module.parameters(), strict=True))
    report = sink.reports[-1]
    assert report["net.cell"].point_source == "held_out"
    assert report["net.cell"].hidden_size == H
    assert "lstm_monitor/net.cell/step/settling_time/p50" in runner.callback_metrics


def test_resumed(tmp_path: Path) -> None:
    runner, _ = fit(tmp_path, callback(PACKAGE))
    runner.save_checkpoint(tmp_path / "a.ckpt")
    sink = lm.MemorySink()
    fit(tmp_path, callback(PACKAGE, sinks=[sink]), resume=tmp_path / "a.ckpt", max_epochs=3)
    assert len(sink.reports[-1]["net.cell"].rank_history.steps) > 3
    assert sink.reports[-1].plot() is not None
