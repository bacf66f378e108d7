"""Stimuli: steps and sines around a layer's operating point."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lstm_monitor.core.records import OperatingPoint, Snapshot, Stimulus
from lstm_monitor.core.weights import CellWeights, LayerWeights
from lstm_monitor.metrics.sine import check_frequency
from lstm_monitor.snapshots.operating_point import LEAST_HORIZON

PERIODS = (64, 32, 16, 8, 4)
MAX_FEATURES = 5


def step(direction: Tensor, *, steps: int = 200, amplitude: float = 1.0, name: str = "step") -> Stimulus:
    """A step at t = 0 from the operating point: ``mean + amplitude * direction`` for `steps` steps.

    Args:
        direction: (I,) change of each feature at amplitude 1, its scale included.
        steps: the horizon T.
        amplitude: factor of `direction`, may be negative.
        name: label in tables and pictures.

    Raises:
        TypeError: `direction` is no floating-point tensor.
        ValueError: `direction` is not 1-D, or `steps` is under 8, too few for any metric.
    """
    _check_direction(direction)
    if steps < 8:
        raise ValueError(f"steps={steps} is too short a horizon for a step response; allowed: 8 and more")
    return Stimulus(name, "step", direction.new_full((steps,), amplitude), direction)


def sinusoid(
    direction: Tensor, frequency: float, *, steps: int = 256, amplitude: float = 1.0, name: str | None = None
) -> Stimulus:
    """A sine around the operating point: ``mean + amplitude * direction * sin(2 pi frequency t)``.

    Args:
        direction: (I,) change of each feature at amplitude 1, its scale included.
        frequency: cycles per step, 0 < frequency < 0.5.
        steps: the horizon T; its second half must hold one whole period.
        amplitude: factor of `direction`.
        name: label in tables and pictures.

    Raises:
        TypeError: `direction` is no floating-point tensor.
        ValueError: `direction` is not 1-D, `frequency` outside its range, or a horizon too short for a period.
    """
    _check_direction(direction)
    check_frequency(frequency)
    period = math.ceil(1 / frequency - 1e-9)  # 1 / (1 / 49) is a little over 49
    if steps - steps // 2 < period:
        raise ValueError(
            f"steps={steps} is too short a horizon for a period of {1 / frequency:g} steps: its second half must hold "
            f"one; give steps={2 * period} or more, or a higher frequency"
        )
    t = torch.arange(steps, dtype=torch.float64, device="cpu")  # some GPUs know no float64
    signal = amplitude * torch.sin(2 * math.pi * frequency * t)
    return Stimulus(name or f"period {1 / frequency:g}", "sine", signal.to(direction), direction, frequency)


def _check_direction(direction: Tensor) -> None:
    wanted = "give a float tensor of shape (I,): the change of each feature"
    if not isinstance(direction, Tensor) or not direction.is_floating_point():
        kind = f"{direction.dtype}" if isinstance(direction, Tensor) else type(direction).__name__
        raise TypeError(f"direction={kind} is no floating-point tensor; {wanted}")
    if direction.dim() != 1:
        raise ValueError(f"direction has shape {tuple(direction.shape)}; {wanted}")


def default_stimuli(snapshot: Snapshot, steps: int | None = None) -> tuple[Stimulus, ...]:
    """About 16 stimuli: steps of both signs in up to 5 directions, and sines of five periods in the principal one.

    Up to 5 features are stepped one at a time; beyond that the first 5 principal directions of the held-out inputs,
    without data the first right singular vectors of ``W_ih`` (of a registered cell the first 5 features). The amplitude
    is one standard deviation.

    Args:
        snapshot: the layer, with its operating point.
        steps: the horizon of the steps, by default the task's length, at least 64. Sines run at least 128 steps.

    Raises:
        ValueError: `steps` is under 8.
    """
    horizon = default_horizon(snapshot.point) if steps is None else steps
    names = ("+", 1.0), ("-", -1.0)
    steps_ = [
        step(direction, steps=horizon, amplitude=sign, name=f"{name} {mark}1 sd")
        for name, direction in directions(snapshot)
        for mark, sign in names
    ]
    _, main = _principal(snapshot, 1)[0]
    sine_steps = max(horizon, 2 * max(PERIODS))
    return (*steps_, *(sinusoid(main, 1 / period, steps=sine_steps) for period in PERIODS))


def default_horizon(point: OperatingPoint) -> int:
    """The task's length, at least 64, at most 1,024 steps."""
    return min(max(LEAST_HORIZON, point.length or 0), 1024)


def directions(snapshot: Snapshot, most: int = MAX_FEATURES) -> list[tuple[str, Tensor]]:
    """Named directions ``(I,)`` of one standard deviation each: single features if there are at most `most`.

    Features that never move in the held-out data are left out, unless none moves.
    """
    point = snapshot.point
    size = point.mean.shape[0]
    if size > most:
        return _principal(snapshot, most)
    scale = _spread(point)
    if not bool(scale.any()):
        scale = torch.ones_like(scale)
    return [(f"feature {j}", torch.diag(scale)[j]) for j in range(size) if scale[j] > 0]


def _principal(snapshot: Snapshot, count: int) -> list[tuple[str, Tensor]]:
    point = snapshot.point
    weights = snapshot.weights
    if point.source == "default" and isinstance(weights, CellWeights):
        return [(f"feature {k}", row) for k, row in enumerate(torch.diag(torch.ones_like(point.mean))[:count])]
    if point.source == "default" and isinstance(weights, LayerWeights):
        vectors = torch.linalg.svd(weights.weight_ih, full_matrices=False).Vh[:count]
        return [(f"singular direction {k + 1}", _signed(v)) for k, v in enumerate(vectors)]
    values, columns = torch.linalg.eigh(point.covariance)
    order = values.argsort(descending=True)[:count]
    scales = values[order].clamp(min=0).sqrt()
    if not bool(_spread(point).any()):
        scales = torch.ones_like(scales)
    least = math.sqrt(len(values) * torch.finfo(values.dtype).eps) * scales[0]  # below it an eigenvalue is rounding
    named = [(f"principal direction {k + 1}", scales[k] * _signed(columns[:, i])) for k, i in enumerate(order)]
    return [item for k, item in enumerate(named) if scales[k] > least]


def _spread(point: OperatingPoint) -> Tensor:
    """The standard deviation ``(I,)`` of each feature, zero where it is no more than the mean's rounding."""
    scale = point.covariance.diagonal().clamp(min=0).sqrt()
    rounding = 16 * torch.finfo(scale.dtype).eps * point.mean.abs()
    return torch.where(scale > rounding.clamp(min=1e-9), scale, torch.zeros_like(scale))


def _signed(vector: Tensor) -> Tensor:
    """The vector with its largest component positive: the sign of an eigenvector is arbitrary."""
    return vector * torch.sign(vector[vector.abs().argmax()])
