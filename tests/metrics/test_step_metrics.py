"""Step metrics against closed forms, scipy.signal and the table of cases in measurements.md."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import signal
from torch import Tensor

from lstm_monitor import Reason, metrics
from tests.helpers import oracles

Array = NDArray[np.float64]

NAMES = (
    "initial_response",
    "final_response",
    "delta_response",
    "peak_response",
    "peak_time",
    "rise_time",
    "settling_time",
    "overshoot",
)
SHAPED = ("rise_time", "settling_time", "overshoot")  # all NaN where the settling time is
TIMES = ("peak_time", "rise_time", "settling_time")
CODES = {
    "": Reason.DEFINED,
    "washout": Reason.DEFINED,  # of the settling time, which is defined for a washout
    "silent": Reason.SILENT,
    "drifting": Reason.DRIFTING,
    "oscillating": Reason.OSCILLATING,
    "outside": Reason.OUTSIDE,
    "too_short": Reason.TOO_SHORT,
    "nonfinite": Reason.NONFINITE,
}


def as_tensor(y: object, dtype: torch.dtype = torch.float64) -> Tensor:
    """A numpy array or a list as a tensor."""
    return torch.as_tensor(np.asarray(y), dtype=dtype)


def one(name: str, y: object, y0: float | None = None) -> float:
    """One metric of one response (T,)."""
    metric: Callable[..., Tensor] = getattr(metrics, name)
    value = metric(as_tensor(y)) if y0 is None else metric(as_tensor(y), as_tensor(y0))
    assert value.shape == ()
    return float(value)


def reason(y: object, y0: float | None = None) -> Reason:
    """The reason code of one response (T,)."""
    codes = metrics.step_reason(as_tensor(y)) if y0 is None else metrics.step_reason(as_tensor(y), as_tensor(y0))
    assert codes.dtype == torch.uint8
    assert codes.shape == ()
    return Reason(int(codes))


def assert_flagged(y: object, expected: Reason, y0: float | None = None) -> None:
    """Settling time, rise time and overshoot are NaN, with this reason."""
    assert reason(y, y0) is expected
    assert all(math.isnan(one(name, y, y0)) for name in SHAPED)


def first_order(pole: float, horizon: int, start: float = 0.0, stop: float = 1.0) -> Array:
    """From ``start`` at t = 0 to ``stop``, a discrete first-order step response."""
    return np.asarray(stop + (start - stop) * pole ** np.arange(horizon), dtype=np.float64)


def second_order(zeta: float, omega: float, horizon: int) -> Array:
    """The sampled step response of omega^2 / (s^2 + 2 zeta omega s + omega^2), from scipy."""
    system = signal.TransferFunction([omega**2], [1.0, 2.0 * zeta * omega, omega**2])
    return np.asarray(signal.step(system, T=np.arange(float(horizon)))[1], dtype=np.float64)


def steps_within(pole: float, fraction: float) -> int:
    """Closed form: how many samples pole^t, t = 0, 1, ..., lie above ``fraction``."""
    return math.ceil(math.log(fraction) / math.log(pole))


def control_settling_time(y: Array, threshold: float = 0.02) -> int:
    """What python-control's step_info returns: a share of the last value itself, no initial value."""
    outside = np.nonzero(np.abs(y / y[-1] - 1.0) >= threshold)[0]
    return int(outside[-1]) + 1 if len(outside) else 0


# --- closed forms -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pole", [0.3, 0.5, 0.8, 0.89, 0.95, 0.97])
def test_first_order_has_the_settling_and_rise_time_of_its_closed_form(pole: float) -> None:
    y = first_order(pole, 1024)
    assert one("settling_time", y) == steps_within(pole, 0.1)
    assert one("rise_time", y) == steps_within(pole, 0.1) - steps_within(pole, 0.9)
    assert one("overshoot", y) == pytest.approx(0.0, abs=1e-9)
    assert one("delta_response", y) == pytest.approx(1.0, abs=1e-9)
    assert one("peak_response", y) == pytest.approx(1.0, abs=1e-9)
    assert reason(y) is Reason.DEFINED


