"""Watch the cells of an LSTM while it learns to forecast CO2 on Mauna Loa, with Lightning and TensorBoard.

The record is weekly, 1958 to 2001, and comes with statsmodels. From the weekly changes of 52 weeks the network
forecasts the change over the next 13. The last fifth of the record, later than all training weeks, is held out. In the
end cells are removed, one by one and more and more of them, to see which of them the forecast needs.

A template for your own model: the only lines about the monitor are those with LSTMMonitorCallback.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

import lightning as L
import statsmodels.api as sm
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lstm_monitor.integrations import LSTMMonitorCallback

PAST, AHEAD = 52, 13  # weeks


class Forecaster(L.LightningModule):
    """An LSTM over the past weeks, and a linear layer on its last hidden state."""

    def __init__(self, cells: int = 48) -> None:
        super().__init__()
        self.lstm = nn.LSTM(input_size=1, hidden_size=cells, batch_first=True)
        self.head = nn.Linear(cells, 1)

    def forward(self, past: Tensor) -> Tensor:
        """The change in ppm over the 13 weeks after the ``past (N, 52, 1)``, shape ``(N, 1)``."""
        hidden, _ = self.lstm(past)
        change: Tensor = self.head(hidden[:, -1])
        return change

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        """Mean squared error in ppm squared."""
        past, change = batch
        loss = nn.functional.mse_loss(self(past), change)
        self.log("train/mse", loss)
        return loss

    def validation_step(self, batch: list[Tensor], index: int) -> None:
        """Root mean squared error in ppm on the held-out tail."""
        past, change = batch
        self.log("val/rmse", nn.functional.mse_loss(self(past), change).sqrt(), prog_bar=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(self.parameters(), lr=1e-3)


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
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--runs", type=Path, default=Path("runs/co2"), help="folder for TensorBoard")
    options = parser.parse_args()

    L.seed_everything(1, verbose=False)
    torch.set_num_threads(1)  # a network this small trains fastest on one
    train, held_out = load_windows()

    # Without budget=None a training as short as this would be checked at its start and its end only: by default checks
    # take 1% of the time at most.
    monitor = LSTMMonitorCallback(every_n_epochs=1, pictures_every=10, budget=None, ablation=True)
    trainer = L.Trainer(
        max_epochs=options.epochs,
        logger=TensorBoardLogger(options.runs, name=None),
        callbacks=[monitor],
        log_every_n_steps=10,
        enable_model_summary=False,
    )
    trainer.fit(
        Forecaster(),
        DataLoader(train, batch_size=32, shuffle=True),
        DataLoader(held_out, batch_size=256),
    )

    change = held_out.tensors[1]
    print(f"\nForecast of {AHEAD} weeks, held-out error: {trainer.callback_metrics['val/rmse']:.2f} ppm", end=" ")
    print(f"(without a model, 'as now': {change.square().mean().sqrt():.2f} ppm)\n")
    if monitor.report is None:  # LSTM_MONITOR=off in the environment
        return
    print(monitor.report.in_words())
    print(f"\nWhich cells does the forecast need? {monitor.report.study}")
    print(
        f"\nMonitoring took {monitor.report.cost:.1%} of the training time, pictures included; in longer trainings its"
    )
    print("share is far smaller. To see in TensorBoard (Custom Scalars, Images) how the cells came to this:\n")
    print(f"  {tensorboard()} --logdir {options.runs} --samples_per_plugin images=200")


def tensorboard() -> str:
    """How to call TensorBoard from this shell: by its name, or from the environment that runs this script."""
    beside = Path(sys.executable).with_name("tensorboard")
    if shutil.which("tensorboard") is not None or not beside.exists():
        return "tensorboard"
    return str(beside.relative_to(Path.cwd()) if beside.is_relative_to(Path.cwd()) else beside)


if __name__ == "__main__":
    main()
