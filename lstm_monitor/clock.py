"""What the monitoring costs, measured by itself."""

from __future__ import annotations

import time


class Clock:
    """Seconds of training and of checks, in one process and over resumed ones."""

    def __init__(self, trained: float = 0.0, spent: float = 0.0, periodic: float = 0.0, last: float = 0.0) -> None:
        """Seconds so far: of the run, of all checks, of the periodic ones, of the last one."""
        self.trained, self.spent, self.periodic, self.last = trained, spent, periodic, last
        self._since: float | None = None

    def start(self) -> None:
        """The training begins."""
        self._since = time.perf_counter()

    @property
    def running(self) -> bool:
        """Whether the training has begun."""
        return self._since is not None

    def check(self, *, periodic: bool) -> _Timed:
        """Time one check."""
        return _Timed(self, periodic)

    def elapsed(self) -> float:
        """Seconds of training, checks left out."""
        running = 0.0 if self._since is None else time.perf_counter() - self._since
        return max(self.trained + running - self.spent, 0.0)

    def cost(self) -> float | None:
        """All checks over the training time without them; None before a first second of training."""
        return self.spent / self.elapsed() if self.elapsed() > 0 and self.spent > 0 else None

    def affords(self, budget: float) -> bool:
        """Whether the periodic checks, with one more like the last, stay within a share of the training time."""
        return self.periodic + self.last <= budget * self.elapsed()

    def plain(self) -> dict[str, float]:
        """For a checkpoint."""
        running = 0.0 if self._since is None else time.perf_counter() - self._since
        return {"trained": self.trained + running, "spent": self.spent, "periodic": self.periodic, "last": self.last}


class _Timed:
    def __init__(self, clock: Clock, periodic: bool) -> None:
        self.clock, self.periodic = clock, periodic

    def __enter__(self) -> None:
        self.began = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        clock = self.clock
        clock.last = time.perf_counter() - self.began
        clock.spent += clock.last
        clock.periodic += clock.last if self.periodic else 0.0
