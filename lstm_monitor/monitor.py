"""The one object that remembers: when to check, what was found before, what it cost."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from types import TracebackType
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from lstm_monitor.aside import Aside
from lstm_monitor.characterization import check_horizon, check_steps, examine, versions
from lstm_monitor.clock import BUDGET, Clock
from lstm_monitor.governor import Governor
from lstm_monitor.guard import LOG, Guard, OnError
from lstm_monitor.heldout import Forward, Run, runs_of
from lstm_monitor.host import to_host
from lstm_monitor.importance import assess
from lstm_monitor.kernels.choice import forced
from lstm_monitor.kernels.fused import release_buffers
from lstm_monitor.layer_report import LayerReport
from lstm_monitor.layers import find_layers
from lstm_monitor.memory import Memories
from lstm_monitor.outlets import Outlets
from lstm_monitor.outputs import Select
from lstm_monitor.ranking import check_ranking_name
from lstm_monitor.ranks import from_first, in_processes
from lstm_monitor.reasons import Thresholds
from lstm_monitor.recordings import HELD_OUT_STEPS, Recording
from lstm_monitor.records import LayerKey, LayerWeights, Probe, Snapshot
from lstm_monitor.report import Report
from lstm_monitor.schedule import Schedule, as_schedule
from lstm_monitor.sharing import Sharing, first_snapshots
from lstm_monitor.sinks import Sink, check_sinks
from lstm_monitor.snapshots import snapshot, with_own_weights
from lstm_monitor.studies.check import AblationCheck, loop_check, study_of_loop
from lstm_monitor.study.study import Study
from lstm_monitor.study.trust import trust_sentence
from lstm_monitor.undisturbed import beside, is_exact

_COUNTS = ("steps", "epochs", "checks", "checked_at", "last_step")


_Results = tuple[tuple[LayerReport, Probe], ...]


@dataclass(frozen=True, eq=False)
class _Taken:
    """What a check needs of the moment at which it is taken."""

    snaps: tuple[Snapshot, ...]
    skipped: tuple[str, ...]
    step: int
    epoch: int
    progress: tuple[int, int]
    learned: bool
    sinks: tuple[Sink, ...]
    cost: float | None


class LSTMMonitor:
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
        self.outlets = Outlets(sinks, history, self.guard)
        self.report: Report | None = None
        self.steps = self.epochs = self.checks = 0
        self._memories = Memories()
        self.checked_at: tuple[int, int] | None = None
        self.last_step: int | None = None
        self.clock = Clock()
        self.hand_on: Callable[[Report], object] | None = None  # an adapter's, after the sinks
        self._is_periodic = False
        self._begun: tuple[_Taken, Aside[_Results]] | None = None

    @property
    def sinks(self) -> list[Sink]:
        """The sinks that were given; one may be added before the training."""
        return self.outlets.sinks

    @sinks.setter
    def sinks(self, sinks: Sequence[Sink]) -> None:
        self.outlets.sinks = check_sinks(sinks)

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

    @property
    def progress(self) -> tuple[int, int]:
        """What tells one state of the weights from another: steps, and epochs where no steps are counted."""
        return self.steps, 0 if self.steps else self.epochs

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

    def check(
        self,
        step: int | None = None,
        epoch: int | None = None,
        recordings: Mapping[nn.Module, Recording] | None = None,
        extra_sinks: Sequence[Sink] = (),
        runs: Sequence[Run] | None = None,
    ) -> Report | None:
        """Snapshot, respond, measure, rank, and hand the report to the sinks; None if the monitor rests.

        Args:
            step: the training step to report, by default the number of `on_train_batch_end` calls, or that of epochs
                where no steps are counted.
            epoch: the number of epochs done, by default the number of `on_epoch_end` calls.
            recordings: what the layers received, where a trainer's own validation ran them already.
            extra_sinks: sinks besides the monitor's own.
            runs: runs of the model that give its output, for the rankings that need it; by default on `held_out`.
        """
        self.settle()
        is_periodic, self._is_periodic = self._is_periodic, False
        if self.sharing.idle:
            return None
        device = _cuda_device(self.model)
        is_deferred = is_periodic and self._defers(device)
        with (
            self.guard.protect("A check"),
            self.clock.check(periodic=is_periodic, device=None if is_deferred else device),
        ):
            epoch = self.epochs if epoch is None else epoch
            step = (self.steps or self.epochs) if step is None else step
            with self.sharing.block():
                taken = self._take_snapshots(step, epoch, recordings, runs, extra_sinks)
                if is_deferred and all(isinstance(snap.weights, LayerWeights) for snap in taken.snaps):
                    self._begin(taken, Aside(device))
                    return None
                results = self._examined(taken)
            self._report(taken, results)
        return self._handed_on()

    def _defers(self, device: torch.device | None) -> bool:
        """Whether periodic checks are worked out beside the training.

        Not on the CPU, where that slows the training; nor where the precision would have to be changed meanwhile; nor
        where several processes do in one order what they do together.
        """
        return device is not None and is_exact() and not in_processes()

    def _take_snapshots(
        self,
        step: int,
        epoch: int,
        recordings: Mapping[nn.Module, Recording] | None,
        runs: Sequence[Run] | None,
        extra_sinks: Sequence[Sink],
    ) -> _Taken:
        """All that a check needs of the model and of this moment."""
        sinks = tuple(self.outlets.all(extra_sinks)) if self.sharing.writes else ()
        snaps, skipped = self.snapshots(recordings, runs)
        cost = from_first(self.clock.cost)
        return _Taken(snaps, skipped, step, epoch, self.progress, self.checked_at != self.progress, sinks, cost)

    def _begin(self, taken: _Taken, aside: Aside[_Results]) -> None:
        """Have a check worked out beside the training; a later hook hands it on."""
        probes = self._memories.recall(taken.snaps)
        self._begun = (taken, aside)
        self.checked_at, self.last_step = taken.progress, taken.step

        def job() -> _Results:
            with beside():
                return examine(taken.snaps, probes, self.rank_by, self.thresholds, self.horizon)

        aside.start(job)

    def settle(self, *, wait: bool = True) -> None:
        """Hand on the check that is worked out beside the training, if one is; `wait` for it, or leave it till later.

        Its errors come here.
        """
        if self._begun is None or not (wait or self._begun[1].ready()):
            return
        (taken, aside), self._begun = self._begun, None
        with self.guard.protect("A check"), self.clock.continued():
            results = aside.collect()
            self.clock.beside(aside.seconds)
            if not self.guard.idle:
                self._report(taken, results)
        self._handed_on()

    def _handed_on(self) -> Report | None:
        """The last report, once an adapter has it too; None if the monitor rests."""
        report = None if self.guard.resting else self.report
        if report is not None and self.hand_on is not None:
            self.hand_on(report)
        return report

    def _examined(self, taken: _Taken) -> _Results:
        probes: Mapping[LayerKey, Probe] = self._memories.recall(taken.snaps)
        if self.checks == 0 and self.governor.budget is not None:
            with self.clock.once():
                probes = self._warm_up(taken)
        return examine(taken.snaps, probes, self.rank_by, self.thresholds, self.horizon)

    def _warm_up(self, taken: _Taken) -> Mapping[LayerKey, Probe]:
        """What the first check does once (importing, compiling, designing stimuli), so that one knows what all take."""
        results = examine(taken.snaps, {}, self.rank_by, self.thresholds, self.horizon)
        memories = Memories()
        for report, probe in (*results, *results):  # the second time they are compared with the first
            memories.take(report, probe, taken.step, learned=True)
        return {report.key: probe for report, probe in results}

    def held_out_study(self, check: AblationCheck) -> Study:
        """An ablation study on `held_out` and the check's own score.

        Raises:
            ValueError: no model, or what `ablation_study` raises.
        """
        held_out, lengths, mask = from_first(lambda: (self.held_out, self.lengths, self.mask))
        data = {"forward": self.forward, "lengths": lengths, "mask": mask}
        watched: dict[str, Any] = {"layers": self.layers, "rank_by": self.rank_by, "select": self.output}
        return study_of_loop(self._known_model(), check, held_out, data=data, **watched)

    def add_study(self, make: Callable[[], Study | None], extra_sinks: Sequence[Sink] = ()) -> None:
        """Make a study, add it to the last report, and hand it to the sinks as a report without layers.

        What it takes counts neither as training nor as a check. Not made while the monitor rests.
        """
        self.settle()
        if self.sharing.idle:
            return
        began = time.perf_counter()
        try:
            with self.guard.protect("The ablation check"):
                with self.sharing.block():
                    study = make()
                if study is not None:
                    self._take(study, extra_sinks)
        finally:
            self.clock.trained -= time.perf_counter() - began

    def _take(self, study: Study, extra_sinks: Sequence[Sink]) -> None:
        last = self.report or Report((), self.steps, self.epochs)
        self.report = replace(last, study=study)
        if self.sharing.writes:
            for layer in study.layers:
                LOG.info("lstm_monitor: %s", trust_sentence(layer))
            self.outlets.write(replace(self.report, layers=(), alarms=()), self.outlets.all(extra_sinks))

    def _known_model(self) -> nn.Module:
        if self.model is None:
            raise ValueError("model=None; give LSTMMonitor(model=...) or call set_model(model) before training")
        return _of_this_process(self.model)

    def snapshots(
        self, recordings: Mapping[nn.Module, Recording] | None, runs: Sequence[Run] | None
    ) -> tuple[tuple[Snapshot, ...], tuple[str, ...]]:
        """The layers as they are now, and words on what looks recurrent and was skipped; see `check`."""
        model = self._known_model()
        found = find_layers(model, self.layers)
        data: dict[str, Any] = {"forward": self.forward, "lengths": self.lengths, "mask": self.mask}
        steps = self.held_out_steps

        def assessed() -> Sequence[Snapshot]:
            snaps = snapshot(model, self.held_out, layers=found, max_steps=steps, recordings=recordings, **data)
            again = runs
            if again is None:
                again = () if self.held_out is None else runs_of(model, found, self.held_out, **data)
            return assess(snaps, model, found, again, self.rank_by, select=self.output, max_steps=steps)

        snaps = first_snapshots(assessed, partial(with_own_weights, model, found))
        return snaps, tuple(map(str, found.skipped))

    def _report(self, taken: _Taken, results: _Results) -> None:
        """Compare with what is remembered, and hand the report to the sinks."""
        found = [self._memories.take(report, probe, taken.step, taken.learned) for report, probe in results]
        layers, raised = tuple(report for report, _ in found), tuple(alarm for _, those in found for alarm in those)
        self.checks += 1
        if self.checks == 1 and all(report.point_source == "default" for report in layers):
            LOG.warning("lstm_monitor has no held-out data: stimuli are around zero, activity and gates are unknown")
        keeps = any(getattr(sink, "wants_snapshots", False) for sink in taken.sinks)
        report = Report(
            layers,
            taken.step,
            taken.epoch,
            taken.cost,
            self.checks,
            taken.skipped,
            versions(),
            alarms=raised,
            snapshots=to_host(_at_their_points(taken.snaps, results)) if keeps else (),
            may_draw=self.checks == 1 or self.governor.allows_pictures(self.clock),
        )
        self._tell_new(report)
        self.report = replace(report, snapshots=()) if keeps else report
        self.checked_at, self.last_step = taken.progress, taken.step
        self._write(report, taken.sinks)

    def _write(self, report: Report, sinks: Sequence[Sink]) -> None:
        with self.clock.writing(lambda: sum(getattr(sink, "drawing", 0.0) for sink in sinks)):
            self.outlets.write(report, sinks)
        self.governor.checked(self.clock, steps=self.steps, epochs=self.epochs)

    def _tell_new(self, report: Report) -> None:
        """A line in the log for every alarm that did not hold at the check before."""
        before = () if self.report is None else self.report.alarms
        known = {(alarm.layer, alarm.name) for alarm in before}
        for alarm in report.alarms:
            if (alarm.layer, alarm.name) not in known and self.sharing.writes:
                LOG.warning("lstm_monitor at step %s: %s", report.step, alarm)

    def close(self, extra_sinks: Sequence[Sink] = ()) -> None:
        """Close the sinks, after the last check; the clock stands until a training begins."""
        self.settle()
        self.clock.stop()
        release_buffers()
        with self.guard.protect("Closing the sinks"):
            if self.sharing.writes:
                self.outlets.close(extra_sinks)

    def state_dict(self) -> dict[str, Any]:
        """Plain values and tensors: what is remembered of each layer, counts, and cost."""
        self.settle()
        counts = {name: getattr(self, name) for name in _COUNTS}
        kept = {"clock": self.clock.plain(), "history": self.outlets.place}
        return {"layers": self._memories.plain(), **counts, **kept}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken: same stimuli, first and previous ranking, counts and cost."""
        self.settle()
        self._memories = Memories(state["layers"])
        self.outlets.go_on_from(state.get("history"))
        vars(self).update({name: state[name] for name in _COUNTS})
        running, self.clock = self.clock.running, Clock.restored(state["clock"])
        if running:
            self.clock.start()


def _at_their_points(snaps: Sequence[Snapshot], results: Sequence[tuple[LayerReport, Probe]]) -> tuple[Snapshot, ...]:
    """The snapshots with the operating points and stimuli that they were probed with."""
    pairs = zip(snaps, results, strict=True)
    return tuple(replace(snap, held_out_gates=None, point=probe.point, probe=probe) for snap, (_, probe) in pairs)


def _of_this_process(model: nn.Module) -> nn.Module:
    """The module inside one that runs in several processes: to call that is for all of them to do, at once."""
    return model.module if isinstance(model, DistributedDataParallel) else model


def _cuda_device(model: nn.Module | None) -> torch.device | None:
    """The CUDA device that a model of torch is on."""
    devices = {parameter.device for parameter in model.parameters()} if isinstance(model, nn.Module) else set()
    return next((device for device in devices if device.type == "cuda"), None)
