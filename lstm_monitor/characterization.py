"""Snapshot, respond, measure and rank in one call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor, nn

from lstm_monitor.errors import unknown
from lstm_monitor.heldout import Forward, runs_of
from lstm_monitor.host import to_host
from lstm_monitor.importance import assess
from lstm_monitor.layer_report import LayerReport, Trace
from lstm_monitor.layers import find_layers
from lstm_monitor.metrics.measuring import flagged, measure, measure_modes, not_measured
from lstm_monitor.outputs import Select
from lstm_monitor.ranking import OF_THE_NETWORK, check_ranking_name, rank
from lstm_monitor.reasons import Thresholds
from lstm_monitor.records import LayerKey, Metric, Metrics, Mode, Probe, Response, Snapshot, Stimulus
from lstm_monitor.report import Report
from lstm_monitor.responses import respond, settle
from lstm_monitor.snapshots import snapshot
from lstm_monitor.stimuli import default_horizon, default_stimuli
from lstm_monitor.undisturbed import undisturbed

MAX_HORIZON = 1024
FLAGGED_SHARE = 0.05


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
    check_steps(held_out_steps)  # before anything is run
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


def examine(
    snaps: Sequence[Snapshot],
    probes: Mapping[LayerKey, Probe],
    rank_by: str,
    thresholds: Thresholds,
    horizon: int | None = None,
) -> tuple[tuple[LayerReport, Probe], ...]:
    """The report of each layer, on the host, with the probe used: the one given for it, or a new one."""
    with undisturbed():
        pairs = []
        for snap in snaps:
            probe = probes.get(snap.key) or design_probe(snap, thresholds, horizon)
            pairs.append((_examine(replace(snap, point=probe.point), probe, rank_by, thresholds), probe))
        on_host = all(snap.hidden_mean.device.type == "cpu" for snap in snaps)
        return tuple(pairs) if on_host else to_host(tuple(pairs))


def _examine(snap: Snapshot, probe: Probe, rank_by: str, thresholds: Thresholds) -> LayerReport:
    coupled = _probe_responses(snap, probe, "coupled", thresholds)
    alone = _probe_responses(snap, probe, "alone", thresholds)
    played = [item for pair in zip(coupled, alone, strict=True) for item in measure_modes(*pair, thresholds)]
    metrics = Metrics(snap.key, (*played, *_held_out_metrics(snap, thresholds)))
    steps = coupled[0]
    assert steps.baseline is not None
    assert steps.settled is not None
    return LayerReport(
        key=snap.key,
        kind=snap.kind,
        input_size=snap.weights.input_size,
        point_source=snap.point.source,
        periods=tuple(1 / float(sine.frequency or 1) for sine in probe.sines),
        metrics=metrics,
        ranking=rank(snap, metrics, rank_by),
        trace=_trace(steps, metrics),
        settled=steps.settled,
        thresholds=thresholds,
        frozen=snap.frozen,
    )


def _trace(steps: Response, metrics: Metrics) -> Trace:
    """The response to the step after which most cells settle, the first of equals."""
    assert steps.baseline is not None
    shown = int((metrics["step/settling_time"].reasons == 0).sum(1).argmax())
    return Trace(steps.stimuli[shown].name, (steps.hidden[shown] - steps.baseline[:, None]).contiguous())


def _probe_responses(snap: Snapshot, probe: Probe, mode: Mode, thresholds: Thresholds) -> list[Response]:
    """The responses to steps and sines: one call where they share a horizon."""
    together = len(probe.steps[0].signal) == len(probe.sines[0].signal)
    groups: list[tuple[Stimulus, ...]] = [(*probe.steps, *probe.sines)] if together else [probe.steps, probe.sines]
    rest = settle(snap, mode, thresholds)
    return [respond(snap, group, mode, rest=rest) for group in groups]


def _held_out_metrics(snap: Snapshot, thresholds: Thresholds) -> list[Metric]:
    """Activity and gates on the held-out sequences; NaN with the reason without any."""
    if snap.held_out is not None:
        response = respond(snap, snap.held_out, record=("gates",))
        return list(measure(response, thresholds=thresholds).items)
    size, like = snap.hidden_size, snap.hidden_mean
    return [m for group in ("activity", "gates") for m in not_measured(snap.key, size, group, snap.kind, like)]


def design_probe(snap: Snapshot, thresholds: Thresholds, horizon: int | None = None) -> Probe:
    """The default stimuli over `horizon` steps, by default over as many as the cells need.

    Then the horizon starts at the task's length (at least 64) and doubles until at most 5% of the cells are flagged
    (drifting or oscillating at the end), up to 1,024.
    """
    steps = default_horizon(snap.point) if horizon is None else horizon
    while horizon is None and steps < MAX_HORIZON and _flagged_share(snap, steps, thresholds) > FLAGGED_SHARE:
        steps = min(2 * steps, MAX_HORIZON)
    stimuli = default_stimuli(snap, steps)
    kinds = [tuple(s for s in stimuli if s.kind == kind) for kind in ("step", "sine")]
    return Probe(snap.point, *kinds)


def _flagged_share(snap: Snapshot, horizon: int, thresholds: Thresholds) -> float:
    steps = [stimulus for stimulus in default_stimuli(snap, horizon) if stimulus.kind == "step"]
    measured = measure(respond(snap, steps), thresholds=thresholds)
    return float(flagged(measured["step/settling_time"].reasons).double().mean())


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


def versions() -> dict[str, str]:
    """The versions that a report was made with."""
    found = {"torch": str(torch.__version__)}
    try:
        found["lstm_monitor"] = version("lstm-monitor")
    except PackageNotFoundError:  # the working tree on the path, not installed
        found["lstm_monitor"] = "not installed"
    return found


def ranks_of(order: Tensor) -> Tensor:
    """The place ``(H,)`` of each cell in an order, 0 the first, as int16."""
    ranks = torch.empty_like(order, dtype=torch.int16)
    ranks[order] = torch.arange(len(order), dtype=torch.int16)
    return ranks
