"""Pictures of the report of a check. matplotlib is imported only when one is drawn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from lstm_monitor.core.definitions import Reason
from lstm_monitor.metrics.distributions import finite, quantiles
from lstm_monitor.report.canvas import (
    BLUE,
    CARD,
    CARD_PANEL,
    FAINT,
    HUES,
    INK,
    MUTED,
    ORANGE,
    ROW,
    SKY,
    Array,
    canvas,
    frame,
    head,
    log_range,
    log_ticks,
    name_dots,
    round_ticks,
    write,
    x_axis,
    y_axis,
)
from lstm_monitor.report.layer_report import LayerReport

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    Panel = Callable[[Axes, LayerReport], None]

PICTURES = ("step_responses", "bode", "ranking")
LEADERS = 10
LEAST = 1e-4
"""Where smaller sizes are drawn on a log scale."""


def pictures(layer: LayerReport, step: int | None = None) -> dict[str, Figure]:
    """The single-panel pictures of a layer by name, each legible on a card 350 pixels wide."""
    panels: dict[str, Panel] = {"step_responses": draw_step_responses, "bode": draw_bode, "ranking": draw_ranking}
    if layer.rank_history is None or len(layer.rank_history.steps) < 2:
        del panels["ranking"]
    return {name: _card(layer, step, panel) for name, panel in panels.items()}


def overview(layers: Sequence[LayerReport]) -> Figure:
    """Every layer in a row: its step responses, its gain, and its cells by time scale and size."""
    width, height = ROW
    figure = canvas(width, height * len(layers))
    for row, layer in enumerate(layers):
        bottom = (len(layers) - 1 - row + 0.15) / len(layers)
        for left, panel in ((0.05, draw_step_responses), (0.42, draw_bode), (0.74, draw_cells)):
            panel(frame(figure, (left, bottom, 0.25, 0.66 / len(layers))), layer)
    return figure


def _card(layer: LayerReport, step: int | None, panel: Panel) -> Figure:
    figure = canvas(*CARD)
    axes = frame(figure, CARD_PANEL)
    panel(axes, layer)
    if step is not None:
        write(axes, 1.18, 1.185, f"step {step}", color=MUTED, ha="right", size=9)
    return figure


def draw_step_responses(axes: Axes, layer: LayerReport) -> None:
    """A heat map, cells by settling time x time: how far each cell is on its way to its largest change."""
    settling = layer.metrics["step/settling_time"]
    row = settling.labels.index(layer.trace.label) if layer.trace.label in settling.labels else 0
    times, silent = settling.values[row].double(), settling.reasons[row] == Reason.SILENT
    order = _fastest_first(times, silent, layer.trace.change)
    width = _width(times, silent, layer.horizon)
    _heat(axes, _progress(layer.trace.change)[order.numpy(), :width])
    settled = times[order][: int((~torch.isnan(times)).sum())].numpy()
    _settled_line(axes, settled, layer.hidden_size)
    axes.set(xlim=(0, width), ylim=(layer.hidden_size, 0))
    x_axis(axes, round_ticks(width), f"steps after the step ({layer.trace.label})")
    ends = {1: 0.5, layer.hidden_size: layer.hidden_size - 0.5}
    first = "fastest" if len(settled) else "earliest peak"
    y_axis(axes, [(at, str(number)) for number, at in ends.items()], f"cells, {first} first")
    head(axes, str(layer.key), "step responses", _settled_words(settled, silent, layer))


def _fastest_first(times: Tensor, silent: Tensor, change: Tensor) -> Tensor:
    """Settled cells by their time, then those that move on by the time of their peak, then the silent ones."""
    late = torch.full_like(times, 1e6) + change.abs().argmax(1)
    return torch.where(silent, torch.inf, torch.where(torch.isnan(times), late, times)).argsort(stable=True)


def _width(times: Tensor, silent: Tensor, horizon: int) -> int:
    """Steps shown: all if many cells move on to the end, else half as long again as the p90 of the settling times."""
    moving = float((torch.isnan(times) & ~silent).double().mean())
    p90 = quantiles(finite(times))[2]
    return horizon if moving > 0.05 or p90 != p90 else int(min(horizon, max(16, 1.5 * p90)))


def _progress(change: Tensor) -> Array:
    """Each cell's change as a share of its largest one and towards it; NaN for a cell that hardly moves."""
    peak = change.gather(1, change.abs().argmax(1, keepdim=True))
    return torch.where(peak.abs() >= 1e-3, change / peak, torch.nan).numpy()


