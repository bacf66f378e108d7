"""A forecaster in either of the two Lightning packages."""

from __future__ import annotations

import warnings
from importlib.metadata import version
from types import ModuleType
from typing import Any

from common import Ablation, Results, checks_in, count, layers_in, quick_check, scalars_in, twice, windows
from torch import Tensor, nn, optim
from torch.utils.data import DataLoader, TensorDataset

from lstm_monitor.integrations import LSTMMonitorCallback


def module(package: ModuleType) -> Any:
    """An LSTM and a linear layer, with dropout."""

    class Forecaster(package.LightningModule):  # type: ignore[name-defined,misc]
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.LSTM(1, 16, 2, dropout=0.2, batch_first=True)
            self.head = nn.Linear(16, 1)

        def forward(self, past: Tensor) -> Tensor:
            return self.head(self.rnn(past)[0][:, -1])

        def training_step(self, batch: list[Tensor], index: int) -> Tensor:
            return nn.functional.mse_loss(self(batch[0]), batch[1])

        def validation_step(self, batch: list[Tensor], index: int) -> None:
            self.log("val_loss", nn.functional.mse_loss(self(batch[0]), batch[1]))

        def configure_optimizers(self) -> optim.Optimizer:
            return optim.Adam(self.parameters(), lr=0.01)

    return Forecaster()


def train(package: ModuleType, logger: Any, monitored: bool) -> tuple[Any, Any]:
    """Three epochs with early stopping on a value of the monitor; the module and the Trainer."""
    x, y = windows()
    network = module(package)
    callbacks = []
    if monitored:
        stopping = package.callbacks.EarlyStopping("lstm_monitor/rnn.l0/gates/saturation/p50", patience=9)
        callbacks = [
            LSTMMonitorCallback(every_n_epochs=1, ablation=quick_check(), budget=None, on_error="raise"),
            stopping,
        ]
    trainer = package.Trainer(
        max_epochs=3,
        accelerator="cpu",
        logger=logger,
        callbacks=callbacks,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    batches = DataLoader(TensorDataset(x[:256], y[:256]), batch_size=32, shuffle=True)
    trainer.fit(network, batches, DataLoader(TensorDataset(x[280:], y[280:]), batch_size=32))
    return network, trainer


def results(package: ModuleType, name: str, logger: type) -> Results:
    """Train without and with the monitor, and read back what it wrote."""
    warnings.filterwarnings("ignore")

    def run(monitored: bool) -> tuple[Any, Any]:
        return train(package, logger("runs", name="with" if monitored else "without"), monitored)

    _, (_, trainer), untouched = twice(run, lambda trained: trained[0])
    callback = trainer.callbacks[0]
    arrived = scalars_in("runs/with")
    assert layers_in(arrived) == ("rnn.l0", "rnn.l1")
    assert type(callback).__mro__[2].__module__.startswith(package.__name__), type(callback).__mro__
    assert {layer.ranking.name for layer in callback.report.layers} == {"output_sensitivity"}
    return Results(
        library=name,
        version=version(name),
        model="nn.LSTM in a LightningModule",
        layers=layers_in(arrived),
        checks=checks_in(arrived),
        values=count(arrived),
        where="TensorBoard",
        untouched=untouched,
        ablation=Ablation(callback.report.study.intact, float(trainer.callback_metrics["val_loss"])),
    )
