"""Pictures of ablation studies: the curves of the rankings, the effect of each cell, and rho of each ranking."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from lstm_monitor.report.ablation.records import Correlation, LayerStudy, StudyRecord, Trial
from lstm_monitor.report.ablation.verdict import HARMLESS, by_construction, harmless, random_band, with_ends
from lstm_monitor.report.canvas import (
    BLUE,
    CARD,
    FAINT,
    MUTED,
    ORANGE,
    ROW,
    Array,
    canvas,
    frame,
    head,
    log_range,
    log_ticks,
    round_ticks,
    write,
    x_axis,
    y_axis,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DRAWN = 5
"""Rankings whose curves are drawn."""
CURVES = (BLUE, ORANGE, "#17967f", "#3a1f5d", "#b08a00")
"""Apart for every kind of colour blindness; the marks tell them apart too."""
MARKS = ("o", "s", "^", "D", "v")
SMALLEST = 1e-6
"""Effects under this share of the largest are drawn there, on a log scale."""
BAND = "#cfd4da"


def study_pictures(layer: LayerStudy, step: int | None = None) -> dict[str, Figure]:
    """The single-panel pictures of a layer by name, each legible on a card 350 pixels wide."""
    figure = canvas(*CARD)
    axes = frame(figure, (0.16, 0.145, 0.505, 0.68))
    draw_curves(axes, layer)
    if step is not None:
        write(axes, 1.63, 1.185, f"step {step}", color=MUTED, ha="right", size=9)
    return {"ablation": figure}


def study_overview(study: StudyRecord) -> Figure:
    """Every layer in a row: its curves, the effect of each cell, and rho of each ranking with its interval."""
    width, height = ROW
    rows = max(len(study.layers), 1)
    figure = canvas(width, height * rows)
    for row, layer in enumerate(study.layers):
        bottom, tall = (rows - 1 - row + 0.15) / rows, 0.66 / rows
        draw_curves(frame(figure, (0.05, bottom, 0.2, tall)), layer)
        draw_effects(frame(figure, (0.43, bottom, 0.22, tall)), layer)
        draw_agreement(frame(figure, (0.83, bottom, 0.15, tall)), layer)
    return figure


def draw_curves(axes: Axes, layer: LayerStudy) -> None:
    """Performance kept over the share of cells removed, by ranking: least important first solid, most first dashed.

    Random orders are a grey band (95%) with their median. The rankings are named at the right, the widest gap first.
    """
    shares, _ = with_ends(layer, layer.random)
    low, middle, high = random_band(layer).numpy()
    axes.fill_between(shares.numpy(), low, high, color=BAND, alpha=0.7, lw=0)
    axes.plot(shares.numpy(), middle, color=MUTED, lw=1.2)
    styles = _styles(layer)
    for trial, colour, mark in reversed(styles):
        _curve(axes, layer, trial, colour, mark, width=2.4 if trial is styles[0][0] else 1.6)
    axes.set(xlim=(0, 1), ylim=_kept_range(layer, [trial for trial, _, _ in styles]))
    x_axis(axes, [(at, f"{at:.0%}") for at in (0, 0.25, 0.5, 0.75, 1)], f"share of {layer.hidden_size} cells removed")
    y_axis(axes, [(at, f"{at:.0%}") for at in _kept_ticks(axes)], "performance kept")
    _names(axes, layer, styles)
    if not styles or torch.isnan(styles[0][0].least_first).all():
        write(axes, 0.5, 0.5, "no curves: nothing changes", color=MUTED, ha="center")
    head(axes, str(layer.key), "removing cells", "solid: least important first; dashed: most important first")


def _styles(layer: LayerStudy) -> list[tuple[Trial, str, str]]:
    """The rankings drawn, the widest gap first, with colours and marks that follow the order of trials."""
    by_gap = sorted(range(len(layer.trials)), key=lambda k: _descending(layer.trials[k].gap))
    places = np.linspace(0, len(by_gap) - 1, min(DRAWN, len(by_gap))).round().astype(int)
    chosen = [by_gap[place] for place in places]
    slots = {k: slot for slot, k in enumerate(sorted(chosen))}
    return [(layer.trials[k], CURVES[slots[k]], MARKS[slots[k]]) for k in chosen]


def _descending(value: float) -> tuple[bool, float]:
    """A key that sorts descending, with NaN last."""
    return value != value, -value


def _curve(axes: Axes, layer: LayerStudy, trial: Trial, colour: str, mark: str, width: float) -> None:
    for kept, dashes in ((trial.least_first, (None, None)), (trial.most_first, (3.2, 1.6))):
        shares, values = with_ends(layer, kept)
        every = max(1, len(shares) // 5)
        axes.plot(shares.numpy(), values.numpy(), color=colour, lw=width, dashes=dashes,
                  marker=mark, ms=4.2, markevery=(every // 2 or 1, every), clip_on=True)  # fmt: skip


def _kept_range(layer: LayerStudy, trials: Sequence[Trial]) -> tuple[float, float]:
    """From 0 to 1 with what lies beyond, as far as half the range."""
    curves = [curve for trial in trials for curve in (trial.least_first, trial.most_first)]
    values = torch.cat([torch.tensor([0.0, 1.0]), *(curve.float() for curve in curves)])
    values = values[torch.isfinite(values)]
    return max(float(values.min()), -0.5) - 0.04, min(float(values.max()), 1.5) + 0.04


def _kept_ticks(axes: Axes) -> list[float]:
    low, high = axes.get_ylim()
    return [at for at in (-0.5, 0, 0.5, 1, 1.5) if low <= at <= high]


def _names(axes: Axes, layer: LayerStudy, styles: Sequence[tuple[Trial, str, str]]) -> None:
    """Right of the panel: each ranking with its mark and its gap, and what the grey band is."""
    entries = [(_fold(trial.ranking.name), _gap("gap", trial.gap), colour, mark) for trial, colour, mark in styles]
    entries.append((["random orders"], _gap("gap to", layer.noise.order_gap), MUTED, "s"))
    lines = sum(len(name) + 1 for name, *_ in entries)
    stride = min(0.083, 1.0 / (lines + 0.35 * len(entries)))
    y = 0.975
    for name, gap, colour, mark in entries:
        axes.plot(
            [1.06], [y], mark, color=BAND if colour == MUTED else colour, ms=6, transform=axes.transAxes, clip_on=False
        )
        for line in name:
            write(axes, 1.1, y, line, color=colour, size=9.3, weight="bold")
            y -= stride
        write(axes, 1.1, y, gap, color=MUTED, size=8.8)
        y -= 1.35 * stride


def _fold(name: str, width: int = 15) -> list[str]:
    """A name as at most two lines, its underscores as spaces."""
    folded = textwrap.wrap(name.replace("_", " ").replace("/", "/ "), width, break_long_words=True) or [""]
    lines = [line.replace("/ ", "/") for line in folded]
    return lines if len(lines) <= 2 else [lines[0], f"{lines[1][: width - 3]}..."]


def _gap(words: str, gap: float) -> str:
    return "not defined" if gap != gap else f"{words} {gap:.2f}"


def draw_effects(axes: Axes, layer: LayerStudy) -> None:
    """The output's change by each cell's removal over its variance, the largest first, log scale, one standard error.

    Estimated effects are hollow; below the dashed line cells are harmless.
    """
    order = _measured_order(layer)
    values = (layer.effects.output[order].double() / layer.variance).numpy()
    errors = np.nan_to_num((layer.effects.output_error[order].double() / layer.variance).numpy())
    exact = layer.effects.exact[order].numpy()
    floor = SMALLEST * values.max(initial=HARMLESS)
    low, high = log_range([np.maximum(values, floor), np.array([HARMLESS])], 2.2)
    x, y = np.arange(1, len(order) + 1), np.log10(np.maximum(values, floor))
    ends = [np.log10(np.maximum(values + sign * errors, floor)) for sign in (-1, 1)]
    axes.vlines(x, *np.clip(ends, low, high), color=BLUE, alpha=0.35, lw=max(0.8, min(3, 150 / max(len(x), 1))))
    _dots(axes, x, y, exact)
    axes.axhline(np.log10(HARMLESS), color=MUTED, lw=0.9, ls=(0, (4, 3)))
    axes.set(xlim=(1 - 0.03 * len(x) - 0.2, len(x) * 1.03 + 0.2), ylim=(low, high))
    notes = ["bars: standard error"] * bool(errors.any()) + ["hollow: estimated"] * (not exact.all())
    notes += ["at the bottom: no change"] * bool((values <= floor).any())
    for row, words in enumerate(notes):
        write(axes, 0.03, 0.05 + 0.08 * row, words, color=BLUE, size=9.3)
    x_axis(axes, [(1, "1"), *(tick for tick in round_ticks(len(x)) if tick[0] > 1)], "cells, the largest effect first")
    y_axis(axes, log_ticks(low, high), "change / output variance")
    head(axes, str(layer.key), "each cell removed", _effect_words(layer, order[:3].tolist()))


def _measured_order(layer: LayerStudy) -> torch.Tensor:
    values = layer.effects.output
    return (-values).argsort(stable=True)[: int((~torch.isnan(values)).sum())]


def _dots(axes: Axes, x: Array, y: Array, exact: Array) -> None:
    size = 26 if len(x) <= 64 else 10
    axes.scatter(x[exact], y[exact], s=size, color=BLUE, lw=0)
    axes.scatter(x[~exact], y[~exact], s=size, facecolor="white", edgecolor=BLUE, lw=1.1)


def _effect_words(layer: LayerStudy, largest: Sequence[int]) -> str:
    below = f"{int(harmless(layer).sum())} of {layer.hidden_size} under {HARMLESS:g} (dashed)"
    return f"largest: {', '.join(map(str, largest))}; {below}" if largest else "no effect was measured"


def draw_agreement(axes: Axes, layer: LayerStudy) -> None:
    """Spearman's rho of each ranking with the effects on the output (blue) and on the score (orange squares).

    Where it is 1 by construction a hollow diamond stands at the rho between the effects on two halves.
    """
    trials = sorted(layer.trials, key=lambda trial: _descending(trial.output.rho))
    lowest = min((trial.output.low for trial in trials if trial.output.low < -0.25), default=-0.25)
    axes.axvline(0, color=MUTED, lw=0.9)
    for row, trial in enumerate(trials):
        axes.axhline(row, color=FAINT, lw=1, zorder=0)
        _rho(axes, row - 0.16, trial.output, _halves(trial, layer.effects.output, layer.noise.halves_output), BLUE, "o")
        _rho(axes, row + 0.16, trial.score, _halves(trial, layer.effects.score, layer.noise.halves_score), ORANGE, "s")
        write(axes, -0.03, row, _short(trial.ranking.name), axes.get_yaxis_transform(), ha="right", size=9.3)
    axes.set(xlim=(max(lowest, -1) - 0.05, 1.05), ylim=(max(len(trials), 3) - 0.5, -0.5))
    x_axis(axes, [(at, f"{at:g}") for at in (-1, -0.5, 0, 0.5, 1) if at >= lowest], "rho with the measured effect")
    head(axes, str(layer.key), "rankings", "", left=-0.98)
    _marks(axes, layer)


def _short(name: str) -> str:
    return name if len(name) <= 24 else f"{name[:21]}..."


def _halves(trial: Trial, effects: torch.Tensor, halves: float) -> float | None:
    """The rho of the halves if this ranking is the effects themselves."""
    return halves if by_construction(trial, effects) else None


def _rho(axes: Axes, y: float, found: Correlation, halves: float | None, colour: str, mark: str) -> None:
    if halves is not None:
        axes.plot([halves], [y], "D", mfc="white", mec=colour, mew=1.4, ms=5.5)
    else:
        axes.plot([found.low, found.high], [y, y], color=colour, lw=2, alpha=0.5)
        axes.plot([found.rho], [y], mark, color=colour, ms=5.5)


def _marks(axes: Axes, layer: LayerStudy) -> None:
    """What the marks mean, on the second line above the panel."""
    made = any(by_construction(trial, values) for trial in layer.trials
               for values in (layer.effects.output, layer.effects.score))  # fmt: skip
    entries = [("\u25cf output", BLUE, 0.37)]
    entries += [("\u25a0 score", ORANGE, 0.34)] if layer.judged == "score" else []
    entries += [("\u25c7 itself: rho of two halves", MUTED, 0)] if made else []
    x = -0.98
    for words, colour, width in entries:
        write(axes, x, 1.075, words, color=colour, size=9.3)
        x += width
