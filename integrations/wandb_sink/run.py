"""What all sinks of one W&B run share, and its rows of history between those of the user, none of which may be lost."""

from __future__ import annotations

import os
from collections import deque
from typing import Any
from weakref import WeakKeyDictionary

from wandb.plot.custom_chart import CustomChart
from wandb.sdk.wandb_run import Run

from lstm_monitor.core.guard import LOG
from lstm_monitor.core.records import Alarm
from lstm_monitor.integrations.wandb_sink.tables import CellTable
from lstm_monitor.report.keys import run_key
from lstm_monitor.report.report import Report

WAIT = 600.0
"""Seconds in which an alarm that comes and goes is told once."""
LONGEST_TITLE = 63

_SHARED: WeakKeyDictionary[Any, Shared] = WeakKeyDictionary()


class Shared:
    """Our rows in a run, its table of cells, and the alarms that are on."""

    def __init__(self, run: Any) -> None:
        """Nothing was written yet; what still waits when the run finishes is written then."""
        self.run, self.rows, self.cells = run, Rows(run), CellTable()
        self._on: set[tuple[str, str]] = set()
        self._told: list[str] = []
        self.has_end = _at_end(run, self._finish)

    def alert(self, report: Report) -> None:
        """Tell every alarm that was not on at the last check."""
        now = {(alarm.layer, alarm.name): alarm for alarm in report.alarms}
        for place in now.keys() - self._on:
            self._tell(now[place], report.step)
        self._on = set(now)

    def _tell(self, alarm: Alarm, step: int | None) -> None:
        title = f"{alarm.layer}: {alarm.name}"
        text = f"step {step or 0}: {alarm.words}; {alarm.advice}"
        self.run.alert(title[:LONGEST_TITLE], text, "WARN", WAIT)
        self._told += [title] * (title not in self._told)
        self.run.summary[run_key("alarms_told")] = ", ".join(self._told)

    def _finish(self) -> None:
        _SHARED.pop(self.run, None)
        try:
            self.rows.release(at_once=True)
        except Exception as error:  # a failure of ours must not keep the user's run from finishing
            LOG.error("lstm_monitor: the last checks are missing in W&B: %s: %s", type(error).__name__, error)


def shared(run: Any) -> Shared:
    """The one of this run."""
    if run not in _SHARED:
        _SHARED[run] = Shared(run)
    return _SHARED[run]


def _at_end(run: Any, act: Any) -> bool:
    """Have `act` called when the run finishes, before it is closed; False where wandb has no such hooks."""
    try:
        from wandb.sdk.wandb_run import TeardownHook, TeardownStage

        run._teardown_hooks.append(TeardownHook(act, TeardownStage.EARLY))
    except (ImportError, AttributeError):
        return False
    return True


def checked(run: Any) -> Any:
    """The run itself, if rows can be written to it.

    Raises:
        TypeError: it is no run.
        RuntimeError: it is finished.
    """
    if not isinstance(run, Run):
        raise TypeError(
            f"run={run!r} is no W&B run: give the one that wandb.init() returns, WandbSink(wandb.init(project='...')), "
            "or a function that returns it"
        )
    if not is_open(run):
        raise RuntimeError(
            f"the W&B run {run.id!r} is finished and takes no more checks: call run.finish() after the training has "
            "ended, or give WandbSink a function that returns the run of now, such as lambda: wandb.run"
        )
    return run


def is_run(run: Any) -> bool:
    """Whether it is a run, which may be finished."""
    return isinstance(run, Run)


def is_open(run: Any) -> bool:
    """Whether it is a run that is not finished."""
    return is_run(run) and not getattr(run, "_is_finished", False)


def check_folder(run: Any) -> None:
    """Raise FileNotFoundError if the run's folder has vanished; a new one takes the media of an online run."""
    if not os.path.isdir(run.dir):
        os.makedirs(run.dir)
        raise FileNotFoundError(
            f"{os.path.dirname(run.dir)} vanished with all that was written there; of an offline run what follows is "
            "lost, too"
        )


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
