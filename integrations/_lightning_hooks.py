"""What the callback does at each hook of Lightning's Trainer; without a base class, so that it serves both packages."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from lstm_monitor.guard import OnError
from lstm_monitor.integrations._lightning_loggers import sinks_of
from lstm_monitor.layers import find_layers
from lstm_monitor.monitor import LSTMMonitor
from lstm_monitor.recordings import Recorder, Recording
from lstm_monitor.records import Thresholds
from lstm_monitor.report import PREFIX, Report
from lstm_monitor.sinks import FanOut, Sink


class LightningHooks:
    """Watches the recurrent layers of a LightningModule while it trains, and logs to every logger of the Trainer.

    Scalars go to all loggers, pictures and histograms to TensorBoard. Held-out inputs are those that the layers
    receive in the Trainer's own validation, unless `held_out` is given. Every logged scalar can be monitored by
    EarlyStopping and ModelCheckpoint under its key. The last report is in ``report``.

    Args:
        every_n_epochs: check after every n-th epoch, or a schedule: a function of the number of epochs done. The
            default is 1 where `every_n_steps` is not given either.
        every_n_steps: check after every n-th optimizer step, or a schedule of their number.
        held_out: batches for the module's ``forward`` instead of the validation's own; see `characterize`.
        layers: glob or globs over layer names such as ``rnn.l0``.
        rank_by: "auto" or any metric's name.
        forward: called as ``forward(module, batch)`` where the module takes its held-out batch in another way.
        lengths: (N,) steps of each held-out sequence that are no padding.
        mask: (N, T) True for the held-out steps that count.
        sinks: more places for reports, besides the Trainer's loggers.
        pictures_every: draw pictures at every n-th check and at the last; 0 never; None as often as drawing takes at
            most 1% of the training time.
        budget: share of the training time that periodic checks may take; None checks whenever one is due.
        thresholds: the named numbers in the metrics' definitions.
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
        layers: str | list[str] = "*",
        rank_by: str = "auto",
        forward: Callable[[nn.Module, Any], Any] | None = None,
        lengths: Any = None,
        mask: Any = None,
        sinks: list[Any] | None = None,
        pictures_every: int | None = None,
        budget: float | None = None,
        thresholds: Thresholds | None = None,
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
            "lengths": lengths,
            "mask": mask,
            "budget": budget,
            "thresholds": thresholds,
            "on_error": on_error,
        }
        self.name, self.pictures_every = name, pictures_every
        self.sinks: list[Sink] = list(sinks or [])
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
        self._logger_sinks: list[Sink] = []
        self._last_step = 0
        self._values: dict[str, float] = {}

    # State

    @property
    def state_key(self) -> str:
        """Where a checkpoint keeps this callback's state."""
        return f"LSTMMonitor[{self.name}]"

    def state_dict(self) -> dict[str, Any]:
        """Plain values and tensors, so that a checkpoint loads with ``weights_only=True``."""
        if self.monitor is None:
            return self._state or {}
        return self.monitor.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where the checkpoint was written, once the training starts."""
        self._state = state_dict or None
        if self.monitor is not None and self._active:
            self._restore(self.monitor)

    def __getstate__(self) -> dict[str, Any]:
        """The options and what was measured, without the model, the Trainer's logging function or open files."""
        kept = ("_options", "name", "pictures_every", "sinks", "_state", "report")
        state = {name: value for name, value in vars(self).items() if name in kept}
        return state | {"_state": self.state_dict() or None}

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
        with self.monitor.guard.protect("Reaching the loggers"):
            self._logger_sinks = sinks_of(trainer, self.pictures_every)

    def _restore(self, monitor: LSTMMonitor) -> None:
        if self._state:
            with monitor.guard.protect("Reading the checkpoint"):
                monitor.load_state_dict(self._state)
        self._state = None

    def on_train_start(self, trainer: Any, pl_module: nn.Module) -> None:
        """Make the first check, unless the run is resumed, or validation is still to bring held-out data."""
        self._last_step = trainer.global_step
        if self._monitor is None:
            return self._log_values(trainer, pl_module)
        self._monitor.clock.start()
        waiting = self._recordings is None and self._wants_recordings(trainer)
        if self._monitor.checks == 0 and not waiting:
            self._check(trainer, first=True)
        self._log_values(trainer, pl_module)

    def on_train_batch_end(self, trainer: Any, pl_module: nn.Module, *_: Any) -> None:
        """Check if a number of optimizer steps is due."""
        before, self._last_step = self._last_step, trainer.global_step
        if self._monitor is not None and self._last_step != before:
            self._monitor.steps = self._last_step
            if self._monitor.due(self._monitor.steps_due, before, self._last_step):
                self._check(trainer)

    def on_train_epoch_end(self, trainer: Any, pl_module: nn.Module) -> None:
        """Check if a number of epochs is due, and give values to callbacks that monitor them."""
        epochs = trainer.current_epoch + 1
        if self._monitor is not None:
            self._monitor.steps, self._monitor.epochs = trainer.global_step, epochs
            if self._monitor.due(self._monitor.epochs_due, epochs - 1, epochs):
                self._check(trainer, ended=True)
        self._log_values(trainer, pl_module)

    def on_train_end(self, trainer: Any, pl_module: nn.Module) -> None:
        """Make the last check where steps were made since the one before, and close the sinks."""
        if self._monitor is not None:
            self._monitor.steps = trainer.global_step
            if self._monitor.checked_at != trainer.global_step:
                self._check(trainer, ended=True)
        self._end()

    def on_exception(self, trainer: Any, pl_module: nn.Module, exception: BaseException) -> None:
        """Close the sinks: nothing else runs after an exception or Ctrl-C."""
        self._end()

    def on_validation_start(self, trainer: Any, pl_module: nn.Module) -> None:
        """Get ready to record what the layers receive."""
        if self._monitor is not None and self._wants_recordings(trainer):
            with self._monitor.guard.protect("Looking for recurrent layers"):
                found = find_layers(pl_module, self._options["layers"])
                self._recorder = Recorder(dict.fromkeys(layer.module for layer in found))

    def on_validation_batch_start(self, trainer: Any, pl_module: nn.Module, *_: Any) -> None:
        """Record one batch, by hooks that live until it ends."""
        if self._monitor is not None and self._recorder is not None and not self._recorder.full():
            with self._monitor.guard.protect("Recording held-out inputs"):
                self._handles = self._recorder.attach()

    def on_validation_batch_end(self, trainer: Any, pl_module: nn.Module, *_: Any) -> None:
        """Take the hooks off."""
        if self._recorder is not None and self._handles:
            handles, self._handles = self._handles, []
            self._recorder.detach(handles)

    def on_validation_end(self, trainer: Any, pl_module: nn.Module) -> None:
        """Keep what was recorded for the next check."""
        if self._recorder is not None and self._monitor is not None:
            with self._monitor.guard.protect("Recording held-out inputs"):
                self._recordings = self._recorder.recordings()
        self._recorder = None

    # What the hooks share

    @property
    def _monitor(self) -> LSTMMonitor | None:
        """The monitor while there is something to do for it."""
        return self.monitor if self._active and self.monitor is not None and not self.monitor.guard.idle else None

    def _wants_recordings(self, trainer: Any) -> bool:
        return self._options["held_out"] is None and bool(trainer.enable_validation)

    def _check(self, trainer: Any, *, first: bool = False, ended: bool = False) -> None:
        assert self.monitor is not None
        stepped = trainer.fit_loop.epoch_loop._batches_that_stepped
        step = max(stepped - 1, 0) if ended else stepped  # loggers write the end of an epoch at its last batch
        epoch = trainer.current_epoch + (0 if first else 1)
        self.monitor.check(step, epoch, self._recordings, self._logger_sinks)
        self.report = self.monitor.report or self.report

    def _log_values(self, trainer: Any, pl_module: Any) -> None:
        """Give every scalar to the Trainer, finite from the start: EarlyStopping ends at NaN or a missing key."""
        if not self._active or self.monitor is None or trainer.barebones:
            return
        with self.monitor.guard.protect("Giving values to other callbacks"):
            asked = dict.fromkeys(monitored_keys(trainer), 0.0)
            latest = {} if self.report is None else self.report.scalars()
            self._values = asked | self._values | latest
            pl_module.log_dict(self._values, logger=False, on_step=False, on_epoch=True, batch_size=1)

    def _end(self) -> None:
        for handle in self._handles:
            handle.remove()
        if self._active and self.monitor is not None:
            with self.monitor.guard.protect("Closing the sinks"):
                FanOut([*self.sinks, *self._logger_sinks]).close()
        self._active, self._handles, self._recorder, self._recordings = False, [], None, None


def monitored_keys(trainer: Any) -> list[str]:
    """Our keys that another callback of the Trainer monitors."""
    keys = (getattr(callback, "monitor", None) for callback in trainer.callbacks)
    return [key for key in keys if isinstance(key, str) and key.startswith(f"{PREFIX}/")]
