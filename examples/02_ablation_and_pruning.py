"""Which cells does a trained LSTM need? Remove them and see; then make the network smaller.

Handwritten digits (8x8 pixels, they come with scikit-learn) are read row by row. After the training an ablation study
removes cells one by one and more and more of them, says which ranking foretold the damage, and which cells may go. The
pruned network is really smaller and faster; two epochs of fine-tuning mend it.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import lstm_monitor as lm


class Reader(nn.Module):
    """An LSTM over the rows of an image, and a linear layer on its last hidden state."""

    def __init__(self, cells: int) -> None:
        super().__init__()
        self.rnn = nn.LSTM(input_size=8, hidden_size=cells, batch_first=True)
        self.head = nn.Linear(cells, 10)

    def forward(self, rows: Tensor) -> Tensor:
        """Scores of the ten digits ``(N, 10)`` from ``rows (N, 8, 8)``."""
        hidden, _ = self.rnn(rows)
        scores: Tensor = self.head(hidden[:, -1])
        return scores


def load() -> tuple[TensorDataset, TensorDataset, TensorDataset]:
    """Images for training, for choosing cells, and for the final word."""
    digits = load_digits()
    rows = torch.tensor(digits.images / 16, dtype=torch.float32)
    labels = torch.tensor(digits.target)
    mixed = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
    train, choose, test = mixed[:1000], mixed[1000:1400], mixed[1400:]
    parts = (TensorDataset(rows[part], labels[part]) for part in (train, choose, test))
    return next(parts), next(parts), next(parts)


def train(model: nn.Module, data: TensorDataset, epochs: int, rate: float) -> None:
    """Adam with cross entropy."""
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    for _ in range(epochs):
        for rows, labels in DataLoader(data, batch_size=50, shuffle=True):
            loss = nn.functional.cross_entropy(model(rows), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def right(model: nn.Module, data: TensorDataset) -> Tensor:
    """1 for each image that is read right, 0 for the others ``(N,)``."""
    rows, labels = data.tensors
    with torch.no_grad():
        return (model(rows).argmax(1) == labels).double()


def milliseconds(model: nn.Module, rows: Tensor, repeats: int = 15) -> float:
    """The median time of one pass."""
    times = []
    with torch.no_grad():
        for _ in range(repeats):
            began = time.perf_counter()
            model(rows)
            times.append(1e3 * (time.perf_counter() - began))
    return statistics.median(times)


def main() -> None:
    """Train, study, prune, fine-tune."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--cells", type=int, default=128)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--max-loss", type=float, default=0.05, help="accuracy that may be lost until it is fine-tuned")
    parser.add_argument("--picture", type=Path, help="write the study's picture to this file")
    options = parser.parse_args()

    torch.manual_seed(0)
    torch.set_num_threads(1)  # a network this small runs fastest on one
    training, choosing, test = load()
    model = Reader(options.cells)
    train(model, training, options.epochs, 3e-3)

    rows, _ = choosing.tensors
    study = lm.ablation_study(model, lambda network: right(network, choosing), held_out=rows)
    print(study, "\n")
    if options.picture is not None:
        study.plot().savefig(options.picture)

    keep = study.keep(max_loss=options.max_loss)
    smaller = lm.prune(model, keep, example=rows[:8])
    before, after = right(model, test).mean(), right(smaller, test).mean()
    train(smaller, training, 2, 1e-3)
    tuned = right(smaller, test).mean()

    batch = test.tensors[0].repeat(4, 4, 1)
    times = milliseconds(model, batch), milliseconds(smaller, batch)
    print(f"{len(keep['rnn.l0'])} of {options.cells} cells stay. Accuracy on images that had no part in all this:\n")
    print(f"  before              {before:6.1%}")
    print(f"  after pruning       {after:6.1%}")
    print(f"  two epochs later    {tuned:6.1%}")
    print(f"\nOne pass takes {times[1]:.1f} ms instead of {times[0]:.1f} ms: {times[0] / times[1]:.1f} times faster.")


if __name__ == "__main__":
    main()
