"""Naive float64 oracles: plain numpy and Python loops, written apart from the library and without torch.

Axis order here is torch's own, ``(time, sequence, unit)``; a metric takes one response, 1-D over time.
The gate order of the weights is torch's: LSTM i, f, g, o; GRU r, z, n.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
Traces = dict[str, Array]

SILENT = 1e-3
WASHOUT = 0.1
BAND = 0.1
DRIFT = 0.25
OSCILLATION = 2.0


# --- recurrent layers ---------------------------------------------------------------------------------------


def sigmoid(a: Array) -> Array:
    """The logistic function, by tanh so that it cannot overflow."""
    return 0.5 * (1.0 + np.tanh(0.5 * np.asarray(a, dtype=np.float64)))


def activate(a: Array, nonlinearity: str) -> Array:
    """``tanh`` or ``relu`` of an RNN cell."""
    return np.maximum(a, 0.0) if nonlinearity == "relu" else np.tanh(a)


def as_f64(a: ArrayLike) -> Array:
    """A float64 copy."""
    return np.array(a, dtype=np.float64)


def bias_or_zero(b: ArrayLike | None, rows: int) -> Array:
    """A bias vector, zeros where the layer has none."""
    return np.zeros(rows) if b is None else as_f64(b)


def stacked(steps: list[Traces]) -> Traces:
    """One dict of (N, ...) arrays per step, as one dict of (T, N, ...) arrays."""
    return {name: np.stack([step[name] for step in steps]) for name in steps[0]}


def lstm_gates(pre: Array, c: Array) -> Traces:
    """One LSTM update from the pre-activations (N, 4H) and the cell state (N, H)."""
    i, f, g, o = np.split(pre, 4, axis=-1)
    i, f, g, o = sigmoid(i), sigmoid(f), np.tanh(g), sigmoid(o)
    c = f * c + i * g
    return {"hidden": o * np.tanh(c), "cell": c, "input": i, "forget": f, "candidate": g, "output_gate": o}


def run_lstm(
    x: ArrayLike,
    w_ih: ArrayLike,
    w_hh: ArrayLike,
    b_ih: ArrayLike | None,
    b_hh: ArrayLike | None,
    h0: ArrayLike,
    c0: ArrayLike,
    w_hr: ArrayLike | None = None,
) -> Traces:
    """One LSTM layer over x (T, N, I) from h0 (N, P or H) and c0 (N, H).

    ``hidden`` is o * tanh(c), before the projection; ``output`` (T, N, P or H) comes after it.
    """
    x, w_ih, w_hh, h, c = as_f64(x), as_f64(w_ih), as_f64(w_hh), as_f64(h0), as_f64(c0)
    bias = bias_or_zero(b_ih, len(w_ih)) + bias_or_zero(b_hh, len(w_ih))
    steps = []
    for x_t in x:
        step = lstm_gates(x_t @ w_ih.T + h @ w_hh.T + bias, c)
        c = step["cell"]
        h = step["hidden"] if w_hr is None else step["hidden"] @ as_f64(w_hr).T
        steps.append({**step, "output": h})
    return stacked(steps)


def gru_gates(from_x: Array, from_h: Array, h: Array) -> Traces:
    """One GRU update from two (N, 3H) sums, each with its own bias; r gates only the recurrent n."""
    x_r, x_z, x_n = np.split(from_x, 3, axis=-1)
    h_r, h_z, h_n = np.split(from_h, 3, axis=-1)
    r, z = sigmoid(x_r + h_r), sigmoid(x_z + h_z)
    n = np.tanh(x_n + r * h_n)
    return {"hidden": (1.0 - z) * n + z * h, "reset": r, "update": z, "candidate": n}


def run_gru(
    x: ArrayLike,
    w_ih: ArrayLike,
    w_hh: ArrayLike,
    b_ih: ArrayLike | None,
    b_hh: ArrayLike | None,
    h0: ArrayLike,
) -> Traces:
    """One GRU layer over x (T, N, I) from h0 (N, H), in torch's convention."""
    x, w_ih, w_hh, h = as_f64(x), as_f64(w_ih), as_f64(w_hh), as_f64(h0)
    b_x, b_h = bias_or_zero(b_ih, len(w_ih)), bias_or_zero(b_hh, len(w_ih))
    steps = []
    for x_t in x:
        step = gru_gates(x_t @ w_ih.T + b_x, h @ w_hh.T + b_h, h)
        h = step["hidden"]
        steps.append({**step, "output": h})
    return stacked(steps)


