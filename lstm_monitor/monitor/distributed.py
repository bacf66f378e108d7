"""How the monitors of several processes make one check together, and say so when one of them cannot."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar, cast

from lstm_monitor.core.distributed import from_first, in_processes, is_first, processes, together
from lstm_monitor.core.guard import Guard
from lstm_monitor.core.records import Snapshot
from lstm_monitor.core.weights import LayerWeights

R = TypeVar("R")


class Sharing:
    """One monitor's part: it meets the others at every check, also while it rests, until all know.

    Where it is not asked for, or there is one process, everything is as without.
    """

    def __init__(self, guard: Guard, *, asked: bool) -> None:
        """`asked`: whether every process has such a monitor, and calls the same hooks."""
        self.guard, self.asked = guard, False
        if asked:
            self.ask()
        self._parted = False
        self._passed, self._next, self._last = 0, 1, 1

    def ask(self) -> None:
        """From now on the processes share; all of them call this."""
        self.asked = True
        self.guard.quiet = not is_first()

    @property
    def on(self) -> bool:
        """Whether checks are shared; not after one failed: then all monitors rest."""
        return self.asked and not self._parted and in_processes()

    @property
    def idle(self) -> bool:
        """Whether nothing is to be done: the monitor rests, and there is nobody who has to be told."""
        return self.guard.idle and not self.on

    @property
    def writes(self) -> bool:
        """Whether this monitor hands reports to the sinks: one of those that share does."""
        return not self.asked or is_first()

    @contextmanager
    def block(self) -> Iterator[None]:
        """Inside, what can be shared is; an error in one process is raised in all of them.

        Raises:
            RuntimeError: a monitor rests, or is switched off.
        """
        if not self.on:
            yield
            return
        try:
            with together():
                if self.guard.idle:
                    raise RuntimeError(self.guard.reason or "LSTM_MONITOR is off")
                yield
        except BaseException:
            self._parted = True
            raise

    def agreed(self, make: Callable[[], R]) -> R:
        """What the first process makes, for all."""
        with self.block():
            return from_first(make)

    def decided(self, decide: Callable[[], bool]) -> bool:
        """What the first process decides, whose clock counts; where many checks are left out, not all ask it.

        They ask again a little before the next check is expected, and then after each quarter more.
        """
        if not self.on:
            return decide()
        self._passed += 1
        if self._passed < self._next:
            return False
        allowed = self.agreed(decide)
        if allowed:
            self._last, self._passed = self._passed, 0
            self._next = max(3 * self._last // 4, 1)
        else:
            self._next = self._passed + max(self._passed // 4, 1)
        return allowed


def first_snapshots(
    make: Callable[[], Sequence[Snapshot]], with_own: Callable[[Sequence[Snapshot]], tuple[Snapshot, ...]]
) -> tuple[Snapshot, ...]:
    """The first process's snapshots, in each process with its own copy of the weights: they are the same, and large.

    Args:
        make: takes them, with the held-out data and what the network says of the cells.
        with_own: see `lstm_monitor.snapshots.taking.with_own_weights`.
    """
    if processes() == 1:
        return tuple(make())
    whole: list[Snapshot] = []

    def bare() -> list[Snapshot]:
        whole.extend(make())
        return [_bare(snap) for snap in whole]

    received = from_first(bare)
    return tuple(whole) or with_own(received)


def _bare(snap: Snapshot) -> Snapshot:
    """Without what others have, or make themselves where they need it; a registered cell's code cannot be sent."""
    none = cast(Any, None)
    weights = none if isinstance(snap.weights, LayerWeights) else replace(snap.weights, cell=none, step=none)
    return replace(snap, weights=weights, held_out_hidden=None, held_out_gates=None)
