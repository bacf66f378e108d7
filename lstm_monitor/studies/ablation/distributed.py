"""What a study needs where several processes share it: the same network, the same values, and no talk in between."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from lstm_monitor.core.distributed import from_each, from_first, processes
from lstm_monitor.core.float64 import doubled
from lstm_monitor.importance.removal.network import Network
from lstm_monitor.importance.removal.outcomes import Outcome

ALIKE = 1e-4
"""Values of the same network that differ by more, relatively, are of other data."""


def take_first_buffers(model: nn.Module) -> None:
    """Give the buffers the first process's values: the statistics of normalizations differ between processes.

    Call it where they are put back, without gradients.
    """
    if processes() == 1:
        return
    values = from_first(lambda: [buffer.detach() for buffer in model.buffers()])
    for buffer, value in zip(model.buffers(), values, strict=True):
        buffer.copy_(value)


def check_same_everywhere(network: Network) -> None:
    """Refuse runs that give other values in other processes.

    Raises:
        ValueError: their intact networks' outputs or scores differ; the same in all processes.
    """
    if processes() == 1:
        return
    found = from_each(lambda: _sums(network.intact))
    for rank, sums in enumerate(found):
        if not _alike(sums, found[0]):
            raise ValueError(
                f"the whole network gives other values in process {rank} than in process 0, so they cannot share a "
                "study; give all of them the same model and the same data, and a score of all the data (no loader "
                "that is divided among processes)"
            )


def _sums(outcomes: Sequence[Outcome]) -> list[float]:
    """Of each run the score and its outputs' sizes."""
    sizes = [math.fsum(float(doubled(rows).abs().sum()) for rows in outcome.outputs) for outcome in outcomes]
    return [*sizes, *(float(outcome.score.sum()) for outcome in outcomes)]


def _alike(a: Sequence[float], b: Sequence[float]) -> bool:
    pairs = zip(a, b, strict=False)
    return len(a) == len(b) and all(x == y or abs(x - y) <= ALIKE * abs(y) or (x != x and y != y) for x, y in pairs)


@contextmanager
def by_itself() -> Iterator[None]:
    """Inside, where processes share, an error in place of a call to the other processes: they would wait for ever."""
    if processes() == 1:
        yield
        return
    with _Alone():  # type: ignore[no-untyped-call]
        yield


class _Alone(TorchDispatchMode):
    """Refuses collective calls before they are made."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "namespace", "") in ("c10d", "_c10d_functional"):
            raise RuntimeError(
                f"what is evaluated talks to the other processes ({func.name()}), which are not at the same place of a "
                "shared study; it must measure alone, as with sync_dist=False"
            )
        return func(*args, **(kwargs or {}))
