"""Stimuli: their values, their directions, and a random bank with the operating point's statistics."""

from __future__ import annotations

import math
import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lstm_monitor import OperatingPoint, Snapshot, default_stimuli, random_bank, sinusoid, snapshot, step
from lstm_monitor.responses.stimuli import directions

DIRECTION = torch.tensor([0.5, -2.0])


def point(covariance: Tensor, mean: Tensor | None = None, length: int | None = 40) -> OperatingPoint:
    mean = torch.zeros(len(covariance), dtype=covariance.dtype) if mean is None else mean
    return OperatingPoint(mean, covariance, length, "held_out")


def snap_on(held_out: Tensor | None, features: int) -> Snapshot:
    torch.manual_seed(0)
    return snapshot(nn.LSTM(features, 4, batch_first=True), held_out, max_steps=4096)[0]


def mixed(features: int, scales: list[float], dtype: torch.dtype = torch.float32) -> Tensor:
    """Held-out inputs (N, T, I) with a known spectrum, away from zero."""
    rng = np.random.default_rng(1)
    rotation, _ = np.linalg.qr(rng.normal(size=(features, features)))
    data = rng.normal(size=(50, 40, len(scales))) * scales @ rotation[: len(scales)] + 3.0
    return torch.tensor(data, dtype=dtype)


@pytest.mark.parametrize("amplitude", [1.0, -0.5])
def test_a_step_is_constant_from_its_first_sample(amplitude: float) -> None:
    stimulus = step(DIRECTION, steps=20, amplitude=amplitude, name="up")
    assert torch.equal(stimulus.signal, torch.full((20,), amplitude))
    assert (stimulus.name, stimulus.kind, stimulus.frequency) == ("up", "step", None)
    assert stimulus.direction is DIRECTION


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("frequency", "steps"), [(1 / 16, 32), (0.21, 101), (0.499, 64)])
def test_a_sine_is_a_sine(frequency: float, steps: int, dtype: torch.dtype) -> None:
    stimulus = sinusoid(DIRECTION.to(dtype), frequency, steps=steps, amplitude=3.0)
    expected = [3.0 * math.sin(2 * math.pi * frequency * t) for t in range(steps)]
    np.testing.assert_allclose(stimulus.signal.numpy(), expected, atol=3e-7 if dtype == torch.float32 else 1e-13)
    assert (stimulus.kind, stimulus.frequency) == ("sine", frequency)
    assert stimulus.signal.dtype == dtype


def test_a_sine_is_named_by_its_period() -> None:
    assert sinusoid(DIRECTION, 1 / 8).name == "period 8"


@pytest.mark.parametrize("frequency", [0.0, 0.5, -0.1, 1.0, math.inf, math.nan])
def test_a_frequency_outside_its_range_is_an_error(frequency: float) -> None:
    with pytest.raises(ValueError, match=r"frequency=.* is outside 0 < frequency < 0\.5"):
        sinusoid(DIRECTION, frequency)


@pytest.mark.parametrize("steps", [0, 7])
def test_a_horizon_too_short_for_a_step(steps: int) -> None:
    with pytest.raises(ValueError, match=f"steps={steps} is too short a horizon"):
        step(DIRECTION, steps=steps)


@pytest.mark.parametrize("period", [3, 16, 49, 93, 98, 103, 512])
def test_the_second_half_of_a_sine_holds_one_period(period: int) -> None:
    assert len(sinusoid(DIRECTION, 1 / period, steps=2 * period).signal) == 2 * period
    with pytest.raises(ValueError, match=f"a period of {period} steps.*give steps={2 * period} or more"):
        sinusoid(DIRECTION, 1 / period, steps=2 * period - 2)


@pytest.mark.parametrize("frequency", [0.03, 0.21, 1 / 49, 0.4999])
def test_the_error_hands_over_a_horizon_that_works(frequency: float) -> None:
    with pytest.raises(ValueError, match="too short") as error:
        sinusoid(DIRECTION, frequency, steps=2)
    given = int(str(error.value).split("give steps=")[1].split()[0])
    assert sinusoid(DIRECTION, frequency, steps=given).signal.shape == (given,)


def test_few_features_are_stepped_one_at_a_time_with_their_scale() -> None:
    data = mixed(3, [2.0, 1.0, 0.1])
    named = directions(snap_on(data, 3))
    assert [name for name, _ in named] == ["feature 0", "feature 1", "feature 2"]
    expected = np.diag(data.reshape(-1, 3).numpy().std(0))
    np.testing.assert_allclose(torch.stack([d for _, d in named]).numpy(), expected, rtol=1e-5)


