"""Reports as tables, lines and a page for people."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from lstm_monitor.core.definitions import Reason
from lstm_monitor.metrics.catalog import CATALOG
from lstm_monitor.metrics.distributions import finite, quantiles
from lstm_monitor.report.layer_report import LayerReport
from lstm_monitor.report.text import FEW, ends

HEADLINES = (
    "step/peak_response",
    "step/settling_time",
    "sine/amplitude",
    "activity/std",
    "gates/saturation",
    "gates/tau_f",
)


def layer_table(layer: LayerReport) -> dict[str, Any]:
    """Columns of one layer's table, a row a cell: layer, cell, rank (0 first), score, every metric."""
    size = layer.hidden_size
    rank = torch.empty(size, dtype=torch.long, device="cpu")
    rank[layer.ranking.order] = torch.arange(size, device="cpu")
    columns: dict[str, Any] = {"layer": [str(layer.key)] * size, "cell": list(range(size))}
    columns |= {"rank": rank.numpy(), "score": layer.ranking.scores.numpy()}
    return columns | {item.path: item.cells.numpy() for item in layer.metrics.items}


def summary_lines(layers: Sequence[LayerReport], skipped: Sequence[str] = ()) -> list[str]:
    """A few lines a layer: size, medians with p10 to p90, what is undefined, ends of the ranking."""
    lines = [line for layer in layers for line in _layer_lines(layer)]
    return lines + [f"not supported: {item}" for item in skipped]


def _layer_lines(layer: LayerReport) -> Iterator[str]:
    features = "1 feature" if layer.input_size == 1 else f"{layer.input_size} features"
    yield f"{layer.key}: {layer.kind.replace('_', ' ')}, {features} -> {layer.hidden_size} cells"
    for path in HEADLINES:
        if path in layer.metrics:
            p10, p50, p90 = quantiles(finite(layer.metrics[path].cells))
            if p50 == p50:
                yield f"  {path:<20} {_quantile_words(CATALOG[path].unit, p10, p50, p90)}"
    yield from (f"  {note}" for note in notes(layer))
    yield f"  ranked by {layer.ranking.words}:"
    yield f"    {ends(layer.ranking.order.tolist())}"


def _quantile_words(unit: str, p10: float, p50: float, p90: float) -> str:
    if unit == "share":
        return f"median {100 * p50:.3g}% (p10 {100 * p10:.3g}%, p90 {100 * p90:.3g}%)"
    return f"median {f'{p50:.3g} {unit}'.rstrip()} (p10 {p10:.3g}, p90 {p90:.3g})"


def notes(layer: LayerReport) -> Iterator[str]:
    """What a reader has to know: cells flagged, silent, not finite, dead or not at rest, no data."""
    size = layer.hidden_size
    flagged = int(layer.flagged().sum())
    if flagged:
        yield f"{flagged} of {size} cells have not settled within {layer.horizon} steps (their times are NaN)"
    silent = int(layer.silent().sum())
    if silent:
        yield f"{silent} of {size} cells hardly move when their input steps"
    yield from _not_finite(layer.metrics["step/settling_time"].reasons)
    dead = layer.dead()
    if dead is not None and bool(dead.any()):
        yield f"{int(dead.sum())} of {size} cells are dead on held-out data (std under {layer.thresholds.dead:g})"
    unsettled = int((~layer.settled).sum())
    if unsettled:
        yield f"{unsettled} of {size} cells are not at rest even without a stimulus; read their step times with care"
    if bool((layer.metrics["activity/std"].reasons == Reason.NO_HELD_OUT).all()):
        stimuli = "stimuli are around zero with unit scale, " if layer.point_source == "default" else ""
        yield f"no held-out data reached this layer: {stimuli}activity and gates are unknown"


def _not_finite(reasons: Tensor) -> Iterator[str]:
    """A line if some of the step responses ``(S, H)`` are not finite, with the counts of every reason for no time."""
    cells = int((reasons == Reason.NONFINITE).any(0).sum())
    if cells:
        counts = {reason.words: int((reasons == reason).sum()) for reason in Reason}
        words = "; ".join(f"{count} {words}" for words, count in counts.items() if count)
        lead = f"{cells} of {reasons.shape[1]} cells have step responses that are not finite"
        yield f"{lead} (settling times by reason: {words})"


def cell_table(layer: LayerReport, count: int = 3) -> list[str]:
    """The most and the least responsive cells in plain words and units, a line a cell, under the layer's name."""
    peak = layer.metrics["step/peak_response"].cells
    order = torch.where(torch.isnan(peak), -torch.inf, peak).argsort(descending=True, stable=True).tolist()
    if len(order) <= max(FEW, 2 * count):
        labels = ["most responsive", *[""] * (len(order) - 2), "least responsive"][: len(order)]
    else:
        order = order[:count] + order[len(order) - count :]
        labels = ["most responsive"] * count + ["least responsive"] * count
    titles = f"{'cell':>5}  {'moves by':>9}  {'settles in':>11}  {'follows down to':>16}  {'busy (std)':>10}"
    width = max(18, len(str(layer.key)) + 2)
    rows = (f"{label:<{width}}{_cell_row(layer, cell)}" for label, cell in zip(labels, order, strict=True))
    return [f"{layer.key!s:<{width}}{titles}", *rows]


def _cell_row(layer: LayerReport, cell: int) -> str:
    def value(path: str) -> float:
        return float(layer.metrics[path].cells[cell]) if path in layer.metrics else float("nan")

    def shown(number: float, form: str, unit: str, absent: str) -> str:
        return absent if number != number else f"{number:{form}} {unit}".rstrip()

    cutoff = value("sine/cutoff_frequency")
    period = 1 / cutoff if cutoff == cutoff else cutoff
    return (
        f"{cell:>5}  {shown(value('step/peak_response'), '.3f', '', '-'):>9}  "
        f"{shown(value('step/settling_time'), '.0f', 'steps', 'never'):>11}  "
        f"{shown(period, '.0f', 'step cycle', 'all tested'):>16}  {shown(value('activity/std'), '.3f', '', '-'):>10}"
    )
