"""A capacity study as lines and sentences for people, and as a page for a notebook."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from lstm_monitor.studies.capacity.records import CapacityRecord, SizedLayer, Trained, layer_names

_TITLES = ("components", "harmless", "change", "settle (steps)", "never", "std")


def capacity_lines(study: CapacityRecord) -> Iterator[str]:
    """The recommendation, a table a layer, and the notes."""
    seconds, count = sum(item.seconds for item in study.trained), len(study.trained) // max(len(study.sizes), 1)
    each = "one training each" if count == 1 else f"{count} trainings each"
    yield f"capacity study of sizes {', '.join(map(str, study.sizes))}: {each}, {seconds:.3g} s of training"
    yield from advice_lines(study)
    for name in layer_names(study.trained):
        yield ""
        yield from _table(study, name)
    yield ""
    yield "components: principal components that hold 95% of the variance of the cells on held-out data"
    yield f"harmless: cells whose removal changes the output by under {100 * study.harmless:g}% of its variance"
    yield "change: the mean of that over all cells, one removed at a time"
    yield "settle: p10, median and p90 of the settling time; never: cells without one; std: median on held-out data"
    yield from (f"note: {note}" for note in study.notes)


def _table(study: CapacityRecord, name: str) -> Iterator[str]:
    widths = (11, 8, 8, 14, 5, 6)
    titles = "  ".join(f"{title:>{width}}" for title, width in zip(_TITLES, widths, strict=True))
    yield f"{name}  (score: {study.better} is better)"
    yield f"{'size':>6}  {'score':>8}  {'seconds':>7}  {'parameters':>10}  {titles}"
    for size in study.sizes:
        lead = f"{size:>6}  {_shown(_mean(_scores(study, size)), '.4g'):>8}"
        lead += f"  {_shown(_mean([item.seconds for item in study[size]]), '.3g'):>7}  {study[size][0].parameters:>10}"
        cells = _cells(study, [layer for item in study[size] if (layer := item.layer(name)) is not None])
        words = "  ".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))
        mark = "  <-" if size == study.recommendation else ""
        yield f"{lead}  {words}{mark}".rstrip()


def _cells(study: CapacityRecord, layers: Sequence[SizedLayer]) -> tuple[str, ...]:
    """The mean over the seeds of what was measured of one layer at one size, in words."""
    if not layers:
        return ("-",) * len(_TITLES)
    share = _mean([layer.components_share for layer in layers])
    components = _shown(_mean([layer.components for layer in layers]), ".3g")
    times = np.array([layer.quantiles("step/settling_time") for layer in layers])
    p10, p50, p90 = (_mean(list(column)) for column in times.T)
    return (
        f"{components} ({share:.0%})" if share == share else components,
        _shown(_mean([layer.harmless(study.harmless) for layer in layers]), ".0%"),
        _shown(_mean([layer.mean_effect for layer in layers]), ".2%"),
        "-" if p50 != p50 else f"{p10:.0f} {p50:.0f} {p90:.0f}",
        f"{100 * _mean([layer.never_settled for layer in layers]):.0f}%",
        f"{_mean([layer.quantiles('activity/std')[1] for layer in layers]):.3f}",
    )


def _scores(study: CapacityRecord, size: int) -> list[float]:
    return [item.score for item in study[size]]


def _mean(values: Sequence[float]) -> float:
    """The mean of the finite ones; NaN if there are none."""
    known = [value for value in values if np.isfinite(value)]
    return float(np.mean(known)) if known else float("nan")


def reason(study: CapacityRecord) -> str:
    """Why a size is recommended, what is not known, and what the cells of this and the largest network say."""
    size = study.recommendation
    told = () if size is None else support(study.trained, size, study.harmless)
    return " ".join([study.advice.reason, *told])


def support(trained: Sequence[Trained], size: int, harmless: float) -> Iterator[str]:
    """What components and harmless cells say at this size and at the largest that was measured, a sentence a layer.

    Of many layers the two with the most harmless cells.
    """
    measured = sorted({item.size for item in trained if item.layers})
    shown = list(dict.fromkeys([size, measured[-1]])) if size in measured else []
    found = {}
    for name in layer_names(trained):
        groups = [[x for item in trained if item.size == other and (x := item.layer(name))] for other in shown]
        if groups and all(groups):
            found[name] = (groups, _mean([layer.harmless(harmless) for layer in groups[-1]]))
    for name in sorted(found, key=lambda name: -np.nan_to_num(found[name][1]))[:2]:
        yield _usage(name, found[name][0], harmless)


def _usage(name: str, groups: Sequence[Sequence[SizedLayer]], harmless: float) -> str:
    components = [_mean([layer.components for layer in layers]) for layers in groups]
    idle = [_mean([layer.harmless(harmless) for layer in layers]) for layers in groups]
    parts = [f"{known:.3g} of {layers[0].hidden_size}" for known, layers in zip(components, groups, strict=True)]
    words = [f"{' and '.join(parts)} components hold 95% of the variance"] if np.isfinite(components).all() else []
    shares = " and ".join(f"{share:.0%}" for share in idle)
    words += [f"{shares} of the cells can go unnoticed"] if np.isfinite(idle).all() else []
    return f"In {name} {', and '.join(words) or 'nothing is known of the cells'}."


def sentences(study: CapacityRecord) -> Iterator[str]:
    """What changes from the smallest to the largest size that was measured, a line a layer, then the advice."""
    sizes = [size for size in study.sizes if any(item.layers for item in study[size])]
    for name in layer_names(study.trained) if len(sizes) > 1 else ():
        first, last = ([x for item in study[size] if (x := item.layer(name))] for size in (sizes[0], sizes[-1]))
        if first and last:
            yield f"{name}, from {sizes[0]} to {sizes[-1]} cells:"
            yield from (f"  {words:<58} {before} -> {after}" for words, before, after in _changes(study, first, last))
    yield from advice_lines(study)


def advice_lines(study: CapacityRecord) -> list[str]:
    """The recommended size and the reason, in lines of at most 110 letters."""
    return textwrap.wrap(f"recommended: {_size_words(study.recommendation)}. {reason(study)}", 110)


def _size_words(size: int | None) -> str:
    return "no size" if size is None else f"{size} cells"


def _changes(
    study: CapacityRecord, first: Sequence[SizedLayer], last: Sequence[SizedLayer]
) -> Iterator[tuple[str, str, str]]:
    """What is measured, and its value at the smallest and at the largest size."""
    facts: tuple[tuple[str, str, Callable[[SizedLayer], float]], ...] = (
        ("components for 95% of the variance, over the cells", ".0%", lambda x: x.components_share),
        ("cells that can go unnoticed", ".0%", lambda x: x.harmless(study.harmless)),
        ("change of the output by removing one cell (mean)", ".2%", lambda x: x.mean_effect),
        ("settling time in steps (median)", ".3g", lambda x: x.quantiles("step/settling_time")[1]),
        ("cells that never settle", ".0%", lambda x: x.never_settled),
        ("std on held-out data (median)", ".2g", lambda x: x.quantiles("activity/std")[1]),
    )
    for words, form, value in facts:
        before, after = (_mean([value(layer) for layer in layers]) for layers in (first, last))
        yield words, _shown(before, form), _shown(after, form)


def _shown(value: float, form: str) -> str:
    return "-" if value != value else f"{value:{form}}"