@pytest.mark.parametrize(
    ("start", "stop"), [(0.0, 1.0), (0.5, 0.6), (1.0, 0.0), (-0.8, 0.7), (0.7, -0.8), (-3.0, -4.0)]
)
def test_first_order_does_not_depend_on_offset_sign_or_size(start: float, stop: float) -> None:
    y = first_order(0.89, 512, start, stop)
    assert one("settling_time", y) == 20
    assert one("rise_time", y) == 20 - 1
    assert one("initial_response", y) == start
    assert one("final_response", y) == pytest.approx(stop, abs=1e-9)
    assert one("delta_response", y) == pytest.approx(stop - start, abs=1e-9)
    assert one("peak_response", y) == pytest.approx(abs(stop - start), abs=1e-9)
    assert one("overshoot", y) == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("zeta", [0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8])
def test_second_order_overshoots_as_its_damping_says(zeta: float) -> None:
    omega = 0.02  # a fine discretisation: a quarter of a thousand steps to the peak
    y = second_order(zeta, omega, 6000)
    damped = omega * math.sqrt(1.0 - zeta**2)
    assert one("overshoot", y) == pytest.approx(math.exp(-math.pi * zeta / math.sqrt(1.0 - zeta**2)), abs=1e-4)
    assert one("peak_time", y) == pytest.approx(math.pi / damped, abs=1.0)
    assert one("peak_response", y) == pytest.approx(1.0 + one("overshoot", y), abs=1e-6)


@pytest.mark.parametrize("zeta", [0.15, 0.25, 0.45, 0.65, 0.9])
@pytest.mark.parametrize("omega", [0.05, 0.1, 0.3])
def test_second_order_settles_where_a_dense_curve_last_enters_the_band(zeta: float, omega: float) -> None:
    y = second_order(zeta, omega, 2048)
    damped, t = omega * math.sqrt(1.0 - zeta**2), np.arange(0.0, 2048.0, 0.01)
    envelope = np.exp(-zeta * omega * t)
    error = envelope * (np.cos(damped * t) + zeta * omega / damped * np.sin(damped * t))
    assert one("settling_time", y) == math.ceil(t[np.abs(error) > 0.1][-1])


@pytest.mark.parametrize(("a1", "a2"), [(1.6, -0.65), (1.2, -0.5), (0.5, 0.2), (-0.3, 0.1)])
def test_discrete_systems_of_scipy_settle_as_the_naive_loop_says(a1: float, a2: float) -> None:
    y = np.asarray(signal.lfilter([1.0 - a1 - a2], [1.0, -a1, -a2], np.ones(400)), dtype=np.float64)
    expected = oracles.step_metrics(y, 0.0)
    assert expected["reason"] == ""
    for name in NAMES:
        assert one(name, y, 0.0) == pytest.approx(expected[name], abs=1e-12), name


def test_the_value_before_the_step_is_not_the_first_sample() -> None:
    y = first_order(0.89, 512)[1:]  # y[0] is already under way
    assert one("settling_time", y, 0.0) == 19
    assert one("rise_time", y, 0.0) == 19
    assert one("initial_response", y, 0.0) == 0.0
    assert one("initial_response", y) == pytest.approx(0.11)
    assert one("delta_response", y) == pytest.approx(0.89, abs=1e-9)


# --- the table of cases in measurements.md ------------------------------------------------------------------


def test_an_offset_baseline_is_measured_from_its_initial_value() -> None:
    y = 0.5 + 0.1 * second_order(0.585, 0.105, 300)  # overshoots by 10.4% of the change
    assert control_settling_time(y) == 22  # 2% of 0.6 is 12% of the change: the overshoot goes unseen
    assert one("settling_time", y) in (39, 40)
    assert one("settling_time", y) == one("settling_time", second_order(0.585, 0.105, 300))


