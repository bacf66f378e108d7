"""Time actions side by side: interleaved in one process, medians of ratios with their spread."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence


def seconds(action: Callable[[], object]) -> float:
    """How long it takes, once."""
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def interleaved(actions: Sequence[Callable[[], object]], repeats: int) -> list[list[float]]:
    """Seconds of every action, `repeats` times in turn, after one turn that does not count."""
    for action in actions:
        action()
    turns = [[seconds(action) for action in actions] for _ in range(repeats)]
    return [list(times) for times in zip(*turns, strict=True)]


def ratio(times: Sequence[float], limit: Sequence[float], form: str = "{:.2f}") -> str:
    """Median and quartiles of the ratios of what was measured in the same turn."""
    ratios = [one / other for one, other in zip(times, limit, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
    return f"{form} ({form} to {form})".format(middle, low, high)


def milliseconds(times: Sequence[float]) -> str:
    """The median, two digits of it."""
    middle = 1e3 * statistics.median(times)
    return f"{middle:.0f} ms" if middle >= 10 else f"{middle:.2g} ms"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"
