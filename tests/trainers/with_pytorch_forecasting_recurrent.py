"""pytorch-forecasting, `RecurrentNetwork`.

The callback goes into the Trainer's list. The library's own LSTM packs its sequences inside, by lengths, and forecasts
step by step in validation; the score of the ablation is its own ``val_loss``.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pandas as pd
from common import Ablation, Results, checks_in, co2, count, finish, layers_in, quick_check, scalars_in, twice
from lightning.pytorch.loggers import TensorBoardLogger
from pytorch_forecasting import MAE, RecurrentNetwork, TimeSeriesDataSet

from lstm_monitor.integrations import LSTMMonitorCallback

REQUIRES = ["lightning", "pytorch-forecasting"]
MINUTES = 4
FAST = False

Build = Callable[[TimeSeriesDataSet], pl.LightningModule]


def recurrent(data: TimeSeriesDataSet) -> pl.LightningModule:
    """Two layers with dropout."""
    options: dict[str, Any] = {"cell_type": "LSTM", "hidden_size": 16, "rnn_layers": 2, "dropout": 0.1}
    return RecurrentNetwork.from_dataset(data, loss=MAE(), learning_rate=0.01, **options)


def datasets() -> tuple[TimeSeriesDataSet, TimeSeriesDataSet]:
    """Two stretches of the CO2 record as two series; the last six weeks of each are the validation.

    Training windows have 12 to 24 past weeks, so that there is padding.
    """
    parts = [pd.DataFrame({"value": part, "week": np.arange(len(part))}) for part in co2().reshape(4, 100)]
    table = pd.concat([part.assign(series=str(i)) for i, part in enumerate(parts)], ignore_index=True)
    training = TimeSeriesDataSet(
        table[table["week"] < 94],
        time_idx="week",
        target="value",
        group_ids=["series"],
        min_encoder_length=12,
        max_encoder_length=24,
        max_prediction_length=6,
        time_varying_unknown_reals=["value"],
        randomize_length=None,
    )
    return training, TimeSeriesDataSet.from_dataset(training, table, predict=True, stop_randomization=True)


def train(build: Build, monitored: bool) -> tuple[Any, pl.Trainer]:
    """Two epochs; the module and the Trainer."""
    training, validation = datasets()
    network = build(training)
    callbacks: list[pl.Callback] = []
    if monitored:
        callbacks = [LSTMMonitorCallback(every_n_epochs=1, ablation=quick_check(), budget=None, on_error="raise")]
    trainer = pl.Trainer(
        max_epochs=2,
        accelerator="cpu",
        gradient_clip_val=0.1,
        limit_train_batches=6,
        callbacks=callbacks,
        logger=TensorBoardLogger("runs", name="with" if monitored else "without"),
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(
        network,
        train_dataloaders=training.to_dataloader(train=True, batch_size=32, num_workers=0),
        val_dataloaders=validation.to_dataloader(train=False, batch_size=4, num_workers=0),
    )
    return network, trainer


def results(build: Build, layers: tuple[str, ...]) -> Results:
    """Train without and with the monitor, and read back what it wrote."""
    warnings.filterwarnings("ignore")
    _, (network, trainer), untouched = twice(lambda on: train(build, on), lambda trained: trained[0])
    callback = next(item for item in trainer.callbacks if isinstance(item, LSTMMonitorCallback))
    arrived = scalars_in("runs/with")
    assert layers_in(arrived) == layers, layers_in(arrived)
    assert callback.report is not None
    assert callback.report.study is not None
    score = Ablation(callback.report.study.intact, float(trainer.callback_metrics["val_loss"]))
    assert {layer.ranking.name for layer in callback.report.layers} == {"output_sensitivity"}
    return Results(
        library="pytorch-forecasting",
        version=version("pytorch-forecasting"),
        model=type(network).__name__,
        layers=layers_in(arrived),
        checks=checks_in(arrived),
        values=count(arrived),
        where="TensorBoard",
        untouched=untouched,
        ablation=score,
    )


def main() -> Results:
    """RecurrentNetwork."""
    return results(recurrent, ("rnn.l0", "rnn.l1"))


if __name__ == "__main__":
    finish(main())
