"""AWD-LSTM of fastai.

A language model of how CO2 moves; the ablation's score is the Learner's own validation loss.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import fastai
import numpy as np
import torch
from common import Ablation, Results, checks_in, co2, count, finish, layers_in, quick_check, scalars_in, twice
from fastai.text.all import (
    AWD_LSTM,
    CrossEntropyLossFlat,
    Datasets,
    LMDataLoader,
    LMLearner,
    ModelResetter,
    RNNRegularizer,
    TensorText,
    awd_lstm_lm_config,
    get_language_model,
    noop,
)

from lstm_monitor.integrations import FastaiLSTMMonitor, TensorBoardSink

REQUIRES = ["lstm-monitor[fastai,wandb,history]", "pytest"]
MINUTES = 6
FAST = False

WORDS = 16


def texts() -> list[Any]:
    """33 texts of 60 weeks: which of 16 sizes the change of each week has."""
    changes = np.diff(co2(1981))
    words = np.digitize(changes, np.quantile(changes, np.linspace(0, 1, WORDS + 1)[1:-1]))
    return [TensorText(text) for text in torch.tensor(words).reshape(-1, 60)]


def train(monitored: bool) -> tuple[LMLearner, FastaiLSTMMonitor, float]:
    """Two fits; the Learner, the monitor, and the Learner's validation loss."""
    items = texts()
    data = Datasets(items, [[noop]], splits=[list(range(25)), list(range(25, 33))])
    loaders = data.dataloaders(bs=4, seq_len=30, dl_type=LMDataLoader, num_workers=0)
    network = get_language_model(AWD_LSTM, WORDS, awd_lstm_lm_config | {"emb_sz": 12, "n_hid": 16, "n_layers": 2})
    callbacks = [ModelResetter(), RNNRegularizer(alpha=2, beta=1)]
    learner = LMLearner(loaders, network, loss_func=CrossEntropyLossFlat(), cbs=callbacks)
    check = quick_check(score=lambda _: float(learner.validate()[0]), better="lower")
    held_out = torch.stack(items[25:])
    monitor = FastaiLSTMMonitor(
        held_out=held_out, sinks=[TensorBoardSink("runs")], ablation=check, budget=None, on_error="raise"
    )
    if monitored:
        learner.add_cb(monitor)
    with learner.no_bar(), learner.no_logging():
        learner.fit_one_cycle(2, 0.01)
        learner.fit(1, 0.01)
        return learner, monitor, float(learner.validate()[0])


def conforms() -> None:
    """Run the conformance suite with fastai, which the environment of `make test` does not hold."""
    suite = Path(__file__).parents[1] / "test_conformance.py"
    command = [sys.executable, "-m", "pytest", "-q", "-W", "ignore", "-p", "no:cacheprovider", "-k", "promises"]
    subprocess.run([*command, str(suite)], env=os.environ | {"CONFORMANCE_HOSTS": "fastai"}, check=True)


def main() -> Results:
    """Train without and with the monitor, and read back what it wrote."""
    _, (_, monitor, own), untouched = twice(train, lambda trained: trained[0].model)
    assert monitor.report is not None
    assert monitor.report.study is not None
    arrived = scalars_in("runs")
    conforms()
    return Results(
        library="fastai",
        version=fastai.__version__,
        model="AWD-LSTM",
        layers=layers_in(arrived),
        checks=checks_in(arrived),
        values=count(arrived),
        where="TensorBoard",
        untouched=untouched,
        ablation=Ablation(monitor.report.study.intact, own),
        notes=("give held_out= yourself", "several fits of one model go on counting"),
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    finish(main())
