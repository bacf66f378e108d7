"""Properties of the metrics on random responses: the oracle, scale, shift, delay, NaN isolation, strides."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from lstm_monitor import Reason, metrics
from tests.helpers import oracles
from tests.helpers.thorough import examples

Array = NDArray[np.float64]
Metric = Callable[..., Tensor]

STEP = (
    "initial_response",
    "final_response",
    "delta_response",
    "peak_response",
    "peak_time",
    "rise_time",
    "settling_time",
    "overshoot",
)
TIMES = ("peak_time", "rise_time", "settling_time")
SINE = ("amplitude", "phase_lag", "harmonic_distortion", "correlation")

# Neither timed nor stored, and the same examples in every run; the few are the first of the many.
properties = settings(
    max_examples=examples(20, 100),
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)


# --- random responses ---------------------------------------------------------------------------------------


def floats(low: float, high: float) -> st.SearchStrategy[float]:
    """Floats of a range, without subnormal values."""
    return st.floats(low, high, allow_subnormal=False)


def random_response(kind: str, seed: int, shortest: int, longest: int) -> tuple[Array, float]:
    """One response (T,) and its value before the step: exponentials, damped sines, offsets, noise."""
    rng = np.random.default_rng(seed)
    t = np.arange(float(rng.integers(shortest, longest + 1)))
    level, fall, ring = rng.uniform(-2.0, 2.0), rng.uniform(0.1, 0.85) ** t, rng.uniform(0.85, 1.0) ** t
    wave = np.sin(rng.uniform(0.05, 3.0) * t + rng.uniform(0.0, 2.0 * np.pi))
    shapes = {
        "settling": level * (1.0 - fall),
        "washing out": 2.0 * level * rng.uniform(0.5, 0.8) ** t * np.tanh(t / 3.0) + rng.uniform(-0.1, 0.1) * level,
        "slow": level * (1.0 - rng.uniform(0.9, 1.0) ** t),
        "ringing": level * (1.0 - fall) + ring * wave,
        "hitting": level * (1.0 - fall) + np.where(t == t[-1], rng.uniform(-0.3, 0.3) * level, 0.0),
        "still": np.full_like(t, rng.uniform(-2e-3, 2e-3)),
    }
    noise = rng.choice([0.0, 0.0, 1e-4, 0.02, 0.3]) * rng.standard_normal(len(t))
    y0, size = rng.uniform(-2.0, 2.0), rng.choice([0.5, 1.0, 20.0])
    return y0 + size * (shapes[kind] + (noise if kind != "still" else 0.0)), float(y0)


KINDS = ("settling", "washing out", "slow", "ringing", "hitting", "still")


def responses(shortest: int = 8, longest: int = 120) -> st.SearchStrategy[tuple[Array, float]]:
    """Random responses of every kind."""
    seeds = st.integers(0, 2**32 - 1)
    return st.builds(random_response, st.sampled_from(KINDS), seeds, st.just(shortest), st.just(longest))


def is_clear(y: Array, y0: float) -> bool:
    """Whether no comparison that decides a discrete value is nearer than 1e-7 to its threshold."""
    low, high = (oracles.step_metrics(y, y0, slack) for slack in (-1e-7, 1e-7))
    distance = np.abs(y - y0)
    rivals = (distance < distance.max()) & (distance > distance.max() * (1.0 - 1e-9))
    if rivals.any():  # two peaks that only rounding tells apart
        return False
    return low["reason"] == high["reason"] and all(same(low[name], high[name]) for name in TIMES)


def same(a: float | str, b: float | str) -> bool:
    """Equal, NaN being equal to NaN."""
    return a == b or (a != a and b != b)


def step_values(y: Array | Tensor, y0: float | Array | Tensor) -> dict[str, Tensor]:
    """Every step metric and the reason codes, as the library has them."""
    response, start = torch.as_tensor(y), torch.as_tensor(y0, dtype=torch.float64)
    values: dict[str, Tensor] = {name: getattr(metrics, name)(response, start) for name in STEP}
    return values | {"reason": metrics.step_reason(response, start)}


def sine_values(y: Tensor, f: float) -> dict[str, Tensor]:
    """Every sine metric, as the library has them."""
    return {name: getattr(metrics, name)(y, f) for name in SINE}


def test_random_responses_meet_every_reason_and_are_seldom_at_a_threshold() -> None:
    drawn = [random_response(kind, seed, 1, 120) for kind in KINDS for seed in range(60)]
    reasons = Counter(oracles.step_metrics(y, y0)["reason"] for y, y0 in drawn)
    words = {"", "washout", "silent", "drifting", "oscillating", "outside", "too_short"}
    assert set(reasons) == words
    assert min(reasons.values()) >= 5
    assert sum(is_clear(y, y0) for y, y0 in drawn) > 0.9 * len(drawn)


# --- the naive oracle ---------------------------------------------------------------------------------------


def code_of(reason: str) -> Reason:
    """The code of the settling time for the oracle's word."""
    return Reason.DEFINED if reason in ("", "washout") else Reason[reason.upper()]


