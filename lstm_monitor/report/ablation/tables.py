"""Ablation studies as tables, as scalars, and as a Markdown card for TensorBoard's Text page."""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lstm_monitor.report.ablation.records import LayerStudy, StudyRecord, Trial
from lstm_monitor.report.ablation.verdict import (
    by_construction,
    evidence,
    hardest,
    harmless,
    interval,
    judgement,
    with_ends,
)
from lstm_monitor.report.ablation.words import layer_notes, lead, measured, score_line
from lstm_monitor.report.text import aligned

_NAN = float("nan")


def study_table(study: StudyRecord) -> dict[str, Any]:
    """Columns of a study's table, a row a cell: layer, cell, effects with errors, exact, and ``rank:<ranking>``.

    The place in a ranking is 0 for the first cell; NaN in layers in which that ranking was not on trial.
    """
    parts = [_layer_table(layer) for layer in study.layers]
    names = dict.fromkeys(name for part in parts for name in part)
    return {name: np.concatenate([part.get(name, _absent(part)) for part in parts]) for name in names}


def _absent(part: dict[str, Any]) -> Any:
    return np.full(len(part["cell"]), np.nan)


def _layer_table(layer: LayerStudy) -> dict[str, Any]:
    effects, size = layer.effects, layer.hidden_size
    columns = {"layer": np.array([str(layer.key)] * size, dtype=object), "cell": np.arange(size)}
    for name in ("output", "score"):
        columns[f"{name}_effect"] = getattr(effects, name).numpy()
        columns[f"{name}_error"] = getattr(effects, f"{name}_error").numpy()
    columns["exact"] = effects.exact.numpy()
    for trial in layer.trials:
        columns[f"rank:{trial.ranking.name}"] = trial.ranking.order.argsort().numpy()
    return columns


def study_scalars(layer: LayerStudy) -> Iterator[tuple[tuple[str, str], float]]:
    """Scalars of the group "ablation": ((metric, statistic), value), NaN where not defined.

    rho with either effect and the AUC gap of the first ranking on trial (the layer's own), and the share of harmless
    cells among the measured ones. Where rho is 1 by construction it is that between the effects on two halves.
    """
    if layer.trials:
        first = layer.trials[0]
        yield ("rho_output", "used"), evidence(layer, first).rho
        yield ("rho_score", "used"), evidence(layer, first, "score").rho
        yield ("gap", "used"), first.gap
    known = int((~torch.isnan(layer.effects.output)).sum())
    yield ("harmless", "share"), int(harmless(layer).sum()) / known if known else float("nan")


def trial_rows(layer: LayerStudy, with_score: bool) -> list[list[str]]:
    """The rankings, the widest gap first, and the random orders below, under their titles."""
    titles = ["ranking", "rho with output change [95%]", "rho with score", "AUC least first", "AUC most first", "gap"]
    known = sorted(layer.trials, key=lambda trial: (trial.gap != trial.gap, -trial.gap))
    rows = [titles, *(_trial_row(layer, trial) for trial in known), _random_row(layer)]
    return rows if with_score else [row[:2] + row[3:] for row in rows]


def _trial_row(layer: LayerStudy, trial: Trial) -> list[str]:
    noise, effects = layer.noise, layer.effects
    output = _rho(trial, effects.output, interval(trial.output), noise.halves_output)
    score = _rho(trial, effects.score, interval(trial.score), noise.halves_score)
    return [trial.ranking.name, output, score, *map(_number, (trial.auc_least, trial.auc_most, trial.gap))]


def _rho(trial: Trial, effects: Tensor, words: str, halves: float) -> str:
    return f"by construction (halves: {_number(halves)})" if by_construction(trial, effects) else words


def _random_row(layer: LayerStudy) -> list[str]:
    """The AUC of the random orders, their median and 95%."""
    shares, curves = with_ends(layer, layer.random)
    areas = torch.trapezoid(curves, shares)
    low, middle, high = (float(areas.nanquantile(share)) for share in (0.025, 0.5, 0.975)) if len(areas) else [_NAN] * 3
    band = f"{_number(middle)} [{_number(low)}, {_number(high)}]" if middle == middle else "-"
    gap = layer.noise.order_gap
    return ["random orders", "-", "-", band, band, f"up to {_number(gap)}" if gap == gap else "-"]


