"""Metrics of sine responses ``y (..., T)`` to the input ``sin(2 pi f t)``, t the index of the sample.

All of them project on sines and cosines over the largest whole number of periods after the transient (by default the
first half). Frequencies are in cycles per step, 0 < f < 0.5; a lag is in radians, positive if the cell is late.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
from torch import Tensor

from lstm_monitor.metrics.step import at_least_float32, undefined
from lstm_monitor.reasons import Reason, Thresholds
from lstm_monitor.stimuli import check_frequency

DEFAULT = Thresholds()


@dataclass(frozen=True, eq=False)
class SineSummary:
    """What all sine metrics of one response share, each computed once."""

    y: Tensor
    frequency: float
    transient: int
    thresholds: Thresholds

    @cached_property
    def window(self) -> Tensor:
        """The samples ``(..., n)`` of the whole periods after the transient; n steps are nearest to whole periods."""
        periods = math.floor((self.y.shape[-1] - self.transient) * self.frequency + 1e-9)
        steps = min(round(periods / self.frequency), self.y.shape[-1] - self.transient)
        return self.y[..., self.transient : self.transient + steps]

    @cached_property
    def folded(self) -> Tensor:
        """One mean period ``(..., period)`` where the period is a whole number of steps; else the window."""
        period = round(1 / self.frequency)
        if abs(period * self.frequency - 1) > 1e-9:
            return self.window
        return self.window.unflatten(-1, (-1, period)).mean(-2)

    @cached_property
    def coefficients(self) -> Tensor:
        """``(..., 1 + 2 k)``: mean, then sine and cosine of the fundamental and of each harmonic below 0.5."""
        steps, like = self.folded.shape[-1], (self.y.dtype, self.y.device)
        projection = _projection(self.frequency, self.transient, steps, self._harmonics, *like)
        centre = self.folded.mean(-1, keepdim=True)
        found = (self.folded - centre) @ projection.T
        return torch.cat([found[..., :1] + centre, found[..., 1:]], dim=-1)

    @cached_property
    def _harmonics(self) -> int:
        most = (self.folded.shape[-1] - 1) // 2
        return max(1, min(most, math.ceil(0.5 / self.frequency - 1e-9) - 1))

    @cached_property
    def amplitude(self) -> Tensor:
        """Amplitude of the fundamental."""
        return torch.hypot(self.coefficients[..., 1], self.coefficients[..., 2])

    @cached_property
    def amplitude_reason(self) -> Tensor:
        """Undefined only where the response is not finite."""
        return (~torch.isfinite(self.amplitude)).to(torch.uint8) * int(Reason.NONFINITE)

    @cached_property
    def phase_reason(self) -> Tensor:
        """Undefined where the fundamental is under the least amplitude."""
        small = (self.amplitude < self.thresholds.least_amplitude).to(torch.uint8) * int(Reason.SILENT)
        return torch.maximum(self.amplitude_reason, small)

    @cached_property
    def phase_lag(self) -> Tensor:
        """Minus the phase of the fundamental."""
        lag = -torch.atan2(self.coefficients[..., 2], self.coefficients[..., 1])
        return undefined(torch.where(lag <= -math.pi, -lag, lag), self.phase_reason)

    @cached_property
    def distortion_reason(self) -> Tensor:
        """As the phase; undefined everywhere if no harmonic lies below 0.5."""
        if self._harmonics < 2:
            return torch.full_like(self.phase_reason, int(Reason.NO_HARMONICS))
        return self.phase_reason

    @cached_property
    def harmonic_distortion(self) -> Tensor:
        """Root of the harmonics' power over the fundamental's."""
        power = self.coefficients[..., 3:].square().sum(-1)
        return undefined(power.sqrt() / self.amplitude, self.distortion_reason)

    @cached_property
    def std(self) -> Tensor:
        """Standard deviation over the window."""
        return self.window.std(-1, correction=0)

    @cached_property
    def correlation_reason(self) -> Tensor:
        """Undefined where the response is constant or not finite."""
        constant = (self.std < self.thresholds.least_std).to(torch.uint8) * int(Reason.SILENT)
        return torch.maximum(self.amplitude_reason, constant)

    @cached_property
    def correlation(self) -> Tensor:
        """Pearson's correlation with the input sine over the window."""
        steps = self.window.shape[-1]
        wave = _wave(self.frequency, self.transient, steps, self.y.dtype, self.y.device)
        centred = self.window - self.window.mean(-1, keepdim=True)
        return undefined((centred @ wave) / (steps * self.std), self.correlation_reason)


