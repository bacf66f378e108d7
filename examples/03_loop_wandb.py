"""Watch an LSTM in a loop of your own, with Weights & Biases, through a stop in the middle.

The network reads handwritten digits (of scikit-learn) row by row. The run is offline: ``wandb sync`` uploads it, or
``wandb leet run`` shows it in the terminal. The first call trains for two epochs and stops; the second goes on from its
checkpoint, and the history reads as if nothing had happened. The only lines about the monitor are those with
``monitor``, ``sink`` or ``history``.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import wandb
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import lstm_monitor as lm
from lstm_monitor.integrations import WandbSink


class Reader(nn.Module):
    """An LSTM over the 8 rows of a picture, and a linear layer on its last hidden state."""

    def __init__(self, cells: int = 32) -> None:
        super().__init__()
        self.lstm = nn.LSTM(input_size=8, hidden_size=cells, batch_first=True)
        self.head = nn.Linear(cells, 10)

    def forward(self, rows: Tensor) -> Tensor:
        """Scores of the ten digits, shape ``(N, 10)``, from ``rows (N, 8, 8)``."""
        hidden, _ = self.lstm(rows)
        scores: Tensor = self.head(hidden[:, -1])
        return scores


def load() -> tuple[TensorDataset, TensorDataset]:
    """1,400 pictures to learn from, and the rest."""
    digits = load_digits()
    rows = torch.tensor(digits.images, dtype=torch.float32) / 16
    names = torch.tensor(digits.target)
    return TensorDataset(rows[:1400], names[:1400]), TensorDataset(rows[1400:], names[1400:])


def train(folder: Path, until: int) -> None:
    """Train up to so many epochs, going on where the checkpoint ends."""
    torch.manual_seed(1)
    training, held_out = load()
    rows, names = held_out.tensors
    model = Reader()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    run = wandb.init(project="digits", id="reader", resume="allow", dir=folder, mode="offline")
    sinks: list[lm.Sink] = [WandbSink(run), lm.HistorySink(folder / "history", save_weights=True)]
    # budget=None: a training of seconds has no time to spare for checks, which by default take 1% of it at most.
    monitor = lm.LSTMMonitor(model, held_out=rows[:64], sinks=sinks, every_n_epochs=1, budget=None)
    done, checkpoint = 0, folder / "checkpoint.pt"
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        monitor.load_state_dict(saved["monitor"])
        done = saved["epochs"]
    with monitor:
        for epoch in range(done, until):
            for i, (some, targets) in enumerate(DataLoader(training, 32, shuffle=True)):
                loss = nn.functional.cross_entropy(model(some), targets)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                monitor.on_train_batch_end(i)
            right = (model(rows).argmax(1) == names).float().mean().item()
            run.log({"accuracy": right, "loss": loss.item()})
            monitor.on_epoch_end(epoch)
            print(f"epoch {epoch + 1}: {100 * right:.1f}% of the held-out digits read correctly")
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epochs": epoch + 1}
            torch.save(state | {"monitor": monitor.state_dict()}, checkpoint)
    run.finish()


def main() -> None:
    """Train, stop, go on, and look back."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("runs/digits"))
    parser.add_argument("--epochs", type=int, default=6)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    train(options.folder, 2)
    print("... stopped, and started again")
    train(options.folder, options.epochs)
    history = lm.load_history(options.folder / "history")
    print(f"\n{history}\n\n{history.last.in_words()}")
    first = lm.characterize(history.snapshot(history.steps[0]), rank_by="gates/tau_f")
    longest = int(first.layers[0].ranking.order[0])
    print(
        f"\nA question asked afterwards: before any training cell {longest} had the longest memory by its forget gate."
    )
    print(f"\n  lstm-monitor report {options.folder} --html reader.html")


if __name__ == "__main__":
    main()
