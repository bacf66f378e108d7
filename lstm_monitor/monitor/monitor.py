"""The one object that remembers: when to check, what was found before, what it cost."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

from torch import nn

from lstm_monitor.characterization import check_horizon, check_steps
from lstm_monitor.core.definitions import Thresholds
from lstm_monitor.core.guard import Guard, OnError
from lstm_monitor.engines.choice import forced
from lstm_monitor.importance.ranking import check_ranking_name
from lstm_monitor.monitor.budget import BUDGET, Clock, Governor
from lstm_monitor.monitor.check import Checking
from lstm_monitor.monitor.distributed import Sharing
from lstm_monitor.monitor.schedule import Schedule, as_schedule
from lstm_monitor.monitor.sinks import MonitorSinks
from lstm_monitor.monitor.state import Memories
from lstm_monitor.report.report import Report
from lstm_monitor.report.sinks import Sink, check_sinks
from lstm_monitor.snapshots.held_out import Forward
from lstm_monitor.snapshots.outputs import Select
from lstm_monitor.snapshots.recording import HELD_OUT_STEPS
from lstm_monitor.studies.ablation.check import AblationCheck, loop_check

_COUNTS = ("steps", "epochs", "checks", "checked_at", "last_step")


class LSTMMonitor(Checking):
    """Checks the recurrent layers of a model every so often while it trains, from any loop.

    Call the Keras-style hooks from the loop, or use the object in a ``with`` statement and call
    `on_train_batch_end` and `on_epoch_end`. A check never changes the training; a failure becomes one warning.

    Args:
        model: the module that trains; or `set_model` later, at the latest before `on_train_begin`.
        held_out: data on which to set the operating point and measure activity and gates; see `characterize`. The
            model runs on it at each check, so a few dozen sequences are enough.
        sinks: where reports go, for instance ``[TensorBoardSink("runs/a")]``.
        every_n_epochs: check after every n-th epoch, or a schedule: a function of the number of epochs done. The
            default is 1 where `every_n_steps` is not given either.
        every_n_steps: check after every n-th call of `on_train_batch_end`, or a schedule of their number.
        ablation: True or an `AblationCheck`: when the training has ended, remove cells and see what that does to the
            output on `held_out` and to the check's score, and which ranking foretold it.
        layers: glob or globs over layer names.
        rank_by: "auto", "measured", "greedy", "std_x_outgoing" or any metric's name, see `characterize`.
        forward: called as ``forward(model, batch)`` where the model takes its batch in another way.
        output: selects, from what the model returns, the tensor that the sensitivity is of; by default the first.
        lengths: (N,) steps of each held-out sequence that are no padding.
        mask: (N, T) True for the held-out steps that count.
        horizon: steps of the step responses; None for as many as the cells need at the first check, see `characterize`.
        held_out_steps: about how many sequence steps of the held-out data each check uses.
        budget: share of the training time that periodic checks may take, with writing and pictures: where they would
            take more, fewer pictures are drawn, then fewer checks made, and one line in the log says so. None checks,
            and draws, whenever it is due. The first and the last check and the ablation are apart from it.
        thresholds: the named numbers in the metrics' definitions.
        history: a folder in which every check is kept, see `HistorySink`; by default one beside the first sink that
            has a folder, if the extra ``history`` is installed. False keeps none.
        shared: of a training in several processes that all have the same weights (DDP). False: this monitor works by
            itself, so make it in one process only. True: every process makes one with the same arguments and calls the
            same hooks; each does a part of every check, on the first one's held-out data, and all hold the same report,
            which the first one hands to its sinks.
        on_error: "warn" turns an error of the monitor into one warning; "raise" raises it.

    Raises:
        TypeError: an `ablation` or `history` of another type.
        ValueError: an unknown name, an interval under 1, a budget that is no positive share, an ablation that has
            nothing to measure.
    """

    def __init__(  # noqa: PLR0913  # one argument for each thing that a user may choose
        self,
        model: nn.Module | None = None,
        held_out: Any = None,
        *,
        sinks: Sequence[Sink] = (),
        every_n_epochs: int | Schedule | None = None,
        every_n_steps: int | Schedule | None = None,
        ablation: AblationCheck | bool | None = None,
        layers: str | Sequence[str] = "*",
        rank_by: str = "auto",
        forward: Forward | None = None,
        output: Select | None = None,
        lengths: Any = None,
        mask: Any = None,
        horizon: int | None = None,
        held_out_steps: int = HELD_OUT_STEPS,
        budget: float | None = BUDGET,
        thresholds: Thresholds | None = None,
        history: bool | str | os.PathLike[str] | None = None,
        shared: bool = False,
        on_error: OnError = "warn",
    ) -> None:
        """See the class."""
        super().__init__()
        forced()  # an engine that does not exist is told at once
        self.model = model
        self.held_out, self.forward, self.lengths, self.mask = held_out, forward, lengths, mask
        self.output, self.ablation = output, loop_check(ablation, held_out)
        self.layers, self.rank_by = layers, check_ranking_name(rank_by)
        self.horizon, self.held_out_steps = check_horizon(horizon), check_steps(held_out_steps)
        if every_n_epochs is None and every_n_steps is None:
            every_n_epochs = 1
        self.epochs_due = as_schedule("every_n_epochs", every_n_epochs)
        self.steps_due = as_schedule("every_n_steps", every_n_steps)
        self.governor = Governor(budget)
        self.thresholds = thresholds or Thresholds()
        self.guard = Guard(on_error)
        self.sharing = Sharing(self.guard, asked=shared)
        self.monitor_sinks = MonitorSinks(sinks, history, self.guard)
        self.clock = Clock()

    @property
    def sinks(self) -> list[Sink]:
        """The sinks that were given; one may be added before the training."""
        return self.monitor_sinks.sinks

    @sinks.setter
    def sinks(self, sinks: Sequence[Sink]) -> None:
        self.monitor_sinks.sinks = check_sinks(sinks)

    # Keras-style hooks

    def set_model(self, model: nn.Module) -> None:
        """Take the model that trains; after another one everything begins anew."""
        if self.model is not None and self.model is not model and self.checks > 0:
            self._begin_anew()
        self.model = model

    def _begin_anew(self) -> None:
        """Forget what was found and counted."""
        self.settle()
        self.report = self.checked_at = self.last_step = None
        self.steps = self.epochs = self.checks = 0
        self._memories, self.clock = Memories(), Clock()
        self.governor = Governor(self.governor.budget)

    def set_params(self, params: Mapping[str, Any] | None) -> None:
        """Accepted for loops that call every Keras hook; nothing is needed from it."""

    def on_train_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        """Make the first check, before any step; none where a resumed run made it for these weights."""
        self.clock.start()
        if self.checked_at != self.progress:
            self.check()

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Nothing to do."""

    def on_train_batch_begin(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Nothing to do."""

    def on_train_batch_end(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Count a step, and check if one is due; `batch` is not used: steps are calls of this hook."""
        self.steps += 1
        if self.due(self.steps_due, self.steps - 1, self.steps):
            self.check()

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Count an epoch, and check if one is due."""
        self.epochs += 1
        if self.due(self.epochs_due, self.epochs - 1, self.epochs):
            self.check()

    def on_train_end(self, logs: Mapping[str, Any] | None = None) -> Report | None:
        """Make the last check and the ablation, close the sinks, and return the last report (None without a check)."""
        if self.checked_at != self.progress:
            self.check()
        check = self.ablation
        if check is not None:
            self.add_study(lambda: self.held_out_study(check))
        self.close()
        return self.report

    def __enter__(self) -> LSTMMonitor:
        """Begin, as `on_train_begin`."""
        self.on_train_begin()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End, as `on_train_end`; after an exception only close the sinks."""
        if error is None:
            self.on_train_end()
        else:
            self.close()

    # What the hooks and the adapters share

    def due(self, schedule: Schedule | None, before: int, now: int) -> bool:
        """Whether a check is due at any count after `before` through `now`, and the budget has room for it.

        Not twice for the same weights. To be called by every hook: a check that was worked out meanwhile is handed on.
        """
        self.settle(wait=False)
        if not self.clock.running:  # a loop that does not say when it begins
            self.clock.start()
        if schedule is None or self.sharing.idle or self.checked_at == self.progress:
            return False
        is_due = False
        with self.guard.protect("The schedule"):
            is_due = any(schedule(count) for count in range(before + 1, now + 1))
        is_made = is_due and self._decide("steps" if schedule is self.steps_due else "epochs", now)
        self._is_periodic |= is_made and self.checks > 0
        return is_made

    def has_room(self) -> bool:
        """Whether a check would be made if one were due now, so that it is worth while to get ready for it."""
        return self.checks == 0 or self.governor.has_room(self.clock)

    def _decide(self, unit: str, count: int) -> bool:
        """Whether a check that is due is made: the same in all processes that share."""
        is_made = self.checks == 0
        with self.guard.protect("Agreeing on a check"):
            is_made = is_made or self.sharing.decided(lambda: self.governor.allows(self.clock, unit, count))
        return is_made

    def state_dict(self) -> dict[str, Any]:
        """Plain values and tensors: what is remembered of each layer, counts, and cost."""
        self.settle()
        counts = {name: getattr(self, name) for name in _COUNTS}
        kept = {"clock": self.clock.plain(), "history": self.monitor_sinks.place}
        return {"layers": self._memories.plain(), **counts, **kept}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken: same stimuli, first and previous ranking, counts and cost."""
        self.settle()
        self._memories = Memories(state["layers"])
        self.monitor_sinks.go_on_from(state.get("history"))
        vars(self).update({name: state[name] for name in _COUNTS})
        running, self.clock = self.clock.running, Clock.restored(state["clock"])
        if running:
            self.clock.start()
