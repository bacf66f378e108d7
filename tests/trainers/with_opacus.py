"""opacus (differential privacy: DPLSTM).

Its recurrent layers compute what torch's do, in a loop of their own: registered by their weights.
"""

from __future__ import annotations

import importlib.metadata
import warnings

import torch
from common import Results, checks_in, count, finish, layers_in, scalars_in, twice, windows
from opacus import PrivacyEngine
from opacus.layers import DPGRU, DPLSTM
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import lstm_monitor as lm
from lstm_monitor import LayerWeights, LSTMMonitor
from lstm_monitor.integrations import TensorBoardSink

REQUIRES = ["opacus"]
MINUTES = 2
FAST = False

X, Y = windows()
TRAIN, HELD_OUT = slice(0, 256), slice(280, None)


def weights(rnn: DPLSTM | DPGRU) -> dict[str, LayerWeights]:
    """The weights of every layer and direction, by name."""
    kind = "lstm" if isinstance(rnn, DPLSTM) else "gru"
    cells = {name: cell for name, cell in rnn.named_children() if name.startswith("l")}
    return {
        name: LayerWeights(kind, cell.ih.weight, cell.hh.weight, cell.ih.bias, cell.hh.bias)
        for name, cell in cells.items()
    }


class Forecaster(nn.Module):
    """A DPLSTM in two layers, and a linear layer on its last hidden state."""

    def __init__(self) -> None:
        """Twelve cells in each layer."""
        super().__init__()
        self.rnn = DPLSTM(1, 12, num_layers=2, batch_first=True)
        self.head = nn.Linear(12, 1)

    def forward(self, past: Tensor) -> Tensor:
        """The next week after `past` (N, T, 1): (N, 1)."""
        return self.head(self.rnn(past)[0][:, -1])


def train(monitored: bool) -> tuple[nn.Module, str]:
    """Two private epochs; the network, and why its cells cannot be removed."""
    model, reason = Forecaster(), ""
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    loader = DataLoader(TensorDataset(X[TRAIN], Y[TRAIN]), batch_size=32)
    private, optimizer, loader = PrivacyEngine().make_private(
        module=model, optimizer=optimizer, data_loader=loader, noise_multiplier=1.0, max_grad_norm=1.0
    )
    sinks = [TensorBoardSink("runs")]
    monitor = LSTMMonitor(private, held_out=X[HELD_OUT], sinks=sinks, every_n_steps=4, budget=None, on_error="raise")
    if monitored:
        monitor.on_train_begin()
    for epoch in range(2):
        for i, (x, y) in enumerate(loader):
            loss = nn.functional.mse_loss(private(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if monitored:
                monitor.on_train_batch_end(i)
        if monitored:
            monitor.on_epoch_end(epoch, {"loss": loss})
    if monitored:
        monitor.on_train_end()
        reason = why_no_study(private)
    return private, reason


def why_no_study(model: nn.Module) -> str:
    """What an ablation study says of registered cells."""
    try:
        lm.ablation_study(model, held_out=X[HELD_OUT])
    except ValueError as error:
        return str(error)
    return ""


def main() -> Results:
    """Train without and with the monitor, and read back what it wrote."""
    warnings.filterwarnings("ignore", message="Secure RNG turned off")
    with lm.register_cell(DPLSTM, weights=weights):
        _, (_, reason), untouched = twice(train, lambda trained: trained[0])
    arrived = scalars_in("runs")
    assert layers_in(arrived) == ("rnn.l0", "rnn.l1")
    return Results(
        library="opacus",
        version=importlib.metadata.version("opacus"),
        model="DPLSTM",
        layers=layers_in(arrived),
        checks=checks_in(arrived),
        values=count(arrived),
        where="TensorBoard",
        untouched=untouched,
        ablation=reason,
    )


if __name__ == "__main__":
    finish(main())
