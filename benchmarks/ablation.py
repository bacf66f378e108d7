"""What ablation costs: the library against deep copies and a loop, on the same network, in one run. Prints Markdown.

One LSTM of 128 cells reads handwritten digits pixel by pixel (64 steps); its loss is measured on about 1,800 images.
The plain way is what one writes first: copy the network, zero the cell's weights, run it over a DataLoader.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import tasks
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lstm_monitor.core.terms import LayerKey
from lstm_monitor.core.undisturbed import undisturbed
from lstm_monitor.importance.removal.curves import counts_to_try, curve, scale_of
from lstm_monitor.importance.removal.estimates import estimate, spearman
from lstm_monitor.importance.removal.network import Network
from lstm_monitor.importance.removal.racing import race
from lstm_monitor.importance.removal.single_cells import singles
from lstm_monitor.importance.sensitivity.scores import loss_changes, output_changes
from lstm_monitor.layers.finding import find_layers
from lstm_monitor.snapshots.batching import SIZE
from lstm_monitor.snapshots.runs import Run, runs_of

KEY = LayerKey("rnn")
TENTH = 10


@dataclass(frozen=True)
class Bench:
    """A trained network with the data it is judged on."""

    network: tasks.Network
    task: tasks.Task
    data: tasks.Split

    def measured(self, batch: int) -> Network:
        """The library's way to remove cells, on batches of this size; inside `undisturbed`."""
        found = find_layers(self.network)
        return Network(self.network, found, self.runs(batch))

    def runs(self, batch: int) -> list[Run]:
        """The loss of every sequence, a run a batch."""
        pairs = list(zip(self.data.x.split(batch), self.data.y.split(batch), strict=True))
        runs = runs_of(self.network, find_layers(self.network), pairs, forward=self.loss)
        return [Run(run.call, score=lambda losses: losses) for run in runs]

    def loss(self, network: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Losses ``(N,)``."""
        return self.task.loss(network(batch[0]), batch[1])


def zeroed(network: tasks.Network, cells: Sequence[int]) -> tasks.Network:
    """A copy without some cells, as one first writes it."""
    clone = copy.deepcopy(network)
    size = clone.rnn.hidden_size
    with torch.no_grad():
        for parameter in clone.rnn.parameters():
            parameter[[2 * size + cell for cell in cells]] = 0
    return clone


def plain_loss(bench: Bench, network: nn.Module, batch: int = 64) -> float:
    """Mean loss over a DataLoader."""
    total = 0.0
    with torch.no_grad():
        for x, y in DataLoader(TensorDataset(bench.data.x, bench.data.y), batch_size=batch):
            total += float(bench.task.loss(network(x), y).sum())
    return total / len(bench.data)


def timed(action: Callable[[], object]) -> float:
    """Seconds."""
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def ratios(plain: Callable[[], object], ours: Callable[[], object], repeats: int) -> tuple[float, float, list[float]]:
    """Median seconds of both, interleaved, and the ratio of each pair."""
    pairs = [(timed(plain), timed(ours)) for _ in range(repeats)]
    return (*(statistics.median(column) for column in zip(*pairs, strict=True)), sorted(a / b for a, b in pairs))


def row(name: str, plain: float, ours: float, found: list[float]) -> str:
    """A line of the table: medians, and the ratio with its quartiles."""
    low, middle, high = statistics.quantiles(found, n=4)
    return f"| {name} | {plain:.2f} s | {ours:.2f} s | {middle:.2f} ({low:.2f} to {high:.2f}) |"


def sweeps(bench: Bench, measured: Network, repeats: int) -> None:
    """Exact single cells, and a cumulative curve."""
    cells = list(range(0, 128, 16))
    plain, ours, found = ratios(
        lambda: [plain_loss(bench, zeroed(bench.network, [cell])) for cell in cells],
        lambda: [
            [measured.changes(index, {KEY: torch.tensor([c])}) for index in range(len(measured.runs))] for c in cells
        ],
        repeats,
    )
    print(row(f"single cells, exact (of {len(cells)})", plain, ours, found), flush=True)
    counts, order = counts_to_try(128, 16), torch.randperm(128, generator=torch.Generator().manual_seed(0))
    scale = scale_of(measured, KEY, of_score=True, runs=range(len(measured.runs)))
    plain, ours, found = ratios(
        lambda: [plain_loss(bench, zeroed(bench.network, order[:count].tolist())) for count in counts[1:-1].tolist()],
        lambda: curve(measured, scale, order, counts, lambda: None),
        repeats,
    )
    print(row("cumulative, 15 points", plain, ours, found), flush=True)


def estimates(bench: Bench, measured: Network) -> None:
    """All cells from a tenth of the sequences, with and without the first-order score; and the top ten by racing."""
    began = time.perf_counter()
    exact = singles(measured, KEY)
    whole = time.perf_counter() - began
    order = torch.randperm(len(bench.data), generator=torch.Generator().manual_seed(1))
    mixed = Bench(bench.network, bench.task, tasks.Split(bench.data.x[order], bench.data.y[order]))
    count = len(order) // TENTH
    small = Bench(mixed.network, mixed.task, tasks.Split(mixed.data.x[:count], mixed.data.y[:count])).measured(SIZE)
    began = time.perf_counter()
    pilot = singles(small, KEY)
    piloted = time.perf_counter() - began
    layers, runs = find_layers(mixed.network), mixed.runs(SIZE)
    outputs = [Run(partial(mixed.network, x)) for x in mixed.data.x.split(SIZE)]
    cheap: dict[str, Callable[[], Tensor]] = {
        "output": lambda: output_changes(mixed.network, layers, outputs)[KEY].T,
        "loss": lambda: -loss_changes(mixed.network, layers, runs)[KEY].T,
    }
    effects = {"output": (pilot.output, exact.output), "loss": (pilot.score, exact.score)}
    for name, (few, all_of) in effects.items():
        began = time.perf_counter()
        rows = cheap[name]()
        seconds = time.perf_counter() - began
        found = estimate(few, rows[:, :count], rows.mean(1))
        alone, plain, both = (spearman(v, all_of.mean(1), 0).rho for v in (rows.mean(1), few.mean(1), found.values))
        print(
            f"| {name} | {alone:.3f} | {plain:.3f} | {both:.3f} | {'yes' if found.used else 'no'} ({found.rho:.2f}) "
            f"| {piloted / whole:.0%} + {seconds / whole:.0%} |",
            flush=True,
        )
    racing(mixed, exact.output.mean(1), whole)


def racing(bench: Bench, truth: Tensor, whole: float) -> None:
    """The top ten of 128 by their effect on the output."""
    began = time.perf_counter()
    runs = [Run(partial(bench.network, x)) for x in bench.data.x.split(32)]
    measured = Network(bench.network, find_layers(bench.network), runs)
    found = race(measured, KEY, 10)
    seconds = time.perf_counter() - began
    right = len(set(found.top.tolist()) & set(truth.topk(10).indices.tolist()))
    print(
        f"\nThe top 10 of 128 by racing: {right} of 10 right, {1 / found.work:.1f} times less work, "
        f"{whole / seconds:.1f} times less time{'' if found.decided else ', not all settled'}."
    )


def main() -> None:
    """Train, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    task = tasks.digits_pixels()
    network = tasks.train(task, 128, 0, epochs=20)
    parts = (task.train, task.validation, task.test)
    data = tasks.Split(torch.cat([part.x for part in parts]), torch.cat([part.y for part in parts]))
    bench = Bench(network, task, data)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {len(data)} sequences of 64 steps\n")
    print("| sweep | copies and a loop | here | times faster (quartiles) |\n|---|---|---|---|")
    with undisturbed(network):
        measured = bench.measured(SIZE)
        sweeps(bench, measured, options.repeats)
        print("\n| effects on | first order alone | a tenth | both | used (rho) | of the exact sweep's time |")
        print("|---|---|---|---|---|---|")
        estimates(bench, measured)


if __name__ == "__main__":
    main()