def test_a_decay_to_zero_settles() -> None:
    y = first_order(0.9, 300, 1.0, 0.0)
    assert control_settling_time(y) == 299
    assert one("settling_time", y) == 22
    assert one("delta_response", y) == pytest.approx(-1.0, abs=1e-9)


def test_a_change_of_sign_is_one_change() -> None:
    y = first_order(0.95, 512, -0.2, 0.3)
    assert one("settling_time", y) == steps_within(0.95, 0.1)
    assert one("peak_time", y) > 200  # the largest distance from y0, which is not the largest abs(y)
    assert one("peak_response", y) == pytest.approx(0.5, abs=1e-9)


@pytest.mark.parametrize("level", [0.0, 0.4, -1.0])
def test_a_constant_is_silent(level: float) -> None:
    y = np.full(100, level)
    assert_flagged(y, Reason.SILENT)
    assert math.isnan(one("peak_time", y))
    assert one("peak_response", y) == 0.0
    assert one("delta_response", y) == pytest.approx(0.0, abs=1e-12)
    assert one("initial_response", y) == level
    assert one("final_response", y) == pytest.approx(level)


def test_silent_is_under_a_thousandth_and_not_beyond() -> None:
    assert_flagged(first_order(0.5, 64, 0.2, 0.2 + 0.00099), Reason.SILENT)
    assert one("settling_time", first_order(0.5, 64, 0.2, 0.2 + 0.00101)) == 4


def test_a_silent_cell_far_from_the_initial_value_is_not_silent() -> None:
    y = np.full(64, 0.3)
    assert one("settling_time", y, 0.0) == 0
    assert one("rise_time", y, 0.0) == 0
    assert one("peak_time", y, 0.0) == 0
    assert one("overshoot", y, 0.0) == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("period", [3.0, 7.5, 10.0])
def test_a_response_that_never_settles_is_oscillating(period: float) -> None:
    y = 0.5 + 0.4 * np.sin(2.0 * np.pi * np.arange(240) / period)  # whole periods in the tail
    y[0] = 0.0
    assert_flagged(y, Reason.OSCILLATING)
    assert one("peak_time", y) == oracles.step_metrics(y)["peak_time"]


def test_a_washout_settles_but_has_no_rise_and_no_overshoot() -> None:
    t = np.arange(200.0)
    y = 0.3 + 0.8 * (0.9**t - 0.6**t)
    assert reason(y) is Reason.DEFINED
    peak = np.abs(y - 0.3).max()
    assert one("peak_response", y) == pytest.approx(peak)
    assert one("peak_time", y) == np.abs(y - 0.3).argmax()
    assert one("settling_time", y) == np.nonzero(np.abs(y - 0.3) > 0.1 * peak)[0][-1] + 1
    assert math.isnan(one("rise_time", y))
    assert math.isnan(one("overshoot", y))


@pytest.mark.parametrize(("left", "is_washout"), [(0.09, True), (0.11, False)])
def test_washout_is_a_return_to_within_a_tenth_of_the_peak(left: float, is_washout: bool) -> None:
    y = np.full(100, left)
    y[:10], y[0] = 1.0, 0.0
    assert reason(y) is Reason.DEFINED
    assert one("settling_time", y) == 10
    assert math.isnan(one("rise_time", y)) is is_washout
    assert math.isnan(one("overshoot", y)) is is_washout


def test_a_pole_at_099_drifts_over_200_steps() -> None:
    assert_flagged(first_order(0.99, 200), Reason.DRIFTING)
    assert one("peak_time", first_order(0.99, 200)) == 199


def test_a_pole_at_099_settles_in_229_to_230_steps_over_1024() -> None:
    y = first_order(0.99, 1025)
    assert one("settling_time", y[:1024]) == 230
    assert one("settling_time", y[1:], 0.0) == 229


def test_a_ramp_drifts() -> None:
    assert_flagged(np.linspace(0.0, 1.0, 100), Reason.DRIFTING)


