"""A clock for tests of budgets: it goes on by what they wait for, whatever else the machine has to do."""

from __future__ import annotations


class QuietClock:
    """Stands for `time.perf_counter`: a microsecond passes with each look, and what `wait` is given."""

    def __init__(self) -> None:
        self.now = 1000.0

    def perf_counter(self) -> float:
        """The time in seconds."""
        self.now += 1e-6
        return self.now

    def wait(self, seconds: float) -> None:
        """What `time.sleep` does, at once."""
        self.now += seconds