def assert_equals_oracle(y: Array, y0: float) -> None:
    """Every step metric and the reason are those of the naive oracle."""
    expected, found = oracles.step_metrics(y, y0), step_values(y, y0)
    assert int(found["reason"]) == code_of(str(expected["reason"]))
    for name in STEP:
        slack = 0.0 if name in TIMES else 1e-9
        value = pytest.approx(expected[name], rel=slack, abs=slack, nan_ok=True)
        assert float(found[name]) == value, name


@properties
@given(responses(shortest=1))
def test_step_metrics_equal_the_naive_oracle(drawn: tuple[Array, float]) -> None:
    y, y0 = drawn
    assume(is_clear(y, y0))
    assert_equals_oracle(y, y0)


@pytest.mark.parametrize("kind", KINDS)
def test_step_metrics_equal_the_naive_oracle_on_every_kind_of_response(kind: str) -> None:
    drawn = [random_response(kind, seed, 1, 120) for seed in range(examples(20, 60))]
    for y, y0 in drawn:
        if is_clear(y, y0):
            assert_equals_oracle(y, y0)


@properties
@given(responses(shortest=1))
def test_without_an_initial_value_the_first_sample_is_it(drawn: tuple[Array, float]) -> None:
    y = torch.as_tensor(drawn[0])
    for name in (*STEP, "step_reason"):
        metric: Metric = getattr(metrics, name)
        torch.testing.assert_close(metric(y), metric(y, y[..., 0]), rtol=0.0, atol=0.0, equal_nan=True)


@properties
@given(st.lists(responses(shortest=64, longest=64), min_size=6, max_size=6))
def test_a_batch_equals_its_responses_one_by_one(drawn: list[tuple[Array, float]]) -> None:
    assume(all(is_clear(y, y0) for y, y0 in drawn))
    y, y0 = np.stack([row for row, _ in drawn]), np.array([start for _, start in drawn])
    together = step_values(y.reshape(2, 3, 64), y0.reshape(2, 3))
    for i, (row, start) in enumerate(drawn):
        for name, value in step_values(row, start).items():
            found = together[name].flatten()[i]
            tolerance = 0.0 if name in (*TIMES, "reason") else 1e-11
            torch.testing.assert_close(found, value, rtol=tolerance, atol=tolerance, equal_nan=True, msg=name)


