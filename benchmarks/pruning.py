"""Is it worth it to prune? A network cut down by the greedy order, against the whole and against one trained small.

Prints Markdown: for each task and number of cells left the test score of the whole network, of the same with the other
cells ablated, of the pruned one, of that after two more epochs, and of one of that size trained from scratch; and how
much faster a pass is.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import tasks
import torch
from torch import Tensor, nn

import lstm_monitor as lm

FULL = 128
LEFT = (96, 64, 32)


def milliseconds(network: nn.Module, x: Tensor, repeats: int = 15) -> float:
    """Median time of one pass."""
    times = []
    with torch.no_grad():
        for _ in range(repeats):
            began = time.perf_counter()
            network(x)
            times.append(1e3 * (time.perf_counter() - began))
    return statistics.median(times)


def tune(network: nn.Module, task: tasks.Task, epochs: int) -> None:
    """Train on, at a third of the rate, with Adam begun anew."""
    optimizer = torch.optim.Adam(network.parameters(), task.rate / 3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(epochs):
        for rows in torch.randperm(len(task.train), generator=generator).split(32):
            loss = task.loss(network(task.train.x[rows]), task.train.y[rows]).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def rows_of(task: tasks.Task, seed: int) -> list[list[float]]:
    """A line for each number of cells left: the scores, then how many times faster a pass is."""
    network = tasks.train(task, FULL, seed)
    study = lm.ablation_study(network, held_out=task.validation.x, rankings=["greedy"], random_orders=0)
    order = study["rnn.l0"].trials[0].ranking.order
    whole, x = tasks.accuracy(network, task, task.test), task.test.x
    found = []
    for left in LEFT:
        smaller = lm.prune(network, {"rnn.l0": order[:left].sort().values}, example=task.validation.x[:8])
        with lm.ablated(network, {"rnn.l0": order[left:]}):
            ablated = tasks.accuracy(network, task, task.test)
        pruned, faster = tasks.accuracy(smaller, task, task.test), milliseconds(network, x) / milliseconds(smaller, x)
        tune(smaller, task, 2)
        small = tasks.accuracy(tasks.train(task, left, seed), task, task.test)
        found.append([whole, ablated, pruned, tasks.accuracy(smaller, task, task.test), small, faster])
    return found


def main() -> None:
    """Train, prune and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--tasks", nargs="*", default=["digits_rows", "adding", "co2"])
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--data", type=Path, help="folder with protein/ and mnist/, for two more tasks")
    options = parser.parse_args()
    torch.set_num_threads(1)
    makers = tasks.available(options.data)
    print(f"| task | cells of {FULL} | whole | ablated | pruned | two epochs later | trained small | times faster |")
    print("|---|---|---|---|---|---|---|---|")
    for name in options.tasks:
        task = makers[name]()
        found = torch.tensor([rows_of(task, seed) for seed in options.seeds])
        for left, values in zip(LEFT, found.mean(0).tolist(), strict=True):
            shown = " | ".join(f"{value:.1%}" for value in values[:-1])
            print(f"| {name} | {left} | {shown} | {values[-1]:.2f} |", flush=True)


if __name__ == "__main__":
    main()
