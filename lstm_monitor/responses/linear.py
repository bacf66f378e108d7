"""What each cell alone does with inputs so small that it is linear: poles, and the gain at every frequency.

In closed form at the operating point, where the simulated metrics start as well; no stimulus is run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lstm_monitor.core.definitions import Reason, Thresholds
from lstm_monitor.core.records import Metric, Probe, Snapshot
from lstm_monitor.core.trees import to_host
from lstm_monitor.core.weights import CellWeights, LayerWeights
from lstm_monitor.engines.linearize import Linear, Values, cutoff, dominant_pole, is_stable, linearize, transfer
from lstm_monitor.engines.lone_cells import cells_of
from lstm_monitor.metrics.catalog import CATALOG, MAIN_PERIOD
from lstm_monitor.responses.rest import Rest, settle
from lstm_monitor.responses.stimuli import default_stimuli

Codes = NDArray[np.uint8]

NEAR, FAR = 1e-6, 0.1
"""A cell rests nearer than this to the point that its rest is found at, and that not so far from where it settled."""

AT_EACH = ("gain", "phase_lag")
"""Metrics with a value at each frequency."""


def frequency_response(
    snapshot: Snapshot, frequencies: Sequence[float] | Tensor, direction: Tensor | None = None
) -> Tensor:
    """The transfer function of every cell alone, linearised at the operating point, at any frequencies in one call.

    For a small sine ``x_t = mean + a sin(2 pi f t) direction`` the hidden state swings around rest as ``a |H| sin(2 pi
    f t + arg H)``: ``|H|`` is the gain, ``-arg H`` the phase lag. What a cell receives from the others is frozen at
    their held-out mean, as in the mode "alone" of `respond`.

    Args:
        snapshot: the layer.
        frequencies: (F,) cycles per step, each from 0 to 0.5; 0 gives the gain for a constant change.
        direction: (I,) change of each feature at amplitude 1; by default that of the default sines.

    Returns:
        ``H (F, H)``, complex128, on the host. NaN for cells that are not at rest at the operating point, or whose rest
        is unstable.

    Raises:
        TypeError: `snapshot` is none.
        ValueError: a registered cell, frequencies outside their range, a direction of another width.

    Example:
        >>> import lstm_monitor as lm, torch
        >>> snap, = lm.snapshot(torch.nn.GRU(3, 8))
        >>> frequency_response(snap, [0, 0.1, 0.25]).abs().shape
        torch.Size([3, 8])
    """
    if not isinstance(snapshot, Snapshot):
        raise TypeError(f"snapshot={type(snapshot).__name__} is no snapshot of a layer; lm.snapshot(model) makes them")
    if isinstance(snapshot.weights, CellWeights):
        raise ValueError(
            f"snapshot: {snapshot.key} is a registered cell, which has no closed form; use respond() with sinusoid()s"
        )
    asked = _checked(frequencies)
    with torch.no_grad():
        way = _direction(snapshot) if direction is None else _fitting(direction, snapshot)
        linear, reason = _linearized(snapshot, snapshot.weights, way, settle(snapshot, "alone", Thresholds()))
        return torch.from_numpy(np.where(reason == 0, transfer(linear, asked), np.nan))


def _checked(frequencies: Sequence[float] | Tensor) -> Values:
    try:
        given = frequencies.cpu() if isinstance(frequencies, Tensor) else frequencies
        asked = torch.as_tensor(given, dtype=torch.float64, device="cpu").numpy()
    except (TypeError, ValueError, RuntimeError):
        asked = np.zeros(0)
    if asked.ndim != 1 or len(asked) == 0 or not ((asked >= 0) & (asked <= 0.5)).all():
        raise ValueError(
            f"frequencies={frequencies!r:.200} must be one or more numbers from 0 to 0.5 cycles per step, in a list or "
            "a 1-D tensor; a period of P steps is 1 / P"
        )
    return asked


def _direction(snapshot: Snapshot) -> Tensor:
    sines = default_stimuli(snapshot, 8) if snapshot.probe is None else snapshot.probe.sines
    return sines[-1].direction


def _fitting(direction: Tensor, snapshot: Snapshot) -> Tensor:
    size = snapshot.weights.input_size
    if not isinstance(direction, Tensor) or direction.shape != (size,):
        shown = tuple(direction.shape) if isinstance(direction, Tensor) else type(direction).__name__
        raise ValueError(f"direction={shown} does not fit {snapshot.key}; give a tensor of shape ({size},)")
    return direction


def linear_metrics(snap: Snapshot, probe: Probe, thresholds: Thresholds, rest: Rest | None = None) -> list[Metric]:
    """The metrics of the group ``linear``: of each cell alone, along the direction of the probe's sines.

    Args:
        snap: the layer.
        probe: its sines say at which frequencies gain and phase lag are given.
        thresholds: the least gain with a phase lag and a cut-off.
        rest: what `settle` returned for this snapshot and the mode "alone", where it is known already.

    Returns:
        One `Metric` for each of the group in the catalog, in its order, on the host. NaN with the reason where a cell
        is not at rest, where its rest is unstable (the pole itself is then given), and for registered cells.
    """
    labels = tuple(sine.name for sine in probe.sines)
    frequencies = [float(sine.frequency or 0) for sine in probe.sines]
    shown = min(range(len(labels)), key=lambda k: abs(1 / frequencies[k] - MAIN_PERIOD))
    if isinstance(snap.weights, CellWeights):
        return _no_closed_form(snap, labels, shown)
    with torch.no_grad():
        start = settle(snap, "alone", thresholds) if rest is None else rest
        linear, reason = _linearized(snap, snap.weights, probe.sines[0].direction, start)
        rows = _of_poles(linear, reason) | _of_gain(linear, reason, frequencies, thresholds)
    return _metrics(rows, labels, shown, snap.weights.like.dtype)


def _linearized(snap: Snapshot, weights: LayerWeights, direction: Tensor, rest: Rest) -> tuple[Linear, Codes]:
    """The linear cells, and for each ``(H,)`` why it has none."""
    cells = cells_of(weights, snap.hidden_mean, snap.point.mean, direction[:, None])
    given = (cells, rest.hidden, rest.settled)
    cells, hidden, settled = given if rest.hidden.device.type == "cpu" else to_host(given)
    linear = linearize(cells, hidden)
    at_rest = settled.numpy() & (linear.left <= NEAR) & (np.abs(linear.rest - hidden.numpy()) <= FAR)
    unstable = np.where(is_stable(linear), Reason.DEFINED, Reason.UNSTABLE)
    return linear, np.where(at_rest, unstable, Reason.NOT_AT_REST).astype(np.uint8)


Row = tuple[Values, Codes]
"""Values ``(R, H)`` of a metric, and why they are undefined, ``(R, H)`` or ``(H,)``."""


@np.errstate(all="ignore")
def _of_poles(linear: Linear, reason: Codes) -> dict[str, Row]:
    dominant = dominant_pole(linear)
    size, rings = np.abs(dominant), np.angle(dominant) / (2 * math.pi)
    known = reason * (reason != Reason.UNSTABLE)
    return {
        "pole": (size[None], known),
        "pole_frequency": (rings[None], known),
        "time_constant": (-1 / np.log(size[None]), reason),
    }


@np.errstate(all="ignore")
def _of_gain(linear: Linear, reason: Codes, frequencies: Sequence[float], thresholds: Thresholds) -> dict[str, Row]:
    found = transfer(linear, np.array([0.0, *frequencies]))
    gain, lag, edge = np.abs(found), -np.angle(found[1:]), cutoff(linear)[None]
    silent = _where_defined(reason, gain < thresholds.least_amplitude, Reason.SILENT)
    return {
        "dc_gain": (gain[:1], reason),
        "gain": (gain[1:], reason),
        "phase_lag": (np.where(lag <= -math.pi, -lag, lag), silent[1:]),
        "cutoff_frequency": (edge, _where_defined(silent[:1], np.isnan(edge), Reason.NEVER)),
    }


def _where_defined(reason: Codes, holds: NDArray[np.bool_], more: Reason) -> Codes:
    return np.where(holds & (reason == 0), np.uint8(more), reason)


def _metrics(rows: dict[str, Row], labels: tuple[str, ...], shown: int, dtype: torch.dtype) -> list[Metric]:
    """All rows are made NaN where they are undefined at once, in the type that the layer computes in."""
    sizes = [len(values) for values, _ in rows.values()]
    codes = np.concatenate([np.broadcast_to(reason, values.shape) for values, reason in rows.values()])
    whole = np.where(codes == 0, np.concatenate([values for values, _ in rows.values()]), np.nan)
    values, reasons = torch.from_numpy(whole).to(dtype).split(sizes), torch.from_numpy(codes).split(sizes)
    return [
        Metric("linear", name, mine, why, labels, mine[shown])
        if name in AT_EACH
        else Metric("linear", name, mine, why, ("small inputs",), mine[0])
        for name, mine, why in zip(rows, values, reasons, strict=True)
    ]


def _no_closed_form(snap: Snapshot, labels: tuple[str, ...], shown: int) -> list[Metric]:
    names = [spec.name for spec in CATALOG.values() if spec.group == "linear"]
    none = np.full((len(labels), snap.hidden_size), np.nan)
    reason = np.full(snap.hidden_size, Reason.NO_CLOSED_FORM, dtype=np.uint8)
    rows = {name: (none if name in AT_EACH else none[:1], reason) for name in names}
    return _metrics(rows, labels, shown, snap.hidden_mean.dtype)
