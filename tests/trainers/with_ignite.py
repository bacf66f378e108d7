"""PyTorch Ignite.

`create_supervised_trainer` trains a forecaster of CO2; the ablation's score is that of `create_supervised_evaluator`.
"""

from __future__ import annotations

import ignite
import torch
from common import Ablation, Results, count, finish, quick_check, twice, windows
from ignite.engine import Engine, Events, create_supervised_evaluator, create_supervised_trainer
from ignite.metrics import Loss
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lstm_monitor.integrations import IgniteLSTMMonitor

REQUIRES = ["lstm-monitor[ignite]"]
MINUTES = 2
FAST = True

X, Y = windows()
TRAIN, HELD_OUT = slice(0, 256), slice(280, None)


class Forecaster(nn.Module):
    """A GRU and a linear layer on its last hidden state."""

    def __init__(self) -> None:
        """Two layers of twelve cells, with dropout."""
        super().__init__()
        self.rnn = nn.GRU(1, 12, 2, dropout=0.2, batch_first=True)
        self.head = nn.Linear(12, 1)

    def forward(self, past: Tensor) -> Tensor:
        """The next week after `past` (N, T, 1): (N, 1)."""
        return self.head(self.rnn(past)[0][:, -1])


def train(monitored: bool) -> tuple[nn.Module, IgniteLSTMMonitor, float, dict[str, list[tuple[int, float]]]]:
    """Three epochs; the network, the monitor, the evaluator's loss, and our values in the engine's metrics by epoch."""
    model = Forecaster()
    trainer = create_supervised_trainer(model, torch.optim.Adam(model.parameters(), lr=0.01), nn.functional.mse_loss)
    evaluator = create_supervised_evaluator(model, {"loss": Loss(nn.functional.mse_loss)})
    held_out = DataLoader(TensorDataset(X[HELD_OUT], Y[HELD_OUT]), 64)
    seen: dict[str, list[tuple[int, float]]] = {}

    def evaluate(_: nn.Module) -> float:
        return float(evaluator.run(held_out).metrics["loss"])

    check = quick_check(score=evaluate, better="lower")
    monitor = IgniteLSTMMonitor(held_out=X[HELD_OUT], every_n_epochs=1, ablation=check, budget=None, on_error="raise")
    if monitored:
        monitor.attach(trainer, model)

    @trainer.on(Events.EPOCH_COMPLETED)
    def read(engine: Engine) -> None:
        for key, value in engine.state.metrics.items():
            seen.setdefault(key, []).append((engine.state.iteration, value))

    trainer.run(DataLoader(TensorDataset(X[TRAIN], Y[TRAIN]), 32, shuffle=True), max_epochs=3)
    return model, monitor, evaluate(model), seen


def main() -> Results:
    """Train without and with the monitor, and take the values from the engine's metrics."""
    _, (_, monitor, own, seen), untouched = twice(train, lambda trained: trained[0])
    report = monitor.report
    assert report is not None
    assert report.study is not None
    return Results(
        library="ignite",
        version=ignite.__version__,
        model="create_supervised_trainer, nn.GRU",
        layers=tuple(str(layer.key) for layer in report.layers),
        checks=report.checks,
        values=count(seen),
        where="trainer.state.metrics",
        untouched=untouched,
        ablation=Ablation(report.study.intact, own),
        notes=("give held_out= yourself", "steps are iterations of the engine"),
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    finish(main())
