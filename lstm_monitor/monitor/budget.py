"""What the monitoring costs, measured by itself, and the checks that there is room for within a budget."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from statistics import median
from typing import Any

import torch

from lstm_monitor.core.guard import LOG

BUDGET = 0.01
"""The share of the training time that periodic checks may take by default."""
MARGIN = 1.5
"""How much longer than expected a check may take without leaving the budget."""
RECENT = 5
"""By how many of the latest periodic checks it is told what the next one takes."""


class Clock:
    """Seconds of training and of checks, in one process and over resumed ones.

    While a check is made the training's time stands still. A check is taken to cost what the last one and the median of
    the latest cost, whichever is more; pictures what they cost when they were drawn last.
    """

    def __init__(
        self,
        trained: float = 0.0,
        spent: float = 0.0,
        periodic: float = 0.0,
        recent: Sequence[float] = (),
        pictures: float = 0.0,
    ) -> None:
        """Seconds so far: of the run with its checks, of all checks, of the periodic ones.

        `recent`: those of the latest checks, pictures left out; `pictures`: of the pictures that were drawn last.
        """
        self.trained, self.spent, self.periodic = trained, spent, periodic
        self.recent, self.pictures = list(recent), pictures
        self._since: float | None = None
        self._stopped: float | None = None
        self._apart = 0.0

    @classmethod
    def restored(cls, plain: Mapping[str, Any]) -> Clock:
        """From what `plain` returned, also in a version that kept less."""
        names = ("trained", "spent", "periodic", "recent", "pictures")
        return cls(**{name: plain[name] for name in names if name in plain})

    def start(self) -> None:
        """The training begins, or goes on."""
        self.stop()
        self._since = time.perf_counter()

    def stop(self) -> None:
        """The training is over; until it goes on no time passes."""
        self.trained, self._since = self._run(), None

    @property
    def running(self) -> bool:
        """Whether the training has begun."""
        return self._since is not None

    @contextmanager
    def check(self, *, periodic: bool, device: torch.device | None = None) -> Iterator[None]:
        """Time one check; on a CUDA device with all of its work, and without the training's that still runs there."""
        _synchronise(device)
        began = self._stopped = time.perf_counter()
        self._apart = 0.0
        try:
            yield
        finally:
            _synchronise(device)
            self._stopped = None
            self._count(time.perf_counter() - began, periodic)

    @contextmanager
    def continued(self) -> Iterator[None]:
        """Time the rest of the last periodic check, which was worked out beside the training meanwhile."""
        began = self._stopped = time.perf_counter()
        self._apart = 0.0
        try:
            yield
        finally:
            self._stopped = None
            self.beside(time.perf_counter() - began)
            self.recent[-1] -= self._apart

    def beside(self, seconds: float) -> None:
        """What the last periodic check took more; where the training went on meanwhile, this is the most it can be."""
        self.spent += seconds
        self.periodic += seconds
        self.recent[-1] += seconds

    @contextmanager
    def once(self) -> Iterator[None]:
        """Inside a check: what no later one does again."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self._apart += time.perf_counter() - began

    @contextmanager
    def writing(self, drawing: Callable[[], float]) -> Iterator[None]:
        """Inside a check: pictures may be drawn, and `drawing` tells the seconds that this took so far in all."""
        before = drawing()
        try:
            yield
        finally:
            drawn = drawing() - before
            self._apart += drawn
            self.pictures = drawn if drawn > 0 else self.pictures

    def _count(self, seconds: float, periodic: bool) -> None:
        self.spent += seconds
        if periodic or not self.recent:
            earlier = self.recent if self.periodic > 0 else []  # the first check's was an estimate
            self.recent = [*earlier, seconds - self._apart][-RECENT:]
        self.periodic += seconds if periodic else 0.0

    def elapsed(self) -> float:
        """Seconds of training, checks left out."""
        return max(self._run() - self.spent, 0.0)

    def cost(self) -> float | None:
        """All checks over the training time without them; None before the first check and any training."""
        return self.spent / self.elapsed() if self.elapsed() > 0 and self.spent > 0 else None

    def expected(self) -> float:
        """Seconds that a check takes, pictures left out; 0 before the first one."""
        return max(self.recent[-1], median(self.recent)) if self.recent else 0.0

    def affords(self, budget: float) -> bool:
        """Whether the periodic checks, with one more, stay within a share of the training time."""
        return self.periodic + MARGIN * self.expected() <= budget * self.elapsed()

    def affords_pictures(self, budget: float) -> bool:
        """Whether there is room for a check with pictures, and for the next check too: pictures delay none."""
        needed = MARGIN * (2 * self.expected() + self.pictures)
        return self.periodic + needed <= budget * self.elapsed()

    def plain(self) -> dict[str, Any]:
        """For a checkpoint."""
        kept = {"spent": self.spent, "periodic": self.periodic, "recent": list(self.recent), "pictures": self.pictures}
        return {"trained": self._run(), **kept}

    def _run(self) -> float:
        now = time.perf_counter() if self._stopped is None else self._stopped
        return self.trained + (0.0 if self._since is None else now - self._since)


def _synchronise(device: torch.device | None) -> None:
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)


TELLS_AGAIN = 4
"""By which factor the interval changes before it is told again."""


class Governor:
    """Stretches the interval between checks, shortens it again, and says so."""

    def __init__(self, budget: float | None) -> None:
        """`budget`: the share of the training time, or None for no limit.

        Raises:
            ValueError: a budget that is no positive share.
        """
        if budget is not None and not 0 < budget <= 1:
            raise ValueError(f"budget={budget!r} is no share of the training time; allowed: 0 < budget <= 1, or None")
        self.budget = budget
        self._told: int | None = None
        self._mark: tuple[float, Mapping[str, int]] | None = None

    def checked(self, clock: Clock, **counts: int) -> None:
        """A check was made after so many ``epochs`` and ``steps``."""
        self._mark = clock.elapsed(), counts

    def has_room(self, clock: Clock) -> bool:
        """Whether there is room for a check now."""
        return self.budget is None or clock.affords(self.budget)

    def allows(self, clock: Clock, unit: str, count: int) -> bool:
        """Whether there is room for a check that is due at this count of the unit, "epochs" or "steps"."""
        if self.budget is None:
            return True
        has_room = self.has_room(clock)
        if self._mark is not None:
            seconds, since = clock.elapsed() - self._mark[0], count - self._mark[1][unit]
            if seconds > 0 and since > 0:
                self._tell(self.budget, clock.expected(), seconds, since, unit, has_room=has_room)
        return has_room

    def allows_pictures(self, clock: Clock) -> bool:
        """Whether there is room for pictures, which are left out before checks are."""
        return self.budget is None or clock.affords_pictures(self.budget)

    def _tell(self, budget: float, takes: float, seconds: float, since: int, unit: str, *, has_room: bool) -> None:
        """One line where a check is left out for the first time, and one more where the interval has changed by a lot.

        The latter only at a check that is made: over few steps the seconds of one say little.
        """
        every = max(math.ceil(takes * since / (budget * seconds)), 1)
        is_new = every > since and not has_room if self._told is None else has_room and self._has_changed(every)
        if is_new:
            self._told = every
            share = f"{100 * takes / seconds:.2g}% of" if takes < seconds else "more than"
            often = unit[:-1] if every == 1 else f"{every} {unit}"
            LOG.warning(
                f"lstm_monitor: a check takes {takes:.2g} s, {share} the training since the last one; to stay within "
                f"budget={budget:g} it checks about every {often} from now on; budget=None checks at every interval "
                "asked for"
            )

    def _has_changed(self, every: int) -> bool:
        return self._told is not None and not self._told / TELLS_AGAIN < every < self._told * TELLS_AGAIN
