"""What the adapters of trainers share: options kept plain, and an LSTMMonitor made anew for each training."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, TypedDict, Unpack

from torch import nn

from lstm_monitor.core.definitions import Thresholds
from lstm_monitor.core.errors import nearest
from lstm_monitor.core.guard import OnError
from lstm_monitor.integrations._watched_values import Values
from lstm_monitor.monitor.monitor import LSTMMonitor
from lstm_monitor.monitor.schedule import Schedule
from lstm_monitor.report.report import Report
from lstm_monitor.report.sinks import Sink
from lstm_monitor.snapshots.held_out import Forward
from lstm_monitor.snapshots.outputs import Select
from lstm_monitor.studies.ablation.check import AblationCheck, loop_check


class MonitorOptions(TypedDict, total=False):
    """The options of `LSTMMonitor`, which every adapter takes by name."""

    held_out: Any
    sinks: Sequence[Sink]
    every_n_epochs: int | Schedule | None
    every_n_steps: int | Schedule | None
    ablation: AblationCheck | bool | None
    layers: str | Sequence[str]
    rank_by: str
    forward: Forward | None
    output: Select | None
    lengths: Any
    mask: Any
    horizon: int | None
    held_out_steps: int
    budget: float | None
    thresholds: Thresholds | None
    history: bool | str | os.PathLike[str] | None
    on_error: OnError


class Hosted:
    """An LSTMMonitor inside a trainer that calls hooks; the adapters say when, this says what.

    Nothing but options is made in the constructor, so that the object can be copied, pickled and used for several
    trainings and models. ``report`` is the last report. After an exception that the trainer keeps to itself the sinks
    are closed when the next training begins, or by `close`.

    Raises:
        TypeError: an option that does not exist.
        ValueError: a value that is not allowed.
    """

    finds_held_out: ClassVar[bool] = False  # whether the adapter may bring held-out data of the trainer's own
    left_out: ClassVar[tuple[str, ...]] = ("monitor", "_active")  # what copies and pickles do without

    monitor: LSTMMonitor | None = None
    _active: bool = False

    def __init__(self, **options: Unpack[MonitorOptions]) -> None:
        """See the class."""
        super().__init__()
        self.options = options
        self.check_options(options)
        self.report: Report | None = None
        self._values = Values()
        self._loaded: Mapping[str, Any] | None = None
        self._left: Mapping[str, Any] | None = None

    def check_options(self, options: MonitorOptions) -> None:
        """Raise what is wrong with the options."""
        for name in options:
            if name not in MonitorOptions.__annotations__:
                known = MonitorOptions.__annotations__
                raise TypeError(f"{type(self).__name__} has no argument {name!r}. {nearest(name, known)}")
        self._new(None, options)

    def _new(self, model: nn.Module | None, options: MonitorOptions) -> LSTMMonitor:
        given: dict[str, Any] = {**options}
        if not self.finds_held_out or given.get("held_out") is not None:
            return LSTMMonitor(model, **given)
        check = loop_check(given.pop("ablation", None), "what the trainer has")
        monitor = LSTMMonitor(model, **given)
        monitor.ablation = check
        return monitor

    # State

    def state_dict(self) -> dict[str, Any]:
        """Plain values and tensors, for the checkpoints of trainers that ask for them."""
        state = dict(self._loaded or self._left or {})
        if self.monitor is not None and self._active:
            with self.monitor.guard.protect("Writing the checkpoint"):
                state = self.monitor.state_dict() | {"values": self._values.known}
        return state

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on where the checkpoint was written, once the training starts."""
        self._loaded = state_dict or None
        if self._active and self.monitor is not None:
            self._take_up(self.monitor)

    def _take_up(self, monitor: LSTMMonitor) -> None:
        state, self._loaded = self._loaded, None
        if state:
            with monitor.guard.protect("Reading the checkpoint"):
                monitor.load_state_dict(state)
                self._values = Values(state.get("values"))

    def __getstate__(self) -> dict[str, Any]:
        """Options, the last report and what the last training left; no model and no trainer."""
        return {name: value for name, value in vars(self).items() if name not in self.left_out}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """As after a training that is over."""
        vars(self).update(state)

    # What hooks call; each does nothing outside of a training

    def begin(self, model: nn.Module, steps: int = 0, epochs: int = 0, *, go_on: bool = False) -> None:
        """A training of `model` begins, after so many steps and epochs; `go_on` where it continues the last one."""
        self.close()
        self._values = Values()
        self._loaded = self._loaded or (self._left if go_on else None)
        monitor = self.monitor = self._new(model, self.options)
        self._take_up(monitor)
        monitor.steps, monitor.epochs = max(monitor.steps, steps), max(monitor.epochs, epochs)
        monitor.hand_on = self._hand_on
        monitor.clock.start()
        self._active = True

    def first(self) -> None:
        """Make the first check, unless the training goes on from an earlier one."""
        if self._active and self.monitor is not None and self.monitor.checks == 0:
            self.check()

    def stepped(self, steps: int | None = None) -> None:
        """So many optimizer steps are done, by default one more."""
        if self._active and self.monitor is not None:
            monitor, before = self.monitor, self.monitor.steps
            monitor.steps = before + 1 if steps is None else steps
            if monitor.due(monitor.steps_due, before, monitor.steps):
                self.check()

    def epoch_ended(self) -> None:
        """One more epoch is done."""
        if self._active and self.monitor is not None:
            monitor = self.monitor
            monitor.epochs += 1
            if monitor.due(monitor.epochs_due, monitor.epochs - 1, monitor.epochs):
                self.check()

    def check(self) -> None:
        """Make a check, which is shown to the trainer as soon as it is worked out."""
        if self.monitor is not None:
            self.monitor.check()

    def _hand_on(self, report: Report) -> None:
        self.report = report
        self.do("Handing values to the trainer", lambda: self.show(report))

    def show(self, report: Report) -> None:
        """Give the trainer what it can use of a report, by default nothing."""

    def watched(self, keys: Mapping[str, str]) -> dict[str, float]:
        """Values by key for what stops or picks by them ("min" or "max" by key): always finite, see `Values`."""
        if not keys or self.monitor is None or not self._active:
            return {}
        known = self._values.now(self.monitor, keys)
        return {key: known[key] for key in keys if key in known}

    def do(self, doing: str, act: Callable[[], None]) -> None:
        """The part of a hook that may fail; not done while the monitor rests."""
        if self._active and self.monitor is not None and not self.monitor.guard.idle:
            with self.monitor.guard.protect(doing):
                act()

    def finish(self) -> None:
        """The training is over: the last check, the ablation check, and the sinks closed."""
        if not self._active or self.monitor is None:
            return
        if self.monitor.checked_at != self.monitor.progress:
            self.check()
        self._left, self._active = self.state_dict(), False  # not active: a score may run the trainer's validation
        self.monitor.on_train_end()
        self.report = self.monitor.report or self.report

    def close(self) -> None:
        """Close the sinks of a training that ended by an exception."""
        if self._active and self.monitor is not None:
            self._left, self._active = self.state_dict(), False
            self.monitor.close()