@pytest.mark.parametrize("constant", [0.0, 0.1, 5.0, -4321.7])
def test_constant_features_are_left_out(constant: float) -> None:
    data = mixed(4, [2.0, 1.0, 0.5, 0.2])
    data[..., 2] = constant
    assert [name for name, _ in directions(snap_on(data, 4))] == ["feature 0", "feature 1", "feature 3"]


@pytest.mark.parametrize("constant", [0.0, 0.1, -4321.7])
@pytest.mark.parametrize("features", [3, 7])
def test_where_nothing_moves_every_direction_is_stepped_by_one(constant: float, features: int) -> None:
    named = directions(snap_on(torch.full((50, 40, features), constant), features))
    assert len(named) == min(features, 5)
    torch.testing.assert_close(torch.stack([d.norm() for _, d in named]), torch.ones(len(named)))


def test_many_features_are_stepped_along_the_principal_directions() -> None:
    data = mixed(8, [8.0, 4.0, 2.0, 1.0, 0.5, 0.25, 0.1, 0.05], torch.float64)
    torch.manual_seed(0)
    (snap,) = snapshot(nn.LSTM(8, 4, batch_first=True, dtype=torch.float64), data, max_steps=4096)
    named = directions(snap)
    assert [name for name, _ in named] == [f"principal direction {k}" for k in range(1, 6)]
    samples = data.reshape(-1, 8).numpy()
    _, singular, right = np.linalg.svd(samples - samples.mean(0), full_matrices=False)
    for k, (_, direction) in enumerate(named):
        scale = singular[k] / math.sqrt(len(samples))
        largest = right[k][np.abs(right[k]).argmax()]
        np.testing.assert_allclose(direction.numpy(), scale * right[k] * np.sign(largest), atol=1e-10)


def test_directions_in_which_nothing_moves_are_left_out() -> None:
    assert len(directions(snap_on(mixed(9, [2.0, 1.0]), 9))) == 2


def test_without_data_many_features_are_stepped_along_the_singular_directions() -> None:
    snap = snap_on(None, 8)
    named = directions(snap)
    right = np.linalg.svd(snap.weights.weight_ih.double().numpy())[2]
    assert [name for name, _ in named] == [f"singular direction {k}" for k in range(1, 6)]
    for k, (_, direction) in enumerate(named):
        sign = np.sign(right[k][np.abs(right[k]).argmax()])
        np.testing.assert_allclose(direction.numpy(), sign * right[k], atol=1e-5)


@pytest.mark.parametrize("held_out", [True, False])
def test_the_sign_of_a_direction_is_fixed(held_out: bool) -> None:
    data = mixed(8, [8.0, 4.0, 2.0, 1.0, 0.5, 0.25, 0.1, 0.05])
    for _, direction in directions(snap_on(data if held_out else None, 8)):
        assert direction[direction.abs().argmax()] > 0


