"""RecurrentPPO of sb3-contrib (Stable-Baselines3).

A policy with an LSTM for actor and critic each learns CartPole; held-out data are its own newest episodes.
"""

from __future__ import annotations

import sb3_contrib
import torch
from common import Results, checks_in, count, finish, layers_in, quick_check, scalars_in, twice
from sb3_contrib import RecurrentPPO

from lstm_monitor.integrations import SB3LSTMMonitor

REQUIRES = ["lstm-monitor[sb3]"]
MINUTES = 3
FAST = True


def train(monitored: bool) -> tuple[RecurrentPPO, SB3LSTMMonitor]:
    """Four rollouts; the algorithm and the monitor."""
    monitor = SB3LSTMMonitor(ablation=quick_check(), budget=None, on_error="raise")
    model = RecurrentPPO(
        "MlpLstmPolicy", "CartPole-v1", n_steps=64, batch_size=32, n_epochs=2, seed=1, device="cpu",
        policy_kwargs={"lstm_hidden_size": 8}, tensorboard_log="runs" if monitored else None,
    )  # fmt: skip
    return model.learn(256, callback=monitor if monitored else None), monitor


def main() -> Results:
    """Train without and with the monitor, and read back what is in the algorithm's own TensorBoard."""
    _, (_, monitor), untouched = twice(train, lambda trained: trained[0].policy)
    report, arrived = monitor.report, scalars_in("runs")
    assert report is not None
    assert report.study is not None
    assert {layer.point_source for layer in report.layers} == {"held_out"}
    assert checks_in(arrived) == report.checks - 1
    return Results(
        library="sb3-contrib",
        version=sb3_contrib.__version__,
        model="RecurrentPPO, MlpLstmPolicy",
        layers=layers_in(arrived),
        checks=report.checks,
        values=count(arrived),
        where="the algorithm's own TensorBoard",
        untouched=untouched,
        ablation="an algorithm has no validation score; measured is the change of values and log-probabilities",
        notes=("the last check comes after the algorithm's last line of log: it is in monitor.report and in sinks",),
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    finish(main())
