"""The picture of a capacity study: six panels over the size of the network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from lstm_monitor.report.canvas import (
    FAINT,
    HUES,
    INK,
    MUTED,
    Array,
    canvas,
    frame,
    log_range,
    log_ticks,
    write,
    x_axis,
    y_axis,
)
from lstm_monitor.studies.capacity.records import CapacityRecord, SizedLayer, layer_names

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    Value = Callable[[SizedLayer], float]

WIDTH, HEIGHT = 13.2, 7.4
NAMED = 5
"""Layers that are named; further ones are drawn."""
LEAST = 1e-6
"""Values under this share of the largest are drawn there, on a log scale."""


def capacity_overview(study: CapacityRecord) -> Figure:
    """Score, components and harmless cells above; effects of removal, settling times and activity below."""
    names = layer_names(study.trained)
    room = 0.4 if len(names) > 1 else 0.0  # inches, for the names
    figure, tall = canvas(WIDTH, HEIGHT + room), HEIGHT / (HEIGHT + room)
    panels = (draw_score, draw_components, draw_harmless, draw_effects, draw_settling, draw_activity)
    for place, panel in enumerate(panels):
        left, bottom = 0.068 + 0.327 * (place % 3), 0.575 if place < 3 else 0.085
        axes = frame(figure, (left, tall * bottom, 0.25, tall * 0.315))
        panel(axes, study)
    _name_layers(frame(figure, (0, tall, 1, 1 - tall)), names)
    return figure


def draw_score(axes: Axes, study: CapacityRecord) -> None:
    """The mean score of each size, each training a dot, and what is as good as the best as a green band."""
    scores = np.array([item.score for item in study.trained])
    x = np.log2([item.size for item in study.trained])
    known, advice = np.isfinite(scores), study.advice
    _size_axis(axes, study)
    if not known.any():
        _nothing(axes, "no scores were given")
        return _head(axes, "score", "give evaluate=, or return it from train")
    means = [float(scores[known & (x == at)].mean()) if (known & (x == at)).any() else np.nan for at in np.unique(x)]
    assert advice.best is not None
    best = means[study.sizes.index(advice.best)]
    end = best - advice.margin if study.better == "higher" else best + advice.margin
    axes.axhspan(best, end, color=HUES[2], alpha=0.16, lw=0)
    axes.scatter(x[known], scores[known], s=22, color=INK, alpha=0.45 if len(x) > len(means) else 0, lw=0)
    axes.plot(np.unique(x), means, color=INK, lw=2.4, marker="o", ms=6)
    _linear_axis(axes, [*scores[known], best, end], f"score ({study.better} is better)")
    words = f"green: as good as {best:.4g} at {advice.best}; grey: recommended, {advice.size}"
    return _head(axes, "score", words)


def draw_components(axes: Axes, study: CapacityRecord) -> None:
    """Principal components for 95% of the held-out variance, as a share of the cells: 1 if every cell is needed."""
    ends = _lines(axes, study, lambda layer: layer.components_share)
    axes.set_ylim(0, 1.04)
    _shares(axes, "components / cells", 1.0)
    _head(axes, "components for 95% of the variance", ends)


def draw_harmless(axes: Axes, study: CapacityRecord) -> None:
    """The share of cells whose removal changes the output by less than the study's limit."""
    top = max((layer.harmless(study.harmless) for item in study.trained for layer in item.layers), default=0.0)
    top = 1.0 if not top > 0.08 else min(1.0, 1.25 * top)
    ends = _lines(axes, study, lambda layer: layer.harmless(study.harmless))
    axes.set_ylim(-0.03 * top, 1.04 * top)
    _shares(axes, "share of cells", top)
    _head(axes, "cells that can go unnoticed", f"{ends}; output changes by under {100 * study.harmless:g}%")


def draw_effects(axes: Axes, study: CapacityRecord) -> None:
    """What removing each cell alone changes, as a share of the output's variance; the line is the mean."""
    values = _of_cells(study, lambda layer: layer.effects)
    _distribution(axes, study, values, "change / output variance", mean=True)
    limit, (low, high) = float(np.log10(study.harmless)), axes.get_ylim()
    is_seen = any(layer.mean_effect == layer.mean_effect for item in study.trained for layer in item.layers)
    is_seen = is_seen and bool(low < limit < high)
    if is_seen:
        axes.axhline(limit, color=MUTED, lw=0.9, ls=(0, (4, 3)))
    _head(axes, "removing one cell", f"line: mean{'; dashed: harmless below' * is_seen}")


