"""The parts of a section of figures: one that fails is told, and the rest goes on, if need be in a new process."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from gpu.telling import begun, row, verdict

POISONED = 70
"""The exit status of a process that can use CUDA no more."""


def done_before() -> set[str]:
    """The parts that were begun in an earlier process."""
    given = os.environ.get("LSTM_MONITOR_DONE")
    return set(Path(given).read_text(encoding="utf-8").splitlines()) if given else set()


def is_lost() -> bool:
    """Whether CUDA answers every call of this process with an error from now on."""
    import torch  # the page's own process needs none

    if not torch.cuda.is_initialized():
        return False
    try:
        torch.cuda.synchronize()
        torch.ones(1, device="cuda").item()
    except Exception:
        return True
    return False


def make(parts: Mapping[str, Callable[[], None]]) -> None:
    """Make each part that was not begun before."""
    earlier = done_before()
    for name in [name for name in parts if name not in earlier]:
        begun(name)
        try:
            parts[name]()
        except Exception as error:
            row(name, "**failed**", f"{type(error).__name__}: {error}"[:600])
            verdict(name, passed=False)
            if is_lost():
                os._exit(POISONED)
        else:
            verdict(name, passed=True)