def run_rnn(
    x: ArrayLike,
    w_ih: ArrayLike,
    w_hh: ArrayLike,
    b_ih: ArrayLike | None,
    b_hh: ArrayLike | None,
    h0: ArrayLike,
    nonlinearity: str = "tanh",
) -> Traces:
    """One RNN layer over x (T, N, I) from h0 (N, H); ``nonlinearity`` is "tanh" or "relu"."""
    x, w_ih, w_hh, h = as_f64(x), as_f64(w_ih), as_f64(w_hh), as_f64(h0)
    bias = bias_or_zero(b_ih, len(w_ih)) + bias_or_zero(b_hh, len(w_ih))
    steps = []
    for x_t in x:
        h = activate(x_t @ w_ih.T + h @ w_hh.T + bias, nonlinearity)
        steps.append({"hidden": h, "output": h})
    return stacked(steps)


# --- every cell alone ---------------------------------------------------------------------------------------


def frozen_input(row: Array, own: int, h_mean: Array) -> float:
    """What all the other cells add to one gate of cell ``own`` when they stand still at their mean."""
    return math.fsum(float(row[j]) * float(h_mean[j]) for j in range(len(row)) if j != own)


def lone_lstm(from_x: Array, own: Array, frozen: Array, h: Array, c: Array) -> Traces:
    """One LSTM cell; from_x (T, N, 4) with both biases, own and frozen (4,), h and c (N,)."""
    steps = []
    for x_t in from_x:
        step = lstm_gates(x_t + h[:, None] * own + frozen, c[:, None])
        h, c = step["hidden"][:, 0], step["cell"][:, 0]
        steps.append({name: value[:, 0] for name, value in step.items()})
    return stacked(steps)


def lone_gru(from_x: Array, own: Array, frozen: Array, h: Array) -> Traces:
    """One GRU cell; from_x (T, N, 3) with b_ih, own (3,), frozen (3,) with b_hh, h (N,)."""
    steps = []
    for x_t in from_x:
        step = gru_gates(x_t, h[:, None] * own + frozen, h[:, None])
        h = step["hidden"][:, 0]
        steps.append({name: value[:, 0] for name, value in step.items()})
    return stacked(steps)


def lone_rnn(from_x: Array, own: Array, frozen: Array, h: Array, nonlinearity: str) -> Traces:
    """One RNN cell; from_x (T, N, 1) with both biases, own and frozen (1,), h (N,)."""
    steps = []
    for x_t in from_x:
        h = activate(x_t[:, 0] + h * own[0] + frozen[0], nonlinearity)
        steps.append({"hidden": h})
    return stacked(steps)


def run_alone(  # noqa: PLR0913 - what a layer consists of
    kind: str,
    x: ArrayLike,
    w_ih: ArrayLike,
    w_hh: ArrayLike,
    b_ih: ArrayLike | None,
    b_hh: ArrayLike | None,
    h_mean: ArrayLike,
    w_hr: ArrayLike | None = None,
    state0: tuple[ArrayLike, ArrayLike | None] | None = None,
) -> Traces:
    """Every cell alone: its own recurrence kept, that of all others frozen at ``h_mean``.

    Args:
        kind: "lstm", "gru", "rnn_tanh" or "rnn_relu", in either case.
        x: inputs (T, N, I).
        w_ih: (G * H, I).
        w_hh: (G * H, H), or (G * H, P) with ``w_hr``.
        b_ih: (G * H,) or None.
        b_hh: (G * H,) or None.
        h_mean: mean of the units before the projection (H,); zeros cut the cross-recurrence.
        w_hr: (P, H): the recurrent matrix is then w_hh @ w_hr, acting on the units before the projection.
        state0: h (N, H) before the projection and, for an LSTM, c (N, H); zeros by default.

    Returns:
        The gates and states of ``run_lstm``, ``run_gru`` or ``run_rnn`` but ``output``, each (T, N, H).
    """
    kind, x, w_ih, h_mean = kind.lower(), as_f64(x), as_f64(w_ih), as_f64(h_mean)
    recurrent = as_f64(w_hh) if w_hr is None else as_f64(w_hh) @ as_f64(w_hr)
    n, size = x.shape[1], len(h_mean)
    b_x, b_h = bias_or_zero(b_ih, len(w_ih)), bias_or_zero(b_hh, len(w_ih))
    h0 = np.zeros((n, size)) if state0 is None else as_f64(state0[0])
    c0 = np.zeros((n, size)) if state0 is None or state0[1] is None else as_f64(state0[1])
    cells = []
    for i in range(size):
        rows = range(i, len(w_ih), size)  # this cell's row of every gate
        own = np.array([recurrent[row, i] for row in rows])
        frozen = np.array([frozen_input(recurrent[row], i, h_mean) + b_h[row] for row in rows])
        from_x = np.stack([x @ w_ih[row] + b_x[row] for row in rows], axis=-1)
        if kind == "lstm":
            cells.append(lone_lstm(from_x, own, frozen, h0[:, i], c0[:, i]))
        elif kind == "gru":
            cells.append(lone_gru(from_x, own, frozen, h0[:, i]))
        else:
            cells.append(lone_rnn(from_x, own, frozen, h0[:, i], kind.removeprefix("rnn_")))
    return {name: np.stack([cell[name] for cell in cells], axis=-1) for name in cells[0]}


