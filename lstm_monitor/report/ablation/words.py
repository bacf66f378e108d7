"""Ablation studies in a few lines for people."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator

import torch

from lstm_monitor.core.terms import Better
from lstm_monitor.report.ablation.records import LayerStudy, StudyRecord
from lstm_monitor.report.ablation.verdict import HARMLESS, NOISY, hardest, harmless, trust_sentence

WIDTH = 110
"""Characters a line."""
LISTED = 5
"""Cells named in a sentence."""


def study_lines(study: StudyRecord) -> list[str]:
    """A short summary: what was done, which ranking could be trusted in each layer, and what a reader has to know."""
    lines = [lead(study), score_line(study)]
    for layer in study.layers:
        lines += [trust_sentence(layer), *(f"  {words}" for words in layer_notes(layer, study.score, study.better))]
    lines += [f"note: {note}" for note in study.notes]
    return [part for line in lines for part in _wrapped(line)]


def _wrapped(line: str) -> list[str]:
    """Lines of at most WIDTH, with intervals and errors each on one line."""
    indent = " " * (4 if line.startswith(" ") else 2)
    whole = re.sub(r"(\[[^ \]]+,|\u00b1|rho) | (?=\u00b1)", lambda found: found[0].replace(" ", "\u00a0"), line)
    lines = textwrap.wrap(whole, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
    return [part.replace("\u00a0", " ") for part in lines]


def lead(study: StudyRecord) -> str:
    """What was done, on how much, how long."""
    data = f"{_count(study.sequences, 'sequence')} in {_time(study.seconds)}"
    return f"ablation of {_count(len(study.layers), 'layer')}, cells set to {study.mode}, on {data}"


def score_line(study: StudyRecord) -> str:
    """The score of the intact network and which values are better, or that there is none."""
    if study.score is None:
        return "no score was evaluated: effects are changes of the output (mean squared)"
    return f"{study.score}: {study.intact:.4g} with all cells, {study.better} is better"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _time(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 60 else f"{int(seconds // 60)} min {seconds % 60:.0f} s"


def layer_notes(layer: LayerStudy, score: str | None, better: Better) -> Iterator[str]:
    """What removing all cells does, the cells that matter and those that do not, noise, and what was estimated."""
    yield _emptied(layer, score, better)
    if hardest(layer)[1].numel():
        yield f"the most harmful cells to remove: {_hardest_words(layer, score)}"
    few = f"{int(harmless(layer).sum())} of {layer.hidden_size}"
    yield f"cells whose removal changes the output by less than {HARMLESS:g} of its variance: {few}"
    if score is not None and layer.noise.halves_score < NOISY <= layer.noise.halves_output:
        halves = f"two halves of the sequences agree at rho {layer.noise.halves_score:.2f}"
        yield f"the effects on {score} are mostly noise ({halves}); those on the output are not"
    if score is not None and abs(layer.noise.repeat) > 0:
        yield f"{score} differs by {abs(layer.noise.repeat):.2g} when the same network is evaluated again"
    yield _exactness(layer)


def _emptied(layer: LayerStudy, score: str | None, better: Better) -> str:
    if layer.emptied == layer.intact:
        return "removing the whole layer changes nothing: its curves are not defined"
    if layer.judged == "output":
        return f"removing the whole layer changes the output by {layer.emptied:.3g} (mean squared)"
    improves = bool(layer.harm(torch.zeros(()), better) < 0)
    worth = ", better than with it (where less of the performance is kept, the score is better)" if improves else ""
    return f"{score} without the layer: {layer.emptied:.4g}{worth}"


def _hardest_words(layer: LayerStudy, score: str | None) -> str:
    by, cells = hardest(layer)
    what = f"{score} worse by" if by == "score" else "output changes by"
    values = layer.effects.score if by == "score" else layer.effects.output
    harmful = cells[values[cells] > 0]
    if not harmful.numel():
        return f"none of the {cells.numel()} measured ones"
    first, *rest = harmful[:LISTED].tolist()
    others = [f"{cell} ({measured(layer, by, cell)})" for cell in rest]
    return ", ".join([f"{first} ({what} {measured(layer, by, first)})", *others])


def measured(layer: LayerStudy, by: str, cell: int) -> str:
    """The effect of a cell on the "output" or the "score", with its standard error: ``0.12 \u00b1 0.01``.

    ``-`` where it was not measured.
    """
    effects = layer.effects
    value, error = (effects.score, effects.score_error) if by == "score" else (effects.output, effects.output_error)
    if float(value[cell]) != float(value[cell]):
        return "-"
    margin = f" \u00b1 {float(error[cell]):.1g}" if float(error[cell]) == float(error[cell]) else ""
    return f"{float(value[cell]):.3g}{margin}"


def _exactness(layer: LayerStudy) -> str:
    known = ~torch.isnan(layer.effects.output)
    exact, missing = int((layer.effects.exact & known).sum()), int((~known).sum())
    rough = int(known.sum()) - exact
    words = [f"{exact} exact"] if exact else []
    words += [f"{rough} estimated from a part of the sequences"] if rough else []
    words += [f"{missing} not measured"] if missing else []
    return f"effects of single cells: {', '.join(words)}"
