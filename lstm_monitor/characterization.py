"""Find, snapshot, respond, measure and rank in one call: the whole pipeline."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

import torch
from torch import nn

from lstm_monitor.core.definitions import Thresholds
from lstm_monitor.core.distributed import shared
from lstm_monitor.core.errors import unknown
from lstm_monitor.core.records import Metrics, Probe, Snapshot, Trace
from lstm_monitor.core.terms import LayerKey
from lstm_monitor.core.trees import to_host
from lstm_monitor.core.undisturbed import undisturbed
from lstm_monitor.engines.batch_size import or_on_host
from lstm_monitor.engines.choice import forced
from lstm_monitor.importance.ranking import OF_THE_NETWORK, check_ranking_name, rank
from lstm_monitor.importance.scoring import assess
from lstm_monitor.layers.finding import find_layers
from lstm_monitor.report.layer_report import LayerReport
from lstm_monitor.report.report import Report, versions
from lstm_monitor.responses.probe_design import probes_for
from lstm_monitor.responses.probing import (
    Case,
    Simulated,
    cost_of,
    held_out_cost,
    held_out_metrics,
    measured,
    simulate,
    simulate_alone,
    together,
)
from lstm_monitor.snapshots.held_out import Forward
from lstm_monitor.snapshots.outputs import Select
from lstm_monitor.snapshots.runs import runs_of
from lstm_monitor.snapshots.taking import snapshot


def characterize(  # noqa: PLR0913  # one argument for each thing that a user may choose
    model: nn.Module | Snapshot | Sequence[Snapshot],
    held_out: Any = None,
    *,
    layers: str | Sequence[str] = "*",
    rank_by: str = "auto",
    forward: Forward | None = None,
    output: Select | None = None,
    lengths: Any = None,
    mask: Any = None,
    horizon: int | None = None,
    held_out_steps: int = 4096,
    thresholds: Thresholds | None = None,
) -> Report:
    """Measure and rank every recurrent cell of a module, without any trainer and without changing the module.

    Args:
        model: any torch module that holds nn.LSTM, nn.GRU, nn.RNN or torch's cells. Or snapshots of layers, such as
            those that a history kept: they bring their held-out data, their ranking and their stimuli with them.
        held_out: a tensor, a packed sequence, a tuple, a dict, or a list of such batches, given to the model as
            ``model(x)``, ``model(*batch)`` or ``model(**batch)``. It sets the operating point, and the
            activity and gate metrics need it; without it stimuli are around zero.
        layers: glob or globs over layer names.
        rank_by: "auto" (centred output sensitivity on held-out data; without data that on random sequences; where the
            model cannot be run, std x outgoing weights: the ranking's `words` say what was used and why), "measured"
            (the exact effect on the output of removing each cell), "greedy" (an order for removal),
            "std_x_outgoing", or any metric's name.
        forward: called as ``forward(model, batch)`` where the model takes its batch in another way.
        output: selects, from what the model returns, the tensor that the sensitivity is of; by default the first.
        lengths: (N,) steps of each sequence that are no padding; a list of such for a list of batches.
        mask: (N, T) True for the steps that count; a list of such for a list of batches.
        horizon: steps of the step responses, at least 8. By default the task's length (at least 64), doubled until at
            most 5% of the cells still drift or oscillate at the end, at most 1,024.
        held_out_steps: about how many sequence steps of the held-out data are used.
        thresholds: the named numbers in the metrics' definitions.

    Returns:
        A report: ``to_pandas()`` has one row a cell, ``plot()`` a picture.

    Raises:
        TypeError: `model` is no torch module; held-out data that are no tensors.
        ValueError: no recurrent layer, unknown names, weights or data that are not finite, data that does not fit;
            data or a ranking that needs the network with snapshots.

    Example:
        >>> import lstm_monitor as lm, torch
        >>> model = torch.nn.LSTM(3, 8, batch_first=True)
        >>> report = lm.characterize(model, held_out=torch.randn(16, 40, 3))
        >>> report["l0"].hidden_size
        8
    """
    check_ranking_name(rank_by)
    check_horizon(horizon)
    check_steps(held_out_steps)
    forced()  # before anything is run
    data: dict[str, Any] = {"forward": forward, "lengths": lengths, "mask": mask}
    if isinstance(model, Snapshot | Sequence):
        _check_no_data({"held_out": held_out, "output": output, **data})
        asked = _asked_again(_snapshots(model), layers, rank_by, horizon)
        results = examine(*asked, rank_by, thresholds or Thresholds(), horizon)
        return Report(tuple(report for report, _ in results), versions=versions())
    found = find_layers(model, layers)
    snaps = snapshot(model, held_out, layers=found, max_steps=held_out_steps, **data)
    runs = () if held_out is None else runs_of(model, found, held_out, **data)
    snaps = assess(snaps, model, found, runs, rank_by, select=output, max_steps=held_out_steps)
    results = examine(snaps, {}, rank_by, thresholds or Thresholds(), horizon)
    return Report(tuple(report for report, _ in results), skipped=tuple(map(str, found.skipped)), versions=versions())


def _snapshots(given: Snapshot | Sequence[Snapshot]) -> tuple[Snapshot, ...]:
    """The snapshots that were given in place of a model."""
    several = (given,) if isinstance(given, Snapshot) else tuple(given)
    if not several or not all(isinstance(item, Snapshot) for item in several):
        raise TypeError(f"model={given!r:.80} is no torch module; give an nn.Module, or snapshots of layers")
    return several


def _check_no_data(given: Mapping[str, Any]) -> None:
    for name, value in given.items():
        if value is not None:
            raise ValueError(f"{name}= was given with snapshots, which hold their own held-out data; leave it out")


def _asked_again(
    snaps: Sequence[Snapshot], layers: str | Sequence[str], rank_by: str, horizon: int | None
) -> tuple[tuple[Snapshot, ...], dict[LayerKey, Probe]]:
    """The chosen snapshots, and the stimuli of the checks they are from, unless another horizon is asked for."""
    globs = [layers] if isinstance(layers, str) else list(layers)
    chosen = tuple(snap for snap in snaps if any(fnmatchcase(str(snap.key), glob) for glob in globs))
    if not chosen:
        raise unknown("layers", str(layers), (str(snap.key) for snap in snaps))
    for snap in chosen:
        name = None if snap.importance is None else snap.importance.name
        if rank_by in OF_THE_NETWORK and rank_by not in ("auto", name):
            raise ValueError(f"rank_by={rank_by!r} needs the whole network; the snapshot of {snap.key} has {name!r}")
    return chosen, {snap.key: snap.probe for snap in chosen if snap.probe is not None and horizon is None}


def check_horizon(horizon: int | None) -> int | None:
    """`horizon` itself; ValueError if it is too short for a step response."""
    if horizon is not None and (isinstance(horizon, bool) or not isinstance(horizon, int) or horizon < 8):
        raise ValueError(
            f"horizon={horizon!r} is too short or no integer; a step response takes 8 steps or more (sines always run "
            "at least two of their longest periods), or None for as long as the cells need"
        )
    return horizon


def check_steps(held_out_steps: int) -> int:
    """`held_out_steps` itself; ValueError if it is under 1."""
    if isinstance(held_out_steps, bool) or not isinstance(held_out_steps, int) or held_out_steps < 1:
        raise ValueError(f"held_out_steps={held_out_steps!r} must be an integer of at least 1, such as 1024")
    return held_out_steps


def examine(
    snaps: Sequence[Snapshot],
    probes: Mapping[LayerKey, Probe],
    rank_by: str,
    thresholds: Thresholds,
    horizon: int | None = None,
) -> tuple[tuple[LayerReport, Probe], ...]:
    """The report of each layer, on the host, with the probe used: the one given for it, or a new one."""

    def made(given: tuple[tuple[Snapshot, ...], dict[LayerKey, Probe]]) -> tuple[tuple[LayerReport, Probe], ...]:
        used = probes_for(*given, thresholds, horizon)
        cases = [Case(replace(snap, point=probe.point), probe) for snap, probe in zip(given[0], used, strict=True)]
        return tuple(zip(_examine(cases, rank_by, thresholds), used, strict=True))

    with undisturbed():
        pairs = or_on_host(made, (tuple(snaps), dict(probes)))
        on_host = all(snap.hidden_mean.device.type == "cpu" for snap in snaps)
        return pairs if on_host else to_host(pairs)


def _examine(cases: Sequence[Case], rank_by: str, thresholds: Thresholds) -> list[LayerReport]:
    groups, size = together(cases), len(cases)
    jobs: list[Callable[[], Any]] = [partial(simulate, case, "coupled", thresholds) for case in cases]
    jobs += [partial(simulate_alone, [cases[k] for k in group], thresholds) for group in groups]
    jobs += [partial(held_out_metrics, case.snap, thresholds) for case in cases]
    costs = [cost_of(case, "coupled") for case in cases]
    costs += [sum(cost_of(cases[k], "alone") for k in group) for group in groups]
    results = shared(jobs, costs + [held_out_cost(case.snap) for case in cases])
    coupled, alone, held_out = results[:size], results[size:-size], results[-size:]
    found = measured(cases, groups, coupled, alone, thresholds)
    numbers = torch.stack([simulated.traced.number for simulated in coupled]).tolist()
    traces = [
        Trace(case.probe.steps[number].name, simulated.traced.change)
        for case, simulated, number in zip(cases, coupled, numbers, strict=True)
    ]
    return [
        _report(case, Metrics(case.snap.key, (*found[k], *held_out[k])), traces[k], coupled[k], rank_by, thresholds)
        for k, case in enumerate(cases)
    ]


def _report(
    case: Case, metrics: Metrics, trace: Trace, simulated: Simulated, rank_by: str, thresholds: Thresholds
) -> LayerReport:
    snap = case.snap
    return LayerReport(
        key=snap.key,
        kind=snap.kind,
        input_size=snap.weights.input_size,
        point_source=snap.point.source,
        periods=tuple(1 / float(sine.frequency or 1) for sine in case.probe.sines),
        metrics=metrics,
        ranking=rank(snap, metrics, rank_by),
        trace=trace,
        settled=simulated.rest.settled,
        thresholds=thresholds,
        frozen=snap.frozen,
    )