# --- step metrics of one response ---------------------------------------------------------------------------


def mean(values: Sequence[float]) -> float:
    """The exactly rounded mean; NaN where a value is NaN or infinite."""
    return math.fsum(values) / len(values) if all(map(math.isfinite, values)) else math.nan


def tail_length(horizon: int) -> int:
    """L: the samples that the final value is the mean of."""
    return max(4, horizon // 8)


def first_peak(y: Sequence[float], y0: float) -> tuple[float, int]:
    """The largest abs(y - y0) and the first index that reaches it."""
    peak, index = -1.0, 0
    for t, value in enumerate(y):
        if abs(value - y0) > peak:
            peak, index = abs(value - y0), t
    return peak, index


def steps_outside(y: Sequence[float], final: float, band: float) -> int:
    """Steps through the last sample outside the band around final: 0 if none is outside."""
    count = 0
    for t, value in enumerate(y):
        if abs(value - final) > band:
            count = t + 1
    return count


def first_reach(y: Sequence[float], y0: float, delta: float, fraction: float) -> float:
    """The first index at which y has gone ``fraction`` of the way from y0 to y0 + delta; NaN if never."""
    sign = 1.0 if delta > 0 else -1.0
    for t, value in enumerate(y):
        if sign * (value - y0) >= fraction * abs(delta):
            return float(t)
    return math.nan


def overshoot_of(y: Sequence[float], final: float, delta: float) -> float:
    """The furthest that y goes beyond final, as a fraction of abs(delta), at least 0."""
    sign = 1.0 if delta > 0 else -1.0
    beyond = 0.0
    for value in y:
        beyond = max(beyond, sign * (value - final))
    return beyond / abs(delta)


def settling_reason(y: Sequence[float], y0: float, slack: float) -> str:
    """Why the settling time is undefined, '' if it is not; ``slack`` moves every threshold by its share."""
    horizon, length, nudge = len(y), tail_length(len(y)), 1.0 + slack
    if not all(math.isfinite(value) for value in [*y, y0]):
        return "nonfinite"
    if horizon < 8:
        return "too_short"
    last, before = y[horizon - length :], y[horizon - 2 * length : horizon - length]
    final, peak, band = mean(last), first_peak(y, y0)[0], band_of(y, y0, slack)
    if peak < SILENT * nudge:
        return "silent"
    if abs(final - mean(before)) > DRIFT * band * nudge:
        return "drifting"
    if max(last) - min(last) > OSCILLATION * band * nudge:
        return "oscillating"
    return "outside" if abs(y[-1] - final) > band else ""


def is_washout(y: Sequence[float], y0: float, slack: float = 0.0) -> bool:
    """Whether the response moved and came back: abs(delta) under a tenth of the peak, and not silent."""
    delta, peak = mean(y[max(0, len(y) - tail_length(len(y))) :]) - y0, first_peak(y, y0)[0]
    return not peak < SILENT * (1.0 + slack) and abs(delta) < WASHOUT * peak * (1.0 + slack)


def band_of(y: Sequence[float], y0: float, slack: float = 0.0) -> float:
    """A tenth of abs(delta), of the peak when washout."""
    delta, peak = mean(y[max(0, len(y) - tail_length(len(y))) :]) - y0, first_peak(y, y0)[0]
    return BAND * (1.0 + slack) * (peak if is_washout(y, y0, slack) else abs(delta))


def step_metrics(y: ArrayLike, y0: float | None = None, slack: float = 0.0) -> dict[str, float | str]:
    """Every step metric of one response (T,), and why its settling time is NaN.

    ``reason`` is that of the settling time, the first that holds of 'nonfinite', 'too_short', 'silent',
    'drifting', 'oscillating' and 'outside', '' where none does; or 'washout' where the settling time is
    defined but rise time and overshoot are not. ``slack`` moves all thresholds by that share: a response
    whose discrete metrics differ between slack=-1e-7 and 1e-7 is too near a threshold to compare.
    """
    values = [float(v) for v in np.asarray(y, dtype=np.float64)]
    start = values[0] if y0 is None else float(y0)
    final = mean(values[max(0, len(values) - tail_length(len(values))) :])
    delta, (peak, peak_index) = final - start, first_peak(values, start)
    reason, band = settling_reason(values, start, slack), band_of(values, start, slack)
    silent, finite = peak < SILENT * (1.0 + slack), reason != "nonfinite"
    settled = reason == ""
    if settled and is_washout(values, start, slack):
        reason = "washout"
    shaped = reason == ""
    low, high = (first_reach(values, start, delta, part * (1.0 + slack)) for part in (0.1, 0.9))
    return {
        "initial_response": start,
        "final_response": final,
        "delta_response": delta,
        "peak_response": peak if finite else math.nan,
        "peak_time": float(peak_index) if finite and not silent else math.nan,
        "rise_time": high - low if shaped else math.nan,
        "settling_time": float(steps_outside(values, final, band)) if settled else math.nan,
        "overshoot": overshoot_of(values, final, delta) if shaped else math.nan,
        "reason": reason,
    }


# --- sine metrics of one response ---------------------------------------------------------------------------


def whole_periods(samples: int, f: float) -> int:
    """The samples in the largest whole number of periods that fits."""
    return round(math.floor(samples * f + 1e-9) / f)


def harmonics(f: float) -> list[int]:
    """The orders 2, 3, ... whose frequency stays below 0.5."""
    orders: list[int] = []
    while (len(orders) + 2) * f < 0.5 - 1e-9:
        orders.append(len(orders) + 2)
    return orders


def fit_sines(y: Array, first: int, f: float, orders: list[int]) -> list[tuple[float, float]]:
    """Least squares of an offset and a * sin + b * cos of every order, t from ``first``: (a, b) each."""
    rows = []
    for t in range(first, first + len(y)):
        angles = [2.0 * math.pi * f * k * t for k in orders]
        rows.append([1.0, *(part(angle) for angle in angles for part in (math.sin, math.cos))])
    coefficients = np.linalg.lstsq(np.array(rows), y, rcond=None)[0]
    return [(float(a), float(b)) for a, b in zip(coefficients[1::2], coefficients[2::2], strict=True)]


def correlation_of(a: Sequence[float], b: Sequence[float]) -> float:
    """Pearson's correlation by loops; NaN if either hardly moves (standard deviation under 1e-6)."""
    a_mean, b_mean = mean(a), mean(b)
    a_std = math.sqrt(mean([(v - a_mean) ** 2 for v in a]))
    b_std = math.sqrt(mean([(v - b_mean) ** 2 for v in b]))
    if a_std < 1e-6 or b_std < 1e-6:
        return math.nan
    return mean([(u - a_mean) * (v - b_mean) for u, v in zip(a, b, strict=True)]) / (a_std * b_std)


def sine_metrics(y: ArrayLike, f: float, transient: int | None = None) -> dict[str, float]:
    """Amplitude, phase lag, harmonic distortion and correlation of one response (T,) to sin(2 pi f t)."""
    values = np.asarray(y, dtype=np.float64)
    first = len(values) // 2 if transient is None else transient
    window = values[first : first + whole_periods(len(values) - first, f)]
    orders = harmonics(f)
    (a, b), *others = fit_sines(window, first, f, [1, *orders])
    amplitude = math.hypot(a, b)
    audible = amplitude >= SILENT
    lag = -math.atan2(b, a)  # A sin(wt - lag) = A cos(lag) sin(wt) - A sin(lag) cos(wt)
    power = math.fsum(u * u + v * v for u, v in others)
    sine = [math.sin(2.0 * math.pi * f * t) for t in range(first, first + len(window))]
    return {
        "amplitude": amplitude,
        "phase_lag": (math.pi if lag == -math.pi else lag) if audible else math.nan,
        "harmonic_distortion": math.sqrt(power) / amplitude if audible and orders else math.nan,
        "correlation": correlation_of([float(v) for v in window], sine),
    }


def cutoff_frequency(gains: ArrayLike, freqs: ArrayLike) -> float:
    """Where the gain first falls under gain[lowest] / sqrt(2), linear over log f; NaN if it never does."""
    points = sorted(zip(np.asarray(freqs, dtype=float), np.asarray(gains, dtype=float), strict=True))
    level = points[0][1] / math.sqrt(2.0)
    for (f_a, g_a), (f_b, g_b) in itertools.pairwise(points):
        if g_a >= level > g_b:
            share = (g_a - level) / (g_a - g_b)
            return float(math.exp(math.log(f_a) + share * (math.log(f_b) - math.log(f_a))))
    return math.nan


# --- activity, drift, ranking -------------------------------------------------------------------------------


def autocorrelation_time(sequences: Sequence[ArrayLike]) -> float:
    """The first lag with one cell's pooled autocorrelation under 1/e; NaN if never, or if it is still."""
    rows = [[float(v) for v in np.asarray(row, dtype=np.float64)] for row in sequences]
    pooled = [value for row in rows for value in row]
    centre = mean(pooled)
    variance = mean([(value - centre) ** 2 for value in pooled])
    for lag in range(1, max(len(row) for row in rows)):
        pairs = [(row[t], row[t + lag]) for row in rows for t in range(len(row) - lag)]
        products = [(a - centre) * (b - centre) for a, b in pairs]
        if variance > 0 and mean(products) / variance < 1.0 / math.e:
            return float(lag)
    return math.nan


def quantile_at(ordered: Sequence[float], level: float) -> float:
    """The value of the empirical quantile function just above ``level``, which lies in [0, 1)."""
    return ordered[min(len(ordered) - 1, math.floor(level * len(ordered)))]


def wasserstein(a: ArrayLike, b: ArrayLike) -> float:
    """The Wasserstein-1 distance: abs difference of the two quantile functions, integrated over (0, 1)."""
    x, y = (sorted(float(v) for v in np.asarray(s, dtype=np.float64).ravel()) for s in (a, b))
    levels = sorted({i / len(x) for i in range(len(x) + 1)} | {j / len(y) for j in range(len(y) + 1)})
    pieces = []
    for low, high in itertools.pairwise(levels):
        middle = 0.5 * (low + high)
        pieces.append((high - low) * abs(quantile_at(x, middle) - quantile_at(y, middle)))
    return math.fsum(pieces)


def kendall_tau_b(a: ArrayLike, b: ArrayLike) -> float:
    """Kendall's tau-b over all pairs; NaN if either side is constant."""
    x, y = (np.asarray(s, dtype=np.float64) for s in (a, b))
    balance, untied_x, untied_y = 0, 0, 0
    for i in range(len(x)):
        for j in range(i):
            s_x, s_y = int(np.sign(x[i] - x[j])), int(np.sign(y[i] - y[j]))
            balance += s_x * s_y
            untied_x += abs(s_x)
            untied_y += abs(s_y)
    return balance / math.sqrt(untied_x * untied_y) if untied_x and untied_y else math.nan


def top_overlap(a: ArrayLike, b: ArrayLike, k: int) -> float:
    """The share of the k highest of ``a`` among the k highest of ``b``; NaN comes last, ties by index."""

    def top(scores: ArrayLike) -> set[int]:
        values = [float(v) for v in np.asarray(scores, dtype=np.float64)]
        keys = [(math.isnan(v), 0.0 if math.isnan(v) else -v, i) for i, v in enumerate(values)]
        return {i for _, _, i in sorted(keys)[:k]}

    return len(top(a) & top(b)) / k