def _heat(axes: Axes, shares: Array) -> None:
    cells, width = shares.shape
    _image(axes, shares, extent=(0, width, cells, 0))
    _image(axes, np.linspace(1, -1, 65)[:, None], extent=(1.025, 1.06, 0, 1), transform=axes.transAxes, clip_on=False)
    for height, label, side in ((1, "1", "top"), (0.5, "0", "center"), (0, "-1", "bottom")):
        write(axes, 1.075, height, label, va=side)
    write(axes, 1.16, 0.5, "share of the cell's largest change", rotation=90, ha="center", color=MUTED)


def _image(axes: Axes, shares: Array, **place: Any) -> None:
    """Shares from -1 (red) over 0 (white) to 1 (blue), NaN grey."""
    from matplotlib import colormaps

    colours = colormaps["RdBu"].with_extremes(bad=FAINT)
    axes.imshow(colours((shares + 1) / 2, bytes=True), aspect="auto", interpolation="nearest", **place)


def _settled_line(axes: Axes, settled: Array, cells: int) -> None:
    edges = np.repeat(np.arange(len(settled) + 1), 2)[1:-1]
    for colour, width in (("white", 3.4), (INK, 1.6)):
        axes.plot(np.repeat(settled, 2), edges, color=colour, lw=width)
    if 0 < len(settled) < cells:
        axes.axhline(len(settled), color=INK, lw=1, ls=(0, (4, 3)))


def _settled_words(settled: Array, silent: Tensor, layer: LayerReport) -> str:
    cells, quiet = layer.hidden_size, int(silent.sum())
    moving = cells - len(settled) - quiet
    words = [f"line: settled; median {np.median(settled):.0f} steps"] if len(settled) else []
    words += [f"{moving} of {cells} not settled in {layer.horizon} steps"] if moving else []
    words += [f"{quiet} of {cells} hardly move"] if quiet else []
    return "; ".join(words)


def draw_bode(axes: Axes, layer: LayerReport) -> None:
    """Gain of the cells over the period of the input: median, p10 to p90, the leaders, and the first check."""
    amplitude = layer.metrics["sine/amplitude"].values
    now = _bands(amplitude)
    leaders = np.maximum(amplitude[:, layer.ranking.order[:3]].double().numpy(), LEAST)
    first = np.full_like(now, np.nan) if layer.first_gain is None else _bands(layer.first_gain)
    x = np.log2(1 / np.array(layer.periods))
    axes.fill_between(x, *np.log10(now[:, ::2]).T, color=BLUE, alpha=0.2, lw=0)
    axes.plot(x, np.log10(leaders), color=ORANGE, lw=1)
    axes.plot(x, np.log10(first[:, 1]), color=MUTED, lw=1.5, ls=(0, (4, 2)))
    axes.plot(x, np.log10(now[:, 1]), color=BLUE, lw=2.4, marker="o", ms=5)
    low, high = log_range([now, leaders, first[:, 1]])
    axes.set(xlim=(x.min() - 0.15, x.max() + 0.15), ylim=(low - 0.3 * (high - low), high))
    x_axis(
        axes, [(at, f"{period:g}") for at, period in zip(x, layer.periods, strict=True)], "period of the input (steps)"
    )
    y_axis(axes, log_ticks(low, high), "amplitude of h per input sd")
    _legend(axes, layer.first_gain is not None)
    head(axes, str(layer.key), "gain over frequency", _gain_words(layer.periods, now[:, 1], first[:, 1]))


def _bands(amplitude: Tensor) -> Array:
    """p10, p50, p90 of the cells at each frequency ``(F, 3)``, at least LEAST; NaN where none is defined."""
    return np.maximum(np.array([quantiles(finite(row)) for row in amplitude]), LEAST)


def _legend(axes: Axes, has_first: bool) -> None:
    entries = [(0.02, 0.13, "\u2501 median cell", BLUE), (0.02, 0.03, "\u25a0 p10 to p90", SKY)]
    entries += [(0.56, 0.13, "\u2500 3 leading cells", ORANGE)]
    entries += [(0.56, 0.03, "\u254c median, 1st check", MUTED)] if has_first else []
    for x, y, words, colour in entries:
        write(axes, x, y, words, color=colour, va="bottom", size=9.3)