def draw_settling(axes: Axes, study: CapacityRecord) -> None:
    """The settling times of the cells, in steps; those that never settle are counted above."""
    values = _of_cells(study, lambda layer: layer.report.metrics["step/settling_time"].cells.clamp(min=1))
    _distribution(axes, study, values, "settling time (steps)")
    for size in _labelled(study.sizes):
        shares = [layer.never_settled for item in study[size] for layer in item.layers]
        if shares:
            words = f"{np.mean(shares):.0%}"
            write(axes, np.log2(size), 1.035, words, axes.get_xaxis_transform(), ha="center", color=MUTED, size=9)
    _head(axes, "settling time of the cells", "numbers above: cells that never settle")


def draw_activity(axes: Axes, study: CapacityRecord) -> None:
    """How much the cells move on held-out data (standard deviation)."""
    values = _of_cells(study, lambda layer: layer.report.metrics["activity/std"].cells)
    _distribution(axes, study, values, "std on held-out data")
    _head(axes, "activity of the cells", f"line: median{', band: p10 to p90' * (len(values) <= 2)}")


# Parts of panels


def _lines(axes: Axes, study: CapacityRecord, value: Value) -> str:
    """A line a layer of its mean over the seeds; in words the first layer's values at both ends."""
    _size_axis(axes, study)
    curves = {name: _curve(study, name, value) for name in layer_names(study.trained)}
    for curve, colour in zip(curves.values(), _colours(len(curves)), strict=True):
        axes.plot(np.log2(study.sizes), curve, color=colour, lw=2.4, marker="o", ms=6, clip_on=False)
    known = [(size, y) for size, y in zip(study.sizes, next(iter(curves.values()), []), strict=False) if y == y]
    if not known:
        _nothing(axes, "nothing was measured")
        return "not known"
    first, last = known[0], known[-1]
    lead = f"{_shortened(next(iter(curves)), 16)}: " if len(curves) > 1 else ""
    return f"{lead}{first[1]:.0%} at {first[0]}, {last[1]:.0%} at {last[0]}"


def _curve(study: CapacityRecord, name: str, value: Value) -> list[float]:
    """The mean of a value over the trainings of each size in which the layer was measured; NaN without any."""
    found = []
    for size in study.sizes:
        values = [value(layer) for item in study[size] if (layer := item.layer(name)) is not None]
        known = [v for v in values if v == v]
        found.append(float(np.mean(known)) if known else float("nan"))
    return found


def _of_cells(study: CapacityRecord, value: Callable[[SizedLayer], torch.Tensor]) -> dict[str, dict[int, Array]]:
    """The finite values of all cells (of all seeds) by layer and size."""
    found: dict[str, dict[int, Array]] = {}
    for name in layer_names(study.trained):
        layers = {size: [x for item in study[size] if (x := item.layer(name))] for size in study.sizes}
        pooled = {
            size: torch.cat([value(x).double() for x in parts]).numpy() for size, parts in layers.items() if parts
        }
        found[name] = {size: values[np.isfinite(values)] for size, values in pooled.items()}
    return found


def _distribution(
    axes: Axes, study: CapacityRecord, values: dict[str, dict[int, Array]], title: str, mean: bool = False
) -> None:
    """Over the size, on a log scale: a line a layer; the cells as dots for one layer; bands for up to two."""
    _size_axis(axes, study)
    top = max((v.max(initial=0) for sizes in values.values() for v in sizes.values()), default=0)
    if not top > 0:
        return _nothing(axes, "nothing was measured")
    drawn = [{n: np.log10(np.maximum(v, LEAST * top)) for n, v in sizes.items() if len(v)} for sizes in values.values()]
    shown: list[Array] = []
    for logs, colour in zip(drawn, _colours(len(drawn)), strict=True):
        x, low, middle, high = _summary(logs, mean)
        shown.append(middle)
        if len(drawn) == 1:
            _swarm(axes, logs, colour, 1.4 * _breadth(study))
            shown.extend(logs.values())
        if len(drawn) <= 2 and not mean:
            axes.fill_between(x, low, high, color=colour, alpha=0.15, lw=0)
            shown += [low, high]
        axes.plot(x, middle, color=colour, lw=2.4, marker="o", ms=6)
    ends = log_range([10**places for places in shown])
    axes.set_ylim(*ends)
    return y_axis(axes, _few(log_ticks(*ends)), title)


