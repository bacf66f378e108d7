"""Small tasks with real and made data, and networks trained on them, for the benchmarks.

Each task has sequences for training, for validation (what rankings may see) and for the test (what they are judged on),
apart from each other; inputs are scaled by the training sequences. Every split is the same at every call.

Run as a script, it trains every task once and prints how well that goes.
"""

from __future__ import annotations

import argparse
import gzip
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

LAYERS = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}


@dataclass(frozen=True, eq=False)
class Split:
    """Inputs ``x (N, T, I)`` and targets ``y``: ``(N, 1)`` numbers, ``(N,)`` classes or ``(N, steps)`` classes."""

    x: Tensor
    y: Tensor

    def __len__(self) -> int:
        """N."""
        return len(self.x)

    def every(self, count: int) -> Split:
        """At most `count` of the sequences, evenly spaced."""
        index = torch.linspace(0, len(self) - 1, min(count, len(self))).round().long()
        return Split(self.x[index], self.y[index])


@dataclass(frozen=True, eq=False)
class Task:
    """A task, its data, and how it is trained here.

    ``outputs`` is the width of the head. ``ahead`` is None where the network answers once, after the last step;
    otherwise it answers at every step from that one on, about the element `ahead` steps before. ``loss`` maps outputs
    and targets to one number a sequence ``(N,)``. ``epochs`` and ``rate`` (of Adam) were chosen by hand.
    """

    name: str
    features: int
    outputs: int
    train: Split
    validation: Split
    test: Split
    loss: Callable[[Tensor, Tensor], Tensor]
    epochs: int
    rate: float
    ahead: int | None = None


