"""Sine metrics against sampled sines of known amplitude, phase and distortion, and filters of known gain."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import signal
from torch import Tensor

from lstm_monitor import metrics
from tests.helpers import oracles

Array = NDArray[np.float64]

NAMES = ("amplitude", "phase_lag", "harmonic_distortion", "correlation")
PERIODS = (64, 32, 16, 8, 4)
HORIZON = 512


def one(name: str, y: Array, f: float, transient: int | None = None) -> float:
    """One metric of one response (T,)."""
    metric: Callable[..., Tensor] = getattr(metrics, name)
    value = metric(torch.as_tensor(y, dtype=torch.float64), f, transient=transient)
    assert value.shape == ()
    return float(value)


def sine(f: float, amplitude: float = 1.0, lag: float = 0.0, horizon: int = HORIZON) -> Array:
    """``amplitude * sin(2 pi f t - lag)`` for t = 0, 1, ..."""
    return np.asarray(amplitude * np.sin(2.0 * np.pi * f * np.arange(horizon) - lag), dtype=np.float64)


def angle_between(a: float, b: float) -> float:
    """The distance of two angles on the circle."""
    return abs((a - b + math.pi) % (2.0 * math.pi) - math.pi)


# --- amplitude and phase ------------------------------------------------------------------------------------


@pytest.mark.parametrize("period", PERIODS)
@pytest.mark.parametrize(("amplitude", "lag"), [(1.0, 0.0), (0.3, 0.7), (2.5, -1.2), (0.01, 3.0), (1e3, 1.5707)])
def test_a_sampled_sine_has_its_amplitude_and_lag(period: int, amplitude: float, lag: float) -> None:
    y = sine(1.0 / period, amplitude, lag)
    assert one("amplitude", y, 1.0 / period) == pytest.approx(amplitude, rel=1e-10)
    assert angle_between(one("phase_lag", y, 1.0 / period), lag) < 1e-9
    assert one("correlation", y, 1.0 / period) == pytest.approx(math.cos(lag), abs=1e-9)


@pytest.mark.parametrize("period", PERIODS)
def test_a_lag_is_positive_when_the_response_comes_later(period: int) -> None:
    f = 1.0 / period
    assert one("phase_lag", np.roll(sine(f), 1), f) == pytest.approx(2.0 * math.pi * f)
    assert one("phase_lag", np.roll(sine(f), -1), f) == pytest.approx(-2.0 * math.pi * f)


@pytest.mark.parametrize("period", PERIODS)
def test_an_inverted_sine_lags_by_pi_and_correlates_negatively(period: int) -> None:
    y = -sine(1.0 / period)
    lag = one("phase_lag", y, 1.0 / period)
    assert -math.pi < lag <= math.pi
    assert angle_between(lag, math.pi) < 1e-9
    assert one("correlation", y, 1.0 / period) == pytest.approx(-1.0)


@pytest.mark.parametrize("lag", np.linspace(-3.1, 3.1, 9).tolist())
def test_a_lag_comes_back_over_the_whole_circle(lag: float) -> None:
    assert one("phase_lag", sine(1 / 16, 0.5, lag), 1 / 16) == pytest.approx(lag, abs=1e-9)


@pytest.mark.parametrize("period", [63.7, 21.3, 12.7, 7.3, 5.5, 2.9, 2.2, math.pi])
def test_a_period_need_not_be_a_whole_number_of_steps(period: float) -> None:
    y = sine(1.0 / period, 0.8, 0.6)
    assert one("amplitude", y, 1.0 / period) == pytest.approx(0.8, rel=0.01)
    assert angle_between(one("phase_lag", y, 1.0 / period), 0.6) < 0.01
    assert one("correlation", y, 1.0 / period) == pytest.approx(math.cos(0.6), abs=0.01)


@pytest.mark.parametrize("transient", [0, 1, 7, 100, 256, 448])
def test_time_zero_of_the_phase_is_the_first_sample_whatever_the_transient(transient: int) -> None:
    y = sine(1 / 16, 0.8, 0.6)
    assert one("amplitude", y, 1 / 16, transient) == pytest.approx(0.8)
    assert one("phase_lag", y, 1 / 16, transient) == pytest.approx(0.6)


@pytest.mark.parametrize("period", PERIODS)
def test_half_of_the_response_is_the_transient_unless_told(period: int) -> None:
    y = sine(1.0 / period, 0.5, 0.4)
    y[: HORIZON // 2] = 9.0
    assert one("amplitude", y, 1.0 / period) == pytest.approx(0.5)
    assert one("amplitude", y, 1.0 / period) == one("amplitude", y, 1.0 / period, HORIZON // 2)


@pytest.mark.parametrize("period", PERIODS)
@pytest.mark.parametrize("offset", [-3.0, 0.5, 20.0])
def test_an_offset_changes_nothing(period: int, offset: float) -> None:
    y = sine(1.0 / period, 0.5, 0.4)
    for name in NAMES:
        expected = one(name, y, 1.0 / period)
        assert one(name, y + offset, 1.0 / period) == pytest.approx(expected, abs=1e-9, nan_ok=True), name


@pytest.mark.parametrize("period", PERIODS)
def test_a_decaying_transient_before_the_window_does_not_count(period: int) -> None:
    y = sine(1.0 / period, 0.5, 0.4) + 3.0 * 0.85 ** np.arange(HORIZON)
    assert one("amplitude", y, 1.0 / period) == pytest.approx(0.5, abs=1e-9)
    assert one("phase_lag", y, 1.0 / period) == pytest.approx(0.4, abs=1e-9)
    assert one("correlation", y, 1.0 / period) == pytest.approx(math.cos(0.4), abs=1e-9)


@pytest.mark.parametrize("period", PERIODS)
@pytest.mark.parametrize("pole", [0.2, 0.7, 0.9])
def test_a_first_order_filter_has_the_gain_and_phase_of_its_transfer_function(period: int, pole: float) -> None:
    b, a = [1.0 - pole], [1.0, -pole]
    y = np.asarray(signal.lfilter(b, a, sine(1.0 / period)), dtype=np.float64)
    response = complex(signal.freqz(b, a, worN=[2.0 * math.pi / period])[1][0])
    assert one("amplitude", y, 1.0 / period) == pytest.approx(abs(response), abs=1e-9)
    assert one("phase_lag", y, 1.0 / period) == pytest.approx(-np.angle(response), abs=1e-9)


@pytest.mark.parametrize("period", [7, 12, 24, 49, 98, 100])
def test_a_window_of_exactly_one_period_is_enough(period: int) -> None:
    f = 1.0 / period  # 49 * (1 / 49) is under 1 in floating point
    y = sine(f, 0.8, 0.6, 2 * period)
    assert one("amplitude", y, f) == pytest.approx(0.8)
    assert one("phase_lag", y, f) == pytest.approx(0.6)


def test_what_is_left_over_after_whole_periods_does_not_count() -> None:
    y = sine(1 / 32, 1.0, 0.3, 256 + 20) + 0.5  # an unwhole window would mix the offset in
    assert one("amplitude", y, 1 / 32, 128) == pytest.approx(1.0)
    assert one("phase_lag", y, 1 / 32, 128) == pytest.approx(0.3)
    assert one("correlation", y, 1 / 32, 128) == pytest.approx(math.cos(0.3))


# --- distortion ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("period", [64, 32, 16, 8])
def test_distortion_is_the_root_of_the_power_of_the_harmonics(period: int) -> None:
    f = 1.0 / period
    y = sine(f, 0.5, 0.4) + sine(2 * f, 0.03, 1.0) + sine(3 * f, 0.04, -2.0) + 0.7
    assert one("harmonic_distortion", y, f) == pytest.approx(0.05 / 0.5)
    assert one("amplitude", y, f) == pytest.approx(0.5)


@pytest.mark.parametrize(("period", "order"), [(64, 31), (32, 15), (16, 7), (8, 3), (12, 5), (20, 9), (5, 2)])
def test_the_highest_harmonic_below_one_half_counts(period: int, order: int) -> None:
    f = 1.0 / period
    y = sine(f, 1.0, 0.2, period * 20) + sine(order * f, 0.1, 0.9, period * 20)
    assert one("harmonic_distortion", y, f) == pytest.approx(0.1)


@pytest.mark.parametrize("period", [64, 32, 16, 8, 12, 14])
def test_the_harmonic_at_one_half_does_not_count(period: int) -> None:
    f, t = 1.0 / period, np.arange(period * 16)
    y = sine(f, 1.0, 0.2, period * 16) + 0.3 * (-1.0) ** t
    assert one("harmonic_distortion", y, f) == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("period", [64, 32, 16, 8])
def test_a_pure_sine_has_no_distortion(period: int) -> None:
    assert one("harmonic_distortion", sine(1.0 / period), 1.0 / period) == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("period", [64, 32, 16, 8])
def test_a_saturated_sine_has_the_distortion_of_its_spectrum(period: int) -> None:
    y = np.tanh(sine(1.0 / period, 2.0, 0.5) + 0.3)
    window = y[HORIZON // 2 :]
    spectrum, base = np.abs(np.fft.rfft(window)), len(window) // period
    others = spectrum[2 * base : len(window) // 2 : base]
    assert one("harmonic_distortion", y, 1.0 / period) == pytest.approx(np.linalg.norm(others) / spectrum[base])


@pytest.mark.parametrize("f", [0.25, 0.26, 0.3, 0.4, 0.49])
def test_distortion_is_undefined_without_a_harmonic_below_one_half(f: float) -> None:
    y = sine(f, 1.0, 0.3)
    assert math.isnan(one("harmonic_distortion", y, f))
    assert one("amplitude", y, f) == pytest.approx(1.0, rel=0.03)


# --- undefined cases ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("period", [64, 16, 8])
def test_lag_and_distortion_are_undefined_under_a_thousandth(period: int) -> None:
    quiet, loud = sine(1.0 / period, 0.00099, 0.5), sine(1.0 / period, 0.00101, 0.5)
    assert math.isnan(one("phase_lag", quiet, 1.0 / period))
    assert math.isnan(one("harmonic_distortion", quiet, 1.0 / period))
    assert one("amplitude", quiet, 1.0 / period) == pytest.approx(0.00099)
    assert one("correlation", quiet, 1.0 / period) == pytest.approx(math.cos(0.5))
    assert one("phase_lag", loud, 1.0 / period) == pytest.approx(0.5)
    assert one("harmonic_distortion", loud, 1.0 / period) == pytest.approx(0.0, abs=1e-6)


def test_correlation_is_undefined_under_a_millionth() -> None:
    root = math.sqrt(2.0)
    assert math.isnan(one("correlation", 0.5 + sine(1 / 16, 0.98e-6 * root), 1 / 16))
    assert one("correlation", 0.5 + sine(1 / 16, 1.02e-6 * root), 1 / 16) == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("level", [0.0, 0.3])
def test_a_constant_has_no_amplitude_and_nothing_else(level: float) -> None:
    y = np.full(HORIZON, level)
    assert one("amplitude", y, 1 / 16) == pytest.approx(0.0, abs=1e-12)
    assert all(math.isnan(one(name, y, 1 / 16)) for name in ("phase_lag", "harmonic_distortion", "correlation"))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_values_that_are_not_finite_give_nan(name: str, bad: float) -> None:
    y = sine(1 / 16)
    y[300] = bad
    assert math.isnan(one(name, y, 1 / 16))


# --- bad arguments ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("f", [0.0, -0.1, 0.5, 0.7, 2.0, math.nan])
def test_a_frequency_outside_zero_to_one_half_is_refused(name: str, f: float) -> None:
    with pytest.raises(ValueError, match="frequency"):
        getattr(metrics, name)(torch.zeros(256), f)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("horizon", "period", "transient"), [(100, 64, None), (64, 33, None), (80, 64, 17), (16, 8, 9)]
)
def test_a_window_shorter_than_one_period_is_refused(
    name: str, horizon: int, period: int, transient: int | None
) -> None:
    with pytest.raises(ValueError, match=r"horizon|\bT\b"):
        getattr(metrics, name)(torch.zeros(horizon), 1.0 / period, transient=transient)


# --- batches ------------------------------------------------------------------------------------------------


def batch() -> Array:
    """Responses (3, 4, T) to a sine of 16 steps: lagging, distorted, quiet; offset, noise and a transient."""
    rng, t = np.random.default_rng(3), np.arange(HORIZON)
    rows = [
        sine(1 / 16, 0.1 + 0.2 * k, 0.5 * k - 2.0) + 0.1 * k * sine(1 / 8, 1.0, k) + k - 3 + 2.0 * 0.95**t
        for k in range(11)
    ]
    rows.append(sine(1 / 16, 1e-4, 1.0))
    return np.asarray(np.stack(rows).reshape(3, 4, HORIZON) + 1e-5 * rng.standard_normal((3, 4, HORIZON)))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(3, 4), (12,), (2, 3, 2)])
def test_a_batch_of_any_shape_equals_the_naive_oracle(name: str, shape: tuple[int, ...]) -> None:
    y = batch()
    values = getattr(metrics, name)(torch.as_tensor(y).reshape(*shape, HORIZON), 1 / 16)
    assert values.shape == shape
    for value, row in zip(values.flatten(), y.reshape(12, HORIZON), strict=True):
        assert float(value) == pytest.approx(oracles.sine_metrics(row, 1 / 16)[name], abs=1e-10, nan_ok=True)


@pytest.mark.parametrize("name", NAMES)
def test_float32_gives_the_same_values(name: str) -> None:
    y = torch.as_tensor(batch())
    single, double = (getattr(metrics, name)(y.to(d), 1 / 16) for d in (torch.float32, torch.float64))
    torch.testing.assert_close(single.double(), double, rtol=1e-4, atol=1e-4, equal_nan=True)


# --- dominant and cut-off frequency -------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 5, 17, 64, 127])
def test_the_dominant_frequency_is_the_largest_bin(k: int) -> None:
    y = 40.0 + sine(k / 256, 0.8, 0.3, 256) + sine(33 / 256, 0.5, 0.0, 256)
    assert float(metrics.dominant_frequency(torch.as_tensor(y))) == pytest.approx(k / 256)


def test_the_dominant_frequency_is_within_half_a_bin_and_keeps_the_leading_axes() -> None:
    f = np.array([[0.0333, 0.0777, 0.1234], [0.2345, 0.3456, 0.4567]])
    y = np.sin(2.0 * np.pi * f[..., None] * np.arange(300)) - 2.0
    values = metrics.dominant_frequency(torch.as_tensor(y))
    assert values.shape == (2, 3)
    assert np.abs(values.numpy() - f).max() <= 0.5 / 300 + 1e-12


@pytest.mark.parametrize("level", [0.0, -3.0, math.nan, math.inf])
def test_what_stands_still_or_is_no_number_has_no_dominant_frequency(level: float) -> None:
    y = np.stack([np.full(64, level), sine(1 / 16, horizon=64)])
    values = metrics.dominant_frequency(torch.as_tensor(y))
    assert math.isnan(float(values[0]))
    assert float(values[1]) == pytest.approx(1 / 16)


def cutoff(gains: object, frequencies: object) -> Array:
    """The library's cut-off frequency, as an array."""
    g, f = (torch.as_tensor(np.asarray(a, dtype=np.float64)) for a in (gains, frequencies))
    return np.asarray(metrics.cutoff_frequency(g, f).numpy(), dtype=np.float64)


