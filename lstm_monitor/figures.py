"""Pictures of records. matplotlib is imported only when one is drawn, and its global state is never used."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from lstm_monitor.distributions import finite, quantiles
from lstm_monitor.layer_report import LayerReport

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

CARD = (4.2, 3.3)
INK, MUTED, BLUE, ORANGE = "#22272e", "#8a939e", "#2f6fb3", "#d9752b"
PICTURES = ("step_responses", "bode", "ranking")


def pictures(layer: LayerReport, step: int | None = None) -> dict[str, Figure]:
    """The single-panel pictures of a layer by name, each legible on a card 350 pixels wide."""
    draw: dict[str, Callable[[Axes, LayerReport], None]] = {
        "step_responses": draw_step_responses,
        "bode": draw_bode,
        "ranking": draw_ranking,
    }
    if layer.rank_history is None or len(layer.rank_history.steps) < 2:
        del draw["ranking"]
    return {name: _card(layer, step, panel) for name, panel in draw.items()}


def _card(layer: LayerReport, step: int | None, panel: Callable[[Axes, LayerReport], None]) -> Figure:
    figure = _figure(*CARD)
    axes = figure.add_subplot()
    panel(axes, layer)
    when = "" if step is None else f", step {step}"
    axes.set_title(f"{layer.key}: {axes.get_title()}{when}", fontsize=10.5, color=INK, loc="left")
    return figure


def overview(layers: Sequence[LayerReport]) -> Figure:
    """Every layer in a row: step responses, gain over frequency, and the distribution of settling times."""
    figure = _figure(12.0, 3.4 * len(layers))
    grid = figure.subplots(len(layers), 3, squeeze=False)
    for row, layer in zip(grid, layers, strict=True):
        for axes, panel in zip(row, (draw_step_responses, draw_bode, draw_settling), strict=True):
            panel(axes, layer)
            axes.set_title(f"{layer.key}: {axes.get_title()}", fontsize=11, color=INK, loc="left")
    return figure


def _figure(width: float, height: float) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _tidy(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(MUTED)
    axes.tick_params(labelsize=10, colors=INK, length=3)
    axes.xaxis.label.set_fontsize(10.5)
    axes.yaxis.label.set_fontsize(10.5)


def draw_step_responses(axes: Axes, layer: LayerReport) -> None:
    """A heat map, cells sorted by settling time x time: the change of each cell as a share of its largest change."""
    settling = layer.metrics["step/settling_time"].cells
    order = torch.where(torch.isnan(settling), torch.inf, settling).argsort(stable=True)
    change = layer.trace.change[order]
    scale = change.abs().amax(1, keepdim=True)
    shown = torch.where(scale >= 1e-3, change / scale.clamp(min=1e-3), torch.nan)
    width = _width(settling, layer.horizon)
    image = axes.imshow(
        shown[:, :width].numpy(),
        aspect="auto",
        cmap=_colours(),
        vmin=-1,
        vmax=1,
        interpolation="nearest",
        extent=(0, width, layer.hidden_size, 0),
    )
    times = settling[order].numpy()
    axes.plot(times, np.arange(layer.hidden_size) + 0.5, color=INK, lw=1.2)
    axes.set(xlabel="steps after the step", ylabel="cells, fastest first", xlim=(0, width))
    axes.set_title("step responses")
    bar = axes.figure.colorbar(image, ax=axes, ticks=[-1, 0, 1], pad=0.02, fraction=0.05)
    bar.ax.tick_params(labelsize=9, length=0)
    bar.outline.set_visible(False)
    _tidy(axes)


def _colours() -> Colormap:
    from matplotlib import colormaps

    return colormaps["RdBu_r"].with_extremes(bad="#e8eaed")


def _width(settling: Tensor, horizon: int) -> int:
    """Time shown: half as long again as the p90 of the settling times."""
    p90 = quantiles(finite(settling))[2]
    return horizon if p90 != p90 else int(min(horizon, max(16, 1.5 * p90)))


def draw_bode(axes: Axes, layer: LayerReport) -> None:
    """Gain of the cells over the period of the sine: median and p10 to p90, and the median at the first check."""
    periods = np.array(layer.periods)
    bands = np.array([quantiles(finite(row)) for row in layer.metrics["sine/amplitude"].values])
    axes.fill_between(periods, bands[:, 0], bands[:, 2], color=BLUE, alpha=0.22, lw=0, label="p10 to p90")
    axes.plot(periods, bands[:, 1], color=BLUE, lw=2, marker="o", ms=4, label="median cell")
    if layer.first_gain is not None:
        first = [quantiles(finite(row))[1] for row in layer.first_gain]
        axes.plot(periods, first, color=MUTED, lw=1.5, ls="--", label="median, first check")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(periods, [f"{period:g}" for period in periods])
    axes.minorticks_off()
    axes.invert_xaxis()
    axes.set(xlabel="period of the input (steps)", ylabel="amplitude of the cell")
    axes.set_title("gain")
    axes.legend(fontsize=9, frameon=False, loc="best")
    _tidy(axes)


def draw_ranking(axes: Axes, layer: LayerReport) -> None:
    """The place of the ten cells that lead now, over the training."""
    history = layer.rank_history
    assert history is not None
    steps, ranks = history.steps.numpy(), history.ranks.numpy() + 1
    leaders = layer.ranking.order[:10].tolist()
    for place, cell in enumerate(leaders):
        colour = BLUE if place < 3 else MUTED
        axes.plot(steps, ranks[:, cell], color=colour, lw=1.8 if place < 3 else 1, alpha=1 if place < 3 else 0.7)
        axes.annotate(f" {cell}", (steps[-1], place + 1), color=colour, fontsize=8.5, va="center")
    axes.set_ylim(min(layer.hidden_size, 30) + 0.5, 0.5)
    axes.set(xlabel="training step", ylabel="place in the ranking")
    axes.set_title("ranking")
    _tidy(axes)


def draw_settling(axes: Axes, layer: LayerReport) -> None:
    """How many cells settle in how many steps; those that never do are counted in the title."""
    times = finite(layer.metrics["step/settling_time"].cells)
    if len(times):
        bins = np.geomspace(1, max(2.0, float(times[-1]) + 1), 24)
        axes.hist(np.maximum(times, 1), bins=list(bins), color=BLUE, alpha=0.85)
        axes.set_xscale("log")
    axes.set(xlabel="settling time (steps)", ylabel="cells")
    never = layer.hidden_size - len(times)
    axes.set_title("time scales" + (f" ({never} undefined)" if never else ""))
    _tidy(axes)


def as_png(figure: Figure) -> bytes:
    """The picture as PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def as_pixels(figure: Figure) -> np.ndarray:
    """The picture as ``(height, width, 3)`` uint8."""
    figure.canvas.draw()
    rgba = np.asarray(figure.canvas.buffer_rgba())  # type: ignore[attr-defined]  # the Agg canvas of _figure
    return rgba[..., :3].copy()
