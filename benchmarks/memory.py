"""How much memory a check takes at its peak above the snapshot: the high-water mark of a process of its own."""

from __future__ import annotations

import multiprocessing
import os
import platform
from collections.abc import Callable
from pathlib import Path

import engines
import torch
from timing import table

MIB = 2**20


def resident(name: str) -> int:
    """Bytes of a line of the process's status: VmRSS now, VmHWM at most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def peak(action: Callable[[], object]) -> int:
    """Bytes that an action takes above what is there before it, at most, and on the way."""
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins anew
    before = resident("VmRSS")
    action()
    return resident("VmHWM") - before


def measure(name: str, cells: int, steps: int, mode: str) -> int:
    """The peak of one engine and mode."""
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    small, item = engines.work(64, steps), engines.work(cells, steps)
    make = engines.decoupled if mode == "alone" else engines.coupled
    with engines.forced(name) as engine:
        make(engine, small)()  # what is loaded and compiled once
        return peak(make(engine, item))


def main() -> None:
    """Measure and print."""
    rows = []
    for mode, cells in (("alone", 512), ("alone", 4096), ("coupled", 512)):
        for name in ("numba", "torch"):
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                taken = pool.apply(measure, (name, cells, 1024, mode))
            trace = 16 * 1024 * cells * 4
            rows.append([mode, f"{cells}", name, f"{trace / MIB:.0f} MiB", f"{taken / MIB:.1f} MiB"])
    print(
        f"Peak memory above the snapshot, S=16, T=1024; torch {torch.__version__}, Python {platform.python_version()}\n"
    )
    print(table(["mode", "H", "engine", "the trace alone", "peak"], rows))


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
