"""Play, measure and rank all layers of one check; the jobs are shared among the processes that train one model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from lstm_monitor.host import to_host
from lstm_monitor.kernels.memory import or_on_host
from lstm_monitor.layer_report import LayerReport, Trace
from lstm_monitor.metrics.linear import linear_metrics
from lstm_monitor.metrics.measuring import Part, measure, measure_played, not_measured
from lstm_monitor.playing import Case, Heard, coded, cost_of, flagged_share, play_alone, play_traces, together
from lstm_monitor.ranking import rank
from lstm_monitor.ranks import shared
from lstm_monitor.reasons import Thresholds
from lstm_monitor.records import LayerKey, Metric, Metrics, Probe, Snapshot
from lstm_monitor.responses import Rest, respond, settle
from lstm_monitor.stimuli import default_horizon, default_stimuli
from lstm_monitor.undisturbed import undisturbed

MAX_HORIZON = 1024
FLAGGED_SHARE = 0.05


def examine(
    snaps: Sequence[Snapshot],
    probes: Mapping[LayerKey, Probe],
    rank_by: str,
    thresholds: Thresholds,
    horizon: int | None = None,
) -> tuple[tuple[LayerReport, Probe], ...]:
    """The report of each layer, on the host, with the probe used: the one given for it, or a new one."""

    def made(given: tuple[tuple[Snapshot, ...], dict[LayerKey, Probe]]) -> tuple[tuple[LayerReport, Probe], ...]:
        used = _probes(*given, thresholds, horizon)
        cases = [Case(replace(snap, point=probe.point), probe) for snap, probe in zip(given[0], used, strict=True)]
        return tuple(zip(_examine(cases, rank_by, thresholds), used, strict=True))

    with undisturbed():
        pairs = or_on_host(made, (tuple(snaps), dict(probes)))
        on_host = all(snap.hidden_mean.device.type == "cpu" for snap in snaps)
        return pairs if on_host else to_host(pairs)


def _probes(
    snaps: Sequence[Snapshot], probes: Mapping[LayerKey, Probe], thresholds: Thresholds, horizon: int | None
) -> list[Probe]:
    new = [snap for snap in snaps if snap.key not in probes]
    designed = shared([partial(_horizon, snap, thresholds, horizon) for snap in new]) if new else []
    made = {snap.key: _probe(snap, steps) for snap, steps in zip(new, designed, strict=True)}
    return [probes.get(snap.key) or made[snap.key] for snap in snaps]


def design_probe(snap: Snapshot, thresholds: Thresholds, horizon: int | None = None) -> Probe:
    """The default stimuli over `horizon` steps, by default over as many as the cells need.

    Then the horizon starts at the task's length (at least 64) and doubles until at most 5% of the cells are flagged
    (drifting or oscillating at the end), up to 1,024.
    """
    with torch.no_grad():
        return _probe(snap, _horizon(snap, thresholds, horizon))


def _horizon(snap: Snapshot, thresholds: Thresholds, horizon: int | None) -> int:
    if horizon is not None:
        return horizon
    steps, rest = default_horizon(snap.point), settle(snap, "coupled", thresholds)
    while steps < MAX_HORIZON:
        stimuli = [stimulus for stimulus in default_stimuli(snap, steps) if stimulus.kind == "step"]
        if float(flagged_share(snap, stimuli, rest, thresholds)) <= FLAGGED_SHARE:
            break
        steps = min(2 * steps, MAX_HORIZON)
    return steps


def _probe(snap: Snapshot, horizon: int) -> Probe:
    stimuli = default_stimuli(snap, horizon)
    return Probe(snap.point, *(tuple(s for s in stimuli if s.kind == kind) for kind in ("step", "sine")))


def _examine(cases: Sequence[Case], rank_by: str, thresholds: Thresholds) -> list[LayerReport]:
    groups, size = together(cases), len(cases)
    jobs: list[Callable[[], Any]] = [partial(play_traces, case, "coupled", thresholds) for case in cases]
    jobs += [partial(play_alone, [cases[k] for k in group], thresholds) for group in groups]
    jobs += [partial(_held_out_metrics, case.snap, thresholds) for case in cases]
    costs = [cost_of(case, "coupled") for case in cases]
    costs += [sum(cost_of(cases[k], "alone") for k in group) for group in groups]
    results = shared(jobs, costs + [_held_out_cost(case.snap) for case in cases])
    coupled, alone, held_out = results[:size], results[size:-size], results[-size:]
    found = _measured(cases, groups, coupled, alone, thresholds)
    numbers = torch.stack([heard.shown.number for heard in coupled]).tolist()
    traces = [
        Trace(case.probe.steps[number].name, heard.shown.change)
        for case, heard, number in zip(cases, coupled, numbers, strict=True)
    ]
    return [
        _report(case, Metrics(case.snap.key, (*found[k], *held_out[k])), traces[k], coupled[k], rank_by, thresholds)
        for k, case in enumerate(cases)
    ]


def _measured(
    cases: Sequence[Case],
    groups: Sequence[Sequence[int]],
    coupled: Sequence[Heard],
    alone: Sequence[Heard],
    thresholds: Thresholds,
) -> list[list[Metric]]:
    """The metrics of each layer from what was played to it, all layers of the same stimuli in one pass."""
    order = [([k], "", heard) for k, heard in enumerate(coupled)]
    order += [(list(group), "_alone", heard) for group, heard in zip(groups, alone, strict=True)]
    passes: dict[tuple[object, ...], list[tuple[list[int], str, Heard]]] = {}
    for item in order:
        passes.setdefault(coded(cases[item[0][0]]).kind, []).append(item)
    found: list[list[Metric]] = [[] for _ in cases]
    for items in passes.values():
        numbers = [k for group, _, _ in items for k in group]
        parts = [_part(cases[k], ending) for group, ending, _ in items for k in group]
        measured = measure_played([heard.played for _, _, heard in items], parts, thresholds)
        for k, metrics in zip(numbers, measured, strict=True):
            found[k] += metrics
    for group, heard in zip(groups, alone, strict=True):
        for k, rest in zip(group, _apart(heard.rest, [cases[k].snap.hidden_size for k in group]), strict=True):
            found[k] += linear_metrics(cases[k].snap, cases[k].probe, thresholds, rest)
    return found


def _part(case: Case, ending: str) -> Part:
    names = (tuple(stimulus.name for stimulus in group) for group in (case.probe.steps, case.probe.sines))
    return Part(case.snap.hidden_size, ending, *names)


def _apart(rest: Rest, sizes: Sequence[int]) -> list[Rest]:
    """The rest of each of several layers."""
    if len(sizes) == 1:
        return [rest]
    states = zip(*(part.split(list(sizes), dim=-1) for part in rest.state), strict=True)
    settled, hidden = rest.settled.split(list(sizes)), rest.hidden.split(list(sizes))
    return [Rest(*parts) for parts in zip(states, settled, hidden, strict=True)]


def _report(
    case: Case, metrics: Metrics, trace: Trace, heard: Heard, rank_by: str, thresholds: Thresholds
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
        settled=heard.rest.settled,
        thresholds=thresholds,
        frozen=snap.frozen,
    )


def _held_out_metrics(snap: Snapshot, thresholds: Thresholds) -> list[Metric]:
    """Activity and gates on the held-out sequences; NaN with the reason without any."""
    if snap.held_out is not None:
        response = respond(snap, snap.held_out, record=("gates",))
        return list(measure(response, thresholds=thresholds).items)
    size, like = snap.hidden_size, snap.hidden_mean
    return [m for group in ("activity", "gates") for m in not_measured(snap.key, size, group, snap.kind, like)]


def _held_out_cost(snap: Snapshot) -> float:
    return 0.0 if snap.held_out is None else 16.0 * snap.held_out.mask.numel() * snap.hidden_size
