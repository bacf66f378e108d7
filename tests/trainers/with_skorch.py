"""skorch.

A `NeuralNetClassifier` around an LSTM reads handwritten digits; the ablation's score is the net's own validation loss.
"""

from __future__ import annotations

import skorch
import torch
from common import Ablation, Results, checks_in, count, digits, finish, layers_in, quick_check, scalars_in, twice
from skorch import NeuralNetClassifier
from skorch.dataset import Dataset
from skorch.helper import predefined_split
from torch import Tensor, nn

from lstm_monitor.integrations import SkorchLSTMMonitor, TensorBoardSink

REQUIRES = ["lstm-monitor[skorch]"]
MINUTES = 2
FAST = True

X, Y = digits()


class Reader(nn.Module):
    """An LSTM over the rows of an image, and a linear layer on its last hidden state."""

    def __init__(self) -> None:
        """Twelve cells."""
        super().__init__()
        self.rnn = nn.LSTM(8, 12, batch_first=True)
        self.drop = nn.Dropout(0.2)
        self.head = nn.Linear(12, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Log-odds of the digits (N, 10)."""
        return self.head(self.drop(self.rnn(x)[0][:, -1]))


def train(monitored: bool) -> tuple[NeuralNetClassifier, SkorchLSTMMonitor, float]:
    """Three epochs; the net, the monitor, and the net's last validation loss."""
    check = quick_check(score=lambda _: net.validation_step((X[320:], Y[320:]))["loss"].item(), better="lower")
    monitor = SkorchLSTMMonitor(
        sinks=[TensorBoardSink("runs")], every_n_steps=10, ablation=check, budget=None, on_error="raise"
    )
    net = NeuralNetClassifier(
        Reader,
        criterion=nn.CrossEntropyLoss,
        optimizer=torch.optim.Adam,
        lr=0.01,
        max_epochs=3,
        batch_size=80,
        iterator_train__batch_size=16,
        iterator_train__shuffle=True,
        train_split=predefined_split(Dataset(X[320:], Y[320:])),
        callbacks=[monitor] if monitored else [],
        verbose=0,
    )
    net.fit(X[:320], Y[:320])
    return net, monitor, net.history[-1, "valid_loss"]


def main() -> Results:
    """Train without and with the monitor, and read back what it wrote."""
    _, (_, monitor, own), untouched = twice(train, lambda trained: trained[0].module_)
    assert monitor.report is not None
    assert monitor.report.study is not None
    assert {layer.point_source for layer in monitor.report.layers} == {"held_out"}
    arrived = scalars_in("runs")
    return Results(
        library="skorch",
        version=skorch.__version__,
        model="NeuralNetClassifier with nn.LSTM",
        layers=layers_in(arrived),
        checks=checks_in(arrived),
        values=count(arrived),
        where="TensorBoard",
        untouched=untouched,
        ablation=Ablation(monitor.report.study.intact, own),
        notes=("held-out data: the net's own validation split",),
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    finish(main())