FREQUENCIES = 1.0 / np.array(PERIODS)


def test_the_cutoff_is_linear_in_gain_over_log_frequency() -> None:
    level = math.sqrt(0.5)
    found = cutoff([2.0, 2.0, 2.0 * level + 0.1, 2.0 * level - 0.3, 0.0], FREQUENCIES)
    assert found.shape == ()
    assert float(found) == pytest.approx(2.0**0.25 / 16)  # a quarter of the way, in octaves, from 1/16 to 1/8


def test_the_cutoff_is_the_first_fall() -> None:
    assert float(cutoff([1.0, 0.4, 1.0, 0.4, 0.4], FREQUENCIES)) < 1 / 32


@pytest.mark.parametrize("gains", [[1.0] * 5, [1.0, 2.0, 3.0, 2.0, 0.8], [0.0] * 5])
def test_the_cutoff_is_undefined_when_the_gain_never_falls(gains: list[float]) -> None:
    assert math.isnan(float(cutoff(gains, FREQUENCIES)))


@pytest.mark.parametrize("pole", [0.5, 0.8, 0.95])
def test_the_cutoff_of_a_first_order_filter_is_that_of_its_transfer_function(pole: float) -> None:
    grid = np.geomspace(1e-4, 0.499, 4000)
    gains = np.abs(signal.freqz([1.0 - pole], [1.0, -pole], worN=2.0 * np.pi * grid)[1])
    closed = math.acos(2.0 - 0.5 * (pole + 1.0 / pole)) / (2.0 * math.pi)  # where the power gain is one half
    assert float(cutoff(gains, grid)) == pytest.approx(closed, rel=1e-3)


