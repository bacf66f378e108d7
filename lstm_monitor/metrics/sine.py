"""Metrics of sine responses ``y (..., T)`` to the input ``sin(2 pi f t)``, t the index of the sample."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
from torch import Tensor

from lstm_monitor.core.definitions import Reason, Thresholds
from lstm_monitor.engines.facts import SineFacts, window_of
from lstm_monitor.engines.torch_engine.engine import ENGINE
from lstm_monitor.metrics.step import at_least_float32, undefined

DEFAULT = Thresholds()
AT_ONCE = 512
"""Responses whose spectra are in memory together."""


@dataclass(frozen=True, eq=False)
class SineSummary:
    """What all sine metrics of the responses to S sines share, each computed once, ``(S, ...)``.

    ``start``: the index of the first sample of their windows.
    """

    facts: SineFacts
    start: int
    thresholds: Thresholds

    @cached_property
    def _found(self) -> tuple[Tensor, ...]:
        """The fundamental's sine and cosine, the power of its harmonics, and the mean product with the input."""
        rows = [self._project(*pair) for pair in zip(self.facts.folded, self.facts.frequencies, strict=True)]
        return torch.stack([torch.stack(row) for row in rows], dim=1).unbind()

    def _project(self, folded: Tensor, frequency: float) -> tuple[Tensor, ...]:
        steps = folded.shape[-1]
        waves = _projection(frequency, self.start, steps, _harmonics(frequency, steps), folded.dtype, folded.device)
        found = (folded - folded.mean(-1, keepdim=True)) @ waves
        return found[..., 0], found[..., 1], found[..., 2:-1].square().sum(-1), found[..., -1]

    @cached_property
    def amplitude(self) -> Tensor:
        """Amplitude of the fundamental."""
        return torch.hypot(self._found[0], self._found[1])

    @cached_property
    def amplitude_reason(self) -> Tensor:
        """Undefined only where the response is not finite."""
        return (~torch.isfinite(self.amplitude)).to(torch.uint8) * int(Reason.NONFINITE)

    @cached_property
    def phase_reason(self) -> Tensor:
        """Undefined where the fundamental is under the least amplitude."""
        return self.amplitude_reason.masked_fill(self.amplitude < self.thresholds.least_amplitude, Reason.SILENT)

    @cached_property
    def phase_lag(self) -> Tensor:
        """Minus the phase of the fundamental."""
        lag = -torch.atan2(self._found[1], self._found[0])
        return undefined(torch.where(lag <= -math.pi, -lag, lag), self.phase_reason)

    @cached_property
    def distortion_reason(self) -> Tensor:
        """As the phase; undefined everywhere for a sine of which no harmonic lies below 0.5."""
        rows = zip(self.phase_reason, self.facts.folded, self.facts.frequencies, strict=True)
        return torch.stack(
            [
                reason if _harmonics(frequency, folded.shape[-1]) > 1 else torch.full_like(reason, Reason.NO_HARMONICS)
                for reason, folded, frequency in rows
            ]
        )

    @cached_property
    def harmonic_distortion(self) -> Tensor:
        """Root of the harmonics' power over the fundamental's."""
        return undefined(self._found[2].sqrt() / self.amplitude, self.distortion_reason)

    @cached_property
    def correlation_reason(self) -> Tensor:
        """Undefined where the response is constant or not finite."""
        constant = self.facts.std < self.thresholds.least_std
        return self.amplitude_reason.masked_fill(constant & (self.amplitude_reason == 0), Reason.SILENT)

    @cached_property
    def correlation(self) -> Tensor:
        """Pearson's correlation with the input sine over the window."""
        return undefined(self._found[3] / self.facts.std, self.correlation_reason)

    def dominant_with_reason(self, main: int) -> tuple[Tensor, Tensor]:
        """The strongest frequency in the window of the sine number `main`, and why it is undefined."""
        assert self.facts.window is not None
        return strongest(self.facts.window), _steady_reason(self.facts.std[main], self.thresholds)