def _number(value: float) -> str:
    return "-" if value != value else f"{value:.2f}"


def layer_words(layer: LayerStudy, score: str | None, count: int = 3) -> list[str]:
    """Two tables as lines under the layer's name: the rankings, and the `count` cells that matter most and least."""
    rankings = aligned(trial_rows(layer, score is not None))
    return [f"{layer.key}:", *rankings, "", *aligned(_cell_rows(layer, score, count))]


def _cell_rows(layer: LayerStudy, score: str | None, count: int) -> Iterator[list[str]]:
    order = hardest(layer)[1].tolist()
    shown = order if len(order) <= 2 * count else order[:count] + order[len(order) - count :]
    yield ["cell", "output changed by", *([] if score is None else [f"{score} worse by"]), "measured"]
    for cell in shown:
        effects = [measured(layer, by, cell) for by in ("output", "score")[: 1 if score is None else 2]]
        yield [str(cell), *effects, "exactly" if bool(layer.effects.exact[cell]) else "estimated"]


LISTED = 20
"""Harmless cells that are listed."""

_MODES = {
    "zero": "each removed cell gives 0 at every step, as if it were not there",
    "mean": "each removed cell gives its held-out mean at every step, so that only its changes are lost",
}


def study_markdown(study: StudyRecord) -> str:
    """A Markdown card: a headline a layer, a table of the rankings, the cells that matter, and how to read it."""
    blocks = [f"### Which ranking can be trusted?\n\n{_escaped(f'{lead(study)}; {score_line(study)}')}."]
    blocks += [block for layer in study.layers for block in _layer_blocks(layer, study)]
    blocks += ["#### Notes", _bullets(study.notes)] if study.notes else []
    return "\n\n".join([*blocks, "#### How to read this", _legend(study)])


def _layer_blocks(layer: LayerStudy, study: StudyRecord) -> Iterator[str]:
    yield f"#### {_escaped(str(layer.key))}"
    yield f"**{_escaped(judgement(layer))}**"
    yield _markdown_table(trial_rows(layer, study.score is not None))
    yield _bullets(
        [*layer_notes(layer, study.score, study.better), *_by_construction_notes(layer), *_harmless_words(layer)]
    )


def _harmless_words(layer: LayerStudy) -> Iterator[str]:
    cells = harmless(layer).nonzero().flatten().tolist()
    if cells:
        more = f" and {len(cells) - LISTED} more" if len(cells) > LISTED else ""
        yield f"the cells without effect: {', '.join(map(str, cells[:LISTED]))}{more}"


def _by_construction_notes(layer: LayerStudy) -> Iterator[str]:
    for trial in layer.trials:
        if by_construction(trial, layer.effects.output) or by_construction(trial, layer.effects.score):
            yield (
                f"'{trial.ranking.name}' was computed on these very sequences: its rho is 1 by construction; in its "
                "place stands the rho between the effects on two halves of the sequences"
            )


_TERMS = (
    "rho: Spearman's correlation, over the cells, of a ranking's scores with the measured effect of removing each cell "
    "by itself; in brackets its 95% bootstrap interval",
    "AUC: the mean performance kept (1 with all cells, 0 without the layer) while cells are removed one after another, "
    "the least important first (more is better) or the most important first (less is better)",
    "gap: the first AUC less the second; two random orders lie apart by up to the gap in their row (95% of pairs)",
    "exact: measured on all sequences; the AUC are measured too, not added up from single cells",
)


def _legend(study: StudyRecord) -> str:
    return _bullets([f"{study.mode}: {_MODES[study.mode]}", *_TERMS])


def _bullets(lines: Sequence[str]) -> str:
    return "\n".join(f"- {_escaped(line)}" for line in lines)


def _escaped(words: str) -> str:
    """Names and numbers as they are: no emphasis, table or HTML in them."""
    return html.escape(words, quote=False).replace("_", "\\_").replace("*", "\\*").replace("|", "\\|")


def _markdown_table(rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(map(_escaped, row))} |" for row in rows]
    return "\n".join([lines[0], "|---" + "|---:" * (len(rows[0]) - 1) + "|", *lines[1:]])