def test_cutoffs_of_a_batch_equal_the_naive_oracle() -> None:
    gains = np.random.default_rng(5).uniform(0.2, 1.2, size=(5, 3, 40))
    found = cutoff(gains, FREQUENCIES)
    assert found.shape == (3, 40)
    assert np.isnan(found).any()
    assert np.isfinite(found).any()
    for s in range(3):
        for h in range(40):
            assert found[s, h] == pytest.approx(oracles.cutoff_frequency(gains[:, s, h], FREQUENCIES), nan_ok=True)


def test_the_cutoff_does_not_depend_on_the_order_of_the_frequencies() -> None:
    gains = np.random.default_rng(6).uniform(0.2, 1.2, size=(5, 20))
    order = [3, 0, 4, 2, 1]
    np.testing.assert_array_equal(cutoff(gains[order], FREQUENCIES[order]), cutoff(gains, FREQUENCIES))


def test_a_gain_that_is_nan_gives_nan_for_that_cell_alone() -> None:
    gains = np.repeat([[1.0], [0.9], [0.5], [0.2], [0.1]], 3, axis=1)
    gains[0, 1] = math.nan
    found = cutoff(gains, FREQUENCIES)
    assert math.isnan(found[1])
    assert math.isfinite(found[0])
    assert found[0] == found[2]


@pytest.mark.parametrize("shape", [(), (3, 0)])
def test_no_time_steps_are_an_error(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"y has shape .*; give responses of shape \(\.\.\., T\)"):
        metrics.amplitude(torch.ones(shape), 0.1)
    with pytest.raises(ValueError, match="y has shape"):
        metrics.dominant_frequency(torch.ones(shape))


def test_a_metric_found_in_inference_mode_can_be_learnt_from_later() -> None:
    y = torch.sin(2 * math.pi * torch.arange(76.0) / 19)
    with torch.inference_mode():
        metrics.amplitude(y, 1 / 19)
    scale = torch.ones((), requires_grad=True)
    metrics.amplitude(scale * y, 1 / 19).backward()
    assert scale.grad == pytest.approx(1, abs=1e-5)
