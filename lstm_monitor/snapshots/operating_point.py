"""What a layer receives on average, the point at which it is probed; and random sequences around it."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from lstm_monitor.core.records import OperatingPoint, Sequences
from lstm_monitor.core.weights import CellWeights, LayerWeights


def operating_point(sequences: Sequences) -> OperatingPoint:
    """Mean ``(I,)`` and covariance ``(I, I)`` over the steps that count."""
    steps: list[int] = sequences.mask.sum(1).tolist()
    if sum(steps) == 0:
        raise ValueError("mask (from mask= or lengths=) leaves no step of the held-out data to count")
    samples = _that_count(sequences.inputs, sequences.mask, whole=sum(steps) == sequences.mask.numel())
    mean = samples.mean(0)
    centred = samples - mean
    return OperatingPoint(mean, centred.T @ centred / len(samples), max(steps), "held_out")


def default_point(weights: LayerWeights | CellWeights) -> OperatingPoint:
    """Zero mean and unit scale, where no held-out data are known."""
    size, like = weights.input_size, weights.like
    return OperatingPoint(like.new_zeros(size), torch.eye(size, dtype=like.dtype, device=like.device), None, "default")


def held_out_mean(hidden: Tensor, held_out: Sequences | None) -> Tensor:
    """The mean ``(H,)`` of ``hidden (T, N, H)`` over the held-out steps that count."""
    assert held_out is not None
    return _that_count(hidden.transpose(0, 1), held_out.mask, whole=bool(held_out.mask.all())).mean(0)


def _that_count(values: Tensor, mask: Tensor, *, whole: bool) -> Tensor:
    """``(M, size)``: the steps of ``values (N, T, size)`` that count, which may be the `whole` of them."""
    return values.flatten(0, 1) if whole else values[mask]


LEAST_HORIZON = 64


def random_bank(point: OperatingPoint, *, count: int = 48, steps: int | None = None, seed: int = 0) -> Sequences:
    """Random sequences with the operating point's mean and covariance: noise, sines and steps, a third each.

    Sines have a random direction, frequency and phase; steps a random direction and time. Drawn on the CPU from a
    generator of their own, so no global random state moves.

    Args:
        point: mean and covariance of the layer's inputs.
        count: number of sequences N.
        steps: T, by default the task's length, at least 64 without data, at most 256.
        seed: of the generator.

    Raises:
        ValueError: `count` or `steps` is under 1.
    """
    for name, number in (("count", count), ("steps", steps)):
        if number is not None and number < 1:
            raise ValueError(f"{name}={number} is under 1; a bank has at least one sequence of at least one step")
    length = min(steps or point.length or LEAST_HORIZON, 256)
    generator = torch.Generator("cpu").manual_seed(seed)
    size = point.mean.shape[0]
    third = count // 3
    time = torch.arange(length, dtype=torch.float64, device="cpu")
    drawn: dict[str, Any] = {"generator": generator, "dtype": torch.float64, "device": "cpu"}
    noise = torch.randn(count - 2 * third, length, size, **drawn)
    frequency = 0.5 ** (1 + 5 * _uniform(third, generator))
    phase = 2 * math.pi * _uniform(third, generator)
    sines = math.sqrt(2) * torch.sin(2 * math.pi * frequency * time + phase)
    starts = (length * _uniform(third, generator)).floor()
    steps_ = torch.where(time >= starts, 1.0, -1.0)
    one_way = torch.cat([sines, steps_])[..., None] * torch.randn(2 * third, 1, size, **drawn)
    mean, covariance = point.mean.cpu(), point.covariance.cpu()
    inputs = (mean + torch.cat([noise, one_way]).to(mean) @ _square_root(covariance)).to(point.mean)
    return Sequences(inputs, torch.ones_like(inputs[..., 0], dtype=torch.bool), source="random_bank")


def _uniform(count: int, generator: torch.Generator) -> Tensor:
    return torch.rand(count, 1, generator=generator, dtype=torch.float64, device="cpu")


def _square_root(covariance: Tensor) -> Tensor:
    values, columns = torch.linalg.eigh(covariance)
    return (columns * values.clamp(min=0).sqrt()) @ columns.T
