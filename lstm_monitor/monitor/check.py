"""How one check is made: what it needs of this moment, what it finds, and to whom that is handed."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from lstm_monitor.characterization import examine
from lstm_monitor.core.definitions import Thresholds
from lstm_monitor.core.distributed import from_first
from lstm_monitor.core.guard import LOG, Guard
from lstm_monitor.core.records import Probe, Snapshot
from lstm_monitor.core.terms import LayerKey
from lstm_monitor.core.trees import to_host
from lstm_monitor.engines.fused import release_buffers
from lstm_monitor.importance.scoring import assess
from lstm_monitor.layers.finding import find_layers
from lstm_monitor.monitor.background import BackgroundCheck, may_run_beside
from lstm_monitor.monitor.budget import Clock, Governor
from lstm_monitor.monitor.distributed import Sharing, first_snapshots
from lstm_monitor.monitor.sinks import MonitorSinks
from lstm_monitor.monitor.state import Memories
from lstm_monitor.report.ablation.result import Study
from lstm_monitor.report.ablation.verdict import trust_sentence
from lstm_monitor.report.layer_report import LayerReport
from lstm_monitor.report.report import Report, versions
from lstm_monitor.report.sinks import Sink
from lstm_monitor.snapshots.held_out import Forward
from lstm_monitor.snapshots.outputs import Select
from lstm_monitor.snapshots.recording import Recording
from lstm_monitor.snapshots.runs import Run, runs_of
from lstm_monitor.snapshots.taking import snapshot, with_own_weights
from lstm_monitor.studies.ablation.check import AblationCheck, study_of_loop

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


class Checking:
    """Makes checks and studies of one model, and remembers what was found; `LSTMMonitor` says when."""

    model: nn.Module | None
    held_out: Any
    forward: Forward | None
    lengths: Any
    mask: Any
    output: Select | None
    layers: str | Sequence[str]
    rank_by: str
    horizon: int | None
    held_out_steps: int
    thresholds: Thresholds
    guard: Guard
    governor: Governor
    sharing: Sharing
    monitor_sinks: MonitorSinks
    clock: Clock

    def __init__(self) -> None:
        """Nothing was found yet."""
        self.report: Report | None = None
        self.steps = self.epochs = self.checks = 0
        self._memories = Memories()
        self.checked_at: tuple[int, int] | None = None
        self.last_step: int | None = None
        self.hand_on: Callable[[Report], object] | None = None  # an adapter's, after the sinks
        self._is_periodic = False
        self._begun: tuple[_Taken, BackgroundCheck[_Results]] | None = None

    @property
    def progress(self) -> tuple[int, int]:
        """What tells one state of the weights from another: steps, and epochs where no steps are counted."""
        return self.steps, 0 if self.steps else self.epochs

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
        is_deferred = is_periodic and device is not None and may_run_beside(self._known_model())
        with (
            self.guard.protect("A check"),
            self.clock.check(periodic=is_periodic, device=None if is_deferred else device),
        ):
            epoch = self.epochs if epoch is None else epoch
            step = (self.steps or self.epochs) if step is None else step
            with self.sharing.block():
                taken = self._take_snapshots(step, epoch, recordings, runs, extra_sinks)
                if is_deferred:
                    self._begin(taken, BackgroundCheck(device))
                    return None
                results = self._examined(taken)
            self._report(taken, results)
        return self._handed_on()

    def _take_snapshots(
        self,
        step: int,
        epoch: int,
        recordings: Mapping[nn.Module, Recording] | None,
        runs: Sequence[Run] | None,
        extra_sinks: Sequence[Sink],
    ) -> _Taken:
        """All that a check needs of the model and of this moment."""
        sinks = tuple(self.monitor_sinks.all(extra_sinks)) if self.sharing.writes else ()
        snaps, skipped = self.snapshots(recordings, runs)
        cost = from_first(self.clock.cost)
        return _Taken(snaps, skipped, step, epoch, self.progress, self.checked_at != self.progress, sinks, cost)

    def _begin(self, taken: _Taken, background: BackgroundCheck[_Results]) -> None:
        """Have a check worked out beside the training; a later hook hands it on."""
        probes = self._memories.recall(taken.snaps)
        background.start(lambda: examine(taken.snaps, probes, self.rank_by, self.thresholds, self.horizon))
        self._begun = (taken, background)
        self.checked_at, self.last_step = taken.progress, taken.step

    def settle(self, *, wait: bool = True) -> None:
        """Hand on the check that is worked out beside the training, if one is; `wait` for it, or leave it till later.

        Its errors come here.
        """
        if self._begun is None or not (wait or self._begun[1].ready()):
            return
        taken, background = self._begun
        with self.guard.protect("A check"), self.clock.continued():
            try:
                results = background.collect()
            finally:
                self._begun = None if background.ready() else self._begun  # after Ctrl-C it goes on
            self.clock.beside(background.seconds)
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
            self.monitor_sinks.write(replace(self.report, layers=(), alarms=()), self.monitor_sinks.all(extra_sinks))

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
            self.monitor_sinks.write(report, sinks)
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
                self.monitor_sinks.close(extra_sinks)


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