@properties
@given(
    drawn=responses(shortest=1, longest=1),
    period=st.sampled_from([3, 4, 5, 7, 8, 16, 20, 49]),
    count=st.integers(1, 6),
    transient=st.integers(0, 40),
    seed=st.integers(0, 2**32 - 1),
    noise=st.sampled_from([0.0, 1e-3, 0.3]),
    shape=st.tuples(floats(0.01, 3.0), floats(-3.0, 3.0), floats(0.0, 0.5), floats(-3.0, 3.0)),
)
def test_sine_metrics_equal_the_naive_oracle(
    drawn: tuple[Array, float],
    period: int,
    count: int,
    transient: int,
    seed: int,
    noise: float,
    shape: tuple[float, float, float, float],
) -> None:
    f, t = 1.0 / period, np.arange(float(transient + count * period))
    amplitude, lag, second, turn = shape
    y = drawn[1] + amplitude * np.sin(2.0 * np.pi * f * t - lag) + second * np.sin(4.0 * np.pi * f * t - turn)
    y += noise * np.random.default_rng(seed).standard_normal(len(t)) + 0.5 * 0.9**t
    expected = oracles.sine_metrics(y, f, transient)
    assume(not abs(expected["amplitude"] - 1e-3) < 1e-8)
    for name in SINE:
        found = float(getattr(metrics, name)(torch.as_tensor(y), f, transient=transient))
        if name == "phase_lag" and math.isfinite(found):
            turned = (found - expected[name]) / (2.0 * math.pi)
            assert abs(turned - round(turned)) < 1e-8 / expected["amplitude"]
            assert -math.pi < found <= math.pi
        else:
            tolerance = 1e-9 / min(1.0, expected["amplitude"])
            assert found == pytest.approx(expected[name], rel=1e-9, abs=tolerance, nan_ok=True), name


@properties
@given(
    # Audible at the lowest frequency: the definition has no word on the cut-off of a cell that is silent there.
    st.lists(st.tuples(floats(0.01, 2.0), *[floats(0.0, 2.0)] * 4).map(list), min_size=1, max_size=8)
)
def test_cutoff_frequency_equals_the_naive_oracle(gains: list[list[float]]) -> None:
    frequencies = 1.0 / np.array([64.0, 32.0, 16.0, 8.0, 4.0])
    level = [row[0] / math.sqrt(2.0) for row in gains]
    assume(all(abs(g - lv) > 1e-9 for row, lv in zip(gains, level, strict=True) for g in row[1:]))
    found = metrics.cutoff_frequency(torch.as_tensor(gains, dtype=torch.float64).T, torch.as_tensor(frequencies))
    assert found.shape == (len(gains),)
    for value, row in zip(found.tolist(), gains, strict=True):
        assert value == pytest.approx(oracles.cutoff_frequency(row, frequencies), rel=1e-9, nan_ok=True)


# --- scale, shift, sign, delay ------------------------------------------------------------------------------


@properties
@given(responses(), floats(0.5, 200.0))
def test_times_and_overshoot_do_not_depend_on_the_scale(drawn: tuple[Array, float], scale: float) -> None:
    y, y0 = drawn
    assume(is_clear(y, y0) and is_clear(scale * y, scale * y0))
    before, after = step_values(y, y0), step_values(scale * y, scale * y0)
    assume(int(before["reason"]) != Reason.SILENT and int(after["reason"]) != Reason.SILENT)
    for name in (*TIMES, "reason"):
        torch.testing.assert_close(after[name], before[name], rtol=0.0, atol=0.0, equal_nan=True, msg=name)
    torch.testing.assert_close(after["overshoot"], before["overshoot"], rtol=1e-7, atol=1e-9, equal_nan=True)
    for name in ("initial_response", "final_response", "delta_response", "peak_response"):
        torch.testing.assert_close(after[name], scale * before[name], rtol=1e-7, atol=1e-9, msg=name)


@properties
@given(responses(), floats(-50.0, 50.0))
def test_a_shift_moves_the_levels_and_nothing_else(drawn: tuple[Array, float], shift: float) -> None:
    y, y0 = drawn
    assume(is_clear(y, y0) and is_clear(y + shift, y0 + shift))
    before, after = step_values(y, y0), step_values(y + shift, y0 + shift)
    for name in ("settling_time", "rise_time", "reason"):
        torch.testing.assert_close(after[name], before[name], rtol=0.0, atol=0.0, equal_nan=True, msg=name)
    for name in ("delta_response", "peak_response"):
        torch.testing.assert_close(after[name], before[name], rtol=1e-7, atol=1e-9, msg=name)
    for name in ("initial_response", "final_response"):
        torch.testing.assert_close(after[name], before[name] + shift, rtol=1e-7, atol=1e-9, msg=name)


