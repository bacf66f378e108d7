"""The engines against the machine's limit: decoupled cells, the layer as trained, and how both grow.

Every ratio is of two actions that take turns in one process. The limit of decoupled cells is measured by a loop in C
(`bound.py`), that of the layer as trained by torch's bare fused op on the same input.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import first_try
import torch
from bound import bound
from timing import interleaved, milliseconds, ratio, seconds, table
from torch import Tensor, nn

import lstm_monitor as lm
from lstm_monitor.core.definitions import Thresholds
from lstm_monitor.core.records import Snapshot
from lstm_monitor.core.weights import LayerWeights
from lstm_monitor.engines.choice import engine_for
from lstm_monitor.engines.facts import Engine, Signals
from lstm_monitor.engines.fused import run_fused, zero_state
from lstm_monitor.engines.lone_cells import LoneCells, cells_of

STEPS, SINES = 11, (64, 32, 16, 8, 4)
STIMULI = STEPS + len(SINES)
DIRECTIONS = 6
SAMPLED_CELLS = 4


@dataclass(frozen=True, eq=False)
class Work:
    """A layer of H cells, and 16 stimuli over T steps."""

    snap: Snapshot
    directions: Tensor
    given: Signals

    @property
    def weights(self) -> LayerWeights:
        """The layer's weights."""
        assert isinstance(self.snap.weights, LayerWeights)
        return self.snap.weights

    @property
    def cells(self) -> LoneCells:
        """The same cells, each alone."""
        return cells_of(self.weights, self.snap.hidden_mean, self.snap.point.mean, self.directions)

    @property
    def cell_steps(self) -> int:
        """Steps of all cells on all stimuli."""
        return STIMULI * len(self.given.steps) * self.snap.hidden_size

    @property
    def signals(self) -> Tensor:
        """All of them, ``(T, S)``."""
        return torch.cat([self.given.steps, self.given.sines], dim=1)

    @property
    def ways(self) -> Tensor:
        """The direction of each."""
        return torch.cat([self.given.step_way, self.given.sine_way])


def work(cells: int, steps: int, features: int = 16) -> Work:
    """A layer with torch's own first weights, 11 steps and 5 sines."""
    torch.manual_seed(0)
    (snap,) = lm.snapshot(nn.LSTM(features, cells))
    time = torch.arange(steps, dtype=torch.float64)
    sines = torch.stack([torch.sin(2 * torch.pi * time / period) for period in SINES], dim=1).float()
    signs = torch.tensor([1.0, -1.0]).repeat(STEPS)[:STEPS].expand(steps, -1).contiguous()
    ways = torch.arange(STEPS) // 2
    given = Signals(signs, ways, sines, torch.zeros(len(SINES), dtype=torch.long), tuple(1 / p for p in SINES), 2)
    return Work(snap, torch.eye(features)[:, :DIRECTIONS], given)


def decoupled(engine: Engine, item: Work) -> Callable[[], object]:
    """Every metric's facts of all cells alone."""
    cells, state = item.cells, zero_state(item.weights, 1)
    return partial(engine.cell_facts, cells, item.given, state, state[0][0], Thresholds())


def fused(item: Work) -> Callable[[], tuple[Tensor, object]]:
    """The bare fused op on the same input, rank 1."""
    weights = item.weights.along(item.directions)
    ways = nn.functional.one_hot(item.ways, DIRECTIONS).float()
    inputs = item.signals[..., None] * ways
    return partial(run_fused, weights, inputs, zero_state(weights, STIMULI))


def coupled(engine: Engine, item: Work) -> Callable[[], object]:
    """The fused op and every metric's facts."""
    simulate, rest = fused(item), item.snap.hidden_mean

    def measured() -> object:
        hidden, _ = simulate()
        steps = engine.step_facts(hidden[:, :STEPS], rest, Thresholds())
        return steps, engine.sine_facts(hidden[:, STEPS:], item.given.frequencies, 2)

    return measured


def first_loop(item: Work) -> Callable[[], object]:
    """Loops over cells, stimuli and steps in numpy, on a few of the cells."""
    cells = item.cells
    own, bias, drive = (part[..., :SAMPLED_CELLS].numpy() for part in (cells.own, cells.bias, cells.drive))
    return partial(first_try.run_cells, own, bias, drive, item.signals.numpy(), item.ways.tolist())


