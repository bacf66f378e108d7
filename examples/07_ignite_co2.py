"""Watch the cells of an LSTM while it learns to forecast CO2 on Mauna Loa, with PyTorch Ignite.

The record is weekly, 1958 to 2001, and comes with statsmodels. From the weekly changes of a year the network forecasts
the change over the next 13 weeks; the last fifth of the record is held out. The only lines about the monitor are those
with ``monitor``. Its values are in the engine's metrics, where any handler can read them.
"""

from __future__ import annotations

import argparse

import statsmodels.api as sm
import torch
from ignite.engine import Engine, Events
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lstm_monitor.integrations import IgniteLSTMMonitor

PAST, AHEAD = 52, 13  # weeks
SATURATION = "lstm_monitor/lstm.l0/gates/saturation/p50"


class Forecaster(nn.Module):
    """An LSTM over the past weeks, and a linear layer on its last hidden state."""

    def __init__(self, cells: int = 24) -> None:
        super().__init__()
        self.lstm = nn.LSTM(input_size=1, hidden_size=cells, batch_first=True)
        self.head = nn.Linear(cells, 1)

    def forward(self, past: Tensor) -> Tensor:
        """The change in ppm over the 13 weeks after the ``past (N, 52, 1)``, shape ``(N, 1)``."""
        hidden, _ = self.lstm(past)
        change: Tensor = self.head(hidden[:, -1])
        return change


def load_windows() -> tuple[TensorDataset, TensorDataset]:
    """Windows for training and later ones held out: weekly changes ``(N, 52, 1)``, the change to come ``(N, 1)``."""
    ppm = sm.datasets.co2.load_pandas().data["co2"].interpolate()  # a few weeks are missing
    windows = torch.tensor(ppm.to_numpy(), dtype=torch.float32).unfold(0, PAST + 1 + AHEAD, 1)
    past = windows[:, : PAST + 1].diff(dim=1)[..., None]
    change = windows[:, -1:] - windows[:, PAST, None]
    split = int(0.8 * len(windows))
    later = split + PAST + 1 + AHEAD  # no week of a held-out window is in a training window
    past = past / past[:split].std()
    return TensorDataset(past[:split], change[:split]), TensorDataset(past[later:], change[later:])


def main() -> None:
    """Train, and say what the cells do."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--epochs", type=int, default=5)
    epochs = parser.parse_args().epochs
    torch.manual_seed(1)
    torch.set_num_threads(1)
    train, held_out = load_windows()
    past, change = held_out.tensors
    model = Forecaster()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)

    def step(engine: Engine, batch: list[Tensor]) -> float:
        model.train()
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(batch[0]), batch[1])
        loss.backward()
        optimizer.step()
        return loss.item()

    trainer = Engine(step)
    # budget=None: a training of seconds has no time to spare for checks, which by default take 1% of it at most.
    monitor = IgniteLSTMMonitor(held_out=past[::8], budget=None)
    monitor.attach(trainer, model)

    @trainer.on(Events.EPOCH_COMPLETED)
    def tell(engine: Engine) -> None:
        saturated = engine.state.metrics.get(SATURATION)
        print(f"epoch {engine.state.epoch}: loss {engine.state.output:.3f}, gates saturated (median cell): {saturated}")

    trainer.run(DataLoader(train, batch_size=64, shuffle=True), max_epochs=epochs)

    with torch.no_grad():
        error = nn.functional.mse_loss(model.eval()(past), change).sqrt()
    print(f"\nForecast of {AHEAD} weeks, held-out error: {error:.2f} ppm", end=" ")
    print(f"(without a model, 'as now': {change.square().mean().sqrt():.2f} ppm)\n")
    if monitor.report is not None:  # None with LSTM_MONITOR=off in the environment
        print(monitor.report.in_words())


if __name__ == "__main__":
    main()
