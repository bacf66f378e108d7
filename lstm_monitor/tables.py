"""Reports as tables, lines and a page for people."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from lstm_monitor.distributions import finite, quantiles
from lstm_monitor.layer_report import LayerReport
from lstm_monitor.metrics.catalog import CATALOG

_HEADLINES = (
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
    rank = torch.empty(size, dtype=torch.long)
    rank[layer.ranking.order] = torch.arange(size)
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
    for path in _HEADLINES:
        if path in layer.metrics:
            p10, p50, p90 = quantiles(finite(layer.metrics[path].cells))
            if p50 == p50:
                unit = f" {CATALOG[path].unit}" if CATALOG[path].unit else ""
                yield f"  {path:<20} median {p50:.3g}{unit} (p10 {p10:.3g}, p90 {p90:.3g})"
    yield from (f"  {note}" for note in notes(layer))
    order = layer.ranking.order.tolist()
    top, bottom = ", ".join(map(str, order[:5])), ", ".join(map(str, order[-3:]))
    yield f"  ranked by {layer.ranking.words}:"
    yield f"    first {top}; last {bottom}"


def notes(layer: LayerReport) -> Iterator[str]:
    """What a reader has to know: cells flagged, silent, dead or not at rest, no data."""
    size = layer.hidden_size
    flagged = int(layer.flagged().sum())
    if flagged:
        yield f"{flagged} of {size} cells have not settled within {layer.horizon} steps (their times are NaN)"
    silent = int(layer.silent().sum())
    if silent:
        yield f"{silent} of {size} cells hardly move when their input steps"
    dead = layer.dead()
    if dead is not None and bool(dead.any()):
        yield f"{int(dead.sum())} of {size} cells are dead on held-out data (std under 0.001)"
    unsettled = int((~layer.settled).sum())
    if unsettled:
        yield f"{unsettled} of {size} cells are not at rest even without a stimulus; read their step times with care"
    if layer.point_source == "default":
        yield "no held-out data: stimuli are around zero with unit scale, activity and gates are unknown"


def cell_table(layer: LayerReport, count: int = 3) -> list[str]:
    """The most and the least responsive cells in plain words and units, a line a cell."""
    peak = layer.metrics["step/peak_response"].cells
    order = torch.where(torch.isnan(peak), -torch.inf, peak).argsort(descending=True, stable=True).tolist()
    rows = [("most responsive", cell) for cell in order[:count]] + [("least responsive", c) for c in order[-count:]]
    head = f"{'':<18}{'cell':>5}  {'moves by':>9}  {'settles in':>11}  {'follows down to':>16}  {'busy (std)':>10}"
    return [head, *(_cell_row(layer, label, cell) for label, cell in rows)]


def _cell_row(layer: LayerReport, label: str, cell: int) -> str:
    def value(path: str) -> float:
        return float(layer.metrics[path].cells[cell]) if path in layer.metrics else float("nan")

    def shown(number: float, form: str, unit: str, absent: str) -> str:
        return absent if number != number else f"{number:{form}} {unit}".rstrip()

    cutoff = value("sine/cutoff_frequency")
    period = 1 / cutoff if cutoff == cutoff else cutoff
    return (
        f"{label:<18}{cell:>5}  {shown(value('step/peak_response'), '.3f', '', '-'):>9}  "
        f"{shown(value('step/settling_time'), '.0f', 'steps', 'never'):>11}  "
        f"{shown(period, '.0f', 'step cycle', 'all tested'):>16}  {shown(value('activity/std'), '.3f', '', '-'):>10}"
    )


def page(text: str, png: bytes | None) -> str:
    """The lines, and the picture if there is one, as HTML for a notebook."""
    lines = f'<pre style="line-height:1.35">{html.escape(text)}</pre>'
    if png is None:
        return f"<div>{lines}</div>"
    source = f"data:image/png;base64,{base64.b64encode(png).decode()}"
    words = "step responses, gain, and time scale and size of every cell"
    return f'<div>{lines}<img alt="{words}" style="max-width:100%" src="{source}"></div>'
