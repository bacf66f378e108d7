"""Times on a GPU, which works on while Python goes on: by its own clock, by the host's, and how long the host is held.

In a dry run everything is done once and nothing is timed.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import torch

from gpu.telling import DRY, NO_GPU

WARM_UPS = 3
"""Calls that do not count: they load modules, compile, and take memory."""


def sized(real: int, tiny: int) -> int:
    """What is computed on the GPU, and in a dry run."""
    return tiny if DRY else real


def device() -> torch.device:
    """Where everything is measured."""
    return torch.device("cpu" if DRY else "cuda")


def wait() -> None:
    """Until the device has done all that it was asked for."""
    if not DRY:
        torch.cuda.synchronize()


def on_device(action: Callable[[], object], repeats: int = 21, calls: int = 5) -> list[float]:
    """Milliseconds a call between two events on the device, several calls at a time so that the host can run ahead."""
    _warm_up(action)
    times = []
    for _ in range(0 if DRY else repeats):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        for _ in range(calls):
            action()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) / calls)
    return times


def on_host(action: Callable[[], object], repeats: int = 21) -> tuple[list[float], list[float]]:
    """Milliseconds until a call returns, and until all that it asked for is done; the device is idle before."""
    _warm_up(action)
    returned, done = [], []
    for _ in range(0 if DRY else repeats):
        wait()
        began = time.perf_counter()
        action()
        returned.append(1e3 * (time.perf_counter() - began))
        wait()
        done.append(1e3 * (time.perf_counter() - began))
    return returned, done


def first_use(action: Callable[[], object]) -> float:
    """Milliseconds of the first call, with all that is done once."""
    wait()
    began = time.perf_counter()
    action()
    wait()
    return 1e3 * (time.perf_counter() - began)


def middle(times: Sequence[float]) -> float:
    """The median; NaN in a dry run."""
    return statistics.median(times) if times else float("nan")


def shown(times: Sequence[float], unit: str = "ms") -> str:
    """Median and quartiles."""
    if DRY or not times:
        return NO_GPU
    low, half, high = statistics.quantiles(times, n=4) if len(times) > 1 else [*times] * 3
    return f"{half:.3g} {unit} ({low:.3g} to {high:.3g})"


def _warm_up(action: Callable[[], object]) -> None:
    for _ in range(1 if DRY else WARM_UPS):
        action()
    wait()
