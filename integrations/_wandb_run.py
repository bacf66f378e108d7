"""What all sinks of one W&B run share, until it finishes."""

from __future__ import annotations

import os
from typing import Any
from weakref import WeakKeyDictionary

from wandb.sdk.wandb_run import Run

from lstm_monitor.guard import LOG
from lstm_monitor.integrations._wandb_rows import Rows
from lstm_monitor.integrations._wandb_tables import CellTable
from lstm_monitor.records import Alarm
from lstm_monitor.report import Report, run_key

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