def test_drift_is_told_before_oscillation() -> None:
    y = np.zeros(64)
    y[48:56], y[56:] = 0.5, [2.0, 0.0, 2.0, 0.0, 2.0, 0.0, 2.0, 0.0]
    assert_flagged(y, Reason.DRIFTING)


def test_a_last_sample_outside_the_band_is_no_settling() -> None:
    y = np.ones(100)
    y[0], y[-1] = 0.0, 1.15  # final is 1.0125; the range 0.15 stays under two bands
    assert_flagged(y, Reason.OUTSIDE, 0.0)
    assert one("settling_time", np.append(y[:-1], 1.1), 0.0) == 1


@pytest.mark.parametrize("horizon", range(1, 8))
def test_under_eight_samples_is_too_short(horizon: int) -> None:
    y = first_order(0.1, horizon)
    assert_flagged(y, Reason.TOO_SHORT, -1.0)
    assert one("peak_time", y, -1.0) == horizon - 1
    assert one("initial_response", y, -1.0) == -1.0


@pytest.mark.parametrize("horizon", range(1, 8))
def test_too_short_is_told_before_silent(horizon: int) -> None:
    assert_flagged(np.zeros(horizon), Reason.TOO_SHORT)


def test_eight_samples_are_enough() -> None:
    y = np.ones(8)
    y[0] = 0.95
    assert reason(y, 0.0) is Reason.DEFINED
    assert one("settling_time", y, 0.0) == 0
    assert_flagged(first_order(0.05, 8), Reason.DRIFTING)  # the four samples before the tail hold the step itself


def test_the_first_of_equal_peaks_counts() -> None:
    y = np.zeros(80)
    y[5], y[9], y[20] = 1.0, -1.0, 1.0
    assert one("peak_time", y) == 5
    assert one("peak_time", -y) == 5
    assert one("settling_time", y) == 21


def test_a_dip_below_the_start_is_not_the_rise() -> None:
    y = np.ones(160)
    y[:12] = [0.0, -0.4, -0.5, -0.3, 0.05, 0.12, 0.3, 0.5, 0.7, 0.89, 0.95, 1.3]
    assert one("rise_time", y, 0.0) == 10 - 5
    assert one("rise_time", -y, 0.0) == 10 - 5
    assert one("settling_time", y, 0.0) == 12
    assert one("overshoot", y, 0.0) == pytest.approx(0.3)


def test_final_is_the_mean_of_the_last_eighth_and_of_at_least_four() -> None:
    y = np.zeros(160)
    y[140:] = np.arange(20.0)
    assert one("final_response", y) == pytest.approx(9.5)
    assert one("final_response", np.arange(9.0)) == pytest.approx(6.5)
    assert one("final_response", np.arange(39.0)) == pytest.approx(36.5)
    assert one("final_response", np.arange(40.0)) == pytest.approx(37.0)


# --- values that are no numbers, shapes, types --------------------------------------------------------------


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", [0, 3, 50, 99])
def test_values_that_are_not_finite_have_their_own_reason(bad: float, where: int) -> None:
    y = first_order(0.8, 100)
    y[where] = bad
    assert_flagged(y, Reason.NONFINITE, 0.0)
    assert math.isnan(one("peak_time", y, 0.0))
    assert not math.isfinite(one("peak_response", y, 0.0))


def test_infinities_of_both_signs_are_not_finite() -> None:
    y = first_order(0.8, 100)
    y[97:99] = math.inf, -math.inf
    assert_flagged(y, Reason.NONFINITE)
    assert not math.isfinite(one("final_response", y))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_an_initial_value_that_is_not_finite_has_that_reason_too(bad: float) -> None:
    assert_flagged(first_order(0.8, 100), Reason.NONFINITE, bad)


