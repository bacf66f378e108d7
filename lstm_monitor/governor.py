"""Holds the periodic checks within a share of the training time: those that are due are made when there is room."""

from __future__ import annotations

import math
from collections.abc import Mapping

from lstm_monitor.clock import Clock
from lstm_monitor.guard import LOG

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
