"""What the monitor costs: epoch time with and without it, interleaved in one process, as a ratio with its spread.

Prints Markdown. The trainings are plain loops, so that nothing but the monitor differs; a check runs after every epoch,
the first check (which designs the stimuli) before the clock starts.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

import lstm_monitor as lm
from lstm_monitor.integrations import TensorBoardSink


@dataclass(frozen=True)
class Case:
    """One training: features, cells, sequence length, batch size, steps an epoch."""

    features: int
    cells: int
    length: int
    batch: int
    steps: int

    @property
    def tokens(self) -> int:
        """Sequence steps an epoch."""
        return self.length * self.batch * self.steps


CASES = (Case(1, 32, 52, 32, 56), Case(16, 128, 64, 64, 66), Case(16, 128, 64, 64, 200), Case(16, 512, 64, 64, 66))


class Network(nn.Module):
    """An LSTM and a linear layer on its last state."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.rnn = nn.LSTM(case.features, case.cells, batch_first=True)
        self.head = nn.Linear(case.cells, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Shape ``(N, 1)``."""
        result: torch.Tensor = self.head(self.rnn(x)[0][:, -1])
        return result


def make_epoch(case: Case) -> tuple[Network, Callable[[], None]]:
    """A network and a function that trains it for one epoch."""
    network = Network(case)
    optimizer = torch.optim.Adam(network.parameters())
    x, y = torch.randn(case.batch, case.length, case.features), torch.randn(case.batch, 1)

    def epoch() -> None:
        for _ in range(case.steps):
            loss = nn.functional.mse_loss(network(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return network, epoch


def timed(action: Callable[[], object]) -> float:
    """Seconds."""
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def measure(case: Case, repeats: int, folder: str, pictures_every: int | None) -> tuple[int, list[tuple[float, float]]]:
    """The horizon, and seconds of (an epoch, the check after it), repeated."""
    network, epoch = make_epoch(case)
    sink = TensorBoardSink(folder, pictures_every=pictures_every)
    held_out = torch.randn(16, case.length, case.features)
    monitor = lm.LSTMMonitor(network, held_out, sinks=[sink], history=False, budget=None, on_error="raise")
    epoch()
    monitor.on_train_begin()
    monitor.on_epoch_end(0)
    pairs = [(timed(epoch), timed(lambda: monitor.on_epoch_end(0))) for _ in range(repeats)]
    monitor.close()
    assert monitor.report is not None
    return monitor.report.layers[0].horizon, pairs


def row(case: Case, threads: int, horizon: int, pairs: list[tuple[float, float]]) -> str:
    """A line of the table: medians, and the ratio's quartiles."""
    ratios = sorted(check / epoch for epoch, check in pairs)
    low, middle, high = statistics.quantiles(ratios, n=4)
    epoch, check = (statistics.median(values) for values in zip(*pairs, strict=True))
    return (
        f"| LSTM({case.features} -> {case.cells}) | {case.tokens:,} | {threads} | {horizon} | {epoch:.2f} s "
        f"| {1e3 * check:.0f} ms "
        f"| {middle:.2%} ({low:.2%} to {high:.2%}) |"
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--pictures", action="store_true", help="draw pictures as the default does")
    options = parser.parse_args()
    print(f"torch {torch.__version__}, Python {platform.python_version()}, medians of {options.repeats} epochs\n")
    print("| layer | tokens an epoch | threads | horizon | an epoch | a check | check / epoch, median (quartiles) |")
    print("|---|---|---|---|---|---|---|")
    for case in CASES:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            with tempfile.TemporaryDirectory() as folder:
                measured = measure(case, options.repeats, folder, None if options.pictures else 0)
            print(row(case, threads, *measured), flush=True)


if __name__ == "__main__":
    main()