@contextmanager
def forced(name: str) -> Iterator[Engine]:
    """An engine by its name, as ``LSTM_MONITOR_ENGINE`` would have it."""
    os.environ["LSTM_MONITOR_ENGINE"] = name
    try:
        yield engine_for(torch.device("cpu"), torch.float32)
    finally:
        del os.environ["LSTM_MONITOR_ENGINE"]


def show_decoupled(names: list[str], repeats: int) -> None:
    """The table of decoupled cells against the bound and the first loop."""
    rows = []
    for size in (512, 4096):
        item = work(size, 512)
        limit = bound(item.cell_steps)
        slow = statistics.median(seconds(first_loop(item)) for _ in range(3)) * size / SAMPLED_CELLS
        for name in names:
            for threads in (1, 2):
                torch.set_num_threads(threads)
                with forced(name) as engine:
                    simulate = decoupled(engine, item)
                    times, least = interleaved([simulate, limit or simulate], repeats)
                against = ratio(times, least) if limit else "no C compiler"
                faster = slow / statistics.median(times)
                row = [f"{size}", name, f"{threads}", milliseconds(least), milliseconds(times), against]
                rows.append([*row, f"{faster:,.0f}"])
    torch.set_num_threads(1)
    print("Decoupled, S=16, T=512, all metrics; the bound is 5 exp2 and 2 divisions a cell-step on one core\n")
    head = [
        "H",
        "engine",
        "threads",
        "bound",
        "engine's time",
        "over the bound (quartiles)",
        "faster than loops in numpy",
    ]
    print(table(head, rows), flush=True)


def show_coupled(names: list[str], repeats: int) -> None:
    """The table of the layer as trained against the bare fused op."""
    rows = []
    for size in (128, 512):
        item = work(size, 512)
        for name in names:
            with forced(name) as engine:
                bare, full = interleaved([fused(item), coupled(engine, item)], repeats)
            rows.append([f"{size}", name, milliseconds(bare), milliseconds(full), ratio(full, bare)])
    print("Coupled, S=16, T=512, all metrics, one thread\n")
    print(table(["H", "engine", "bare fused op", "with metrics", "ratio (quartiles)"], rows), flush=True)


def show_growth(name: str, repeats: int) -> None:
    """How the time grows with the cells; the ratio to the bare op at each size."""
    rows = []
    with forced(name) as engine:
        for size in (64, 256, 1024, 4096):
            item = work(size, 128)
            alone, bare, full = interleaved([decoupled(engine, item), fused(item), coupled(engine, item)], repeats)
            each = 1e9 * statistics.median(alone) / item.cell_steps
            rows.append([f"{size}", milliseconds(alone), f"{each:.2f} ns", milliseconds(bare), milliseconds(full)])
            rows[-1].append(ratio(full, bare))
    print(f"As cells are added, engine {name}, S=16, T=128, one thread\n")
    head = ["H", "decoupled", "a cell-step", "bare fused op", "coupled", "coupled over bare (quartiles)"]
    print(table(head, rows), flush=True)


def show_layers(repeats: int) -> None:
    """How the time of a characterization grows with the layers."""
    torch.manual_seed(0)
    models = [nn.LSTM(64, 64, num_layers=count) for count in (1, 4, 16)]
    actions = [partial(lm.characterize, model, horizon=64, rank_by="std_x_outgoing") for model in models]
    one, *others = interleaved(actions, repeats)
    rows = [["1", milliseconds(one), "1", "1"]]
    for count, times in zip((4, 16), others, strict=True):
        rows.append([f"{count}", milliseconds(times), ratio(times, one), f"{count}"])
    print("As layers are added: `characterize` of LSTM(64 -> 64), horizon 64, one thread\n")
    print(table(["layers", "time", "over one layer (quartiles)", "linear would be"], rows), flush=True)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--engines", nargs="*", default=["numba", "torch"])
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)  # as in a check; with gradients the bare op takes twice as long
    print(f"torch {torch.__version__}, Python {platform.python_version()}, {options.repeats} turns\n")
    show_decoupled(options.engines, options.repeats)
    show_coupled(options.engines, options.repeats)
    show_growth(options.engines[0], max(3, options.repeats // 3))
    show_layers(options.repeats)


if __name__ == "__main__":
    main()
