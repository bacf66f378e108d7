"""What one writes first to characterize cells: a plain loop over cells, and a plain callback. Slow, and independent.

The loops are as they come to mind: every cell, stimulus and step by itself in numpy; a deep copy of the model, its
LSTM called once a stimulus, an ``nn.LSTM(1, 1)`` for each cell alone, and every metric by a Python loop over samples.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

Array = NDArray[np.float32]


def sigmoid(z: Any) -> Any:
    """The logistic function of one number."""
    return 1 / (1 + np.exp(-z))


def run_cells(own: Array, bias: Array, drive: Array, signals: Array, ways: Sequence[int]) -> Array:
    """``hidden (T, S, H)`` of LSTM cells alone: loops over cells, stimuli and steps.

    ``own (4, H)``, ``bias (4, H)``, ``drive (D, 4, H)``, ``signals (T, S)`` along directions `ways`.
    """
    steps, stimuli = signals.shape
    hidden = np.zeros((steps, stimuli, own.shape[1]), np.float32)
    for k in range(own.shape[1]):
        for s in range(stimuli):
            h = c = np.float32(0)
            for t in range(steps):
                z = bias[:, k] + signals[t, s] * drive[ways[s], :, k] + own[:, k] * h
                c = sigmoid(z[1]) * c + sigmoid(z[0]) * np.tanh(z[2])
                h = sigmoid(z[3]) * np.tanh(c)
                hidden[t, s, k] = h
    return hidden


def step_metrics(y: Sequence[float], rest: float) -> dict[str, float]:
    """The metrics of one step response, sample by sample."""
    tail = max(4, len(y) // 8)
    final = sum(y[-tail:]) / tail
    before = sum(y[-2 * tail : -tail]) / tail
    delta, peak = final - rest, max(abs(v - rest) for v in y)
    size = peak if abs(delta) < 0.1 * peak else abs(delta)
    outside = [t for t, v in enumerate(y) if abs(v - final) > 0.1 * size]
    up = 1 if delta > 0 else -1
    reach = [
        next((t for t, v in enumerate(y) if up * (v - rest) >= share * abs(delta)), len(y)) for share in (0.1, 0.9)
    ]
    beyond = max(0.0, max(up * (v - final) for v in y))
    return {
        "delta": delta,
        "peak": peak,
        "peak_time": next(t for t, v in enumerate(y) if abs(v - rest) == peak),
        "settling_time": math.nan if abs(final - before) > 0.025 * size else (outside[-1] + 1 if outside else 0),
        "rise_time": reach[1] - reach[0],
        "overshoot": beyond / abs(delta) if delta else math.nan,
    }


def sine_metrics(y: Sequence[float], frequency: float) -> dict[str, float]:
    """The metrics of one sine response: a fit by least squares, a periodogram, a correlation."""
    start = len(y) // 2
    part, time = np.asarray(y[start:]), np.arange(start, len(y))
    orders = range(1, max(2, math.ceil(0.5 / frequency - 1e-9)))
    waves = [wave(2 * np.pi * frequency * k * time) for k in orders for wave in (np.sin, np.cos)]
    fit, *_ = np.linalg.lstsq(np.stack([np.ones(len(time)), *waves], axis=1), part, rcond=None)
    power = [math.hypot(fit[k], fit[k + 1]) for k in range(1, len(fit), 2)]
    spectrum = np.abs(np.fft.rfft(part - part.mean()))
    return {
        "amplitude": power[0],
        "phase_lag": -math.atan2(fit[2], fit[1]),
        "harmonic_distortion": math.sqrt(sum(p * p for p in power[1:])) / max(power[0], 1e-12),
        "correlation": float(np.corrcoef(part, waves[0])[0, 1]) if part.std() > 0 else math.nan,
        "dominant_frequency": float(spectrum[1:].argmax() + 1) / len(part),
    }


def characterize(model: nn.Module, held_out: torch.Tensor, steps: int, sine_steps: int) -> dict[str, list[Any]]:
    """Both responses of every cell of ``model.rnn``, all their metrics, held-out statistics and the same ranking."""
    network = copy.deepcopy(model).eval()
    rnn: nn.LSTM = network.rnn  # type: ignore[assignment]
    found: dict[str, list[Any]] = {"responses": []}
    with torch.no_grad():
        for signal, frequency in _signals(rnn.input_size, steps, sine_steps):
            coupled = rnn(signal[None])[0][0].T.tolist()
            for hidden in (coupled, [_alone(rnn, k, signal) for k in range(rnn.hidden_size)]):
                measured = [step_metrics(y, 0.0) if frequency is None else sine_metrics(y, frequency) for y in hidden]
                found["responses"].append(measured)
    states, opened = unrolled(rnn, held_out)
    hidden, gates = torch.stack(states, 1), torch.stack(opened, 1)
    found["activity"] = [activity_metrics(hidden[:, :, k].detach().numpy()) for k in range(rnn.hidden_size)]
    found["saturation"] = [float(((gate < 0.05) | (gate > 0.95)).float().mean()) for gate in gates.unbind(-1)]
    found["ranking"] = sensitivity(network, held_out)
    return found


def unrolled(rnn: nn.LSTM, inputs: torch.Tensor) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Step by step: the hidden states, each ``(N, H)``, and the gates, ``(N, 4 H)``."""
    h = c = torch.zeros(len(inputs), rnn.hidden_size)
    states, gates = [], []
    for x in inputs.unbind(1):
        z = x @ rnn.get_parameter("weight_ih_l0").T + rnn.get_parameter("bias_ih_l0")
        i, f, g, o = (z + h @ rnn.get_parameter("weight_hh_l0").T + rnn.get_parameter("bias_hh_l0")).chunk(4, -1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        states.append(h)
        gates.append(torch.cat([i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()], -1))
    return states, gates


def activity_metrics(y: Array) -> dict[str, float]:
    """One cell on the held-out sequences ``(N, T)``: spread, size, and how long it stays like itself."""
    centred = y - y.mean()
    lags = [float((centred[:, : y.shape[1] - lag] * centred[:, lag:]).mean()) for lag in range(y.shape[1])]
    time = next((lag for lag, value in enumerate(lags) if value < lags[0] / math.e), math.nan)
    return {"std": float(y.std()), "rms": float(np.sqrt((y * y).mean())), "autocorrelation_time": time}


def sensitivity(network: nn.Module, inputs: torch.Tensor, vectors: int = 8) -> list[float]:
    """The centred output sensitivity of every cell, by autograd through the unrolled layer."""
    rnn: nn.LSTM = network.rnn  # type: ignore[assignment]
    head: nn.Linear = network.head  # type: ignore[assignment]
    generator, squares = torch.Generator().manual_seed(0), []
    for _ in range(vectors):
        states, _ = unrolled(rnn, inputs)
        for state in states:
            state.retain_grad()
        output = head(states[-1])
        signs = torch.randint(0, 2, output.shape, generator=generator) * 2.0 - 1
        (output * signs).sum().backward()
        moved = torch.stack([state.detach() for state in states])
        slopes = torch.stack([state.grad for state in states if state.grad is not None])
        squares.append((((moved - moved.mean(1, keepdim=True)) * slopes).sum(0) ** 2).mean(0))
    return [float(value) for value in torch.stack(squares).mean(0).sqrt()]


def _signals(features: int, steps: int, sine_steps: int) -> list[tuple[torch.Tensor, float | None]]:
    """Steps of both signs along five features and sines of five periods, as inputs ``(T, I)``."""
    made: list[tuple[torch.Tensor, float | None]] = []
    for feature in range(5):
        for sign in (1.0, -1.0):
            inputs = torch.zeros(steps, features)
            inputs[:, feature] = sign
            made.append((inputs, None))
    for period in (64, 32, 16, 8, 4):
        inputs = torch.zeros(sine_steps, features)
        inputs[:, 0] = torch.sin(2 * math.pi * torch.arange(sine_steps) / period)
        made.append((inputs, 1 / period))
    return made


def _alone(rnn: nn.LSTM, cell: int, inputs: torch.Tensor) -> list[float]:
    """The response of a cell by itself: an LSTM of one cell."""
    rows = [cell + gate * rnn.hidden_size for gate in range(4)]
    single = nn.LSTM(rnn.input_size, 1, batch_first=True)
    single.get_parameter("weight_ih_l0").copy_(rnn.get_parameter("weight_ih_l0")[rows])
    single.get_parameter("weight_hh_l0").copy_(rnn.get_parameter("weight_hh_l0")[rows][:, [cell]])
    single.get_parameter("bias_ih_l0").copy_(rnn.get_parameter("bias_ih_l0")[rows])
    single.get_parameter("bias_hh_l0").copy_(rnn.get_parameter("bias_hh_l0")[rows])
    values: list[float] = single(inputs[None])[0][0, :, 0].tolist()
    return values
