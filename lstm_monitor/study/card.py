"""An ablation study as a Markdown card, for TensorBoard's Text page."""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence

from lstm_monitor.study.records import LayerStudy, StudyRecord
from lstm_monitor.study.tables import trial_rows
from lstm_monitor.study.trust import by_construction, harmless, judgement
from lstm_monitor.study.words import layer_notes, lead, score_line

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