@lru_cache(maxsize=64)
def _projection(
    frequency: float, start: int, steps: int, harmonics: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Least squares ``(1 + 2 k, steps)`` for a constant, then sine and cosine of each harmonic."""
    time = torch.arange(start, start + steps, dtype=torch.float64)
    angles = [2 * math.pi * frequency * order * time for order in range(1, harmonics + 1)]
    waves = [wave for angle in angles for wave in (torch.sin(angle), torch.cos(angle))]
    return torch.linalg.pinv(torch.stack([torch.ones_like(time), *waves], dim=1)).to(device, dtype)


@lru_cache(maxsize=64)
def _wave(frequency: float, start: int, steps: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The input sine ``(steps,)`` with mean 0 and mean square 1."""
    wave = torch.sin(2 * math.pi * frequency * torch.arange(start, start + steps, dtype=torch.float64))
    wave = wave - wave.mean()
    return (wave / wave.std(correction=0)).to(device, dtype)


def summarize_sine(
    y: Tensor, frequency: float, transient: int | None = None, thresholds: Thresholds = DEFAULT
) -> SineSummary:
    """The summary that all sine metrics of one response share.

    Raises:
        TypeError: `y` is not a floating-point tensor.
        ValueError: `y` has no time steps, `frequency` is outside its range, `transient` is negative or leaves no whole
            period.
    """
    y = at_least_float32(y)
    check_frequency(frequency)
    skipped = y.shape[-1] // 2 if transient is None else transient
    if skipped < 0:
        raise ValueError(f"transient={transient} is negative; give the number of first steps to leave out, or None")
    if math.floor((y.shape[-1] - skipped) * frequency + 1e-9) < 1:
        raise ValueError(
            f"the horizon T={y.shape[-1]} is too short for frequency={frequency:g}: after a transient of {skipped} "
            f"steps no whole period of {1 / frequency:g} steps is left; give a longer response or a smaller transient"
        )
    return SineSummary(y, frequency, skipped, thresholds)


def amplitude(y: Tensor, frequency: float, transient: int | None = None, thresholds: Thresholds = DEFAULT) -> Tensor:
    """Amplitude of the response at the input's frequency, shape (...). NaN if it is not finite.

    Raises:
        TypeError, ValueError: as `summarize_sine`.
    """
    return summarize_sine(y, frequency, transient, thresholds).amplitude


def phase_lag(y: Tensor, frequency: float, transient: int | None = None, thresholds: Thresholds = DEFAULT) -> Tensor:
    """How far the response is behind the input, radians in (-pi, pi], shape (...).

    NaN if the amplitude is under 1e-3 or not finite.

    Raises:
        TypeError, ValueError: as `summarize_sine`.
    """
    return summarize_sine(y, frequency, transient, thresholds).phase_lag


def harmonic_distortion(
    y: Tensor, frequency: float, transient: int | None = None, thresholds: Thresholds = DEFAULT
) -> Tensor:
    """Total harmonic distortion: root of the summed squared amplitudes at 2f, 3f, ... < 0.5 over that at f.

    Shape (...). NaN if the amplitude is under 1e-3, or if no harmonic lies below 0.5.

    Raises:
        TypeError, ValueError: as `summarize_sine`.
    """
    return summarize_sine(y, frequency, transient, thresholds).harmonic_distortion


def correlation(y: Tensor, frequency: float, transient: int | None = None, thresholds: Thresholds = DEFAULT) -> Tensor:
    """Pearson's correlation of response and input sine, in [-1, 1], shape (...). NaN if the std is under 1e-6.

    Raises:
        TypeError, ValueError: as `summarize_sine`.
    """
    return summarize_sine(y, frequency, transient, thresholds).correlation


def dominant_frequency(y: Tensor, thresholds: Thresholds = DEFAULT) -> Tensor:
    """The frequency of the largest bin of the periodogram, cycles per step, resolution 1 / T, shape (...).

    The mean is taken out first. NaN if the std is under 1e-6 or not finite.

    Raises:
        TypeError, ValueError: `y` is not a floating-point tensor, or has no time steps.
    """
    return undefined(*dominant_frequency_with_reason(y, thresholds))


def dominant_frequency_with_reason(y: Tensor, thresholds: Thresholds = DEFAULT) -> tuple[Tensor, Tensor]:
    """`dominant_frequency` before it is made NaN, with its reasons.

    Raises:
        TypeError, ValueError: `y` is not a floating-point tensor, or has no time steps.
    """
    y = at_least_float32(y)
    std = y.std(-1, correction=0)
    reason = (std < thresholds.least_std).to(torch.uint8) * int(Reason.SILENT)
    reason[~torch.isfinite(std)] = Reason.NONFINITE
    centred = torch.nan_to_num(y - y.mean(-1, keepdim=True))
    power = torch.fft.rfft(centred).abs()
    power[..., 0] = 0
    return power.argmax(-1) / y.shape[-1] + torch.zeros_like(std), reason


def cutoff_frequency(gains: Tensor, frequencies: Sequence[float] | Tensor, thresholds: Thresholds = DEFAULT) -> Tensor:
    """Where the gain falls under 1/sqrt(2) of that at the lowest frequency, cycles per step.

    Interpolated linearly in the gain over the logarithm of the frequency, at the first fall.

    Args:
        gains: (F, ...) amplitudes, one a frequency.
        frequencies: (F,) cycles per step, in any order.
        thresholds: the least amplitude at the lowest frequency.

    Returns:
        Shape (...). NaN if the gain never falls so far, or if it is under 1e-3 at the lowest frequency.
    """
    return undefined(*cutoff_with_reason(gains, frequencies, thresholds))


def cutoff_with_reason(
    gains: Tensor, frequencies: Sequence[float] | Tensor, thresholds: Thresholds = DEFAULT
) -> tuple[Tensor, Tensor]:
    """`cutoff_frequency` before it is made NaN, with its reasons."""
    order = sorted(range(len(frequencies)), key=lambda k: float(frequencies[k]))
    gains = gains[order]
    logs = torch.tensor([math.log(float(frequencies[k])) for k in order], dtype=gains.dtype, device=gains.device)
    goal = gains[0] / math.sqrt(2)
    below = gains[1:] < goal
    first = below.to(torch.uint8).argmax(0) if len(below) else torch.zeros_like(goal, dtype=torch.long)
    after = (first + 1).clamp(max=len(gains) - 1)
    high, low = (gains.gather(0, index[None])[0] for index in (first, after))
    share = (high - goal) / (high - low)
    found = torch.exp(logs[first] + share * (logs[after] - logs[first]))
    reason = (~below.any(0)).to(torch.uint8) * int(Reason.NEVER)
    reason[gains[0] < thresholds.least_amplitude] = Reason.SILENT
    reason[~torch.isfinite(gains).all(0)] = Reason.NONFINITE
    return found, reason
