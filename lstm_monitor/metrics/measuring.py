"""All metrics of a response in one call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lstm_monitor.core.definitions import Reason, Thresholds
from lstm_monitor.core.records import Metric, Metrics, Response, Stimulus
from lstm_monitor.core.terms import GATES, Kind, LayerKey
from lstm_monitor.engines.facts import ResponseFacts, joined
from lstm_monitor.metrics import activity, gates
from lstm_monitor.metrics.catalog import CATALOG, MAIN_PERIOD, MetricSpec
from lstm_monitor.metrics.sine import SineSummary, cutoff_with_reason, summarize_sines
from lstm_monitor.metrics.step import StepSummary, summarize, undefined


def measure(*responses: Response, thresholds: Thresholds | None = None) -> Metrics:
    """Every metric of one layer's responses: to steps, to sines, to held-out sequences, coupled or alone.

    Args:
        responses: of one layer. Step and sine stimuli may share a response. Gates are measured where they were
            recorded on sequences.
        thresholds: the named numbers in the definitions.

    Returns:
        One `Metric` for each group and name, with values a stimulus and cell, reasons where NaN, and one value a
        cell. Groups: ``step``, ``sine`` (coupled), ``step_alone``, ``sine_alone``, ``activity``, ``gates``.

    Raises:
        ValueError: no response, or responses of different layers.
    """
    if not responses or len({response.key for response in responses}) != 1:
        raise ValueError(f"responses: give one or more responses of one layer, not {[str(r.key) for r in responses]}")
    limits = thresholds or Thresholds()
    items = [item for response in responses for item in _measure(response, limits)]
    return Metrics(responses[0].key, tuple(items))


@dataclass(frozen=True, eq=False)
class MeasuredCells:
    """Cells of one layer in one mode, which were given steps and sines: their groups have this `ending`.

    ``steps`` and ``sines``: the stimuli's names.
    """

    hidden_size: int
    ending: str
    steps: tuple[str, ...]
    sines: tuple[str, ...]


def measure_facts(
    given: Sequence[ResponseFacts], parts: Sequence[MeasuredCells], thresholds: Thresholds
) -> list[list[Metric]]:
    """The step and sine metrics of each part, in one pass over all cells: a decoupled cell is just another cell.

    Args:
        given: what was found of the cells; all of them were given the same signals, apart from directions and names.
        parts: how the cells, all of them in their order, are divided.
        thresholds: the named numbers in the definitions.
    """
    found = joined(given)
    steps = _steps(StepSummary(found.steps, thresholds), parts)
    sines = _sines(SineSummary(found.sines, found.sines.steps // 2, thresholds), parts)
    return [of_steps + of_sines for of_steps, of_sines in zip(steps, sines, strict=True)]


def _measure(response: Response, thresholds: Thresholds) -> list[Metric]:
    if response.mask is not None:
        return _activity(response, response.mask, thresholds) + _gates(response, response.mask, thresholds)
    (y, steps), (waves, sines) = _rows(response, "step"), _rows(response, "sine")
    names = (tuple(stimulus.name for stimulus in group) for group in (steps, sines))
    parts = [MeasuredCells(response.hidden.shape[1], "_alone" if response.mode == "alone" else "", *names)]
    items: list[Metric] = []
    if steps:
        items += _steps(summarize(y, response.baseline, thresholds), parts)[0]
    if sines:
        frequencies = [float(stimulus.frequency or 0) for stimulus in sines]
        items += _sines(summarize_sines(waves, frequencies, main_of(frequencies), thresholds), parts)[0]
    return items


def _rows(response: Response, kind: str) -> tuple[Tensor, tuple[Stimulus, ...]]:
    rows = [k for k, stimulus in enumerate(response.stimuli) if stimulus.kind == kind]
    chosen = tuple(response.stimuli[k] for k in rows)
    contiguous = rows == list(range(rows[0], rows[-1] + 1)) if rows else True
    hidden = response.hidden[rows[0] : rows[-1] + 1] if rows and contiguous else response.hidden[rows]
    return hidden, chosen


def main_of(frequencies: Sequence[float]) -> int:
    """The number of the sine that stands for a cell in tables and scalars."""
    return min(range(len(frequencies)), key=lambda k: abs(1 / frequencies[k] - MAIN_PERIOD))


def _steps(summary: StepSummary, parts: Sequence[MeasuredCells]) -> list[list[Metric]]:
    rows = _step_rows(summary)
    values, reasons = (torch.stack([row[k] for row in rows.values()]) for k in (0, 1))
    unsettled = flagged(summary.reason)
    cells = [
        _step_cells(name, of_stimuli, median, unsettled)
        for name, of_stimuli, median in zip(rows, values, _median(values), strict=True)
    ]
    return _divided("step", tuple(rows), lambda part: [part.steps] * len(rows), parts, values, reasons, cells)


def _step_cells(name: str, values: Tensor, median: Tensor, unsettled: Tensor) -> Tensor:
    if CATALOG[f"step/{name}"].summary == "mean size":
        return values.abs().nanmean(0)
    needs_end = name in ("settling_time", "rise_time", "overshoot")  # the few stimuli with an end would mislead
    return torch.where(unsettled, torch.nan, median) if needs_end else median


def _step_rows(summary: StepSummary) -> dict[str, tuple[Tensor, Tensor]]:
    value = summary.value_reason
    return {
        "initial_response": (undefined(summary.facts.initial, value), value),
        "final_response": (undefined(summary.facts.final, value), value),
        "delta_response": (undefined(summary.delta, value), value),
        "peak_response": (undefined(summary.peak, value), value),
        "peak_time": (summary.peak_time, summary.peak_reason),
        "rise_time": (summary.rise_time, summary.shape_reason),
        "settling_time": (summary.settling_time, summary.reason),
        "overshoot": (summary.overshoot, summary.shape_reason),
    }


def _sines(summary: SineSummary, parts: Sequence[MeasuredCells]) -> list[list[Metric]]:
    main = main_of(summary.facts.frequencies)
    rows = {
        "amplitude": (summary.amplitude, summary.amplitude_reason),
        "phase_lag": (summary.phase_lag, summary.phase_reason),
        "harmonic_distortion": (summary.harmonic_distortion, summary.distortion_reason),
        "correlation": (summary.correlation, summary.correlation_reason),
    }
    single = {
        "cutoff_frequency": cutoff_with_reason(summary.amplitude, summary.facts.frequencies, summary.thresholds),
        "dominant_frequency": summary.dominant_with_reason(main),
    }
    values, reasons = (torch.stack([row[k] for row in rows.values()]) for k in (0, 1))
    value, reason = (torch.stack([row[k] for row in single.values()]) for k in (0, 1))
    value = undefined(value, reason)
    of_each = _divided("sine", tuple(rows), lambda part: [part.sines] * 4, parts, values, reasons, values[:, main])
    of_all = _divided(
        "sine",
        tuple(single),
        lambda part: [("all periods",), (part.sines[main],)],
        parts,
        value[:, None],
        reason[:, None],
        value,
    )
    return [each + both for each, both in zip(of_each, of_all, strict=True)]


def _divided(
    group: str,
    names: Sequence[str],
    labels: Callable[[MeasuredCells], Sequence[tuple[str, ...]]],
    parts: Sequence[MeasuredCells],
    values: Tensor,
    reasons: Tensor,
    cells: Tensor | Sequence[Tensor],
) -> list[list[Metric]]:
    """The metrics of each part from ``values`` and ``reasons (M, S, N)`` and ``cells (M, N)`` of all N cells."""
    sizes = [part.hidden_size for part in parts]
    whole = cells if isinstance(cells, Tensor) else torch.stack(list(cells))
    pieces = zip(parts, *(tensor.split(sizes, dim=-1) for tensor in (values, reasons, whole)), strict=True)
    return [
        [
            Metric(f"{group}{part.ending}", name, value, reason, label, of_cells)
            for name, label, value, reason, of_cells in zip(
                names, labels(part), *(piece.contiguous() for piece in own), strict=True
            )
        ]
        for part, *own in pieces
    ]


def _activity(response: Response, mask: Tensor, thresholds: Thresholds) -> list[Metric]:
    y = response.hidden
    std, rms = activity.std(y, mask), activity.rms(y, mask)
    time, reason = activity.autocorrelation_time_with_reason(y, mask, thresholds)
    broken = (~torch.isfinite(std)).to(torch.uint8) * int(Reason.NONFINITE)
    rows = [("std", std, broken), ("rms", rms, broken), ("autocorrelation_time", undefined(time, reason), reason)]
    return [_metric("activity", name, values[None], why[None], (str(response.source),)) for name, values, why in rows]


def _gates(response: Response, mask: Tensor, thresholds: Thresholds) -> list[Metric]:
    if not response.gates and response.kind != "custom":
        return []
    is_relu = response.kind == "rnn_relu"
    rows = {
        name: gates.saturation(gate, mask, candidate=name == "candidate", thresholds=thresholds)
        for name, gate in response.gates.items()
        if not (is_relu and name == "candidate")
    }
    found = {f"{name}_saturation": values for name, values in rows.items()}
    if rows:
        found["saturation"] = torch.stack(list(rows.values())).mean(0)
    memory = response.gates.get("forget", response.gates.get("update"))
    if memory is not None:
        found["tau_f"] = gates.tau_f(memory, mask)
    return [_gate_metric(spec.name, found.get(spec.name), response) for spec in _gate_specs(response.kind)]


def _gate_specs(kind: Kind) -> list[MetricSpec]:
    """The gate metrics of this kind of layer, and tau_f and the overall saturation even where undefined."""
    names = {f"{gate}_saturation" for gate in GATES.get(kind, ())} | {"saturation", "tau_f"}
    return [spec for spec in CATALOG.values() if spec.group == "gates" and spec.name in names]


def _gate_metric(name: str, values: Tensor | None, response: Response) -> Metric:
    size, reason = response.hidden.shape[1], Reason.NO_SUCH_GATE
    if values is None:
        values = response.hidden.new_full((size,), torch.nan)
    elif name == "tau_f":
        reason = Reason.NEVER_FORGETS
    else:
        reason = Reason.NONFINITE
    reasons = (~torch.isfinite(values)).to(torch.uint8) * int(reason)
    return _metric("gates", name, values[None], reasons[None], (str(response.source),))


def _metric(group: str, name: str, values: Tensor, reasons: Tensor, labels: tuple[str, ...], main: int = 0) -> Metric:
    """A metric of which one row stands for the cell."""
    return Metric(group, name, values, reasons, labels, values[main])


def _median(values: Tensor) -> Tensor:
    """The median ``(..., H)`` over S of the values ``(..., S, H)`` that are not NaN; NaN where there are none."""
    ascending = values.sort(dim=-2).values  # NaN last
    count = (values == values).sum(-2, keepdim=True)
    low, high = (count - 1).clamp(min=0) // 2, (count // 2).clamp(max=values.shape[-2] - 1)
    middle = ascending.gather(-2, torch.cat([low, high], dim=-2))
    return torch.where(count[..., 0, :] % 2 == 1, middle[..., 0, :], middle.mean(-2))


def not_measured(key: LayerKey, size: int, group: str, kind: Kind, like: Tensor) -> list[Metric]:
    """The metrics of a group that needs held-out data, all NaN with that reason."""
    specs = _gate_specs(kind) if group == "gates" else [spec for spec in CATALOG.values() if spec.group == group]
    nan = like.new_full((1, size), torch.nan)
    reason = torch.full((1, size), int(Reason.NO_HELD_OUT), dtype=torch.uint8, device=like.device)
    return [Metric(group, spec.name, nan, reason, ("none",), nan[0]) for spec in specs]


def flagged(reasons: Tensor) -> Tensor:
    """Whether each cell ``(H,)`` is flagged, from the settling times' ``reasons (S, H)``.

    Flagged: drifting or oscillating at the end for more than half of the steps that move it.
    """
    unsettled = ((reasons == Reason.DRIFTING) | (reasons == Reason.OSCILLATING)).sum(0)
    moved = (reasons != Reason.SILENT).sum(0)
    return 2 * unsettled > moved
