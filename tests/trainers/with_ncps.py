"""ncps (liquid networks: CfC and LTC).

Its recurrences are of no kind of torch's: both classes are registered by their step.
"""

from __future__ import annotations

import importlib.metadata

import torch
from common import Results, checks_in, count, finish, layers_in, scalars_in, twice, windows
from ncps.torch import LTC, CfC
from ncps.wirings import AutoNCP
from torch import Tensor, nn

import lstm_monitor as lm
from lstm_monitor import LSTMMonitor
from lstm_monitor.integrations import TensorBoardSink

REQUIRES = ["ncps"]
MINUTES = 1
FAST = True

X, Y = windows()
TRAIN, HELD_OUT = slice(0, 256), slice(280, None)


def step(rnn: CfC | LTC, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """One regular step; the hidden states are all neurons, of which a wired network shows the motor neurons only."""
    _, state = rnn.rnn_cell(x, state, 1.0)
    return state, state


class Forecaster(nn.Module):
    """A CfC, an LTC wired as a neural circuit policy that reads it, and a linear layer on the last motor neurons."""

    def __init__(self) -> None:
        """Sixteen cells, then twelve, of which four are motor neurons."""
        super().__init__()
        self.cfc, self.ltc = CfC(1, 16, backbone_units=32), LTC(16, AutoNCP(12, 4))
        self.head = nn.Linear(4, 1)

    def forward(self, past: Tensor) -> Tensor:
        """The next week after `past` (N, T, 1): (N, 1)."""
        return self.head(self.ltc(self.cfc(past)[0])[0][:, -1])


def train(monitored: bool) -> tuple[nn.Module, str]:
    """Two epochs; the network, and why its cells cannot be removed."""
    model, reason = Forecaster(), ""
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    sinks = [TensorBoardSink("runs")]
    monitor = LSTMMonitor(model, held_out=X[HELD_OUT][:24], sinks=sinks, every_n_steps=8, budget=None, on_error="raise")
    if monitored:
        monitor.on_train_begin()
    for epoch in range(2):
        for i, rows in enumerate(torch.randperm(256).split(32)):
            loss = nn.functional.mse_loss(model(X[rows]), Y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if monitored:
                monitor.on_train_batch_end(i)
        if monitored:
            monitor.on_epoch_end(epoch, {"loss": loss})
    if monitored:
        monitor.on_train_end()
        reason = why_no_study(model)
    return model, reason


def why_no_study(model: nn.Module) -> str:
    """What an ablation study says of registered cells."""
    try:
        lm.ablation_study(model, held_out=X[HELD_OUT])
    except ValueError as error:
        return str(error)
    return ""


def main() -> Results:
    """Train without and with the monitor, and read back what it wrote."""
    with lm.register_cell(CfC, step=step), lm.register_cell(LTC, step=step):
        _, (_, reason), untouched = twice(train, lambda trained: trained[0])
    arrived = scalars_in("runs")
    assert layers_in(arrived) == ("cfc", "ltc")
    return Results(
        library="ncps",
        version=importlib.metadata.version("ncps"),
        model="CfC, LTC",
        layers=layers_in(arrived),
        checks=checks_in(arrived),
        values=count(arrived),
        where="TensorBoard",
        untouched=untouched,
        ablation=reason,
    )


if __name__ == "__main__":
    finish(main())