class Network(nn.Module):
    """One recurrent layer and a linear head on its last step, or on every step from `ahead` on."""

    def __init__(self, task: Task, cells: int, kind: str = "lstm") -> None:
        super().__init__()
        self.ahead = task.ahead
        self.rnn = LAYERS[kind](task.features, cells, batch_first=True)
        self.head = nn.Linear(cells, task.outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Shape ``(N, outputs)``, or ``(N, T - ahead, outputs)``."""
        hidden, _ = self.rnn(x)
        result: Tensor = self.head(hidden[:, -1] if self.ahead is None else hidden[:, self.ahead :])
        return result


def squared_error(output: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of each sequence ``(N,)``."""
    return (output - target).square().flatten(1).mean(1)


def cross_entropy(output: Tensor, target: Tensor) -> Tensor:
    """Cross entropy in nats of each sequence ``(N,)``, the mean over its answers."""
    losses = F.cross_entropy(output.flatten(0, -2), target.flatten(), reduction="none")
    return losses.view(len(target), -1).mean(1)


def train(task: Task, cells: int, seed: int, epochs: int | None = None, kind: str = "lstm", batch: int = 32) -> Network:
    """A network trained on a task, in eval mode; the same for the same arguments.

    Adam with a rate that falls to zero along a cosine, gradients clipped at norm 1, the task's own number of epochs
    unless another is given. The global random state is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = Network(task, cells, kind)
    order = torch.Generator().manual_seed(seed)
    steps = (task.epochs if epochs is None else epochs) * math.ceil(len(task.train) / batch)
    optimizer = torch.optim.Adam(network.parameters(), lr=task.rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, steps))
    while steps > 0:
        for index in torch.randperm(len(task.train), generator=order).split(batch):
            _step(network, optimizer, task.loss(network(task.train.x[index]), task.train.y[index]).mean())
            schedule.step()
            steps -= 1
    return network.eval()


def _step(network: nn.Module, optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(network.parameters(), 1.0)
    optimizer.step()


@torch.no_grad()
def per_sequence_loss(network: nn.Module, task: Task, split: Split) -> Tensor:
    """The task's loss of every sequence of a split ``(N,)``."""
    return task.loss(network(split.x), split.y)


def trivial_loss(task: Task, split: Split) -> float:
    """Mean loss of the best answer that is the same for all inputs, learned from the training targets."""
    if task.train.y.is_floating_point():
        answer = task.train.y.mean(0)
        return float(task.loss(answer.expand_as(split.y), split.y).mean())
    shares = torch.bincount(task.train.y.flatten(), minlength=task.outputs) / task.train.y.numel()
    return float(task.loss(shares.log().expand(*split.y.shape, -1), split.y).mean())


# --- time series -----------------------------------------------------------------------------------------------------


def co2(past: int = 52, ahead: int = 13) -> Task:
    """Mauna Loa CO2 (statsmodels): from 52 weekly changes, the change over the next 13 weeks; in time's order."""
    import statsmodels.api as sm

    ppm = sm.datasets.co2.load_pandas().data["co2"].interpolate()  # a few weeks are missing
    windows = torch.tensor(ppm.to_numpy(), dtype=torch.float32).unfold(0, past + 1 + ahead, 1)
    x = windows[:, : past + 1].diff(dim=1)[..., None]
    y = windows[:, -1:] - windows[:, past, None]
    splits = _in_order(x, y, gap=past + 1 + ahead)
    return Task("co2", 1, 1, *splits, loss=squared_error, epochs=30, rate=3e-3)


def sp500(past: int = 40, ahead: int = 5) -> Task:
    """S&P 500 (arch): from 40 days of returns and log ranges, the log volatility of the next 5 days; in time's order.

    The volatility is the root of the mean square of the daily log range, high over low.
    """
    from arch.data import sp500 as record

    prices = record.load()
    change = torch.tensor(np.diff(np.log(prices["Adj Close"].to_numpy())), dtype=torch.float32)
    span = torch.tensor(np.log((prices["High"] / prices["Low"]).to_numpy())[1:], dtype=torch.float32)
    x = torch.stack((change, span.log()), dim=1)[:-ahead].unfold(0, past, 1).transpose(1, 2)
    y = span.square()[past:].unfold(0, ahead, 1).mean(1, keepdim=True).sqrt().log()
    splits = _in_order(x, y, gap=past + ahead)
    return Task("sp500", 2, 1, *splits, loss=squared_error, epochs=15, rate=3e-3)


def _in_order(x: Tensor, y: Tensor, gap: int) -> tuple[Split, Split, Split]:
    """The first 60%, the next 20% and the last 20% of the windows, with a gap, so that no day is in two of them."""
    first, second = int(0.6 * len(x)), int(0.8 * len(x))
    mean, std = x[:first].mean((0, 1)), x[:first].std((0, 1))
    centre, spread = y[:first].mean(0), y[:first].std(0)
    whole = Split((x - mean) / std, (y - centre) / spread)
    parts = (slice(0, first), slice(first + gap, second), slice(second + gap, None))
    learn, check, test = (Split(whole.x[part], whole.y[part]) for part in parts)
    return learn.every(1500), check.every(256), test.every(512)


def adding(steps: int = 40) -> Task:
    """The adding problem: noise in [0, 1] with two marked steps, one in each half; answer the sum of the two.

    S. Hochreiter and J. Schmidhuber, Long Short-Term Memory, Neural Computation 1997, section 5.4 (here with a fixed
    length and marks of 0 and 1).
    """
    generator = torch.Generator().manual_seed(0)
    values = torch.rand(2268, steps, generator=generator)
    half = steps // 2
    marks = torch.zeros_like(values)
    for start in (0, half):
        marks.scatter_(1, start + torch.randint(half, (len(values), 1), generator=generator), 1.0)
    whole = Split(torch.stack((values, marks), dim=2), (values * marks).sum(1, keepdim=True))
    return Task("adding", 2, 1, *_parts(whole, 256, 512), loss=squared_error, epochs=40, rate=1e-2)


# --- images, row by row or pixel by pixel ----------------------------------------------------------------------------


def digits_rows() -> Task:
    """Handwritten digits of 8 x 8 pixels (scikit-learn), a row a step."""
    splits = _parts(_digits(8, 8), 256, 512)
    return Task("digits_rows", 8, 10, *splits, loss=cross_entropy, epochs=30, rate=1e-2)


def digits_pixels() -> Task:
    """Handwritten digits of 8 x 8 pixels (scikit-learn), a pixel a step."""
    splits = _parts(_digits(64, 1), 256, 512)
    return Task("digits_pixels", 1, 10, *splits, loss=cross_entropy, epochs=60, rate=1e-2)


def _digits(steps: int, features: int) -> Split:
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    x = torch.tensor(images, dtype=torch.float32).view(-1, steps, features)
    return Split(x / 8 - 1, torch.tensor(labels, dtype=torch.long))  # 0..16 to -1..1


def mnist_rows(folder: Path) -> Task:
    """Sequential MNIST by rows of 28 pixels: 1,500, 256 and 512 of the 10,000 images of its test file.

    Args:
        folder: holds ``t10k-images-idx3-ubyte.gz`` and ``t10k-labels-idx1-ubyte.gz``.
    """
    images = np.frombuffer(gzip.decompress((folder / "t10k-images-idx3-ubyte.gz").read_bytes()), np.uint8, offset=16)
    labels = np.frombuffer(gzip.decompress((folder / "t10k-labels-idx1-ubyte.gz").read_bytes()), np.uint8, offset=8)
    x = torch.tensor(images, dtype=torch.float32).view(-1, 28, 28) / 128 - 1
    splits = _parts(Split(x, torch.tensor(labels, dtype=torch.long)), 256, 512, 1500)
    return Task("mnist_rows", 28, 10, *splits, loss=cross_entropy, epochs=15, rate=5e-3)


def _parts(whole: Split, validation: int, test: int, train: int | None = None) -> tuple[Split, Split, Split]:
    """Training, validation and test sequences, drawn at random."""
    order = torch.randperm(len(whole), generator=torch.Generator().manual_seed(0))
    checked = validation + test
    indices = (order[checked:][:train], order[:validation], order[validation:checked])
    learn, check, judge = (Split(whole.x[index], whole.y[index]) for index in indices)
    return learn, check, judge


# --- proteins --------------------------------------------------------------------------------------------------------

RESIDUES, STRUCTURES = "ACDEFGHIKLMNPQRSTVWY", "_eh"


def protein(folder: Path, length: int = 40, ahead: int = 8) -> Task:
    """Protein secondary structure: the class (coil, sheet, helix) of each residue, after the next 8 were read.

    N. Qian and T. Sejnowski, Journal of Molecular Biology 1988. Chains are cut into windows of 40 residues, of which
    the first 32 are answered. Whole chains are kept for validation; the test chains are those of the test file.

    Args:
        folder: holds ``protein-secondary-structure.train`` and ``.test``.
        length: residues a window.
        ahead: residues that are read beyond the one that is answered.
    """
    chains = _chains(folder / "protein-secondary-structure.train")
    judged = _chains(folder / "protein-secondary-structure.test")
    kept, learned = chains[::5], [chain for i, chain in enumerate(chains) if i % 5]
    splits = (
        _windows(learned, length, ahead, 8).every(1500),
        _windows(kept, length, ahead, 12).every(256),
        _windows(judged, length, ahead, 12).every(512),
    )
    return Task("protein", len(RESIDUES), 3, *splits, loss=cross_entropy, epochs=8, rate=3e-3, ahead=ahead)


def _chains(path: Path) -> list[tuple[list[int], list[int]]]:
    """Residues and classes of each chain; one residue a line, `<>` opens and `end` closes a chain."""
    chains: list[tuple[list[int], list[int]]] = []
    for line in path.read_text().splitlines():
        words = line.split()
        if words[:1] == ["<>"]:
            chains.append(([], []))
        elif len(words) == 2 and chains:
            chains[-1][0].append(RESIDUES.index(words[0]))
            chains[-1][1].append(STRUCTURES.index(words[1]))
    return chains


def _windows(chains: Sequence[tuple[list[int], list[int]]], length: int, ahead: int, stride: int) -> Split:
    xs, ys = [], []
    for residues, classes in chains:
        if len(residues) >= length:  # shorter ones are left out
            xs.append(torch.tensor(residues).unfold(0, length, stride))
            ys.append(torch.tensor(classes).unfold(0, length, stride)[:, : length - ahead])
    return Split(F.one_hot(torch.cat(xs), len(RESIDUES)).float(), torch.cat(ys))


# --- all -------------------------------------------------------------------------------------------------------------

SHIPPED: Mapping[str, Callable[[], Task]] = {
    "co2": co2,
    "sp500": sp500,
    "digits_rows": digits_rows,
    "digits_pixels": digits_pixels,
    "adding": adding,
}
"""The tasks whose data come with Python packages."""


def available(data: Path | None) -> dict[str, Callable[[], Task]]:
    """Every task that can be made; those with files where `data` holds the folders ``protein`` and ``mnist``."""
    makers = dict(SHIPPED)
    if data is not None:
        makers["protein"] = lambda: protein(data / "protein")
        makers["mnist_rows"] = lambda: mnist_rows(data / "mnist")
    return makers


def accuracy(network: nn.Module, task: Task, split: Split) -> float:
    """Share of right answers; for numbers, the share of the variance that is explained."""
    with torch.no_grad():
        output = network(split.x)
    if split.y.is_floating_point():
        return 1 - float((output - split.y).square().mean() / (split.y - task.train.y.mean(0)).square().mean())
    return float((output.argmax(-1) == split.y).float().mean())


def main() -> None:
    """Train each task, and print its losses beside those of the best constant answer."""
    parser = argparse.ArgumentParser(description="Train each task once.")
    parser.add_argument("--tasks", nargs="*", help="names; all that can be made by default")
    parser.add_argument("--cells", type=int, nargs="*", default=[32, 64])
    parser.add_argument("--kind", choices=list(LAYERS), default="lstm")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", type=Path, help="folder with protein/ and mnist/")
    options = parser.parse_args()
    print("| task | sequences | steps | cells | seconds | loss: train | validation | test | constant | right |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    makers = available(options.data)
    for name in options.tasks or makers:
        for cells in options.cells:
            print(_row(makers[name](), cells, options.seed, options.kind), flush=True)


def _row(task: Task, cells: int, seed: int, kind: str) -> str:
    began = time.perf_counter()
    network = train(task, cells, seed, kind=kind)
    seconds = time.perf_counter() - began
    splits = (task.train, task.validation, task.test)
    losses = [float(per_sequence_loss(network, task, split).mean()) for split in splits]
    return (
        f"| {task.name} | {' + '.join(str(len(split)) for split in splits)} | {task.train.x.shape[1]} | {cells} "
        f"| {seconds:.1f} | {losses[0]:.3f} | {losses[1]:.3f} | {losses[2]:.3f} | {trivial_loss(task, task.test):.3f} "
        f"| {accuracy(network, task, task.test):.1%} |"
    )


if __name__ == "__main__":
    main()
