"""Rows of a W&B run's history between those of the user, none of which may be lost, split or moved."""

from __future__ import annotations

from collections import deque
from typing import Any

from wandb.plot.custom_chart import CustomChart

from lstm_monitor.guard import LOG
from lstm_monitor.report import run_key

AXIS = run_key("step")
"""The step axis of every metric of ours: the training's step."""
MANY = 10

Row = dict[str, Any]


class Rows:
    """Puts our rows into the history of one run.

    A row ends with the user's next ``log``, or at their next ``step=``. Whoever ends it for them may lose rows of
    theirs: one whose ``step`` is behind the run's is dropped. So ours join the row that is open, one in each; where it
    has one of ours already they wait for the next, and at last for the end of the run.
    """

    def __init__(self, run: Any) -> None:
        """Nothing was written yet."""
        self.run = run
        self.waiting: deque[Row] = deque()
        self._number: int | None = None
        self._written: Row = {}
        self._defined: set[str] = set()
        self._told = False

    def add(self, values: Row, *, at_once: bool = False) -> None:
        """Write what belongs to one step, which stands under `AXIS`; parts of the same check share a row.

        A value may be a function that makes it when its row is written. `at_once`: end the open row if need be.
        """
        self._define(values)
        if self.waiting and _fits(self.waiting[-1], values):
            self.waiting[-1].update(values)
        elif not self.waiting and not self._has_room() and _fits(self._written, values):
            self._write(values)
        else:
            self.waiting.append(values)
        self.release(at_once)
        self._tell()

    def release(self, at_once: bool) -> None:
        """Write what waits as far as there is room; everything if `at_once`."""
        while self.waiting and (at_once or self._has_room()):
            if not self._has_room():
                self.run.log({}, commit=True)
            self._written = {}
            self._write(self.waiting.popleft())

    def _has_room(self) -> bool:
        """Whether the open row has nothing of ours."""
        return self._number != self.run.step

    def _write(self, values: Row) -> None:
        self.run.log({name: value() if callable(value) else value for name, value in values.items()}, commit=False)
        self._number = self.run.step
        self._written |= dict.fromkeys(values) | {AXIS: values[AXIS]}

    def _define(self, values: Row) -> None:
        """Give each metric our axis by its exact name: a glob may lose against one of the user's.

        A layer's name with a star in it can be no exact name: such metrics keep the run's own axis.
        """
        names = {f"{name}_table" if isinstance(value, CustomChart) else name
                 for name, value in values.items()}  # fmt: skip
        for name in sorted(name for name in names - self._defined if "*" not in name):
            if name == AXIS:
                self.run.define_metric(name, hidden=True)
            else:
                self.run.define_metric(name, step_metric=AXIS, step_sync=False)
        self._defined |= names

    def _tell(self) -> None:
        if len(self.waiting) >= MANY and not self._told:
            self._told = True
            LOG.warning(
                "%d checks wait for rows of the W&B run, which gets fewer than there are checks; they are written when "
                "it finishes. If nothing is logged to it with step=, WandbSink(run, own_rows=True) writes them at once",
                len(self.waiting),
            )


def _fits(written: Row, more: Row) -> bool:
    """Whether two parts are of one check: the same step, and no other name in common."""
    return written.keys() & more.keys() == {AXIS} and written[AXIS] == more[AXIS]
