"""Pictures of records. matplotlib is imported only when one is drawn, and its global state is never used.

Axes, ticks and logarithms are drawn here from plain lines and text: matplotlib's own double the time of a picture.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lstm_monitor.distributions import finite, quantiles
from lstm_monitor.layer_report import LayerReport
from lstm_monitor.records import Reason

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    Panel = Callable[[Axes, LayerReport], None]

Array = NDArray[Any]

CARD, ROW = (4.2, 3.3), (13.2, 3.5)
PICTURES = ("step_responses", "bode", "ranking")
LEADERS = 10
LEAST = 1e-4
"""Where smaller sizes are drawn on a log scale."""

INK, MUTED, FAINT, BLUE, SKY, ORANGE = "#22272e", "#6b747f", "#eceef1", "#2166ac", "#6f9fcb", "#c8552b"
HUES = (BLUE, ORANGE, "#2a8c5a", "#7b52a6", "#a97a00", "#148a99", "#b5406f", "#5f7f1b", "#8a5a44", "#5c6b7a")


def pictures(layer: LayerReport, step: int | None = None) -> dict[str, Figure]:
    """The single-panel pictures of a layer by name, each legible on a card 350 pixels wide."""
    panels: dict[str, Panel] = {"step_responses": draw_step_responses, "bode": draw_bode, "ranking": draw_ranking}
    if layer.rank_history is None or len(layer.rank_history.steps) < 2:
        del panels["ranking"]
    return {name: _card(layer, step, panel) for name, panel in panels.items()}


def overview(layers: Sequence[LayerReport]) -> Figure:
    """Every layer in a row: its step responses, its gain, and its cells by time scale and size."""
    width, height = ROW
    figure = _figure(width, height * len(layers))
    for row, layer in enumerate(layers):
        bottom = (len(layers) - 1 - row + 0.15) / len(layers)
        for left, panel in ((0.05, draw_step_responses), (0.42, draw_bode), (0.74, draw_cells)):
            panel(_axes(figure, (left, bottom, 0.25, 0.66 / len(layers))), layer)
    return figure


def _card(layer: LayerReport, step: int | None, panel: Panel) -> Figure:
    figure = _figure(*CARD)
    axes = _axes(figure, (0.155, 0.145, 0.7, 0.68))
    panel(axes, layer)
    if step is not None:
        _text(axes, 1.18, 1.185, f"step {step}", color=MUTED, ha="right", size=9)
    return figure


def _figure(width: float, height: float) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=100, facecolor="white", layout="none")  # type: ignore[arg-type]  # its stubs lack "none"
    FigureCanvasAgg(figure)
    return figure


def _axes(figure: Figure, place: tuple[float, float, float, float]) -> Axes:
    axes = figure.add_axes(place)
    axes.set_axis_off()
    return axes


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
    _x(axes, _round_ticks(width), f"steps after the step ({layer.trace.label})")
    ends = {1: 0.5, layer.hidden_size: layer.hidden_size - 0.5}
    first = "fastest" if len(settled) else "earliest peak"
    _y(axes, [(at, str(number)) for number, at in ends.items()], f"cells, {first} first")
    _head(axes, layer, "step responses", _settled_words(settled, silent, layer))


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
        _text(axes, 1.075, height, label, va=side)
    _text(axes, 1.16, 0.5, "share of the cell's largest change", rotation=90, ha="center", color=MUTED)


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
    low, high = _log_range([now, leaders, first[:, 1]])
    axes.set(xlim=(x.min() - 0.15, x.max() + 0.15), ylim=(low - 0.3 * (high - low), high))
    _x(axes, [(at, f"{period:g}") for at, period in zip(x, layer.periods, strict=True)], "period of the input (steps)")
    _y(axes, _log_ticks(low, high), "amplitude of h per input sd")
    _legend(axes, layer.first_gain is not None)
    _head(axes, layer, "gain over frequency", _gain_words(layer.periods, now[:, 1], first[:, 1]))


def _bands(amplitude: Tensor) -> Array:
    """p10, p50, p90 of the cells at each frequency ``(F, 3)``, at least LEAST; NaN where none is defined."""
    return np.maximum(np.array([quantiles(finite(row)) for row in amplitude]), LEAST)


def _legend(axes: Axes, has_first: bool) -> None:
    entries = [(0.02, 0.13, "\u2501 median cell", BLUE), (0.02, 0.03, "\u25a0 p10 to p90", SKY)]
    entries += [(0.56, 0.13, "\u2500 3 leading cells", ORANGE)]
    entries += [(0.56, 0.03, "\u254c median, 1st check", MUTED)] if has_first else []
    for x, y, words, colour in entries:
        _text(axes, x, y, words, color=colour, va="bottom", size=9.3)


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
        _text(axes, 1.02, place + 1, f"cell {cell}", axes.get_yaxis_transform(), color=colour,
              weight="bold" if place < 3 else "normal")  # fmt: skip
    axes.set_xlim(steps[0], max(steps[-1], steps[0] + 1))
    _x(axes, _round_ticks(int(steps[-1]), int(steps[0])), "training step")
    kept = len(set(leaders) & set(history.ranks[-2].argsort()[:LEADERS].tolist()))
    by = layer.ranking.name if "/" in layer.ranking.name else layer.ranking.words.split(" (")[0]
    _head(axes, layer, "leading cells", f"by {by}; {kept} of {len(leaders)} as before")


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
    _y(axes, zip(_heights(np.array(ticks, dtype=float), cells), map(str, ticks), strict=True), "place in the ranking")


def draw_cells(axes: Axes, layer: LayerReport) -> None:
    """Every cell by its time scale and the size of its response; the leaders of the ranking are named."""
    times, sizes = (layer.metrics[f"step/{name}"].cells.double().numpy() for name in ("settling_time", "peak_response"))
    never, end = np.isnan(times), np.log10(2.0 * layer.horizon)
    x = np.where(never, end, np.log10(np.maximum(times, 1)))
    y = np.log10(np.maximum(np.nan_to_num(sizes), LEAST))
    axes.scatter(x, y, s=28, color=np.where(never, MUTED, BLUE), alpha=0.5, lw=0)
    leaders = layer.ranking.order[:5].numpy()
    axes.scatter(x[leaders], y[leaders], s=36, color=ORANGE, lw=0)
    low, high = _log_range([10**y], 1.4)
    axes.axvline(end - 0.15, color=MUTED, lw=0.8, ls=(0, (4, 3)))
    axes.set(xlim=(-0.1, end + 0.15), ylim=(low, high))
    _name_dots(axes, x[leaders], y[leaders], [str(cell) for cell in leaders])
    ticks = [(np.log10(tick), str(tick)) for tick in (1, 2, 5, 10, 20, 50, 100, 200, 500) if tick <= layer.horizon]
    _x(axes, [*ticks, (end, "none")], "settling time (steps)")
    _y(axes, _log_ticks(low, high), "size of the largest change of h")
    lacking = f"; {int(never.sum())} of {len(x)} never settle" if never.any() else ""
    _head(axes, layer, "time scale and size", f"orange: first five in rank{lacking}")


def _name_dots(axes: Axes, x: Array, y: Array, names: Sequence[str]) -> None:
    """Names beside dots, each where it covers no other name and none of these dots, if there is such a place."""
    places = axes.transData.transform(np.stack([x, y], 1)) * 72 / axes.figure.dpi
    taken = [(left - 3, low - 3, left + 3, low + 3) for left, low in places]
    for k in np.argsort(-y, kind="stable"):
        boxes = {offset: _name_box(places[k], offset, names[k]) for offset in _BESIDE}
        free = (offset for offset, box in boxes.items() if not any(_overlap(box, other) for other in taken))
        offset = next(free, _BESIDE[0])
        taken.append(boxes[offset])
        axes.annotate(names[k], (x[k], y[k]), offset, textcoords="offset points", color=ORANGE, fontsize=10,
                      ha="left" if offset[0] > 0 else "right", family="DejaVu Sans", usetex=False)  # fmt: skip


_BESIDE = [(right, up) for up in (2, -10, 14, -22, 26, -34) for right in (4, -4)]
"""Where a name may stand beside its dot, in points, the best place first."""

Box = tuple[float, float, float, float]


def _name_box(dot: Array, offset: tuple[int, int], name: str) -> Box:
    """Left, lower, right and upper end in points of a name of 10-point digits."""
    width, low = 6.4 * len(name), dot[1] + offset[1]
    left = dot[0] + offset[0] - (0 if offset[0] > 0 else width)
    return left, low - 2.5, left + width, low + 9


def _overlap(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _log_range(values: Iterable[Array], margin: float = 1.15) -> tuple[float, float]:
    """log10 of the least and the largest finite value, some way apart."""
    shown = np.concatenate([array.ravel() for array in values])
    shown = shown[np.isfinite(shown)]
    low, high = (float(shown.min()), float(shown.max())) if len(shown) else (0.1, 1.0)
    return float(np.log10(low / margin)), float(np.log10(max(high, 2 * low) * margin))


def _log_ticks(low: float, high: float) -> list[tuple[float, str]]:
    """1, 2 and 5 times powers of ten between two logarithms, or the powers alone where those are many."""
    leads = (1,) if high - low > 2.3 else (1, 2, 5) if high - low > 0.7 else (1, 2, 3, 4, 5, 6, 8)
    pairs = [(lead, power) for power in range(int(low) - 1, int(high) + 2) for lead in leads]
    ticks = [(float(np.log10(lead) + power), _log_label(lead, power)) for lead, power in pairs]
    return [(at, label) for at, label in ticks if low <= at <= high]


def _log_label(lead: int, power: int) -> str:
    """``0.005``, or ``5e-4`` where the digits would be many."""
    return f"{float(f'{lead}e{power}'):g}" if -3 <= power <= 3 else f"{lead}e{power}"


def _round_ticks(end: int, start: int = 0) -> list[tuple[float, str]]:
    """About five round numbers from `start` to `end`."""
    rough = max(end - start, 1) / 5
    power = 10 ** max(0, int(np.floor(np.log10(rough))))
    stride = next(lead * power for lead in (1, 2, 5, 10) if lead * power >= rough)
    return [(at, str(at)) for at in range(-(-start // stride) * stride, end + 1, stride)]


def _x(axes: Axes, ticks: Iterable[tuple[float, str]], title: str) -> None:
    ticks = list(ticks)
    axes.plot([0, 1], [0, 0], color=MUTED, lw=0.8, transform=axes.transAxes, clip_on=False)
    axes.plot([at for at, _ in ticks], [-0.008] * len(ticks), "|", color=MUTED, ms=4,
              transform=axes.get_xaxis_transform(), clip_on=False)  # fmt: skip
    for at, label in ticks:
        _text(axes, at, -0.03, label, axes.get_xaxis_transform(), ha="center", va="top")
    _text(axes, 0.5, -0.11, title, ha="center", va="top", size=10.5)


def _y(axes: Axes, ticks: Iterable[tuple[float, str]], title: str) -> None:
    ticks = list(ticks)
    axes.plot([0, 0], [0, 1], color=MUTED, lw=0.8, transform=axes.transAxes, clip_on=False)
    for at, label in ticks:
        _text(axes, -0.015, at, label, axes.get_yaxis_transform(), ha="right")
    widest = max((len(label) - 0.5 * label.count(".") for _, label in ticks), default=0)
    _text(axes, -max(0.145, 0.06 + 0.029 * widest), 0.5, title, ha="center", rotation=90, size=10.5)


def _head(axes: Axes, layer: LayerReport, title: str, words: str) -> None:
    """Two lines above a panel: the layer and what one sees, and what it says."""
    name, room = str(layer.key), 40 - len(title)
    name = name if len(name) <= room else f"...{name[3 - room :]}"
    size = 11.5 if len(name) + len(title) <= 32 else 9.5
    _text(axes, -0.175, 1.185, f"{name}: {title}", weight="bold", size=size)
    _text(axes, -0.175, 1.075, words if len(words) <= 66 else f"{words[:63]}...", color=MUTED, size=9.3)


def _text(axes: Axes, x: float, y: float, words: str, transform: Any = None, **style: Any) -> None:
    """Text in a font that comes with matplotlib, whatever the user's settings; by default in shares of the axes."""
    usual: dict[str, Any] = {"color": INK, "size": 9.8, "va": "center", "usetex": False}
    usual |= {"family": "DejaVu Sans", "parse_math": False}
    axes.text(x, y, words, transform=transform or axes.transAxes, **usual | style)


def as_png(figure: Figure) -> bytes:
    """The picture as PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100, facecolor="white")
    return buffer.getvalue()


def as_pixels(figure: Figure) -> NDArray[np.uint8]:
    """The picture as ``(height, width, 3)`` uint8."""
    figure.canvas.draw()
    rgba = np.asarray(figure.canvas.buffer_rgba())  # type: ignore[attr-defined]  # the Agg canvas of _figure
    return rgba[..., :3].copy()