def _summary(drawn: dict[int, Array], mean: bool) -> tuple[Array, Array, Array, Array]:
    """Places, p10, the middle (log10 of the mean, or the median) and p90 of values given as log10."""
    quantiles = np.array([np.quantile(v, (0.1, 0.5, 0.9)) for v in drawn.values()]).reshape(-1, 3)
    middle = np.array([np.log10((10**v).mean()) for v in drawn.values()]) if mean else quantiles[:, 1]
    return np.log2(np.array(list(drawn), dtype=float)), quantiles[:, 0], middle, quantiles[:, 2]


def _swarm(axes: Axes, drawn: dict[int, Array], colour: str, breadth: float) -> None:
    """Every cell as a faint dot, spread sideways in a fixed way so that they can be told apart."""
    for size, values in drawn.items():
        offset = breadth * (np.modf(0.618034 * np.arange(1, len(values) + 1))[0] - 0.5)
        axes.scatter(np.log2(size) + offset, np.sort(values), s=14, color=colour, alpha=0.28, lw=0)


def _size_axis(axes: Axes, study: CapacityRecord) -> None:
    """Sizes on a log2 axis, and the recommended one marked."""
    x, breadth = np.log2(study.sizes), _breadth(study)
    axes.set_xlim(x[0] - 1.75 * breadth, x[-1] + 1.75 * breadth)
    x_axis(axes, [(np.log2(size), str(size)) for size in _labelled(study.sizes)], "cells")
    if study.recommendation is not None:
        at = np.log2(study.recommendation)
        axes.axvspan(at - breadth, at + breadth, color=FAINT, lw=0, zorder=0)


def _breadth(study: CapacityRecord) -> float:
    """Half the breadth of what belongs to one size, in doublings: a small part of the axis."""
    return 0.04 * float(np.log2(study.sizes[-1] / study.sizes[0])) or 0.04


def _labelled(sizes: Sequence[int]) -> list[int]:
    """The sizes whose numbers find room on the axis, the first of close ones."""
    room = 0.09 * float(np.log2(sizes[-1] / sizes[0]))
    shown: list[int] = []
    for size in sizes:
        if not shown or np.log2(size / shown[-1]) >= room:
            shown.append(size)
    return shown


def _linear_axis(axes: Axes, values: Sequence[float], title: str) -> None:
    low, high = min(values), max(values)
    room = 0.1 * (high - low) or 0.05 * abs(high) or 0.05
    axes.set_ylim(low - room, high + room)
    rough = (high - low + 2 * room) / 5
    power = 10 ** np.floor(np.log10(rough))
    stride = next(lead * power for lead in (1, 2, 5, 10) if lead * power >= rough)
    ticks = np.arange(np.ceil((low - room) / stride), (high + room) / stride + 1e-9) * stride
    y_axis(axes, [(float(at), f"{at + 0.0:.6g}") for at in ticks], title)


def _shares(axes: Axes, title: str, top: float) -> None:
    stride = next(step for step in (0.01, 0.02, 0.05, 0.1, 0.25, 1) if top / step <= 5)
    y_axis(axes, [(at, f"{at:.0%}") for at in np.arange(0, top + 1e-9, stride)], title)


def _few(ticks: list[tuple[float, str]]) -> list[tuple[float, str]]:
    """At most seven of the ticks."""
    return ticks[:: -(-len(ticks) // 7)] if ticks else ticks


def _colours(count: int) -> list[str]:
    return [HUES[place % len(HUES)] for place in range(count)]


def _name_layers(axes: Axes, names: Sequence[str]) -> None:
    """The names of several layers in their colours, in a row above all panels."""
    if len(names) < 2:
        return
    shown = [_shortened(name) for name in names[:NAMED]] + [f"and {len(names) - NAMED} more"] * (len(names) > NAMED)
    x = 0.028
    for words, colour in zip(shown, [*_colours(NAMED)[: len(names)], MUTED], strict=False):
        write(axes, x, 0.35, words, color=colour, weight="bold", size=11)
        x += 0.0078 * len(words) + 0.025


def _shortened(name: str, room: int = 26) -> str:
    return name if len(name) <= room else f"...{name[3 - room :]}"


def _nothing(axes: Axes, words: str) -> None:
    write(axes, 0.5, 0.5, words, color=MUTED, ha="center")


def _head(axes: Axes, title: str, words: str) -> None:
    write(axes, -0.16, 1.215, title, weight="bold", size=11.5, color=INK)
    write(axes, -0.16, 1.115, words if len(words) <= 60 else f"{words[:57]}...", color=MUTED, size=9.3)
