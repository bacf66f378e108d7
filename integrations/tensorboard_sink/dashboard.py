"""The Custom Scalars dashboard, and the card that says how to read the pages."""

from __future__ import annotations

from collections.abc import Iterator
from textwrap import wrap
from typing import Any

from lstm_monitor.core.definitions import Reason
from lstm_monitor.metrics.catalog import CATALOG
from lstm_monitor.report.keys import key, run_key
from lstm_monitor.report.layer_report import LayerReport
from lstm_monitor.report.report import Report
from lstm_monitor.report.tables import summary_lines

Charts = dict[str, list[Any]]

MOST_LINES = 5
_BANDS = {
    "step/settling_time": "memory: settling time after a step (steps)",
    "step/peak_response": "size of the response to a step (change of h)",
    "activity/std": "activity on held-out data (std of h)",
    "sine/amplitude": "gain at a 16-step cycle (h per input sd)",
    "gates/tau_f": "time constant of the {gate} gate (steps)",
    "gates/saturation": "saturated gates (share of activations)",
}
_AT_A_GLANCE = ("step/settling_time", "step/peak_response", "activity/std")
_ABSENT = (Reason.NO_SUCH_GATE, Reason.NO_HELD_OUT)


def dashboard(report: Report) -> dict[str, Charts]:
    """Charts by category for ``add_custom_scalars``: all layers at a glance, each layer's cells, the monitor itself.

    A category has charts of one kind: of mixed ones TensorBoard 2.21 shows all multiline charts first.
    """
    categories = {"all layers: medians": _glance(report)} if len(report.layers) > 1 else {}
    for layer in report.layers:
        categories[f"{layer.key}: its {layer.hidden_size} cells, median and band from p10 to p90"] = _bands(layer)
        categories[f"{layer.key}: cells to look at, ranking, drift"] = _lines(layer)
    itself = {
        "cost (share of the training time)": _multiline([run_key("cost")]),
        "alarms: signs that the training goes wrong (count)": _multiline([run_key("alarms")]),
    }
    return categories | {"the monitor itself": itself}


def _bands(layer: LayerReport) -> Charts:
    """Margin charts, the most telling last: TensorBoard 2.21 shows those of a category in reverse."""
    gate = "update" if layer.kind == "gru" else "forget"
    shown = [path for path in _BANDS if _is_measured(layer, path)]
    return {_BANDS[path].format(gate=gate): ["Margin", _keys(layer, path)] for path in reversed(shown)}


def _keys(layer: LayerReport, path: str) -> list[str]:
    group, name = path.split("/")
    return [key(str(layer.key), group, name, statistic) for statistic in ("p50", "p10", "p90")]


def _is_measured(layer: LayerReport, path: str) -> bool:
    """Whether this layer has such a metric; it may still be undefined for all cells of now."""
    return path in layer.metrics and not all(int(reason) in _ABSENT for reason in layer.metrics[path].reasons.unique())


def _lines(layer: LayerReport) -> Charts:
    name = str(layer.key)
    counts = [key(name, group, metric, "count") for group, metric, _ in layer.counts()]
    stability = [key(name, "ranking", "tau", "previous"), key(name, "ranking", "tau", "first")]
    drifts = [key(name, "drift", CATALOG[path].name, "previous") for path in _AT_A_GLANCE if _is_measured(layer, path)]
    return {
        "cells not settled, not at rest, silent, dead (count)": _multiline(counts),
        "ranking: tau with the last and first check": _multiline(stability),
        "drift since the last check (in spreads of the cells)": _multiline(drifts),
    }


def _glance(report: Report) -> Charts:
    """The median cell of every layer, at most five layers a chart."""
    charts: Charts = {}
    for start in range(0, len(report.layers), MOST_LINES):
        layers = report.layers[start : start + MOST_LINES]
        part = f", layers {start + 1} to {start + len(layers)}" if len(report.layers) > MOST_LINES else ""
        for path in _AT_A_GLANCE:
            keys = [_keys(layer, path)[0] for layer in layers if _is_measured(layer, path)]
            charts |= {_BANDS[path] + part: _multiline(keys)} if keys else {}
    return charts


def _multiline(keys: list[str]) -> list[Any]:
    return ["Multiline", keys]


_PAGES = """
## Which page shows what

| page | what you see there |
|---|---|
| Custom Scalars | the dashboard: for every layer the median cell with the band from p10 to p90 of its cells, how many \
cells never settle, never rest, hardly move or are dead, and how far ranking and metrics moved since the check before |
| Images | how every cell answers a step, its gain over frequency, and the places of the leading cells; drag the \
slider to go through the training (start TensorBoard with `--samples_per_plugin images=200` to keep all pictures); \
with `ablation=True` also what is left of the performance while cells are removed |
| Text | this card, and with `ablation=True` at the end of the training which ranking of the cells could be trusted |
| Distributions | all cells of a metric over the training; names ending in `cells_log10` show log10, so 1 is 10 steps |

Every check simulates how a copy of each layer responds to steps and sines around the inputs that it receives; the \
training is not touched. These metrics say how a cell behaves, not how much the network needs it. What is undefined \
(a cell that never settles has no settling time) is left out of medians and counted.

## What each metric means
"""


def guide(report: Report) -> str:
    """A card in Markdown: what the cells do at this check, which page shows what, and every metric in words."""
    when = "" if report.step is None else f" at step {report.step}"
    lines = [*summary_lines(report.layers, report.skipped), *(f"alarm: {alarm}" for alarm in report.alarms)]
    found = ["```", *(part for line in lines for part in wrap(line, 104, subsequent_indent="    ")), "```"]
    return "\n".join([f"## The cells{when}", "", *found, _PAGES, *_metric_table(report)])


def _metric_table(report: Report) -> Iterator[str]:
    yield from ("| metric | unit | meaning |", "|---|---|---|")
    for path, spec in CATALOG.items():
        if spec.statistics != "table" and any(_is_measured(layer, path) for layer in report.layers):
            yield f"| {path} | {spec.unit} | {spec.words} |"
