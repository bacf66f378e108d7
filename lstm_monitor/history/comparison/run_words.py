"""What people read of one run over its training, in the terminal and on its page."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lstm_monitor.history.comparison.trajectory import Course, LayerCourse
from lstm_monitor.report.tables import HEADLINES


def run_words(run: Course) -> str:
    """A run's checks, steps, epochs and what the monitoring cost, in a line."""
    checks = "1 check" if len(run.steps) == 1 else f"{len(run.steps)} checks"
    spans = [("step", span(run.steps)), ("epoch", span(run.epochs))]
    parts = [checks, *(f"{noun}{'s' if ' ' in found else ''} {found}" for noun, found in spans if found)]
    cost = run.costs[-1]
    if cost is not None and cost == cost:
        parts.append(f"monitoring cost {f'{cost:.3g} times' if cost >= 1 else f'{100 * cost:.2g}% of'} the training")
    return f"{run.name or 'run'}: {', '.join(parts)}"


def span(values: Sequence[int | None]) -> str:
    """``3 to 12``; one number where both ends are the same, nothing where they are not known."""
    known = [value for value in values if value is not None]
    return "" if not known else f"{known[0]}" if known[0] == known[-1] else f"{known[0]} to {known[-1]}"


MOST_NOTES = 10


def course_notes(course: Course) -> list[str]:
    """What is not supported, and the notes of the run and of its ablation; not more than MOST_NOTES of each."""
    told = [course.notes, () if course.study is None else course.study.notes]
    notes = [f"note: {note}" for some in told for note in some[:MOST_NOTES]]
    hidden = sum(max(0, len(some) - MOST_NOTES) for some in told)
    more = [f"note: and {hidden} more notes"] if hidden else []
    return [f"not supported: {item}" for item in course.last.skipped] + notes + more


def layer_title(layer: LayerCourse) -> str:
    """The layer with its kind and sizes."""
    last = layer.last
    features = "1 feature" if last.input_size == 1 else f"{last.input_size} features"
    cells = "1 cell" if last.hidden_size == 1 else f"{last.hidden_size} cells"
    return f"{layer.name}: {last.kind.replace('_', ' ')}, {features} -> {cells}"


def headlines(layer: LayerCourse) -> list[str]:
    """The headline metrics that some check knows."""
    return [path for path in HEADLINES if np.isfinite(layer.quantiles[path]).any()]


_COUNTED = {"flagged": "have not settled", "silent": "hardly move", "dead": "are dead on held-out data"}


def changed_counts(layer: LayerCourse) -> list[str]:
    """How many cells there were at the first check and are now that do not settle, do not move, or are dead."""
    ends = {name: (layer.counts[name][0], layer.counts[name][-1]) for name in _COUNTED if name in layer.counts}
    known = {name: pair for name, pair in ends.items() if pair[0] == pair[0] and pair[1] == pair[1]}
    return [f"{a:.0f} -> {b:.0f} cells {_COUNTED[name]}" for name, (a, b) in known.items() if a != b]


def stability(layer: LayerCourse) -> str:
    """How the last ranking agrees with that of the check before and of the first one; nothing at a first check."""
    previous, first = (float(tau) for tau in layer.taus[-1])
    known = [(previous, "of the check before"), (first, "of the first check")]
    words: Sequence[str] = [f"{tau:.2f} with that {which}" for tau, which in known if tau == tau]
    return f"the ranking's agreement (tau): {', '.join(words)}" if words else ""
