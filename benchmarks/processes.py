"""What it brings to share a check and an ablation study between processes, two here, on a core each; about a minute.

Both are made by one process alone while the other one waits, and by both together, in turn, in the same processes.
"""

from __future__ import annotations

import multiprocessing
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from timing import milliseconds, ratio, seconds, table
from torch import distributed, nn

import lstm_monitor as lm
from lstm_monitor.characterization import examine
from lstm_monitor.core import distributed as core_distributed
from lstm_monitor.core.definitions import Thresholds
from lstm_monitor.importance.scoring import assess
from lstm_monitor.layers.finding import find_layers
from lstm_monitor.snapshots.taking import snapshot

COUNT = 2
REPEATS = {"check": 9, "study": 3, "meeting": 30}

Timed = tuple[list[float], list[float], int]
"""Seconds alone and together, and the bytes that a process sent in one turn."""


class Net(nn.Module):
    """A stacked LSTM with a head."""

    def __init__(self, cells: int, layers: int) -> None:
        """Random weights."""
        super().__init__()
        self.rnn, self.head = nn.LSTM(16, cells, layers, batch_first=True), nn.Linear(cells, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The head at the last step."""
        output: torch.Tensor = self.head(self.rnn(x)[0][:, -1])
        return output


def check(cells: int, layers: int) -> Callable[[], object]:
    """A check after the first one, from the snapshots to the report."""
    model = Net(cells, layers)
    found, x = find_layers(model), torch.randn(16, 64, 16)
    snaps = assess(snapshot(model, x), model, found, (), "std_x_outgoing")
    probes = {report.key: probe for report, probe in examine(snaps, {}, "std_x_outgoing", Thresholds(), 64)}
    return lambda: examine(snaps, probes, "std_x_outgoing", Thresholds(), 64)


def study(cells: int) -> Callable[[], object]:
    """An ablation study with all single cells, a greedy order and the curves."""
    model, x = Net(cells, 1), torch.randn(256, 32, 16)
    return lambda: lm.ablation_study(model, held_out=x, rankings=["measured", "greedy"], random_orders=4)


def nothing() -> Callable[[], object]:
    """A meeting of which each has a number to say."""
    return lambda: core_distributed.from_each(lambda: 1.0)


WORK: dict[str, tuple[str, Callable[[], Callable[[], object]]]] = {
    "a meeting with nothing to do": ("meeting", nothing),
    "a check of LSTM(16 -> 128)": ("check", lambda: check(128, 1)),
    "a check of LSTM(16 -> 128), 8 layers": ("check", lambda: check(128, 8)),
    "a check of LSTM(16 -> 512), 4 layers": ("check", lambda: check(512, 4)),
    "an ablation study of LSTM(16 -> 64), 256 x 32 steps": ("study", lambda: study(64)),
}


def sent() -> Callable[[], int]:
    """Counts what this process tells the others; what is returned gives the bytes so far."""
    total = [0]
    plain = core_distributed.Peers._gathered

    def counting(self: core_distributed.Peers, head: list[int], message: bytes) -> tuple[list[list[int]], list[bytes]]:
        total[0] += len(message)
        return plain(self, head, message)

    core_distributed.Peers._gathered = counting  # type: ignore[method-assign]
    return lambda: total[0]


def timed(rank: int, act: Callable[[], object], repeats: int, told: Callable[[], int]) -> Timed:
    """`act` alone and together, in turn, after one turn that does not count."""

    def together() -> None:
        with core_distributed.together():
            act()

    def alone() -> float:
        with core_distributed.together():
            return core_distributed.from_first(lambda: seconds(act))  # the other one waits

    turns: list[tuple[float, float]] = []
    before = 0
    for turn in range(repeats + 1):
        one = alone()
        before = told()
        both = seconds(together)
        turns += [(one, both)] if turn else []
    times = list(zip(*turns, strict=True))
    return list(times[0]), list(times[1]), told() - before


def work(rank: int, store: str, out: str) -> None:
    """One process."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=COUNT)
    told = sent()
    found = {name: timed(rank, make(), REPEATS[kind], told) for name, (kind, make) in WORK.items()}
    if rank == 0:
        torch.save(found, out)
    distributed.barrier()
    distributed.destroy_process_group()


def row(name: str, found: Timed) -> Sequence[str]:
    """Of the table."""
    alone, both, size = found
    return name, milliseconds(alone), milliseconds(both), ratio(alone, both), f"{size / 1024:,.0f} KiB"


def main() -> None:
    """Run the processes and print the table."""
    with tempfile.TemporaryDirectory() as folder:
        places = str(Path(folder) / "store"), str(Path(folder) / "found")
        context = multiprocessing.get_context("spawn")
        processes = [context.Process(target=work, args=(rank, *places)) for rank in range(COUNT)]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        found: dict[str, Timed] = torch.load(places[1], weights_only=True)
    print(f"## {COUNT} processes share (gloo, one thread each)")
    rows = [row(name, times) for name, times in found.items()]
    print(table(["what", "one process", f"{COUNT} together", "times faster (quartiles)", "sent by one"], rows))


if __name__ == "__main__":
    main()
