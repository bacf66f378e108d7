"""nowcast-lstm: LSTM.train.

`train` builds the network, its optimizer and its loop; `watch_optimizer` finds the network by the optimizer's
parameters. The network wants `init_hidden` before each call, which `forward=` does.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import numpy as np
import pandas as pd
import torch
from common import Ablation, Results, checks_in, co2, count, finish, layers_in, quick_check, scalars_in, twice
from nowcast_lstm import modelling
from nowcast_lstm.LSTM import LSTM

import lstm_monitor as lm
from lstm_monitor.integrations import TensorBoardSink

REQUIRES = ["nowcast-lstm>=0.2.7", "pmdarima"]  # which its metadata forgets
MINUTES = 2
FAST = True


def forward(network: Any, x: torch.Tensor) -> torch.Tensor:
    """The network on (N, T, I), from a state of zeros."""
    network.init_hidden(len(x))
    result: torch.Tensor = network(x)
    return result


def train(monitored: bool) -> tuple[Any, lm.Report | None]:
    """Thirty episodes of a model of two layers; the library's object and the monitor's last report."""
    weeks = co2(300)
    dates = pd.date_range("2000-01-01", periods=len(weeks), freq="W")
    data = pd.DataFrame({"date": dates, "growth": np.gradient(weeks), "co2": weeks})
    nowcast = LSTM(data, "co2", n_timesteps=8, n_models=1, train_episodes=30, n_hidden=12, seeds=[0])

    def error(network: Any) -> float:
        return float(np.mean((modelling.predict(nowcast.X, network) - nowcast.y) ** 2))

    if not monitored:
        nowcast.train(quiet=True)
        return nowcast, None
    watch = lm.watch_optimizer(
        held_out=torch.tensor(nowcast.X[:32], dtype=torch.float32),
        forward=forward,
        sinks=[TensorBoardSink("runs")],
        every_n_steps=50,
        budget=None,
        ablation=quick_check(score=error, better="lower"),
        on_error="raise",
    )
    with watch as monitor:
        nowcast.train(quiet=True)
    return nowcast, monitor.report


def main() -> Results:
    """Train without and with the monitor, and read back what it wrote."""
    _, (nowcast, report), untouched = twice(train, lambda trained: trained[0].mv_lstm[0])
    assert report is not None
    assert report.study is not None
    predictions = nowcast.predict(nowcast.data)
    own = float(np.mean((predictions["predictions"] - predictions["actuals"]) ** 2))
    arrived = scalars_in("runs")
    assert layers_in(arrived) == ("l_lstm.l0", "l_lstm.l1")
    return Results(
        library="nowcast-lstm",
        version=version("nowcast-lstm"),
        model="LSTM",
        layers=layers_in(arrived),
        checks=checks_in(arrived),
        values=count(arrived),
        where="TensorBoard",
        untouched=untouched,
        ablation=Ablation(report.study.intact, own),
        notes=("of several models (n_models=) the first is watched",),
    )


if __name__ == "__main__":
    finish(main())