def _gain_words(periods: Sequence[float], now: Array, first: Array) -> str:
    middle = len(periods) // 2
    if now[middle] != now[middle]:
        return "no gain is defined"
    change = "" if first[middle] != first[middle] else f", {now[middle] / first[middle]:.2g} x the first check"
    return f"median {now[middle]:.2g} at a {periods[middle]:g}-step cycle{change}"


def draw_ranking(axes: Axes, layer: LayerReport) -> None:
    """The places over the training of the ten cells that lead now; places beyond the tenth are drawn closer."""
    history = layer.rank_history
    assert history is not None
    steps, heights = history.steps.numpy(), _heights(history.ranks.numpy() + 1.0, layer.hidden_size)
    leaders = layer.ranking.order[:LEADERS].tolist()
    _places(axes, layer.hidden_size)
    for place, (cell, colour) in enumerate(zip(leaders, HUES, strict=False)):
        axes.plot(steps, heights[:, cell], color=colour, lw=2.6 if place < 3 else 1.4, solid_joinstyle="round")
        write(axes, 1.02, place + 1, f"cell {cell}", axes.get_yaxis_transform(), color=colour,
              weight="bold" if place < 3 else "normal")  # fmt: skip
    axes.set_xlim(steps[0], max(steps[-1], steps[0] + 1))
    x_axis(axes, round_ticks(int(steps[-1]), int(steps[0])), "training step")
    kept = len(set(leaders) & set(history.ranks[-2].argsort()[:LEADERS].tolist()))
    by = layer.ranking.name.replace("_", " ")
    head(axes, str(layer.key), "leading cells", f"by {by}; {kept} of {len(leaders)} as before")


def _heights(places: Array, cells: int) -> Array:
    """Where places are drawn: 1 to 10 as they are, all further ones within three more units."""
    beyond = LEADERS + 0.5 + 3 * (places - LEADERS) / max(cells - LEADERS, 1)
    return np.where(places <= LEADERS, places, beyond)


def _places(axes: Axes, cells: int) -> None:
    ticks = [*range(1, min(cells, LEADERS) + 1)]
    bottom = len(ticks) + 0.5
    if cells > LEADERS:
        axes.axhspan(LEADERS + 0.5, LEADERS + 3.7, color=FAINT, lw=0)
        ticks, bottom = [1, 3, 5, 10, cells], LEADERS + 3.7
    axes.set_ylim(bottom, 0.5)
    y_axis(
        axes, zip(_heights(np.array(ticks, dtype=float), cells), map(str, ticks), strict=True), "place in the ranking"
    )


def draw_cells(axes: Axes, layer: LayerReport) -> None:
    """Every cell by its time scale and the size of its response; the leaders of the ranking are named."""
    times, sizes = (layer.metrics[f"step/{name}"].cells.double().numpy() for name in ("settling_time", "peak_response"))
    never, end = np.isnan(times), np.log10(2.0 * layer.horizon)
    x = np.where(never, end, np.log10(np.maximum(times, 1)))
    y = np.log10(np.maximum(np.nan_to_num(sizes), LEAST))
    axes.scatter(x, y, s=28, color=np.where(never, MUTED, BLUE), alpha=0.5, lw=0)
    leaders = layer.ranking.order[:5].numpy()
    axes.scatter(x[leaders], y[leaders], s=36, color=ORANGE, lw=0)
    low, high = log_range([10**y], 1.4)
    axes.axvline(end - 0.15, color=MUTED, lw=0.8, ls=(0, (4, 3)))
    axes.set(xlim=(-0.1, end + 0.15), ylim=(low, high))
    name_dots(axes, x[leaders], y[leaders], [str(cell) for cell in leaders])
    ticks = [(np.log10(tick), str(tick)) for tick in (1, 2, 5, 10, 20, 50, 100, 200, 500) if tick <= layer.horizon]
    x_axis(axes, [*ticks, (end, "none")], "settling time (steps)")
    y_axis(axes, log_ticks(low, high), "size of the largest change of h")
    lacking = f"; {int(never.sum())} of {len(x)} never settle" if never.any() else ""
    head(axes, str(layer.key), "time scale and size", f"orange: first five in rank{lacking}")
