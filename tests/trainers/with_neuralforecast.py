"""neuralforecast, `LSTM`.

The callback and the logger are arguments of the model, which hands them to its Trainer. An epoch is a single batch
there, so checks are counted in steps, as validation is. neuralforecast copies the model with the callback.
"""

from __future__ import annotations

import warnings
from importlib.metadata import version
from typing import Any

import pandas as pd
from common import Ablation, Results, checks_in, co2, count, finish, layers_in, quick_check, scalars_in, twice
from neuralforecast import NeuralForecast
from neuralforecast.models import LSTM
from pytorch_lightning.loggers import TensorBoardLogger

from lstm_monitor.integrations import LSTMMonitorCallback

REQUIRES = ["pytorch-lightning", "neuralforecast"]
MINUTES = 4
FAST = False


def table() -> pd.DataFrame:
    """The CO2 record as four series of 100 weeks."""
    parts = co2().reshape(4, 100)
    weeks = pd.date_range("2000-01-02", periods=100, freq="W")
    return pd.concat([pd.DataFrame({"unique_id": str(i), "ds": weeks, "y": part}) for i, part in enumerate(parts)])


def train(monitored: bool) -> NeuralForecast:
    """Forty steps, and two windows of cross-validation with models made anew."""
    monitor = LSTMMonitorCallback(
        every_n_steps=10, ablation=quick_check(score="ptl/val_loss"), budget=None, on_error="raise"
    )
    model = LSTM(
        h=6,
        input_size=24,
        encoder_n_layers=2,
        encoder_hidden_size=16,
        encoder_dropout=0.1,
        decoder_hidden_size=8,
        max_steps=40,
        val_check_steps=10,
        learning_rate=0.01,
        accelerator="cpu",
        enable_progress_bar=False,
        callbacks=[monitor] if monitored else [],
        logger=TensorBoardLogger("runs", name="with" if monitored else "without"),
    )
    forecast = NeuralForecast(models=[model], freq="W")
    forecast.cross_validation(table(), val_size=12, n_windows=2, refit=True)
    forecast.fit(table(), val_size=12)
    return forecast


def main() -> Results:
    """LSTM."""
    warnings.filterwarnings("ignore")
    plain, trained, untouched = twice(train, lambda trained: trained.models[0])
    model: Any = trained.models[0]
    assert model.valid_trajectories == plain.models[0].valid_trajectories
    arrived = scalars_in("runs/with")
    assert layers_in(arrived) == ("hist_encoder.l0", "hist_encoder.l1")
    report = model.trainer_kwargs["callbacks"][0].report
    assert {layer.ranking.name for layer in report.layers} == {"output_sensitivity"}
    return Results(
        library="neuralforecast",
        version=version("neuralforecast"),
        model="LSTM",
        layers=layers_in(arrived),
        checks=checks_in(arrived),
        values=count(arrived),
        where="TensorBoard (`logger=`)",
        untouched=untouched,
        ablation=Ablation(report.study.intact, float(model.metrics[report.study.score])),
    )


if __name__ == "__main__":
    finish(main())
