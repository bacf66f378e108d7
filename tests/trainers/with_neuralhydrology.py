"""neuralhydrology: CudaLSTM, trained by BaseTrainer.

`start_run(config)` makes the trainer, and the monitor would find its model; with the trainer in hand its validation can
score the ablation as well.
"""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray
from common import Ablation, Results, checks_in, co2, count, finish, layers_in, quick_check, scalars_in, twice
from neuralhydrology.nh_run import start_run
from neuralhydrology.training.basetrainer import BaseTrainer
from neuralhydrology.utils.config import Config

import lstm_monitor as lm
from lstm_monitor.integrations import TensorBoardSink

REQUIRES = ["neuralhydrology>=1.13"]
MINUTES = 3
FAST = False


def write_data() -> None:
    """One basin: the CO2 record as daily values of something that follows another."""
    Path("data/time_series").mkdir(parents=True, exist_ok=True)
    days = co2(500)
    dates = pd.DatetimeIndex(pd.date_range("2000-01-01", periods=len(days)), name="date")
    frame = pd.DataFrame({"rain": np.gradient(days) * 10, "flow": days + 2}, index=dates)
    xarray.Dataset.from_dataframe(frame).to_netcdf("data/time_series/mauna_loa.nc")
    Path("basins.txt").write_text("mauna_loa\n")


def config(name: str) -> Any:
    """A run of 2 epochs on the first 300 days, validated on the next 150."""
    basins = {f"{period}_basin_file": "basins.txt" for period in ("train", "validation", "test")}
    dates = {"train": ("01/01/2000", "26/10/2000"), "validation": ("27/10/2000", "25/03/2001")}
    dates["test"] = dates["validation"]
    ends = ("start", "end")
    periods = {f"{name}_{end}_date": day for name, days in dates.items() for end, day in zip(ends, days, strict=True)}
    return {
        "experiment_name": name,
        "run_dir": "nh_runs",
        **basins,
        **periods,
        "seed": 0,
        "device": "cpu",
        "dataset": "generic",
        "data_dir": "data",
        "dynamic_inputs": ["rain"],
        "target_variables": ["flow"],
        "model": "cudalstm",
        "head": "regression",
        "output_activation": "linear",
        "hidden_size": 16,
        "output_dropout": 0.2,
        "initial_forget_bias": 3,
        "optimizer": "Adam",
        "loss": "MSE",
        "learning_rate": {0: 0.01},
        "batch_size": 32,
        "epochs": 2,
        "num_workers": 0,
        "seq_length": 20,
        "predict_last_n": 1,
        "validate_every": 1,
        "validate_n_random_basins": 1,
        "metrics": ["MSE"],
        "save_weights_every": 1,
        "log_tensorboard": False,
        "verbose": 0,
    }


def error(trainer: Any, model: Any) -> float:
    """The library's own validation: the mean squared error on the validation period."""
    results = trainer.validator.evaluate(save_results=False, metrics=["MSE"], model=model)
    return float(results["mauna_loa"]["1D"]["MSE"])


def train(monitored: bool) -> tuple[Any, lm.Report | None]:
    """The trainer, and the monitor's last report."""
    trainer = BaseTrainer(Config(config("watched" if monitored else "plain")))
    trainer.initialize_training()
    if not monitored:
        trainer.train_and_validate()
        return trainer, None
    data = trainer.loader.dataset
    batch = data.collate_fn([data[i] for i in range(32)])
    watch = lm.watch_optimizer(
        trainer.model,
        {name: value for name, value in batch.items() if name.startswith("x_")},
        forward=lambda model, inputs: model(inputs)["y_hat"],
        sinks=[TensorBoardSink("runs")],
        every_n_steps=5,
        budget=None,
        ablation=quick_check(score=lambda model: error(trainer, model), better="lower"),
        on_error="raise",
    )
    with watch as monitor:
        trainer.train_and_validate()
    return trainer, monitor.report


def found_in_start_run() -> lm.Report | None:
    """The same training by `start_run`, whose model is nobody's."""
    Config(config("found")).dump_config(Path(), "config.yml")
    with lm.watch_optimizer(every_n_steps=10, budget=None, on_error="raise") as monitor:
        start_run(Path("config.yml"))
    return monitor.report


def main() -> Results:
    """Train without and with the monitor, and read back what it wrote."""
    write_data()
    _, (trainer, report), untouched = twice(train, lambda trained: trained[0].model)
    assert report is not None
    assert report.study is not None
    found = found_in_start_run()
    assert found is not None
    assert [str(layer.key) for layer in found.layers] == ["lstm.l0"]
    assert found.layers[0].point_source == "held_out"
    arrived = scalars_in("runs")
    return Results(
        library="neuralhydrology",
        version=version("neuralhydrology"),
        model="CudaLSTM",
        layers=layers_in(arrived),
        checks=checks_in(arrived),
        values=count(arrived),
        where="TensorBoard",
        untouched=untouched,
        ablation=Ablation(report.study.intact, error(trainer, trainer.model)),
        notes=("in `start_run` the model is found, too, on inputs of the training",),
    )


if __name__ == "__main__":
    finish(main())
