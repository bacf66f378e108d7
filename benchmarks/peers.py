"""A whole check beside an epoch of training, and beside what else people attach to a training, in one run.

LSTM(16 -> 128), sequences of 64 steps, batches of 64, 200 steps an epoch: 819,200 tokens. Everything takes turns: a
bare epoch, the check after it, a check with TensorBoard, TensorBoard histograms of all parameters, and epochs with
`wandb.watch(log="all")` and with delve, whose hooks run inside the training.
"""

from __future__ import annotations

import argparse
import logging
import platform
import statistics
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import first_try
import torch
from overhead import Case, Network, make_epoch
from timing import milliseconds, seconds, table
from torch.utils.tensorboard import SummaryWriter

import lstm_monitor as lm
from lstm_monitor.integrations import TensorBoardSink

CASE = Case(16, 128, 64, 64, 200)
WATCHED_EVERY = 100


def monitored(network: Network, held_out: torch.Tensor, folder: str | None) -> Callable[[], object]:
    """A check, after the first one, which designs the stimuli."""
    sinks = [] if folder is None else [TensorBoardSink(folder, pictures_every=0)]
    monitor = lm.LSTMMonitor(network, held_out, sinks=sinks, history=False, budget=None, on_error="raise")
    monitor.on_train_begin()

    def check() -> None:
        monitor.steps += 1
        monitor.check()

    check()
    return check


def histograms(network: Network, folder: str) -> Callable[[], object]:
    """TensorBoard histograms of every parameter and its gradient."""
    writer = SummaryWriter(folder)

    def write() -> None:
        for name, parameter in network.named_parameters():
            writer.add_histogram(name, parameter, 0)
            writer.add_histogram(f"{name}.grad", parameter.grad, 0)
        writer.flush()

    return write


def watched(folder: str) -> Callable[[], object]:
    """An epoch of a network that ``wandb.watch`` follows, offline."""
    import wandb

    network, epoch = make_epoch(CASE)
    settings = wandb.Settings(silent=True, console="off")
    run = wandb.init(mode="offline", dir=folder, settings=settings)
    run.watch(network, log="all", log_freq=WATCHED_EVERY)

    def epoch_and_row() -> None:
        epoch()
        run.log({"epoch": 1})  # what was gathered is sent with a row

    return epoch_and_row


def tracked(folder: str) -> Callable[[], object]:
    """An epoch of a network whose layers delve follows, at every 10th step."""
    from delve import SaturationTracker

    network, epoch = make_epoch(CASE)
    tracker = SaturationTracker(
        str(Path(folder, "delve")), save_to="csv", modules=network, log_interval=10, device="cpu", nosave=True
    )

    def epoch_and_row() -> None:
        epoch()
        tracker.add_saturations()

    return epoch_and_row


def measure(repeats: int, folder: str) -> tuple[dict[str, list[float]], int]:
    """Seconds of every action by name, in turns; and the horizon."""
    network, epoch = make_epoch(CASE)
    held_out = torch.randn(16, CASE.length, CASE.features)
    actions: dict[str, Callable[[], Any]] = {
        "bare": epoch,
        "check": monitored(network, held_out, None),
        "check, TensorBoard": monitored(network, held_out, folder),
        "histograms": histograms(network, str(Path(folder, "histograms"))),
        "wandb.watch": watched(folder),
        "delve": tracked(folder),
    }
    for action in actions.values():
        action()
    turns = [{name: seconds(action) for name, action in actions.items()} for _ in range(repeats)]
    report = lm.characterize(network, held_out)
    return {name: [turn[name] for turn in turns] for name in actions}, report.layers[0].horizon


def added(times: dict[str, list[float]], name: str) -> list[float]:
    """Seconds that something adds to an epoch, in each turn: itself, or an epoch with it less the bare one."""
    inside = name in ("wandb.watch", "delve")
    return [one - bare if inside else one for one, bare in zip(times[name], times["bare"], strict=True)]


def share(values: Sequence[float], bare: Sequence[float]) -> str:
    """Median and quartiles of what is added over the bare epoch."""
    low, middle, high = statistics.quantiles([one / other for one, other in zip(values, bare, strict=True)], n=4)
    return f"{middle:.2%} ({low:.2%} to {high:.2%})"


def naive(network: Network, held_out: torch.Tensor, horizon: int) -> float:
    """Seconds of the same characterization as one writes it first."""
    return seconds(partial(first_try.characterize, network, held_out, horizon, max(horizon, 128)))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, nargs="*", default=[1, 2])
    options = parser.parse_args()
    logging.getLogger("delve").setLevel(logging.ERROR)
    print(f"torch {torch.__version__}, Python {platform.python_version()}, {options.repeats} turns\n")
    words = {
        "check": "**a whole check**: both responses, metrics, ranking, report",
        "check, TensorBoard": "the same, and TensorBoard's file",
        "histograms": "TensorBoard histograms of all parameters and gradients, once an epoch",
        "wandb.watch": f'`wandb.watch(log="all", log_freq={WATCHED_EVERY})`',
        "delve": "delve, every 10th step",
    }
    for threads in options.threads:
        torch.manual_seed(0)
        torch.set_num_threads(threads)
        with tempfile.TemporaryDirectory() as folder:
            times, horizon = measure(options.repeats, folder)
        epoch = statistics.median(times["bare"])
        print(f"Training on {threads} thread(s): {epoch:.2f} s an epoch of {CASE.tokens:,} tokens; horizon {horizon}\n")
        rows = [
            [text, milliseconds(added(times, name)), share(added(times, name), times["bare"])]
            for name, text in words.items()
        ]
        print(table(["beside the training", "a turn", "of an epoch, median (quartiles)"], rows), flush=True)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    network, _ = make_epoch(CASE)
    held_out = torch.randn(16, CASE.length, CASE.features)
    check = monitored(network, held_out, None)
    slow = naive(network, held_out, horizon)
    fast = statistics.median(seconds(check) for _ in range(options.repeats))
    print(
        f"The same written naively (`benchmarks/first_try.py`) takes {slow:.1f} s: {slow / fast:.0f} times as long.\n"
    )


if __name__ == "__main__":
    main()