@properties
@given(responses())
def test_the_sign_turns_the_levels_and_nothing_else(drawn: tuple[Array, float]) -> None:
    y, y0 = drawn
    before, after = step_values(y, y0), step_values(-y, -y0)
    turned = ("initial_response", "final_response", "delta_response")
    for name, value in before.items():
        expected = -value if name in turned else value
        torch.testing.assert_close(after[name], expected, rtol=0.0, atol=0.0, equal_nan=True, msg=name)


def assert_delayed(y: Array, y0: float, delay: int) -> None:
    """The response ``delay`` steps later has the same metrics, settling and peak time ``delay`` later."""
    before, after = step_values(y, y0), step_values(np.concatenate([np.full(delay, y0), y]), y0)
    for name in ("settling_time", "peak_time"):
        expected = before[name] + delay
        torch.testing.assert_close(after[name], expected, rtol=0.0, atol=0.0, equal_nan=True, msg=name)
    for name in ("rise_time", "reason"):
        torch.testing.assert_close(after[name], before[name], rtol=0.0, atol=0.0, equal_nan=True, msg=name)
    for name in ("final_response", "delta_response", "peak_response", "overshoot"):
        torch.testing.assert_close(after[name], before[name], rtol=1e-9, atol=1e-11, equal_nan=True, msg=name)


@properties
@given(responses(shortest=8, longest=20), st.integers(1, 19))
def test_a_delay_moves_settling_and_peak_time_where_the_tail_stays_four_samples(
    drawn: tuple[Array, float], delay: int
) -> None:
    y, y0 = drawn  # at most 39 samples in all: the final value is the mean of four
    assume(is_clear(y, y0))
    assert_delayed(y, y0, delay)


