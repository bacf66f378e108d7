"""The only place where logged keys are made, and the table of all that there are."""

from __future__ import annotations

from collections.abc import Iterator

from lstm_monitor.metrics.catalog import CATALOG, DRIFTING, MetricSpec

PREFIX = "lstm_monitor"


def key(layer: str, group: str, metric: str, statistic: str | None = None) -> str:
    """``lstm_monitor/<layer>/<group>/<metric>/<statistic>``: every logged key is made here."""
    return "/".join(part for part in (PREFIX, layer, group, metric, statistic) if part is not None)


def run_key(name: str) -> str:
    """A key of the run's own, ``lstm_monitor/_run/<name>``."""
    return f"{PREFIX}/_run/{name}"


def documented_keys() -> tuple[tuple[str, str, str], ...]:
    """Every key that is ever logged, ``<layer>`` for a layer's name: key, what it is, and its meaning.

    The table in the documentation is made from this, and a test holds it to what a training writes.
    """
    rows = [row for spec in CATALOG.values() for row in _metric_keys(spec)]
    rows += [(key(LAYER, group, name, "count"), "scalar", words) for group, name, words in _COUNTS]
    rows += [(key(LAYER, "ranking", *ending), "scalar", words) for ending, words in _STABILITY]
    rows += [
        (key(LAYER, "drift", CATALOG[path].name, "previous"), "scalar", f"drift of {path} since the previous check")
        for path in DRIFTING
    ]
    rows += [(key(LAYER, "ablation", *ending), kind, f"{words}{_AT_END}") for ending, kind, words in _ABLATION]
    rows += [(key(LAYER, "pictures", name), "picture", words) for name, words in _PICTURES]
    return (*rows, *((run_key(name), kind, words) for name, kind, words in _RUN))


LAYER = "<layer>"
_COUNTS = (
    ("step", "flagged", "cells that drift or oscillate at the end for most of the steps that move them"),
    ("step", "not_at_rest", "cells that still move after 256 steps without a stimulus: the layer oscillates by itself"),
    ("step", "silent", "cells that no step moves"),
    ("activity", "dead", "cells with a std under 0.001 on held-out data"),
)
_STABILITY = (
    (("tau", "previous"), "Kendall's tau-b of the ranking with that of the previous check"),
    (("tau", "first"), "Kendall's tau-b of the ranking with that of the first check"),
    (("top_overlap", "previous"), "share of the top tenth that was there at the previous check"),
    (("top_overlap", "first"), "share of the top tenth that was there at the first check"),
)
_AT_END = ", in the ablation check at the end"
_ABLATION = (
    (("rho_output", "used"), "scalar", "Spearman's rho of the ranking with the output's change by removing each cell"),
    (("rho_score", "used"), "scalar", "Spearman's rho of the ranking with what removing each cell does to the score"),
    (
        ("gap", "used"),
        "scalar",
        "performance kept with the ranking's last cells removed first, less its first ones (AUC)",
    ),
    (("harmless", "share"), "scalar", "share of cells whose removal changes the output by under 0.001 of its variance"),
    (("output_change", "cells_log10"), "histogram", "all cells, as log10: mean squared change of the output"),
    (("score_change", "cells"), "histogram", "all cells: by how much the score gets worse"),
)
_PICTURES = (
    ("step_responses", "step responses of all cells, sorted by settling time"),
    ("bode", "gain of the cells over the period of the input"),
    ("ranking", "places of the leading cells over the training, from the second check on"),
    ("ablation", "performance kept while cells are removed, by ranking, after the ablation check at the end"),
)
_RUN = (
    (
        "cost",
        "scalar",
        "seconds of all checks before this one, with writing and pictures, over those of the training without them",
    ),
    ("checks", "scalar", "number of checks so far"),
    ("alarms", "scalar", "number of alarms that hold: signs that the training goes wrong"),
    ("guide", "text", "how to read the pages, what was found, and what each metric means; in TensorBoard only"),
    ("ablation", "text", "which ranking could be trusted, after the ablation check at the end"),
    ("step", "axis", "the training's step, of which every metric is shown; in W&B only"),
    ("cells", "table", "a row a cell at every check: rank, score and every metric; in W&B only"),
    ("ablation_rankings", "table", "the rankings in the ablation check at the end, with rho and AUC; in W&B only"),
    ("ablation_cells", "table", "a row a cell: its effects in the ablation check at the end; in W&B only"),
    ("alarms_told", "text", "the alarms of the run so far, in its summary; each was told by an alert; in W&B only"),
)


def _metric_keys(spec: MetricSpec) -> Iterator[tuple[str, str, str]]:
    unit = f", {spec.unit}" if spec.unit else ""
    shown = {"full": ("p10", "p50", "p90"), "quantiles": ("p10", "p50", "p90"), "median": ("p50",), "table": ()}
    for statistic in shown[spec.statistics]:
        yield key(LAYER, spec.group, spec.name, statistic), "scalar", f"{spec.words}{unit}"
    if spec.statistics == "full":
        ending = "cells_log10" if spec.log else "cells"
        scale = ", as log10" if spec.log else ""
        yield key(LAYER, spec.group, spec.name, ending), "histogram", f"all cells{scale}: {spec.words}{unit}"
