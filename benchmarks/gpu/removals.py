"""Every one of 128 cells removed by itself, exactly, on 2,000 sequences of 64 steps; beside copies and a loop."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

import lstm_monitor as lm
from gpu.checks import Network
from gpu.clocks import device, middle, shown, sized, wait
from gpu.parts import make
from gpu.telling import DRY, NO_GPU, row, table, target
from lstm_monitor.core.terms import LayerKey
from lstm_monitor.core.undisturbed import undisturbed
from lstm_monitor.importance.removal.network import Network as Removable
from lstm_monitor.importance.removal.single_cells import singles
from lstm_monitor.layers.finding import find_layers
from lstm_monitor.snapshots.runs import runs_of

CELLS, SEQUENCES, STEPS = sized(128, 4), sized(2000, 6), sized(64, 8)
FEW = sized(8, 2)
KEY = LayerKey("rnn")


def network_and_data() -> tuple[Network, Tensor]:
    """On the device."""
    torch.manual_seed(0)
    return Network(16, CELLS, 1).to(device()), torch.randn(SEQUENCES, STEPS, 16).to(device())


def timed(action: Callable[[], object], repeats: int, *, warm: bool = True) -> list[float]:
    """Seconds, after a first time that does not count."""
    if warm or DRY:
        action()
    times = []
    for _ in range(0 if DRY else repeats):
        wait()
        began = time.perf_counter()
        action()
        wait()
        times.append(time.perf_counter() - began)
    return times


def sweep(network: Network, x: Tensor, batch: int) -> object:
    """The exact effects of all single cells, in batches of this size, on the host."""
    with undisturbed(network):
        found = find_layers(network)
        return (
            singles(Removable(network, found, runs_of(network, found, list(x.split(batch)))), KEY)
            .output_effects()
            .cpu()
        )


def exact() -> None:
    """In one batch and in some."""
    network, x = network_and_data()
    best = []
    for batch in (SEQUENCES, max(SEQUENCES // 4, 1)):
        times = timed(partial(sweep, network, x, batch), 3)
        row(f"{CELLS} cells, exact, batches of {batch}", shown(times, "s"))
        best.append(middle(times))
    target(f"{CELLS} cells removed one by one, {SEQUENCES} x {STEPS} steps", min(best), 1.0, "s")


def study() -> None:
    """What a user calls: single cells, curves, two rankings, random orders."""
    network, x = network_and_data()

    def ask() -> object:
        return lm.ablation_study(network, lambda net: net(x).square().mean(1).detach(), held_out=x, seconds=None)

    row("a whole ablation study", shown(timed(ask, 1, warm=False), "s"))


def plain() -> None:
    """Copies of the network with a cell's rows at zero, a few of them, as if there were all."""
    network, x = network_and_data()

    @torch.no_grad()
    def loop() -> Tensor:
        outputs = []
        for cell in range(FEW):
            clone = copy.deepcopy(network)
            for parameter in clone.rnn.parameters():
                parameter[2 * CELLS + cell] = 0
            outputs.append((clone(x) - network(x)).square().mean())
        return torch.stack(outputs).cpu()

    times = timed(loop, 3)
    whole = NO_GPU if DRY else f"{middle(times) * CELLS / FEW:.3g} s (from {FEW} cells)"
    row(f"{CELLS} cells by copies and a loop", whole)


def main() -> None:
    """Measure and tell."""
    table(f"LSTM(16 -> {CELLS}), {SEQUENCES} sequences of {STEPS} steps.", "what", "time")
    make({"exact": exact, "copies and a loop": plain, "a study": study})


if __name__ == "__main__":
    main()
