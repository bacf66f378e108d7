"""When to check: a schedule is a function from a count (epochs or steps done, from 1) to bool."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

Schedule = Callable[[int], bool]


def every(n: int, *, start: int | None = None, stop: int | None = None) -> Schedule:
    """Due at every `n`-th count, from `start` (default `n`) through `stop` (default never).

    Raises:
        ValueError: `n` is under 1.

    Example:
        >>> [count for count in range(1, 10) if every(3)(count)]
        [3, 6, 9]
    """
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise ValueError(f"n={n!r} must be an integer of at least 1; every(1) checks at every epoch or step")
    return _Every(n, n if start is None else start, stop)


@dataclass(frozen=True)
class _Every:
    """A record, no closure: trainers pickle their callbacks."""

    n: int
    first: int
    stop: int | None

    def __call__(self, count: int) -> bool:
        in_time = count >= self.first and (self.stop is None or count <= self.stop)
        return in_time and (count - self.first) % self.n == 0


def as_schedule(argument: str, value: int | Schedule | None) -> Schedule | None:
    """A schedule from what a user gave: a number, a function, or None for never.

    Raises:
        ValueError: a number under 1, or neither a number nor a function; it names the argument.
    """
    if hasattr(value, "parameters"):
        raise ValueError(
            f"{argument}={type(value).__name__}(...) is a module, no schedule; a trainer's callback finds the model"
        )
    if value is None or (callable(value) and not isinstance(value, int)):
        return value
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(
            f"{argument}={value!r} must be an integer of at least 1, or a function of the count such as "
            "lstm_monitor.every(5, start=10)"
        )
    return every(value)