def _harmonics(frequency: float, steps: int) -> int:
    """How many of the fundamental and its harmonics lie below 0.5 and can be told apart in so many steps."""
    return max(1, min((steps - 1) // 2, math.ceil(0.5 / frequency - 1e-9) - 1))


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # what is kept may be part of a graph later
def _projection(
    frequency: float, start: int, steps: int, harmonics: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """``(steps, 2 k + 1)``: least squares for sine and cosine of each harmonic beside a constant; the input sine.

    The input sine has mean 0, mean square 1 over the whole window, and is over the number of steps.
    """
    time = torch.arange(start, start + steps, dtype=torch.float64, device="cpu")
    angles = [2 * math.pi * frequency * order * time for order in range(1, harmonics + 1)]
    waves = [wave for angle in angles for wave in (torch.sin(angle), torch.cos(angle))]
    fitted = torch.linalg.pinv(torch.stack([torch.ones_like(time), *waves], dim=1))[1:]
    actual = waves[0] - waves[0].mean()
    return torch.cat([fitted, (actual / actual.std(correction=0) / steps)[None]]).T.to(device, dtype)


def summarize_sine(
    y: Tensor, frequency: float, transient: int | None = None, thresholds: Thresholds = DEFAULT
) -> SineSummary:
    """The summary that all metrics of the response to one sine share, of shape (1, ...).

    Raises:
        TypeError: `y` is not a floating-point tensor.
        ValueError: `y` has no time steps, `frequency` is outside its range, `transient` is negative or leaves no whole
            period.
    """
    y = at_least_float32(y)
    skipped = y.shape[-1] // 2 if transient is None else transient
    check_window(y.shape[-1], frequency, skipped)
    found = window_of(y.shape[-1], frequency, skipped)
    window = y[..., found.start : found.start + found.size]
    folded = window.unflatten(-1, (-1, found.period)).mean(-2) if found.period < found.size else window
    facts = SineFacts(y.shape[-1], (frequency,), (folded,), window.std(-1, correction=0)[None], None)
    return SineSummary(facts, skipped, thresholds)


def summarize_sines(
    y: Tensor, frequencies: Sequence[float], main: int, thresholds: Thresholds = DEFAULT
) -> SineSummary:
    """The summary that all metrics of the responses ``y (S, H, T)`` to S sines share; `main` keeps its samples.

    Raises:
        TypeError, ValueError: as `summarize_sine`.
    """
    y = at_least_float32(y)
    for frequency in frequencies:
        check_window(y.shape[-1], frequency, y.shape[-1] // 2)
    return SineSummary(ENGINE.sine_facts(y.permute(2, 0, 1), frequencies, main), y.shape[-1] // 2, thresholds)


def check_window(steps: int, frequency: float, transient: int) -> None:
    """Raise ValueError unless a response of so many steps holds a whole period of the sine after its transient."""
    check_frequency(frequency)
    if transient < 0:
        raise ValueError(f"transient={transient} is negative; give the number of first steps to leave out, or None")
    if math.floor((steps - transient) * frequency + 1e-9) < 1:
        raise ValueError(
            f"the horizon T={steps} is too short for frequency={frequency:g}: after a transient of {transient} "
            f"steps no whole period of {1 / frequency:g} steps is left; give a longer response or a smaller transient"
        )


def amplitude(y: Tensor, frequency: float, transient: int | None = None, thresholds: Thresholds = DEFAULT) -> Tensor:
    """Amplitude of the response at the input's frequency, shape (...). NaN if it is not finite.

    Raises:
        TypeError, ValueError: as `summarize_sine`.
    """
    return summarize_sine(y, frequency, transient, thresholds).amplitude[0]


def phase_lag(y: Tensor, frequency: float, transient: int | None = None, thresholds: Thresholds = DEFAULT) -> Tensor:
    """How far the response is behind the input, radians in (-pi, pi], shape (...).

    NaN if the amplitude is under 1e-3 or not finite.

    Raises:
        TypeError, ValueError: as `summarize_sine`.
    """
    return summarize_sine(y, frequency, transient, thresholds).phase_lag[0]


def harmonic_distortion(
    y: Tensor, frequency: float, transient: int | None = None, thresholds: Thresholds = DEFAULT
) -> Tensor:
    """Total harmonic distortion: root of the summed squared amplitudes at 2f, 3f, ... < 0.5 over that at f.

    Shape (...). NaN if the amplitude is under 1e-3, or if no harmonic lies below 0.5.

    Raises:
        TypeError, ValueError: as `summarize_sine`.
    """
    return summarize_sine(y, frequency, transient, thresholds).harmonic_distortion[0]


def correlation(y: Tensor, frequency: float, transient: int | None = None, thresholds: Thresholds = DEFAULT) -> Tensor:
    """Pearson's correlation of response and input sine, in [-1, 1], shape (...). NaN if the std is under 1e-6.

    Raises:
        TypeError, ValueError: as `summarize_sine`.
    """
    return summarize_sine(y, frequency, transient, thresholds).correlation[0]


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
    return strongest(y), _steady_reason(y.std(-1, correction=0), thresholds)


def _steady_reason(std: Tensor, thresholds: Thresholds) -> Tensor:
    reason = (std < thresholds.least_std).to(torch.uint8) * int(Reason.SILENT)
    return reason.masked_fill(~torch.isfinite(std), Reason.NONFINITE)


def strongest(y: Tensor) -> Tensor:
    """The frequency (...) of the largest bin of the periodogram of ``y (..., T)``, some responses at a time."""
    steps = y.shape[-1]
    return torch.cat([_largest_bin(rows) for rows in y.reshape(-1, steps).split(AT_ONCE)]).reshape(y.shape[:-1]) / steps


def _largest_bin(rows: Tensor) -> Tensor:
    power = torch.fft.rfft(torch.nan_to_num(rows - rows.mean(-1, keepdim=True))).abs()
    power[..., 0] = 0
    return power.argmax(-1).to(rows.dtype)


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
    gains = torch.stack([gains[k] for k in order])
    logs = torch.tensor([math.log(float(frequencies[k])) for k in order], dtype=gains.dtype, device=gains.device)
    goal = gains[0] / math.sqrt(2)
    below = gains[1:] < goal
    first = below.to(torch.uint8).argmax(0) if len(below) else torch.zeros_like(goal, dtype=torch.long)
    after = (first + 1).clamp(max=len(gains) - 1)
    high, low = (gains.gather(0, index[None])[0] for index in (first, after))
    share = (high - goal) / (high - low)
    found = torch.exp(logs[first] + share * (logs[after] - logs[first]))
    reason = (~below.any(0)).to(torch.uint8) * int(Reason.NEVER)
    reason.masked_fill_(gains[0] < thresholds.least_amplitude, Reason.SILENT)
    return found, reason.masked_fill_(~torch.isfinite(gains).all(0), Reason.NONFINITE)


def check_frequency(frequency: float) -> None:
    """Raise ValueError unless 0 < frequency < 0.5."""
    if not 0 < frequency < 0.5:
        raise ValueError(
            f"frequency={frequency!r} is outside 0 < frequency < 0.5 cycles per step; a period of P steps is 1 / P"
        )