def table() -> tuple[Array, Array]:
    """A grid of responses (S=2, H=8, T=128) and their initial values (S, H), with every reason in it."""
    t = np.arange(128.0)
    rows = [
        first_order(0.88, 128),
        first_order(0.99, 128),
        np.full(128, 0.2),
        0.5 + 0.4 * np.sin(t),
        0.9**t - 0.7**t,
        second_order(0.3, 0.3, 128),
        np.append(np.ones(127), 1.15),
        np.where(t == 64, np.nan, first_order(0.5, 128)),
    ]
    y = np.stack([np.stack(rows), 0.25 - 0.5 * np.stack(rows)])
    return y, np.stack([np.zeros(8), np.full(8, 0.25)])


def test_the_table_holds_every_reason() -> None:
    y, y0 = table()
    found = {oracles.step_metrics(y[s, h], y0[s, h])["reason"] for s in range(2) for h in range(8)}
    assert found == {"", "washout", "drifting", "oscillating", "outside", "nonfinite"}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(2, 8), (16,), (4, 2, 2)])
def test_a_batch_of_any_shape_equals_the_naive_oracle(name: str, shape: tuple[int, ...]) -> None:
    y, y0 = table()
    metric: Callable[..., Tensor] = getattr(metrics, name)
    values = metric(as_tensor(y).reshape(*shape, -1), as_tensor(y0).reshape(shape))
    assert values.shape == shape
    for value, row, start in zip(values.flatten(), y.reshape(16, -1), y0.flatten(), strict=True):
        expected = oracles.step_metrics(row, start)
        if expected["reason"] != "nonfinite":  # its own tests are above
            assert float(value) == pytest.approx(expected[name], abs=1e-12, nan_ok=True)


def test_reasons_of_a_batch_equal_the_naive_oracle() -> None:
    y, y0 = table()
    codes = metrics.step_reason(as_tensor(y), as_tensor(y0))
    assert codes.shape == (2, 8)
    assert codes.dtype == torch.uint8
    for s in range(2):
        for h in range(8):
            assert int(codes[s, h]) == CODES[str(oracles.step_metrics(y[s, h], y0[s, h])["reason"])]


@pytest.mark.parametrize("name", [name for name in NAMES if name != "peak_time"])
def test_float32_gives_the_same_values(name: str) -> None:
    y, y0 = table()
    metric: Callable[..., Tensor] = getattr(metrics, name)
    single, double = (metric(as_tensor(y, d), as_tensor(y0, d)) for d in (torch.float32, torch.float64))
    if name in TIMES:
        assert torch.equal(single.isnan(), double.isnan())
    torch.testing.assert_close(single.double(), double, rtol=1e-5, atol=1e-6, equal_nan=True)


def test_float32_gives_the_same_peak_time() -> None:
    y = second_order(0.3, 0.3, 128)  # what rises to a plateau peaks earlier in float32
    assert float(metrics.peak_time(as_tensor(y, torch.float32))) == np.argmax(y) == 11


@pytest.mark.parametrize("name", NAMES)
def test_the_input_is_left_as_it_was(name: str) -> None:
    y, y0 = (as_tensor(a) for a in table())
    y_copy, y0_copy = y.clone(), y0.clone()
    getattr(metrics, name)(y, y0)
    assert torch.equal(y.nan_to_num(7.0), y_copy.nan_to_num(7.0))
    assert torch.equal(y0, y0_copy)


def test_the_codes_are_fixed() -> None:
    names = ("DEFINED", "SILENT", "WASHOUT", "DRIFTING", "OSCILLATING", "OUTSIDE", "TOO_SHORT", "NONFINITE")
    assert [int(Reason[name]) for name in names] == list(range(8))


@pytest.mark.parametrize("shape", [(2,), (3, 4, 1), (3, 1, 4), (5, 3, 4)])
def test_a_start_that_does_not_broadcast_is_an_error(shape: tuple[int, ...]) -> None:
    y = torch.rand(3, 4, 20)
    with pytest.raises(ValueError, match=r"y0 has shape \(.*\); .* it must broadcast to \(3, 4\): y without its time"):
        metrics.settling_time(y, torch.zeros(shape))
    assert metrics.settling_time(y, torch.zeros(3, 1)).shape == (3, 4)
