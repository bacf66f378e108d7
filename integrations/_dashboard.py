"""The Custom Scalars dashboard and the card that says what each metric means."""

from __future__ import annotations

from typing import Any

from lstm_monitor.layer_report import LayerReport
from lstm_monitor.metrics.catalog import CATALOG
from lstm_monitor.report import Report, key, run_key

_BANDS = (
    ("settling time, steps", "step/settling_time"),
    ("size of the step response", "step/peak_response"),
    ("amplitude at a 16-step sine", "sine/amplitude"),
    ("activity (std) on held-out data", "activity/std"),
    ("time constant of the forget gate, steps", "gates/tau_f"),
    ("saturated gate activations, share", "gates/saturation"),
)


def dashboard(report: Report) -> dict[str, dict[str, list[Any]]]:
    """Charts by layer for ``add_custom_scalars``: medians with their p10 to p90 band, counts, and stability."""
    charts = {f"cells of {layer.key}": _charts(layer) for layer in report.layers}
    charts["the monitor itself"] = {"cost, share of the training time": ["Multiline", [run_key("cost")]]}
    return charts


def _charts(layer: LayerReport) -> dict[str, list[Any]]:
    name = str(layer.key)
    charts: dict[str, list[Any]] = {}
    for title, path in _BANDS:
        if path in layer.metrics:
            group, metric = path.split("/")
            charts[title] = ["Margin", [key(name, group, metric, s) for s in ("p50", "p10", "p90")]]
    counts = [key(name, group, metric, "count") for group, metric, _ in layer.counts()]
    charts["cells: unsettled, silent, dead"] = ["Multiline", counts]
    stability = [key(name, "ranking", metric, "previous") for metric in ("tau", "top_overlap")]
    charts["ranking: agreement with the check before"] = ["Multiline", stability]
    return charts


def guide(report: Report) -> str:
    """A card in Markdown: how to read the pages, and every metric in words."""
    lines = [
        "## How to read these pages",
        "",
        "Every check plays steps and sines into a copy of each recurrent layer, around the inputs it really receives, "
        "and measures every cell. *Custom Scalars* is the dashboard; *Distributions* shows all cells of a metric over "
        "the training (log10 for times and amplitudes); *Images* has the step responses, the gain and the ranking. "
        "Step and sine metrics say how a cell behaves, not how much the network needs it.",
        "",
        *(f"- `{layer.key}`: {layer.kind.replace('_', ' ')}, {layer.hidden_size} cells, step responses over "
          f"{layer.horizon} steps, ranked by {layer.ranking.words}" for layer in report.layers),
        *(f"- not supported: {item}" for item in report.skipped),
        "",
        "| metric | unit | meaning |",
        "|---|---|---|",
    ]  # fmt: skip
    shown = {path for layer in report.layers for path in layer.metrics.paths() if CATALOG[path].statistics != "table"}
    rows = (CATALOG[path] for path in CATALOG if path in shown)
    return "\n".join([*lines, *(f"| {spec.path} | {spec.unit} | {spec.words} |" for spec in rows)])
