"""What the callback does at each hook of Lightning's Trainer; without a base class, so that it serves both packages."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from lstm_monitor.core.definitions import Thresholds
from lstm_monitor.core.guard import OnError
from lstm_monitor.integrations._watched_values import Values, watched_by_trainer
from lstm_monitor.integrations.lightning_callback.ablation import lightning_study
from lstm_monitor.integrations.lightning_callback.loggers import sinks_of
from lstm_monitor.integrations.lightning_callback.network_call import FirstCall
from lstm_monitor.layers.finding import find_layers
from lstm_monitor.monitor.budget import BUDGET
from lstm_monitor.monitor.monitor import LSTMMonitor
from lstm_monitor.report.report import Report
from lstm_monitor.report.sinks import Sink, check_pictures_every, check_sinks
from lstm_monitor.snapshots.outputs import Select
from lstm_monitor.snapshots.recorder import GuardedRecorder, Recorder
from lstm_monitor.snapshots.recording import HELD_OUT_STEPS, Recording
from lstm_monitor.studies.ablation.check import AblationCheck, as_check


class LightningHooks:
    """Watches the recurrent layers of a LightningModule while it trains, and logs to every logger of the Trainer.

    Scalars go to all loggers; pictures, histograms and tables to TensorBoard and W&B. Held-out inputs are those that
    the layers receive in the Trainer's own validation, unless `held_out` is given. Every logged scalar can be monitored
    by EarlyStopping and ModelCheckpoint under its key. The last report is in ``report``, with the ablation check that
    was made when the training ended as its ``study``.

    Args:
        every_n_epochs: check after every n-th epoch, or a schedule: a function of the number of epochs done. The
            default is 1 where `every_n_steps` is not given either.
        every_n_steps: check after every n-th optimizer step, or a schedule of their number.
        held_out: batches for the module's ``forward`` instead of the validation's own; see `characterize`.
        ablation: True or an `AblationCheck`: when the training has ended, remove cells while the Trainer's own
            validation runs, to see which ranking could be trusted. Takes a minute at most by default; in
            several processes only under DDP.
        layers: glob or globs over layer names such as ``rnn.l0``.
        rank_by: "auto", "measured", "greedy", "std_x_outgoing" or any metric's name, see `characterize`.
        forward: called as ``forward(module, batch)`` where the module takes its held-out batch in another way.
        output: selects, from what the module returns, the tensor that the sensitivity is of; by default the first.
        lengths: (N,) steps of each held-out sequence that are no padding.
        mask: (N, T) True for the held-out steps that count.
        horizon: steps of the step responses; None for as many as the cells need at the first check.
        held_out_steps: about how many sequence steps of the held-out data each check uses.
        sinks: more places for reports, besides the Trainer's loggers.
        pictures_every: draw pictures at every n-th check and at the last; 0 never. Between the first and the last only
            where the budget has room for them. None is 1.
        budget: share of the training time that periodic checks may take; where they would take more, fewer pictures are
            drawn, then fewer checks made. None checks, and draws, whenever it is due.
        thresholds: the named numbers in the metrics' definitions.
        history: a folder in which every check is kept, see `HistorySink`; by default one beside the first logger that
            has a folder, if the extra ``history`` is installed. False keeps none.
        name: tells several such callbacks of one Trainer apart in checkpoints.
        on_error: "warn" turns an error of the monitor into one warning; "raise" raises it.

    Raises:
        ValueError: an unknown name, an interval under 1, a budget that is no share.
    """

    def __init__(  # noqa: PLR0913  # one argument for each thing that a user may choose
        self,
        every_n_epochs: int | Callable[[int], bool] | None = None,
        every_n_steps: int | Callable[[int], bool] | None = None,
        *,
        held_out: Any = None,
        ablation: AblationCheck | bool | None = None,
        layers: str | list[str] = "*",
        rank_by: str = "auto",
        forward: Callable[[nn.Module, Any], Any] | None = None,
        output: Select | None = None,
        lengths: Any = None,
        mask: Any = None,
        horizon: int | None = None,
        held_out_steps: int = HELD_OUT_STEPS,
        sinks: list[Any] | None = None,
        pictures_every: int | None = None,
        budget: float | None = BUDGET,
        thresholds: Thresholds | None = None,
        history: bool | str | None = None,
        name: str = "lstm_monitor",
        on_error: OnError = "warn",
    ) -> None:
        """See the class."""
        super().__init__()
        self._options: dict[str, Any] = {
            "every_n_epochs": every_n_epochs,
            "every_n_steps": every_n_steps,
            "held_out": held_out,
            "layers": layers,
            "rank_by": rank_by,
            "forward": forward,
            "output": output,
            "lengths": lengths,
            "mask": mask,
            "horizon": horizon,
            "held_out_steps": held_out_steps,
            "budget": budget,
            "thresholds": thresholds,
            "history": history,
            "on_error": on_error,
        }
        check_pictures_every(pictures_every)
        self.name, self.pictures_every = name, pictures_every
        self.ablation = as_check(ablation)
        self.sinks: list[Sink] = check_sinks(sinks)
        LSTMMonitor(**self._options)  # bad arguments are told at once
        self._state: dict[str, Any] | None = None
        self.report: Report | None = None
        self._forget()

    def _forget(self) -> None:
        self.monitor: LSTMMonitor | None = None
        self._active = False
        self._recorder: Recorder | None = None
        self._handles: list[Any] = []
        self._recordings: dict[nn.Module, Recording] | None = None
        self._call = FirstCall()
        self._logger_sinks: list[Sink] = []
        self._values = Values()
        self._given: tuple[Mapping[str, float], dict[str, Tensor]] = ({}, {})
        self._late = self._is_stale = False

    # State

    @property
    def state_key(self) -> str:
        """Where a checkpoint keeps this callback's state."""
        return f"LSTMMonitor[{self.name}]"

    def state_dict(self) -> dict[str, Any]:
        """Plain values and tensors, so that a checkpoint loads with ``weights_only=True``."""
        state = self._state or {}
        if self.monitor is not None:
            with self.monitor.guard.protect("Writing the checkpoint"):
                state = self.monitor.state_dict() | {"values": self._values.known}
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where the checkpoint was written, once the training starts."""
        self._state = state_dict or None
        if self.monitor is not None and self._active:
            self._restore(self.monitor)

    def __getstate__(self) -> dict[str, Any]:
        """The options and the last report, without the model, the Trainer's logging function or open files."""
        kept = ("_options", "name", "pictures_every", "ablation", "sinks", "_state", "report")
        return {name: value for name, value in vars(self).items() if name in kept}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """As after the constructor."""
        self._forget()
        vars(self).update(state)

    # Hooks

    def on_fit_start(self, trainer: Any, pl_module: nn.Module) -> None:
        """Begin anew: another model, another Trainer or another fit."""
        self._forget()
        self.monitor = LSTMMonitor(pl_module, sinks=self.sinks, **self._options)
        self._restore(self.monitor)
        self._active = True
        self._do("Reaching the loggers", self._reach_loggers, trainer)

    def on_train_start(self, trainer: Any, pl_module: nn.Module) -> None:
        """Make the first check, unless the run is resumed, or validation is still to bring held-out data."""
        if self.monitor is not None and _is_ddp(trainer):
            self.monitor.sharing.ask()
        self._do("The start of the training", self._start, trainer)
        self._give_values(trainer)

    def on_train_batch_end(self, trainer: Any, pl_module: nn.Module, *_: Any) -> None:
        """Check if a number of optimizer steps is due."""
        self._do("Counting steps", self._count_steps, trainer)

    def on_train_epoch_end(self, trainer: Any, pl_module: nn.Module) -> None:
        """Check if a number of epochs is due, and give values to callbacks that monitor them."""
        self._do("The end of an epoch", self._count_epochs, trainer)
        self._give_values(trainer)

    def on_train_end(self, trainer: Any, pl_module: nn.Module) -> None:
        """Make the last check where steps were made since the one before, then the ablation, and close the sinks."""
        self._do("The end of the training", self._finish, trainer)
        self._do("The ablation check", self._ablate, trainer)
        self._end()

    def on_exception(self, trainer: Any, pl_module: nn.Module, exception: BaseException) -> None:
        """Close the sinks: nothing else runs after an exception or Ctrl-C."""
        self._end()

    def on_validation_start(self, trainer: Any, pl_module: nn.Module) -> None:
        """Get ready to record what the layers receive."""
        self._do("Looking for recurrent layers", self._prepare_recorder, trainer)
        self._give_values(trainer)

    def on_validation_batch_start(self, trainer: Any, pl_module: nn.Module, *_: Any) -> None:
        """Record one batch, by hooks that live until it ends."""
        self._do("Recording held-out inputs", self._attach, trainer)

    def on_validation_batch_end(self, trainer: Any, pl_module: nn.Module, *_: Any) -> None:
        """Take the hooks off."""
        self._remove_hooks()
        if self._recorder is not None and self.monitor is not None:
            with self.monitor.guard.protect("Recording held-out inputs"):
                self._recorder.detach([])
                self._call.detach()

    def on_validation_end(self, trainer: Any, pl_module: nn.Module) -> None:
        """Keep what was recorded for the next check."""
        self._do("Recording held-out inputs", self._keep_recordings, trainer)
        self._recorder = None

    # What the hooks do

    @property
    def _monitor(self) -> LSTMMonitor | None:
        """The monitor while there is something to do for it."""
        return self.monitor if self._active and self.monitor is not None and not self.monitor.sharing.idle else None

    def _do(self, doing: str, act: Callable[[LSTMMonitor, Any], None], trainer: Any) -> None:
        """The part of a hook that may fail: not done while the monitor rests."""
        monitor = self._monitor
        if monitor is not None:
            with monitor.guard.protect(doing):
                act(monitor, trainer)
            self.report = monitor.report or self.report

    def _reach_loggers(self, monitor: LSTMMonitor, trainer: Any) -> None:
        self._logger_sinks = sinks_of(trainer, self.pictures_every)

    def _restore(self, monitor: LSTMMonitor) -> None:
        state, self._state = self._state, None
        if state:
            with monitor.guard.protect("Reading the checkpoint"):
                monitor.load_state_dict(state)
                self._values = Values(state.get("values"))

    def _start(self, monitor: LSTMMonitor, trainer: Any) -> None:
        monitor.steps, monitor.epochs = trainer.global_step, trainer.current_epoch
        monitor.clock.start()
        if monitor.checks == 0 and not monitor.sharing.agreed(lambda: self._waits(trainer)):
            self._check(monitor, trainer)

    def _count_steps(self, monitor: LSTMMonitor, trainer: Any) -> None:
        before, monitor.steps = monitor.steps, trainer.global_step
        if monitor.due(monitor.steps_due, before, monitor.steps):
            self._late = monitor.sharing.agreed(lambda: self._waits(trainer) or self._is_stale)
            if not self._late:
                self._check(monitor, trainer)

    def _count_epochs(self, monitor: LSTMMonitor, trainer: Any) -> None:
        monitor.steps, monitor.epochs = trainer.global_step, trainer.current_epoch + 1
        every = trainer.check_val_every_n_epoch  # None where validation goes by batches
        if self._waits(trainer) and every is not None and monitor.epochs % every == 0:
            self._recordings = {}  # validation was due and brought nothing
        is_ready = not self._waits(trainer) and not self._is_stale
        is_due = monitor.due(monitor.epochs_due, monitor.epochs - 1, monitor.epochs)
        if is_due and monitor.sharing.agreed(lambda: is_ready):
            self._check(monitor, trainer, ended=True)

    def _finish(self, monitor: LSTMMonitor, trainer: Any) -> None:
        monitor.steps = trainer.global_step
        if monitor.checked_at != monitor.progress:
            if self._is_stale:
                self._recordings = self._call.recordings(monitor, _recurrent(monitor)) or self._recordings
            self._check(monitor, trainer, ended=True)

    def _ablate(self, monitor: LSTMMonitor, trainer: Any) -> None:
        check = self.ablation
        if check is not None:
            monitor.add_study(lambda: lightning_study(trainer, check, monitor), self._logger_sinks)

    def _prepare_recorder(self, monitor: LSTMMonitor, trainer: Any) -> None:
        if self._wants_recordings(trainer) and monitor.model is not None:
            self._is_stale = not self._late and self._may_leave_out(trainer) and not monitor.has_room()
            if not self._is_stale:
                self._recorder = GuardedRecorder(_recurrent(monitor), monitor.held_out_steps, monitor.guard)

    def _attach(self, monitor: LSTMMonitor, trainer: Any) -> None:
        if self._recorder is not None:
            self._handles = self._call.attach(monitor, self._recorder.modules)
            if not self._recorder.full():
                self._handles += self._recorder.attach()

    def _keep_recordings(self, monitor: LSTMMonitor, trainer: Any) -> None:
        if self._recorder is not None:
            self._recordings = self._recorder.recordings()
        if self._late:
            self._late = False
            self._check(monitor, trainer)

    def _wants_recordings(self, trainer: Any) -> bool:
        return self._options["held_out"] is None and bool(trainer.enable_validation) and not _has_no_batch(trainer)

    def _may_leave_out(self, trainer: Any) -> bool:
        """Whether a validation before which there is no room for a check need not be recorded.

        The last check can then have the network's first batch run again. Processes that share a model decide as one.
        """
        return bool(self._call.runs) and trainer.world_size == 1

    def _waits(self, trainer: Any) -> bool:
        """Whether checks wait for validation's held-out data: the first one sets the operating point for all.

        One that was due meanwhile is made as soon as the validation ends.
        """
        return self._recordings is None and self._wants_recordings(trainer)

    def _check(self, monitor: LSTMMonitor, trainer: Any, *, ended: bool = False) -> None:
        step = trainer.fit_loop.epoch_loop._batches_that_stepped
        if ended and step - 1 > (-1 if monitor.last_step is None else monitor.last_step):
            step -= 1  # loggers write the end of an epoch at its last batch
        runs = self._call.runs if self._wants_recordings(trainer) else None
        monitor.check(step, recordings=self._recordings, extra_sinks=self._logger_sinks, runs=runs)

    def _give_values(self, trainer: Any) -> None:
        """Give every scalar to the Trainer, finite from the start: EarlyStopping ends at NaN or a missing key.

        Straight into its dict: what is logged in ``on_train_start`` is not there yet in the first validation.
        """
        if self._active and self.monitor is not None:
            with self.monitor.guard.protect("Giving values to other callbacks"):
                values = self._values.now(self.monitor, watched_by_trainer(trainer))
                trainer.callback_metrics.update(self._as_tensors(values))

    def _as_tensors(self, values: Mapping[str, float]) -> dict[str, Tensor]:
        """Made anew where they have changed: in short epochs a hundred tensors take longer than a step.

        The Trainer validates in inference mode, and what is made there could take no part in a loss later.
        """
        if values != self._given[0]:
            with torch.inference_mode(False):
                self._given = (dict(values), {name: torch.tensor(value) for name, value in values.items()})
        return self._given[1]

    def _remove_hooks(self) -> None:
        handles, self._handles = self._handles, []
        for handle in handles:
            handle.remove()

    def _end(self) -> None:
        self._remove_hooks()
        active, self._active, self._recorder, self._recordings = self._active, False, None, None
        self._call = FirstCall()
        if active and self.monitor is not None:
            self.monitor.close(self._logger_sinks)
            self.report = self.monitor.report or self.report


def _recurrent(monitor: LSTMMonitor) -> list[nn.Module]:
    """The modules whose inputs are recorded."""
    assert monitor.model is not None
    return list(dict.fromkeys(layer.module for layer in find_layers(monitor.model, monitor.layers)))


def _is_ddp(trainer: Any) -> bool:
    """Whether every process holds the whole weights, so that all can make a check together."""
    return trainer.world_size > 1 and isinstance(trainer.strategy.model, DistributedDataParallel)


def _has_no_batch(trainer: Any) -> bool:
    """Whether validation is known to be empty: a data module may give an empty list of loaders."""
    return trainer.val_dataloaders is not None and sum(trainer.num_val_batches) == 0
