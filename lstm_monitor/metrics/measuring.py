"""All metrics of a response in one call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from lstm_monitor.metrics import activity, gates
from lstm_monitor.metrics.catalog import CATALOG, SHOWN_PERIOD, MetricSpec
from lstm_monitor.metrics.sine import (
    SineSummary,
    cutoff_with_reason,
    dominant_frequency_with_reason,
    summarize_sine,
)
from lstm_monitor.metrics.step import StepSummary, summarize, undefined
from lstm_monitor.reasons import Reason, Thresholds
from lstm_monitor.records import GATES, Kind, LayerKey, Metric, Metrics, Response, Stimulus


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


def measure_modes(coupled: Response, alone: Response, thresholds: Thresholds) -> list[Metric]:
    """As `measure` of both responses to the same stimuli, in one pass: a decoupled cell is just another cell."""
    assert coupled.baseline is not None
    assert alone.baseline is not None
    traces = [response.hidden.permute(2, 0, 1) for response in (coupled, alone)]  # as the engines lay them out
    hidden = torch.cat(traces, dim=-1).permute(1, 2, 0)
    both = replace(coupled, hidden=hidden, baseline=torch.cat([coupled.baseline, alone.baseline]))
    size, items = coupled.hidden.shape[1], measure(both, thresholds=thresholds).items
    return [_part(item, item.group, slice(size)) for item in items] + [
        _part(item, f"{item.group}_alone", slice(size, None)) for item in items
    ]


def _part(item: Metric, group: str, cells: slice) -> Metric:
    return Metric(
        group, item.name, item.values[:, cells], item.reasons[:, cells], item.labels, item.cells[cells].contiguous()
    )


def _measure(response: Response, thresholds: Thresholds) -> list[Metric]:
    if response.mask is not None:
        return _activity(response, response.mask, thresholds) + _gates(response, response.mask, thresholds)
    ending = "_alone" if response.mode == "alone" else ""
    return _steps(response, f"step{ending}", thresholds) + _sines(response, f"sine{ending}", thresholds)


def _rows(response: Response, kind: str) -> tuple[Tensor, tuple[Stimulus, ...]]:
    rows = [k for k, stimulus in enumerate(response.stimuli) if stimulus.kind == kind]
    chosen = tuple(response.stimuli[k] for k in rows)
    contiguous = rows == list(range(rows[0], rows[-1] + 1)) if rows else True
    hidden = response.hidden[rows[0] : rows[-1] + 1] if rows and contiguous else response.hidden[rows]
    return hidden, chosen


def _steps(response: Response, group: str, thresholds: Thresholds) -> list[Metric]:
    y, stimuli = _rows(response, "step")
    if not stimuli:
        return []
    summary = summarize(y, response.baseline, thresholds)
    labels = tuple(stimulus.name for stimulus in stimuli)
    rows = _step_values(summary)
    medians = _median(torch.stack([values for _, values, _ in rows]))
    unsettled = flagged(summary.reason)
    return [
        Metric(group, name, values, reason, labels, _cells(group, name, values, median, unsettled))
        for (name, values, reason), median in zip(rows, medians, strict=True)
    ]


def _cells(group: str, name: str, values: Tensor, median: Tensor, unsettled: Tensor) -> Tensor:
    if CATALOG[f"{group}/{name}"].summary == "mean size":
        return values.abs().nanmean(0)
    needs_end = name in ("settling_time", "rise_time", "overshoot")  # the few stimuli with an end would mislead
    return torch.where(unsettled, torch.nan, median) if needs_end else median


def _step_values(summary: StepSummary) -> list[tuple[str, Tensor, Tensor]]:
    value = summary.value_reason
    return [
        ("initial_response", undefined(summary.y0, value), value),
        ("final_response", undefined(summary.final, value), value),
        ("delta_response", undefined(summary.delta, value), value),
        ("peak_response", undefined(summary.peak, value), value),
        ("peak_time", summary.peak_time, summary.peak_reason),
        ("rise_time", summary.rise_time, summary.shape_reason),
        ("settling_time", summary.settling_time, summary.reason),
        ("overshoot", summary.overshoot, summary.shape_reason),
    ]


def _sines(response: Response, group: str, thresholds: Thresholds) -> list[Metric]:
    y, stimuli = _rows(response, "sine")
    if not stimuli:
        return []
    frequencies = [float(stimulus.frequency or 0) for stimulus in stimuli]
    summaries = [summarize_sine(y[k], f, None, thresholds) for k, f in enumerate(frequencies)]
    labels = tuple(stimulus.name for stimulus in stimuli)
    shown = min(range(len(stimuli)), key=lambda k: abs(1 / frequencies[k] - SHOWN_PERIOD))
    items = [
        _metric(group, name, torch.stack(values), torch.stack(reasons), labels, shown)
        for name, values, reasons in _sine_values(summaries)
    ]
    gains = torch.stack([summary.amplitude for summary in summaries])
    cutoff, reason = cutoff_with_reason(gains, frequencies, thresholds)
    items.append(_metric(group, "cutoff_frequency", undefined(cutoff, reason)[None], reason[None], ("all periods",)))
    dominant, why = dominant_frequency_with_reason(summaries[shown].window, thresholds)
    row = (labels[shown],)
    items.append(_metric(group, "dominant_frequency", undefined(dominant, why)[None], why[None], row))
    return items


def _sine_values(summaries: Sequence[SineSummary]) -> list[tuple[str, list[Tensor], list[Tensor]]]:
    return [
        ("amplitude", [s.amplitude for s in summaries], [s.amplitude_reason for s in summaries]),
        ("phase_lag", [s.phase_lag for s in summaries], [s.phase_reason for s in summaries]),
        ("harmonic_distortion", [s.harmonic_distortion for s in summaries], [s.distortion_reason for s in summaries]),
        ("correlation", [s.correlation for s in summaries], [s.correlation_reason for s in summaries]),
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


def _metric(group: str, name: str, values: Tensor, reasons: Tensor, labels: tuple[str, ...], shown: int = 0) -> Metric:
    """A metric of which one row stands for the cell."""
    return Metric(group, name, values, reasons, labels, values[shown])


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
