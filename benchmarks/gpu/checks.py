"""A whole check beside a training: how long it holds the training up, and how long the steps around it take.

Stretches of steps with and without a check that is due take turns in one process, with torch's own switches (TF32 on).
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import first_try
import torch
from torch import Tensor, nn

import lstm_monitor as lm
from gpu.clocks import device, middle, shown, sized, wait
from gpu.parts import make
from gpu.telling import DRY, NO_GPU, row, table, target

STEPS, BATCH, TURNS = sized(64, 12), sized(64, 4), sized(15, 2)
STRETCH = sized(40, 3)
"""Steps of a stretch: a check that is worked out beside them has ended within it."""
MOST = 1.0
"""Milliseconds that a periodic check may add beyond the run of the network on held-out data."""


class Network(nn.Module):
    """One LSTM or two, and a linear layer on the last state."""

    def __init__(self, features: int, cells: int, layers: int) -> None:
        super().__init__()
        self.rnn = nn.LSTM(features, cells, num_layers=layers, batch_first=True)
        self.head = nn.Linear(cells, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Shape ``(N, 1)``."""
        result: Tensor = self.head(self.rnn(x)[0][:, -1])
        return result


@dataclass
class Bench:
    """A training, a monitor of it, and held-out data; a check is due after the step at which `due` was set."""

    network: Network
    step: Callable[[], None]
    held_out: Tensor
    monitor: lm.LSTMMonitor = field(init=False)
    due: bool = False

    def __post_init__(self) -> None:
        """The first check, which designs the stimuli."""
        settings: dict[str, Any] = {"budget": None, "history": False, "on_error": "raise"}
        horizon = 16 if DRY else None
        self.monitor = lm.LSTMMonitor(
            self.network, self.held_out, every_n_steps=lambda _: self.due, horizon=horizon, **settings
        )
        self.monitor.on_train_begin()

    def stretch(self, *, due: bool) -> tuple[float, float]:
        """Milliseconds of some steps, after the first of which a check is due or not, and of the hook there."""
        checks, held = self.monitor.checks, 0.0
        wait()
        began = time.perf_counter()
        for number in range(STRETCH):
            self.step()
            self.due = due and number == 0
            at_hook = time.perf_counter()
            self.monitor.on_train_batch_end(number)
            held = max(held, time.perf_counter() - at_hook)
        wait()
        self.monitor.settle()
        took = time.perf_counter() - began
        assert self.monitor.checks == checks + due, "a stretch had another number of checks than it should"
        return 1e3 * took, 1e3 * held


def bench(features: int, cells: int, layers: int) -> Bench:
    """A training of one network."""
    torch.manual_seed(0)
    network = Network(features, sized(cells, 5), layers).to(device())
    optimizer = torch.optim.Adam(network.parameters())
    x, y = torch.randn(BATCH, STEPS, features).to(device()), torch.randn(BATCH, 1).to(device())
    held_out = torch.randn(16, STEPS, features).to(device())

    def step() -> None:
        loss = nn.functional.mse_loss(network(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return Bench(network, step, held_out)


def beside(name: str, features: int, cells: int, layers: int) -> None:
    """The rows of one network."""
    it = bench(features, cells, layers)
    for due in (True, False):
        it.stretch(due=due)
    with_check, without = [], []
    for _ in range(TURNS):
        with_check.append(it.stretch(due=True))
        without.append(it.stretch(due=False))
    bare = [whole / STRETCH for whole, _ in without]
    added = [one - other for (one, _), (other, _) in zip(with_check, without, strict=True)]
    alone = held_out_run(it)
    checks = [_timed(it.monitor) for _ in range(TURNS)]
    assert it.monitor.report is not None
    row(name, "steps of the step responses", f"{it.monitor.report.layers[0].horizon}")
    row(name, "a step of the training", shown(bare))
    row(name, "held-out data through the network, alone", shown(alone))
    row(name, "a whole check by hand, waited for", shown(checks))
    row(name, "the same as a share of a step", NO_GPU if DRY else f"{middle(checks) / middle(bare):.1f} steps")
    row(name, "a periodic check: the hook holds the training for", shown([held for _, held in with_check]))
    row(name, "it adds to the steps around it", shown(added))
    row(name, "a hook that is not due", shown([held for _, held in without]))
    row(name, "memory at the peak of a check", peak_of(it.monitor))
    row(name, "the same written naively, on the CPU", naive(it))
    target(f"added by a periodic check of {name}, beyond the held-out run", middle(added) - middle(alone), MOST, "ms")
    it.monitor.close()


def held_out_run(it: Bench) -> list[float]:
    """Milliseconds of the network on held-out data, as one would run it for a validation loss."""
    times = []
    for _ in range(0 if DRY else TURNS):
        wait()
        began = time.perf_counter()
        with torch.no_grad():
            it.network(it.held_out)
        wait()
        times.append(1e3 * (time.perf_counter() - began))
    return times


def _timed(monitor: lm.LSTMMonitor) -> float:
    wait()
    began = time.perf_counter()
    monitor.steps += 7
    monitor.check()
    wait()
    return 1e3 * (time.perf_counter() - began)


def peak_of(monitor: lm.LSTMMonitor) -> str:
    """Above what is there before it."""
    if DRY:
        monitor.check()
        return NO_GPU
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    monitor.check()
    wait()
    return f"{(torch.cuda.max_memory_allocated() - before) / 2**20:.1f} MiB"


def naive(it: Bench) -> str:
    """A deep copy, an nn.LSTM a stimulus and a cell, metrics by loops; once."""
    if it.network.rnn.num_layers > 1:
        return "one layer only"
    assert it.monitor.report is not None
    horizon = it.monitor.report.layers[0].horizon
    began = time.perf_counter()
    first_try.characterize(copy.deepcopy(it.network).cpu(), it.held_out.cpu(), horizon, max(horizon, 128))
    return NO_GPU if DRY else f"{1e3 * (time.perf_counter() - began):.0f} ms"


def main() -> None:
    """Measure and tell."""
    table(f"Batches of {BATCH} x {STEPS} steps; stretches of {STRETCH} steps in turns.", "network", "what", "time")
    make(
        {
            "LSTM(16 -> 128)": partial(beside, "LSTM(16 -> 128)", 16, 128, 1),
            "two layers LSTM(128 -> 512)": partial(beside, "two layers LSTM(128 -> 512)", sized(128, 6), 512, 2),
        }
    )


if __name__ == "__main__":
    main()