@properties
@given(responses(shortest=64, longest=120), st.integers(1, 7))
def test_a_delay_moves_settling_and_peak_time_where_the_tail_keeps_its_length(
    drawn: tuple[Array, float], delay: int
) -> None:
    y, y0 = drawn
    y = y[: len(y) // 8 * 8]
    assume(is_clear(y, y0))
    assert_delayed(y, y0, delay)


@properties
@given(floats(0.1, 0.8), floats(0.3, 3.0), floats(-1.0, 1.0), st.integers(1, 100))
def test_a_long_delay_moves_settling_and_peak_time_of_a_settled_response(
    pole: float, ripple: float, y0: float, delay: int
) -> None:
    t = np.arange(300.0)  # settled to rounding: however long the tail, its mean is the same
    y = y0 + 1.0 - pole**t * np.cos(ripple * t) * 1.2
    assume(is_clear(y, y0) and is_clear(np.concatenate([np.full(delay, y0), y]), y0))
    before, after = step_values(y, y0), step_values(np.concatenate([np.full(delay, y0), y]), y0)
    assert float(after["settling_time"]) == float(before["settling_time"]) + delay
    assert float(after["rise_time"]) == float(before["rise_time"])
    assert float(after["peak_response"]) == pytest.approx(float(before["peak_response"]))


@properties
@given(floats(0.01, 100.0), floats(-20.0, 20.0), st.sampled_from([4, 8, 16, 32]), st.integers(0, 2**32 - 1))
def test_sine_metrics_follow_scale_and_shift(scale: float, shift: float, period: int, seed: int) -> None:
    f, t = 1.0 / period, np.arange(128.0)
    y = np.sin(2.0 * np.pi * f * t - 0.8) + 0.1 * np.random.default_rng(seed).standard_normal(128)
    before, after = sine_values(torch.as_tensor(y), f), sine_values(torch.as_tensor(scale * y + shift), f)
    torch.testing.assert_close(after["amplitude"], scale * before["amplitude"], rtol=1e-7, atol=1e-9)
    for name in ("phase_lag", "harmonic_distortion", "correlation"):
        torch.testing.assert_close(after[name], before[name], rtol=1e-7, atol=1e-7, equal_nan=True, msg=name)


# --- one cell never touches another -------------------------------------------------------------------------


def grid(seed: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Random settled, drifting and oscillating responses (S=2, H=5, T=128) and their initial values."""
    rng, t = np.random.default_rng(seed), np.arange(128.0)
    pole, wave = rng.uniform(0.3, 1.0, (2, 5, 1)), rng.uniform(0.1, 1.0, (2, 5, 1))
    y = rng.normal(size=(2, 5, 1)) + rng.normal(size=(2, 5, 1)) * pole**t * np.cos(wave * t)
    y += 0.3 * np.sin(2.0 * np.pi * t / 16.0) * rng.integers(0, 2, (2, 5, 1))
    return torch.as_tensor(y).to(dtype), torch.as_tensor(rng.normal(size=(2, 5))).to(dtype)


def every_value(y: Tensor, y0: Tensor) -> dict[str, Tensor]:
    """All metrics of (..., T) responses, those of step and sine alike."""
    step: dict[str, Tensor] = {name: getattr(metrics, name)(y, y0) for name in STEP}
    sine = {f"{name} at 1/{p}": v for p in (16, 8, 5, 4) for name, v in sine_values(y, 1.0 / p).items()}
    return {**step, **sine, "reason": metrics.step_reason(y, y0), "dominant": metrics.dominant_frequency(y)}


def bits(values: Tensor) -> bytes:
    """The bytes of a tensor, every NaN being the same NaN."""
    array = values.contiguous().numpy().copy()
    if array.dtype.kind == "f":
        array[np.isnan(array)] = np.nan
    return array.tobytes()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@properties
@given(
    seed=st.integers(0, 2**32 - 1),
    bad=st.sampled_from([math.nan, math.inf, -math.inf, 1e30]),
    cell=st.integers(0, 4),
    stimulus=st.integers(0, 1),
    times=st.sampled_from([slice(0, 1), slice(60, 61), slice(127, 128), slice(0, 128)]),
)
def test_a_bad_cell_never_changes_a_bit_of_another(
    dtype: torch.dtype, seed: int, bad: float, cell: int, stimulus: int, times: slice
) -> None:
    y, y0 = grid(seed, dtype)
    before = every_value(y, y0)
    y[stimulus, cell, times] = bad
    after = every_value(y, y0)
    others = torch.ones(2, 5, dtype=torch.bool)
    others[stimulus, cell] = False
    for name, value in after.items():
        assert bits(value[others]) == bits(before[name][others]), name
    if not math.isfinite(bad):
        assert int(after["reason"][stimulus, cell]) == Reason.NONFINITE
        assert all(math.isnan(float(after[name][stimulus, cell])) for name in TIMES)


@pytest.mark.parametrize("order", [(2, 0, 1), (2, 1, 0), (0, 2, 1), (1, 2, 0), (1, 0, 2)])
@properties
@given(seed=st.integers(0, 2**32 - 1))
def test_the_strides_of_the_input_do_not_matter(order: tuple[int, int, int], seed: int) -> None:
    y, y0 = grid(seed, torch.float64)
    back = tuple(int(axis) for axis in np.argsort(order))
    strided = y.permute(order).contiguous().permute(back)
    assert torch.equal(strided, y)
    assert not strided.is_contiguous()
    expected = every_value(y, y0)
    for name, value in every_value(strided, y0).items():
        exact = name in (*TIMES, "reason")
        tolerance = 0.0 if exact else 1e-9
        torch.testing.assert_close(value, expected[name], rtol=tolerance, atol=tolerance, equal_nan=True, msg=name)


@properties
@given(seed=st.integers(0, 2**32 - 1))
def test_views_with_gaps_and_expanded_axes_give_the_same_values(seed: int) -> None:
    y, y0 = grid(seed, torch.float64)
    gaps = torch.stack([y, y + 1.0], dim=-1)[..., 0]
    repeated = y[0].expand(3, -1, -1)
    expected = every_value(y, y0)
    for name, value in every_value(gaps, y0).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-9, atol=1e-9, equal_nan=True, msg=name)
    for name, value in every_value(repeated, y0[0].expand(3, -1)).items():
        first = expected[name][0].expand(3, -1)
        torch.testing.assert_close(value, first, rtol=1e-9, atol=1e-9, equal_nan=True, msg=name)
