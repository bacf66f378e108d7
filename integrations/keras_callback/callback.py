"""The monitor as a callback of Keras 3, on the torch and jax backends."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from lstm_monitor.core.definitions import Thresholds
from lstm_monitor.core.errors import require
from lstm_monitor.core.guard import OnError
from lstm_monitor.core.records import Snapshot
from lstm_monitor.importance.scoring import assess
from lstm_monitor.integrations._watched_values import Values, callbacks_beside, chosen, watched_by_callbacks
from lstm_monitor.integrations.keras_callback.ablation import keras_study
from lstm_monitor.integrations.keras_callback.held_out import as_held_out
from lstm_monitor.integrations.keras_callback.mirror import KerasMirror
from lstm_monitor.integrations.keras_callback.weights import as_array
from lstm_monitor.layers.finding import find_layers
from lstm_monitor.monitor.budget import BUDGET
from lstm_monitor.monitor.monitor import LSTMMonitor
from lstm_monitor.monitor.schedule import Schedule
from lstm_monitor.report.ablation.result import Study
from lstm_monitor.report.sinks import Sink
from lstm_monitor.snapshots.outputs import Select
from lstm_monitor.snapshots.recording import HELD_OUT_STEPS, Recording
from lstm_monitor.snapshots.runs import Run
from lstm_monitor.snapshots.taking import snapshot
from lstm_monitor.studies.ablation.check import AblationCheck


class KerasLSTMMonitor(LSTMMonitor):
    """Checks the recurrent layers of a Keras model every so often while ``model.fit`` trains it.

    It finds LSTM, GRU, SimpleRNN, RNN of their cells or stacks of them, and Bidirectional of these, in Sequential,
    functional and subclassed models and models inside them. Layers bear Keras's own names: ``lstm.l0``,
    ``bidirectional.l0_reverse``, ``encoder.lstm_1.l0``; give ``name=`` to your layers to keep them the same in a second
    model of one process. The training is left exactly as it is: the live model is never called, it is computed beside
    on copies of its recurrent weights.

    List it before callbacks that monitor its values: what EarlyStopping, ModelCheckpoint or ReduceLROnPlateau monitor
    is in ``logs`` after each epoch, finite from the first on. They need ``mode="min"`` or ``"max"``. List it after
    BackupAndRestore. Steps go on from those of the model's optimizer where a training is resumed.

    Args:
        held_out: what the model takes as ``x``: an array, or a list, tuple or dict of arrays, no targets. It sets the
            operating point, and activity and gates are measured on it; masks of the model keep padding out.
        sinks: where reports go, for instance ``[TensorBoardSink("runs/a")]``.
        every_n_epochs: check after every n-th epoch, or a schedule: a function of the number of epochs done. The
            default is 1 where `every_n_steps` is not given either.
        every_n_steps: check after every n-th batch, or a schedule of their number.
        ablation: True or an `AblationCheck`: when the training has ended, remove cells and see what that does to the
            output on `held_out` and to ``AblationCheck(score=evaluate)``, where ``evaluate(model)`` gets this model,
            its weights without the cells, and returns a number, such as ``model.evaluate(x, y, verbose=0)``. Every
            variable is put back exactly.
        layers: glob or globs over layer names.
        rank_by: "auto" (centred output sensitivity on `held_out`; where Keras's backend is not torch, std x outgoing
            weights), "measured", "greedy", "std_x_outgoing" or any metric's name, see `characterize`.
        logs: glob or globs over keys, such as "*/gates/saturation/p50", of values that go into ``logs`` besides those
            that other callbacks monitor; "*" for all: Keras prints them after each epoch.
        output: selects, from what the model returns, the tensor that the sensitivity is of; by default the first.
        lengths: (N,) steps of each held-out sequence that are no padding, where the model has no masks.
        mask: (N, T) True for the held-out steps that count.
        horizon: steps of the step responses; None for as many as the cells need at the first check.
        held_out_steps: about how many sequence steps of the held-out data each check uses.
        budget: share of the training time that periodic checks may take; where they would take more, fewer are made.
            None checks whenever one is due.
        thresholds: the named numbers in the metrics' definitions.
        on_error: "warn" turns an error of the monitor into one warning; "raise" raises it.
        options: what `LSTMMonitor` takes besides, such as ``history=``.

    Raises:
        ImportError: Keras is not installed.
        TypeError: held-out data without arrays, an `ablation` of another type.
        ValueError: an unknown name, an interval under 1, held-out data that do not fit.

    Example:
        ``model.fit(x, y, callbacks=[KerasLSTMMonitor(held_out=x_val, sinks=[TensorBoardSink("runs/a")])])``
    """

    def __init__(  # noqa: PLR0913  # one argument for each thing that a user may choose
        self,
        held_out: Any = None,
        *,
        sinks: Sequence[Sink] = (),
        every_n_epochs: int | Schedule | None = None,
        every_n_steps: int | Schedule | None = None,
        ablation: AblationCheck | bool | None = None,
        layers: str | Sequence[str] = "*",
        rank_by: str = "auto",
        logs: str | Sequence[str] = (),
        output: Select | None = None,
        lengths: Any = None,
        mask: Any = None,
        horizon: int | None = None,
        held_out_steps: int = HELD_OUT_STEPS,
        budget: float | None = BUDGET,
        thresholds: Thresholds | None = None,
        on_error: OnError = "warn",
        **options: Any,
    ) -> None:
        """See the class."""
        super().__init__(
            None,
            as_held_out(held_out, lengths, mask),
            sinks=sinks,
            every_n_epochs=every_n_epochs,
            every_n_steps=every_n_steps,
            ablation=ablation,
            layers=layers,
            rank_by=rank_by,
            output=output,
            horizon=horizon,
            held_out_steps=held_out_steps,
            budget=budget,
            thresholds=thresholds,
            on_error=on_error,
            **options,
        )
        require("keras", "keras")
        self.data, self.held_out = self.held_out, None
        self.logged = (logs,) if isinstance(logs, str) else tuple(logs)
        self._begin_anew()

    def _begin_anew(self) -> None:
        super()._begin_anew()
        self._values = Values()
        self._thread, self._batch, self._looked = 0, -1, 0
        self._batches: int | None = None

    # Hooks

    def set_model(self, model: Any) -> None:
        """Take the model that trains; another one than before begins anew."""
        if self.model is not None and model is not self.model:
            self._begin_anew()
        self.model, self.guard.resting = model, False
        with self.guard.protect("Dividing the held-out data"):
            if self.data is not None:
                self.data.check_fits(model)
                self.held_out, self.mask = self.data.batches(self.held_out_steps, _fixed_size(model))

    def set_params(self, params: Mapping[str, Any] | None) -> None:
        """Take the number of batches of an epoch, where Keras knows it."""
        self._batches = (params or {}).get("steps")

    def on_train_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        """Make the first check; where another fit goes on with the model, the last one holds."""
        if self.checks == 0:
            with self.guard.protect("Counting the steps"):
                self.steps = max(self.steps, _steps_done(self.model))
                self.epochs = max(self.epochs, getattr(self.model, "_initial_epoch", None) or 0)
        self._thread, self._looked = threading.get_ident(), self.steps
        self.clock.start()
        if self.checked_at != self.progress:
            self.check()

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Batches are numbered anew; `epoch` are done where a training is resumed."""
        self._batch, self.epochs = -1, max(self.epochs, epoch)

    def on_train_batch_begin(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Check if a number of steps is due that was counted in another thread."""
        self._check_steps()

    def on_train_batch_end(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Count the batches since the last call (with ``steps_per_execution`` several), and check if one is due."""
        batch = batch if self._batches is None else min(batch, self._batches - 1)
        self.steps, self._batch = self.steps + max(batch - self._batch, 1), batch
        if threading.get_ident() == self._thread:  # a callback that is not in a list is called beside the training
            self._check_steps()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Count an epoch, check if one is due, and put values into `logs`."""
        super().on_epoch_end(epoch, logs)
        if logs is not None:
            with self.guard.protect("Giving values to other callbacks"):
                logs.update(self._values_for(callbacks_beside(self)))

    def _nothing(self, *_: Any, **__: Any) -> None:
        """Evaluation and prediction are not watched."""

    on_batch_begin = on_batch_end = _nothing
    on_test_begin = on_test_end = on_test_batch_begin = on_test_batch_end = _nothing
    on_predict_begin = on_predict_end = on_predict_batch_begin = on_predict_batch_end = _nothing

    # What the hooks do

    def _check_steps(self) -> None:
        before, self._looked = self._looked, self.steps
        if self.due(self.steps_due, before, self.steps):
            self.check()

    def _values_for(self, callbacks: list[Any] | None) -> dict[str, float]:
        """The values that callbacks monitor, and those asked for by `logs`; all where the callbacks are not known."""
        watched = watched_by_callbacks(callbacks or ())
        values = self._values.now(self, watched)
        if callbacks is None:
            return values
        return chosen(values, self.logged) | {key: values[key] for key in watched if key in values}

    def _known_model(self) -> KerasMirror:
        """The model as it is now, as a module of torch."""
        model: Any = super()._known_model()
        if hasattr(model, "jax_state_sync"):
            model.jax_state_sync()
        return KerasMirror(model, tuple if self.data is None else self.data.pack)

    def snapshots(
        self, recordings: Mapping[nn.Module, Recording] | None, runs: Sequence[Run] | None
    ) -> tuple[tuple[Snapshot, ...], tuple[str, ...]]:
        """The layers as they are now, and words on what looks recurrent and was skipped."""
        mirror = self._known_model()
        found = find_layers(mirror, self.layers)
        steps, skipped = self.held_out_steps, tuple(map(str, mirror.layers.skipped))
        snaps = snapshot(mirror, self.held_out, layers=found, mask=self.mask, max_steps=steps, recordings=recordings)
        if runs is None:
            runs = () if self.held_out is None else mirror.runs(self.held_out, self.mask)
        return assess(snaps, mirror, found, runs, self.rank_by, select=self.output, max_steps=steps), skipped

    def held_out_study(self, check: AblationCheck) -> Study:
        """An ablation study on the held-out data and the check's own score.

        Raises:
            ValueError: no model, a mode that a score does not allow, or what `ablation_study` raises.
        """
        self._known_model()
        watched: dict[str, Any] = {"layers": self.layers, "rank_by": self.rank_by, "select": self.output}
        return keras_study(self.model, check, self.data, size=_fixed_size(self.model), **watched)

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the model."""
        return {**vars(self), "model": None, "held_out": None, "_begun": None}


def _steps_done(model: Any) -> int:
    """The batches that the optimizer of a model has seen, which Keras restores with it."""
    optimizer = getattr(model, "optimizer", None)
    if optimizer is None:
        return 0
    return int(as_array(optimizer.iterations)) * (getattr(optimizer, "gradient_accumulation_steps", None) or 1)


def _fixed_size(model: Any) -> int | None:
    """The number of sequences of a batch, where the model takes no other."""
    shapes = [getattr(part, "shape", ()) for part in getattr(model, "inputs", None) or ()]
    return next((shape[0] for shape in shapes if shape and isinstance(shape[0], int)), None)
