"""Canvases, axes, ticks, words and colours for the pictures. matplotlib is imported only when one is drawn.

Its global state is never used. Axes, ticks and logarithms are plain lines and text: matplotlib's own double the time
of a picture.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Array = NDArray[Any]

CARD, ROW = (4.2, 3.3), (13.2, 3.5)
CARD_PANEL = (0.155, 0.145, 0.7, 0.68)
"""Where the panel of a card lies, in shares of the figure: left, bottom, width, height."""

INK, MUTED, FAINT, BLUE, SKY, ORANGE = "#22272e", "#6b747f", "#eceef1", "#2166ac", "#6f9fcb", "#c8552b"
HUES = (BLUE, ORANGE, "#2a8c5a", "#7b52a6", "#a97a00", "#148a99", "#b5406f", "#5f7f1b", "#8a5a44", "#5c6b7a")


def canvas(width: float, height: float) -> Figure:
    """An empty figure of so many inches, at 100 pixels an inch."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=100, facecolor="white", layout="none")  # type: ignore[arg-type]  # its stubs lack "none"
    FigureCanvasAgg(figure)
    return figure


def frame(figure: Figure, place: tuple[float, float, float, float]) -> Axes:
    """Axes at (left, bottom, width, height) in shares of the figure, with nothing drawn."""
    axes = figure.add_axes(place)
    axes.set_axis_off()
    return axes


def x_axis(axes: Axes, ticks: Iterable[tuple[float, str]], title: str) -> None:
    """The line below a panel with ticks (place, words) and a title."""
    ticks = list(ticks)
    axes.plot([0, 1], [0, 0], color=MUTED, lw=0.8, transform=axes.transAxes, clip_on=False)
    axes.plot([at for at, _ in ticks], [-0.008] * len(ticks), "|", color=MUTED, ms=4,
              transform=axes.get_xaxis_transform(), clip_on=False)  # fmt: skip
    for at, label in ticks:
        write(axes, at, -0.03, label, axes.get_xaxis_transform(), ha="center", va="top")
    write(axes, 0.5, -0.11, title, ha="center", va="top", size=10.5)


def y_axis(axes: Axes, ticks: Iterable[tuple[float, str]], title: str) -> None:
    """The line left of a panel with ticks (place, words) and a title, beyond the widest of the ticks."""
    ticks = list(ticks)
    axes.plot([0, 0], [0, 1], color=MUTED, lw=0.8, transform=axes.transAxes, clip_on=False)
    for at, label in ticks:
        write(axes, -0.015, at, label, axes.get_yaxis_transform(), ha="right")
    widest = max((len(label) - 0.5 * label.count(".") for _, label in ticks), default=0)
    write(axes, -max(0.145, 0.06 + 0.029 * widest) * _narrow(axes), 0.5, title, ha="center", rotation=90, size=10.5)


def _narrow(axes: Axes) -> float:
    """How many times narrower a panel is than a card's; 1 where it is as wide or wider."""
    return max(1.0, CARD[0] * CARD_PANEL[2] * axes.figure.dpi / axes.bbox.width)


def head(axes: Axes, name: str, title: str, words: str, left: float | None = None) -> None:
    """Two lines above a panel: the layer and what one sees, and what it says; `left` in shares of the panel."""
    left, room = -0.175 * _narrow(axes) if left is None else left, 40 - len(title)
    name = name if len(name) <= room else f"...{name[3 - room :]}"
    size = 11.5 if len(name) + len(title) <= 32 else 9.5
    write(axes, left, 1.185, f"{name}: {title}", weight="bold", size=size)
    write(axes, left, 1.075, words if len(words) <= 66 else f"{words[:63]}...", color=MUTED, size=9.3)


def write(axes: Axes, x: float, y: float, words: str, transform: Any = None, **style: Any) -> None:
    """Text in a font that comes with matplotlib, whatever the user's settings; by default in shares of the axes."""
    usual: dict[str, Any] = {"color": INK, "size": 9.8, "va": "center", "usetex": False}
    usual |= {"family": "DejaVu Sans", "parse_math": False}
    axes.text(x, y, words, transform=transform or axes.transAxes, **usual | style)


def log_range(values: Iterable[Array], margin: float = 1.15) -> tuple[float, float]:
    """log10 of the least and the largest finite value, some way apart."""
    shown = np.concatenate([array.ravel() for array in values])
    shown = shown[np.isfinite(shown)]
    low, high = (float(shown.min()), float(shown.max())) if len(shown) else (0.1, 1.0)
    return float(np.log10(low / margin)), float(np.log10(max(high, 2 * low) * margin))


def log_ticks(low: float, high: float) -> list[tuple[float, str]]:
    """1, 2 and 5 times powers of ten between two logarithms, or the powers alone where those are many."""
    leads = (1,) if high - low > 2.3 else (1, 2, 5) if high - low > 0.7 else (1, 2, 3, 4, 5, 6, 8)
    pairs = [(lead, power) for power in range(int(low) - 1, int(high) + 2) for lead in leads]
    ticks = [(float(np.log10(lead) + power), _log_label(lead, power)) for lead, power in pairs]
    return [(at, label) for at, label in ticks if low <= at <= high]


def _log_label(lead: int, power: int) -> str:
    """``0.005``, or ``5e-4`` where the digits would be many."""
    return f"{float(f'{lead}e{power}'):g}" if -3 <= power <= 3 else f"{lead}e{power}"


def round_ticks(end: int, start: int = 0) -> list[tuple[float, str]]:
    """About five round numbers from `start` to `end`."""
    rough = max(end - start, 1) / 5
    power = 10 ** max(0, int(np.floor(np.log10(rough))))
    stride = next(lead * power for lead in (1, 2, 5, 10) if lead * power >= rough)
    return [(at, str(at)) for at in range(-(-start // stride) * stride, end + 1, stride)]


def name_dots(axes: Axes, x: Array, y: Array, names: Sequence[str]) -> None:
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


def as_png(figure: Figure) -> bytes:
    """The picture as PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100, facecolor="white")
    return buffer.getvalue()


def as_pixels(figure: Figure) -> NDArray[np.uint8]:
    """The picture as ``(height, width, 3)`` uint8."""
    figure.canvas.draw()
    rgba = np.asarray(figure.canvas.buffer_rgba())  # type: ignore[attr-defined]  # the Agg canvas
    return rgba[..., :3].copy()
