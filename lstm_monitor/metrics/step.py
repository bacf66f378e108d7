"""Metrics of step responses ``y (..., T)``: what a cell does after its input jumps at t = 0.

``y0 (...)`` is the value before the step; None means ``y[..., 0]``. Definitions and thresholds are this project's own
(`Thresholds`), chosen to be right where textbook formulas are not: an offset baseline, a decay to zero, a dead signal.
With ``L = max(4, T // 8)``: final = mean of the last L samples, prev = mean of the L before, delta = final - y0, peak =
largest ``|y - y0|``.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from lstm_monitor.core.definitions import Reason, Thresholds
from lstm_monitor.engines.facts import StepFacts
from lstm_monitor.engines.torch_engine.engine import ENGINE

DEFAULT = Thresholds()


@dataclass(frozen=True, eq=False)
class StepSummary:
    """What all step metrics of the same responses share, each computed once, of the shape of the facts."""

    facts: StepFacts
    thresholds: Thresholds

    @cached_property
    def delta(self) -> Tensor:
        """Final minus initial."""
        return self.facts.final - self.facts.initial

    @cached_property
    def peak(self) -> Tensor:
        """Largest distance from the initial value."""
        return torch.maximum(self.facts.top - self.facts.initial, self.facts.initial - self.facts.bottom)

    @cached_property
    def silent(self) -> Tensor:
        """Whether the cell hardly moves."""
        return self.peak < self.thresholds.silent

    @cached_property
    def washout(self) -> Tensor:
        """Whether the response returns to where it was."""
        return (self.delta.abs() < self.thresholds.washout * self.peak) & ~self.silent

    @cached_property
    def band(self) -> Tensor:
        """Half-width of the settling band around the final value."""
        return self.thresholds.band * torch.where(self.washout, self.peak, self.delta.abs())

    @cached_property
    def nonfinite(self) -> Tensor:
        """Whether the response, or the value before it, is not finite."""
        return ~torch.isfinite(self.peak)

    @cached_property
    def reason(self) -> Tensor:
        """uint8 codes of `Reason`: why the settling time is undefined."""
        facts, reason = self.facts, torch.zeros_like(self.peak, dtype=torch.uint8)
        if facts.steps < 2 * self.thresholds.tail_least:
            return reason.fill_(Reason.TOO_SHORT).masked_fill_(self.nonfinite, Reason.NONFINITE)
        reason.masked_fill_((facts.last - facts.final).abs() > self.band, Reason.OUTSIDE)
        reason.masked_fill_((facts.tail_top - facts.tail_bottom) > 2 * self.band, Reason.OSCILLATING)
        reason.masked_fill_((facts.final - facts.before).abs() > self.thresholds.drift * self.band, Reason.DRIFTING)
        return reason.masked_fill_(self.silent, Reason.SILENT).masked_fill_(self.nonfinite, Reason.NONFINITE)

    @cached_property
    def settling_time(self) -> Tensor:
        """Steps through the last sample outside the band."""
        return undefined(self.facts.outside + 1, self.reason)

    @cached_property
    def shape_reason(self) -> Tensor:
        """As `reason`, and undefined for washout too, where delta is no scale."""
        return self.reason.masked_fill(self.washout & (self.reason == 0), Reason.WASHOUT)

    @cached_property
    def value_reason(self) -> Tensor:
        """Undefined only where the response is not finite."""
        return self.nonfinite.to(torch.uint8) * int(Reason.NONFINITE)

    @cached_property
    def peak_reason(self) -> Tensor:
        """Undefined where the cell is silent or not finite."""
        return self.value_reason.masked_fill(self.silent, Reason.SILENT)

    @cached_property
    def peak_time(self) -> Tensor:
        """Index of the first sample at the peak."""
        return undefined(self.facts.peak_at, self.peak_reason)

    @cached_property
    def rise_time(self) -> Tensor:
        """Steps from the first sample beyond 10% of delta to the first beyond 90%."""
        return undefined(self.facts.rise_to - self.facts.rise_from, self.shape_reason)

    @cached_property
    def overshoot(self) -> Tensor:
        """Excess beyond the final value as a fraction of abs(delta)."""
        facts = self.facts
        beyond = torch.where(self.delta > 0, facts.top - facts.final, facts.final - facts.bottom)
        return undefined(beyond.clamp(min=0) / self.delta.abs(), self.shape_reason)


def undefined(values: Tensor, reason: Tensor) -> Tensor:
    """`values` with NaN where `reason` is not zero."""
    return torch.where(reason == 0, values, torch.nan)


def at_least_float32(y: Tensor) -> Tensor:
    """`y` itself, half precision as float32: it cannot count steps beyond 256.

    Raises:
        TypeError: `y` is not a floating-point tensor.
        ValueError: `y` has no time steps.
    """
    if not isinstance(y, Tensor) or not y.is_floating_point():
        raise TypeError(f"y={y!r} is no floating-point tensor; give responses of shape (..., T)")
    if y.dim() == 0 or y.shape[-1] == 0:
        raise ValueError(f"y has shape {tuple(y.shape)}; give responses of shape (..., T) with T of at least 1")
    return y.float() if y.dtype in (torch.float16, torch.bfloat16) else y


def summarize(y: Tensor, y0: Tensor | None = None, thresholds: Thresholds = DEFAULT) -> StepSummary:
    """The summary that all step metrics of one response share.

    Raises:
        TypeError: `y` is not a floating-point tensor.
        ValueError: `y` has no time steps, or `y0` does not broadcast to ``y.shape[:-1]``.
    """
    y = at_least_float32(y)
    start = y[..., 0] if y0 is None else torch.as_tensor(y0, dtype=y.dtype, device=y.device)
    try:
        start = start.expand(y.shape[:-1])
    except RuntimeError:
        raise ValueError(
            f"y0 has shape {tuple(start.shape)}; for y of shape {tuple(y.shape)} it must broadcast to "
            f"{tuple(y.shape[:-1])}: y without its time"
        ) from None
    return StepSummary(_facts_of(y, start, thresholds), thresholds)


def _facts_of(y: Tensor, start: Tensor, thresholds: Thresholds) -> StepFacts:
    """Of each response of ``y (..., T)`` from its own ``start (...)``: each is taken for a cell of its own."""
    rows = y.reshape(start.numel(), y.shape[-1])
    facts = ENGINE.step_facts(rows.T[:, None], start.reshape(-1), thresholds)
    values = {field.name: getattr(facts, field.name) for field in fields(facts)}
    shaped: dict[str, Any] = {
        name: value.reshape(start.shape) for name, value in values.items() if isinstance(value, Tensor)
    }
    return replace(facts, **shaped)


def initial_response(y: Tensor, y0: Tensor | None = None, thresholds: Thresholds = DEFAULT) -> Tensor:
    """The value before the step, ``y0``, shape (...). NaN if the response is not finite.

    Raises:
        TypeError, ValueError: as `summarize`.
    """
    summary = summarize(y, y0, thresholds)
    return undefined(summary.facts.initial, summary.value_reason)


def final_response(y: Tensor, y0: Tensor | None = None, thresholds: Thresholds = DEFAULT) -> Tensor:
    """The mean of the last L samples, shape (...). NaN if the response is not finite.

    Raises:
        TypeError, ValueError: as `summarize`.
    """
    summary = summarize(y, y0, thresholds)
    return undefined(summary.facts.final, summary.value_reason)


def delta_response(y: Tensor, y0: Tensor | None = None, thresholds: Thresholds = DEFAULT) -> Tensor:
    """Final minus initial response, signed, shape (...). NaN if the response is not finite.

    Raises:
        TypeError, ValueError: as `summarize`.
    """
    summary = summarize(y, y0, thresholds)
    return undefined(summary.delta, summary.value_reason)


def peak_response(y: Tensor, y0: Tensor | None = None, thresholds: Thresholds = DEFAULT) -> Tensor:
    """The largest ``|y - y0|``, shape (...). NaN if the response is not finite.

    Raises:
        TypeError, ValueError: as `summarize`.
    """
    summary = summarize(y, y0, thresholds)
    return undefined(summary.peak, summary.value_reason)


def peak_time(y: Tensor, y0: Tensor | None = None, thresholds: Thresholds = DEFAULT) -> Tensor:
    """The index in steps of the first sample with the largest ``|y - y0|``, shape (...).

    NaN if the cell is silent (peak under 1e-3) or the response is not finite.

    Raises:
        TypeError, ValueError: as `summarize`.
    """
    return summarize(y, y0, thresholds).peak_time


def rise_time(y: Tensor, y0: Tensor | None = None, thresholds: Thresholds = DEFAULT) -> Tensor:
    """Steps from the first sample at 10% of delta or more to the first at 90% or more, shape (...).

    NaN for the reasons of `settling_time`, and where the response returns to where it was (washout).

    Raises:
        TypeError, ValueError: as `summarize`.
    """
    return summarize(y, y0, thresholds).rise_time


def settling_time(y: Tensor, y0: Tensor | None = None, thresholds: Thresholds = DEFAULT) -> Tensor:
    """Steps through the last sample outside the band around the final value, shape (...); 0 if none is outside.

    The band is 10% of abs(delta), of the peak where the response returns to where it was (the "90% window").
    NaN, see `step_reason`, if the cell is silent, drifting or oscillating at the end, if the last sample itself is
    outside the band, if T < 8, or if the response is not finite.

    Raises:
        TypeError, ValueError: as `summarize`.

    Example:
        >>> t = torch.arange(200.0)
        >>> settling_time(1 - 0.9 ** (t + 1), y0=torch.tensor(0.0))  # 0.9 ** (t + 1) > 0.1 for t = 0 ... 20
        tensor(21.)
    """
    return summarize(y, y0, thresholds).settling_time


def overshoot(y: Tensor, y0: Tensor | None = None, thresholds: Thresholds = DEFAULT) -> Tensor:
    """How far the response goes beyond its final value, a fraction of abs(delta), shape (...); 0 if it never does.

    NaN for the reasons of `settling_time`, and where the response returns to where it was (washout).

    Raises:
        TypeError, ValueError: as `summarize`.
    """
    return summarize(y, y0, thresholds).overshoot


def step_reason(y: Tensor, y0: Tensor | None = None, thresholds: Thresholds = DEFAULT) -> Tensor:
    """Why `settling_time` is undefined: uint8 codes of `Reason`, shape (...); 0 where it is defined.

    Raises:
        TypeError, ValueError: as `summarize`.
    """
    return summarize(y, y0, thresholds).reason
