"""Watch the cells of an LSTM that reads handwritten digits row by row, with skorch.

The digits come with scikit-learn: 1,797 images of 8 x 8 pixels, which the network reads as 8 steps of 8 numbers.
Held-out data are the net's own validation split, and in the end cells are removed and the net scored on digits it never
saw, to see which of them it needs. The only lines about the monitor are those with ``check`` and ``monitor``.
"""

from __future__ import annotations

import argparse

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from skorch import NeuralNetClassifier
from torch import Tensor, nn

import lstm_monitor as lm
from lstm_monitor.integrations import SkorchLSTMMonitor


class Reader(nn.Module):
    """An LSTM over the rows of an image, and a linear layer on its last hidden state."""

    def __init__(self, cells: int = 24) -> None:
        super().__init__()
        self.lstm = nn.LSTM(input_size=8, hidden_size=cells, batch_first=True)
        self.head = nn.Linear(cells, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Log-odds of the ten digits ``(N, 10)`` for ``images (N, 8, 8)``."""
        hidden, _ = self.lstm(images)
        odds: Tensor = self.head(hidden[:, -1])
        return odds


def main() -> None:
    """Train, and say what the cells do."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--epochs", type=int, default=8)
    epochs = parser.parse_args().epochs
    torch.manual_seed(1)
    torch.set_num_threads(1)
    pixels, digits = load_digits(return_X_y=True)
    images = (pixels / 16).reshape(-1, 8, 8).astype("float32")
    x, x_test, y, y_test = train_test_split(images, digits, test_size=0.2, random_state=1)

    check = lm.AblationCheck(score=lambda module: float(net.score(x_test, y_test)), better="higher", seconds=5)
    # budget=None: a training of seconds has no time to spare for checks, which by default take 1% of it at most.
    monitor = SkorchLSTMMonitor(every_n_epochs=2, ablation=check, budget=None)
    net = NeuralNetClassifier(
        Reader,
        criterion=nn.CrossEntropyLoss,
        optimizer=torch.optim.Adam,
        lr=0.01,
        max_epochs=epochs,
        batch_size=64,
        iterator_train__shuffle=True,
        callbacks=[monitor],
    )
    net.fit(x, y)

    print(f"\nDigits read correctly: {net.score(x_test, y_test):.1%}\n")
    if monitor.report is not None:  # None with LSTM_MONITOR=off in the environment
        print(monitor.report.in_words())


if __name__ == "__main__":
    main()
