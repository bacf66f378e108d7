"""A plain PyTorch loop.

The hooks of `LSTMMonitor` are called from the loop; the ablation's score is the loop's own validation.
"""

from __future__ import annotations

import torch
from common import Ablation, Results, checks_in, count, finish, layers_in, quick_check, scalars_in, twice, windows
from torch import Tensor, nn

import lstm_monitor as lm
from lstm_monitor import LSTMMonitor
from lstm_monitor.integrations import TensorBoardSink

REQUIRES: list[str] = []
MINUTES = 1
FAST = True

X, Y = windows()
TRAIN, HELD_OUT = slice(0, 256), slice(280, None)


class Forecaster(nn.Module):
    """An LSTM and a linear layer on its last hidden state."""

    def __init__(self) -> None:
        """Sixteen cells, with dropout."""
        super().__init__()
        self.rnn = nn.LSTM(1, 16, 2, dropout=0.2, batch_first=True)
        self.head = nn.Linear(16, 1)

    def forward(self, past: Tensor) -> Tensor:
        """The next week after `past` (N, T, 1): (N, 1)."""
        return self.head(self.rnn(past)[0][:, -1])


def validate(model: nn.Module) -> float:
    """Mean squared error on the held-out weeks."""
    was = model.training
    model.eval()
    with torch.no_grad():
        error = nn.functional.mse_loss(model(X[HELD_OUT]), Y[HELD_OUT])
    model.train(was)
    return float(error)


def train(monitored: bool, compiled: bool = False) -> tuple[nn.Module, lm.Report | None, float]:
    """Three epochs; the network, the monitor's last report and the validation's score."""
    model: nn.Module = Forecaster()
    if compiled:
        model = torch.compile(model)  # type: ignore[assignment]  # a module again
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    check = quick_check(score=validate, better="lower")
    monitor = LSTMMonitor(
        model,
        held_out=X[HELD_OUT],
        sinks=[TensorBoardSink("runs")],
        every_n_steps=10,
        ablation=check,
        budget=None,
        on_error="raise",
    )
    if monitored:
        monitor.on_train_begin()
    for epoch in range(3):
        for i, rows in enumerate(torch.randperm(256).split(32)):
            loss = nn.functional.mse_loss(model(X[rows]), Y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if monitored:
                monitor.on_train_batch_end(i)
        if monitored:
            monitor.on_epoch_end(epoch, {"loss": loss})
    own = validate(model)
    return model, monitor.on_train_end() if monitored else None, own


def results(compiled: bool) -> Results:
    """Train without and with the monitor, and read back what it wrote."""
    _, (_, report, own), untouched = twice(lambda monitored: train(monitored, compiled), lambda trained: trained[0])
    assert report is not None
    assert report.study is not None
    arrived = scalars_in("runs")
    assert layers_in(arrived) == ("rnn.l0", "rnn.l1")
    return Results(
        library="torch",
        version=torch.__version__.partition("+")[0],
        model="torch.compile(module)" if compiled else "nn.LSTM",
        layers=layers_in(arrived),
        checks=checks_in(arrived),
        values=count(arrived),
        where="TensorBoard",
        untouched=untouched,
        ablation=Ablation(report.study.intact, own),
    )


def main() -> Results:
    """Uncompiled."""
    return results(compiled=False)


if __name__ == "__main__":
    finish(main())