@pytest.mark.parametrize(("features", "count"), [(1, 7), (3, 11), (5, 15), (8, 15)])
def test_default_stimuli_are_about_sixteen(features: int, count: int) -> None:
    stimuli = default_stimuli(snap_on(None, features))
    steps, sines = ([s for s in stimuli if s.kind == kind] for kind in ("step", "sine"))
    assert len(stimuli) == count
    assert [round(1 / s.frequency) for s in sines if s.frequency] == [64, 32, 16, 8, 4]
    assert {len(s.signal) for s in steps} == {64}
    assert {len(s.signal) for s in sines} == {128}
    assert [s.signal[0].item() for s in steps] == [1.0, -1.0] * (len(steps) // 2)
    assert len({s.name for s in stimuli}) == count


@pytest.mark.parametrize(
    ("length", "steps", "horizon"), [(30, None, 64), (90, None, 90), (2000, None, 1024), (90, 8, 8)]
)
def test_the_horizon_is_the_tasks_length_within_bounds(length: int, steps: int | None, horizon: int) -> None:
    (snap,) = snapshot(nn.LSTM(2, 4))
    snap = Snapshot(snap.key, snap.weights, point(torch.eye(2), length=length), snap.hidden_mean)
    stimuli = default_stimuli(snap, steps)
    assert {len(s.signal) for s in stimuli if s.kind == "step"} == {horizon}
    assert {len(s.signal) for s in stimuli if s.kind == "sine"} == {max(horizon, 128)}


def test_the_sines_run_in_the_principal_direction() -> None:
    covariance = torch.diag(torch.tensor([1.0, 9.0]))
    (snap,) = snapshot(nn.LSTM(2, 4))
    snap = Snapshot(snap.key, snap.weights, point(covariance), snap.hidden_mean)
    for sine in default_stimuli(snap)[-5:]:
        torch.testing.assert_close(sine.direction, torch.tensor([0.0, 3.0]))


COVARIANCE = torch.tensor([[4.0, 1.2], [1.2, 1.0]], dtype=torch.float64)
MEAN = torch.tensor([10.0, -3.0], dtype=torch.float64)


@pytest.mark.parametrize("part", [slice(None), slice(0, 2000), slice(2000, 4000), slice(4000, 6000)])
def test_a_random_bank_has_the_operating_points_mean_and_covariance(part: slice) -> None:
    """All of it, and each third: noise, sines, steps."""
    samples = random_bank(point(COVARIANCE, MEAN), count=6000, steps=64).inputs[part].reshape(-1, 2).numpy()
    np.testing.assert_allclose(samples.mean(0), MEAN, atol=0.15)
    np.testing.assert_allclose(np.cov(samples.T), COVARIANCE, atol=0.25)


def test_a_random_bank_is_a_third_each_of_noise_sines_and_steps() -> None:
    bank = random_bank(point(torch.eye(1, dtype=torch.float64)), count=30, steps=100)
    signals = bank.inputs[..., 0].numpy()
    levels = [len(np.unique(signal.round(9))) for signal in signals]
    assert all(count == 100 for count in levels[:10])
    assert all(count <= 2 for count in levels[20:])
    for sine in signals[10:20]:  # y[t-1] + y[t+1] = 2 cos(w) y[t], which no noise obeys
        ratio = (sine[:-2] + sine[2:]) @ sine[1:-1] / (sine[1:-1] @ sine[1:-1])
        np.testing.assert_allclose(sine[:-2] + sine[2:], ratio * sine[1:-1], atol=1e-9)


@pytest.mark.parametrize(
    ("length", "steps", "expected"), [(40, None, 40), (None, None, 64), (900, None, 256), (40, 12, 12)]
)
def test_the_banks_length(length: int | None, steps: int | None, expected: int) -> None:
    bank = random_bank(point(torch.eye(3), length=length), count=7, steps=steps)
    assert bank.inputs.shape == (7, expected, 3)
    assert bank.inputs.dtype == torch.float32
    assert bool(bank.mask.all())
    assert (bank.source, bank.h0, bank.c0, bank.lengths) == ("random_bank", None, None, None)


def test_a_bank_depends_on_its_seed_alone() -> None:
    here = point(COVARIANCE, MEAN)
    first = random_bank(here, seed=3).inputs
    torch.manual_seed(99)
    assert torch.equal(random_bank(here, seed=3).inputs, first)
    assert not torch.equal(random_bank(here, seed=4).inputs, first)


def states() -> tuple[Any, ...]:
    return torch.get_rng_state().tolist(), repr(np.random.get_state(legacy=False)), random.getstate()


def test_no_global_random_state_moves() -> None:
    snap = snap_on(mixed(8, [8.0, 4.0, 2.0, 1.0]), 8)
    before = states()
    random_bank(snap.point)
    default_stimuli(snap)
    assert states() == before


def test_a_direction_is_a_float_vector() -> None:
    for wrong in (torch.tensor([1, 2]), [1.0, 2.0], 1.0):
        with pytest.raises(TypeError, match=r"direction=.* is no floating-point tensor; give a float tensor of shape"):
            step(wrong)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="direction="):
            sinusoid(wrong, 0.1)  # type: ignore[arg-type]
    for shape in ((), (2, 2)):
        with pytest.raises(ValueError, match=r"direction has shape .*; give a float tensor of shape"):
            step(torch.ones(shape))
        with pytest.raises(ValueError, match="direction has shape"):
            sinusoid(torch.ones(shape), 0.1)


@pytest.mark.parametrize("options", [{"count": 0}, {"count": -3}, {"steps": 0}, {"steps": -1}])
def test_a_bank_has_a_sequence_and_a_step(options: dict[str, int]) -> None:
    ((name, number),) = options.items()
    with pytest.raises(ValueError, match=f"{name}={number} is under 1"):
        random_bank(point(torch.eye(2)), **options)


def test_the_smallest_bank() -> None:
    assert random_bank(point(torch.eye(2)), count=1, steps=1).inputs.shape == (1, 1, 2)


def test_default_steps_are_eight_or_more() -> None:
    with pytest.raises(ValueError, match="steps=7 is too short"):
        default_stimuli(snap_on(None, 2), steps=7)
