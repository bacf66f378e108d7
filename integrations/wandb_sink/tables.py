"""The tables and charts of a W&B run: a row a cell at each check, and what an ablation study found."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import wandb

from lstm_monitor.metrics.catalog import CATALOG
from lstm_monitor.report.ablation.records import LayerStudy
from lstm_monitor.report.ablation.result import Study
from lstm_monitor.report.ablation.tables import study_table, trial_rows
from lstm_monitor.report.ablation.verdict import random_band, with_ends
from lstm_monitor.report.keys import key, run_key
from lstm_monitor.report.layer_report import LayerReport
from lstm_monitor.report.report import Report
from lstm_monitor.report.tables import layer_table

COLUMNS = {"step": int, "layer": str, "cell": int, "rank": int, "score": float} | dict.fromkeys(CATALOG, float)
"""The same for every kind of layer, so that one table takes them all."""
SHOWN = 100
"""Increments of a table that W&B shows; the paths of earlier ones stand in no row."""

CellRows = list[list[Any]]


class CellTable:
    """One table that grows by a row a cell at each check; a check writes its own rows only."""

    def __init__(self) -> None:
        """No rows yet."""
        self._table = wandb.Table(list(COLUMNS), dtype=list(COLUMNS.values()), log_mode="INCREMENTAL")

    def grown(self, rows: CellRows) -> wandb.Table:
        """The table with the rows of one more check, of which there is at least one; earlier ones leave the memory."""
        table = self._table
        table._last_logged_idx = -1  # what is in memory now was not logged yet
        table.data[:] = rows[:-1]
        table.add_data(*rows[-1])
        del (table._previous_increments_paths or [])[: 1 - SHOWN]
        return table


def cell_rows(report: Report) -> CellRows:
    """The cells of all layers, with the columns `COLUMNS`; None is undefined."""
    return [row for layer in report.layers for row in _layer_rows(layer, report.step or 0)]


def _layer_rows(layer: LayerReport, step: int) -> Iterator[list[Any]]:
    size = layer.hidden_size
    columns = {"step": [step] * size} | layer_table(layer)
    return _rows([columns.get(name, [None] * size) for name in COLUMNS])


def _rows(columns: Sequence[Any]) -> Iterator[list[Any]]:
    """The rows of some columns as plain values, None for NaN."""
    plain = [column.tolist() if hasattr(column, "tolist") else column for column in columns]
    return ([None if value != value else value for value in row] for row in zip(*plain, strict=True))


def study_values(study: Study) -> dict[str, Any]:
    """Tables of the rankings on trial and of every cell's effects, and a chart of the curves for each layer, by key."""
    charts = {key(str(layer.key), "pictures", "ablation"): curves(layer) for layer in study.layers if layer.trials}
    return charts | {run_key("ablation_rankings"): _rankings(study), run_key("ablation_cells"): _effects(study)}


def _rankings(study: Study) -> wandb.Table:
    tables = [(str(layer.key), trial_rows(layer, study.score is not None)) for layer in study.layers]
    titles = tables[0][1][0]
    return wandb.Table(["layer", *titles], [[name, *row] for name, rows in tables for row in rows[1:]])


def _effects(study: Study) -> wandb.Table:
    columns = study_table(study)
    return wandb.Table(list(columns), list(_rows(list(columns.values()))))


def curves(layer: LayerStudy) -> Any:
    """A chart of the performance kept over the share of cells removed: each ranking both ways, and random orders."""
    shares, middle = with_ends(layer, layer.random)[0], random_band(layer)[1]
    lines = {"random orders": middle}
    for trial in layer.trials:
        lines[f"{trial.ranking.name}, least important first"] = with_ends(layer, trial.least_first)[1]
        lines[f"{trial.ranking.name}, most important first"] = with_ends(layer, trial.most_first)[1]
    known = {name: line.tolist() for name, line in lines.items() if not bool(line.isnan().any())}
    x = shares.tolist()
    title = f"{layer.key}: performance kept while cells are removed"
    return wandb.plot.line_series([x] * len(known), list(known.values()), list(known), title, "share of cells removed")
