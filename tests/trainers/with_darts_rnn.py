"""darts, `RNNModel`.

The callback goes into ``pl_trainer_kwargs``. darts trains with `pytorch_lightning`, copies the callback for each new
model and pickles it; the score of the ablation is the ``val_loss`` that darts logs.
"""

from __future__ import annotations

import copy
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

from common import Ablation, Results, checks_in, co2, count, finish, layers_in, quick_check, scalars_in, twice
from darts import TimeSeries
from darts.models import RNNModel

from lstm_monitor.integrations import LSTMMonitorCallback

REQUIRES = ["darts", "pytorch-lightning"]
MINUTES = 3
FAST = False

OPTIONS: dict[str, Any] = {"batch_size": 32, "n_epochs": 3, "random_state": 0, "force_reset": True, "work_dir": "darts"}


def rnn(trainer: dict[str, Any], name: str) -> RNNModel:
    """Two layers with dropout."""
    return RNNModel(
        input_chunk_length=24,
        training_length=36,
        model="LSTM",
        hidden_dim=16,
        n_rnn_layers=2,
        dropout=0.1,
        model_name=name,
        log_tensorboard=True,
        pl_trainer_kwargs=trainer,
        **OPTIONS,
    )


def series() -> tuple[TimeSeries, TimeSeries]:
    """The CO2 record for training, and its last weeks."""
    whole = TimeSeries.from_values(co2())
    return whole[:300], whole[300:]


def train(monitored: bool, build: Any) -> Any:
    """A trained model of darts."""
    callbacks = (
        [LSTMMonitorCallback(every_n_epochs=1, ablation=quick_check(), budget=None, on_error="raise")]
        if monitored
        else []
    )
    trainer = {"accelerator": "cpu", "enable_progress_bar": False, "callbacks": callbacks}
    model = build(trainer, "with" if monitored else "without")
    history, held_out = series()
    model.fit(history, val_series=held_out)
    return model


def again(model: Any) -> None:
    """What darts does by itself: it makes the model anew with a copy of the callback, and saves and loads it."""
    history, held_out = series()
    before = count(scalars_in("darts"))
    fresh = copy.deepcopy(model).untrained_model()
    fresh.fit(history, val_series=held_out)
    fitted = count(scalars_in("darts"))
    fresh.historical_forecasts(history[:60], start=50, forecast_horizon=6, stride=3, retrain=True)
    assert before < fitted < count(scalars_in("darts"))
    fresh.save("saved.pt")
    type(model).load("saved.pt", trusted=True).predict(3)


def results(build: Any, layers: tuple[str, ...]) -> Results:
    """Train without and with the monitor, and read back what it wrote."""
    warnings.filterwarnings("ignore")
    _, model, untouched = twice(lambda monitored: train(monitored, build), lambda trained: trained.model)
    arrived = scalars_in(Path("darts") / "with")
    assert layers_in(arrived) == layers
    callback = next(item for item in model.trainer.callbacks if isinstance(item, LSTMMonitorCallback))
    assert callback.report is not None
    assert callback.report.study is not None
    own = float(model.trainer.callback_metrics["val_loss"])
    again(model)
    assert {layer.ranking.name for layer in callback.report.layers} == {"output_sensitivity"}
    return Results(
        library="darts",
        version=version("darts"),
        model=type(model).__name__,
        layers=layers,
        checks=checks_in(arrived),
        values=count(arrived),
        where="TensorBoard (`log_tensorboard=True`)",
        untouched=untouched,
        ablation=Ablation(callback.report.study.intact, own),
        notes=("`load` refuses the callback in a saved model without `trusted=True` or `safe_globals([...])`",),
    )


def main() -> Results:
    """RNNModel."""
    return results(rnn, ("rnn.l0", "rnn.l1"))


if __name__ == "__main__":
    finish(main())
