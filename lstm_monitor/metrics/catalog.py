"""Every metric by group and name: unit, what it means in words, how it is summarized for a cell and shown."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Summary = Literal["median", "mean size", "one"]
Statistics = Literal["full", "quantiles", "median", "table"]


@dataclass(frozen=True)
class MetricSpec:
    """One metric: how it is called, measured, summarized over stimuli for one cell, and shown.

    Statistics: "full" logs p10, p50, p90 and a histogram, "quantiles" no histogram, "median" p50 only, "table" nothing:
    the values are then in the report alone.
    """

    group: str
    name: str
    unit: str
    words: str
    summary: Summary
    statistics: Statistics = "full"
    log: bool = False

    @property
    def path(self) -> str:
        """``group/name``."""
        return f"{self.group}/{self.name}"


_STEP = (
    ("initial_response", "", "hidden state at rest, before the step", "median", "quantiles", False),
    ("final_response", "", "hidden state at the end of the step response", "median", "quantiles", False),
    ("delta_response", "", "size of the lasting change (mean over the stimuli)", "mean size", "full", True),
    ("peak_response", "", "size of the largest change (mean over the stimuli)", "mean size", "full", True),
    ("peak_time", "steps", "time of the largest change", "median", "full", True),
    ("rise_time", "steps", "time from 10% to 90% of the lasting change", "median", "full", True),
    ("settling_time", "steps", "time until the response stays within 10% of its end: the cell's memory of a change",
     "median", "full", True),
    ("overshoot", "", "excess beyond the end, as a fraction of the lasting change", "median", "full", False),
)  # fmt: skip
_SINE = (
    ("amplitude", "", "size of the cell's oscillation when its input swings by one standard deviation", "one", "full",
     True),
    ("phase_lag", "radians", "how far the cell is behind its input", "one", "full", False),
    ("harmonic_distortion", "", "size of the overtones relative to the fundamental: how nonlinear the cell is", "one",
     "full", False),
    ("correlation", "", "correlation of the cell with its input", "one", "full", False),
    ("cutoff_frequency", "cycles/step", "frequency above which the cell no longer follows", "one", "full", True),
    ("dominant_frequency", "cycles/step", "the strongest frequency in the response", "one", "median", False),
)  # fmt: skip
_ACTIVITY = (
    ("std", "", "how much the cell moves on held-out data", "one", "full", True),
    ("rms", "", "root mean square of the cell on held-out data", "one", "median", True),
    ("autocorrelation_time", "steps", "how long the cell stays like itself on held-out data", "one", "full", True),
)
_GATES = (
    ("saturation", "share", "share of gate activations that are saturated, all gates", "one", "full", False),
    ("input_saturation", "share", "share of saturated input gate activations", "one", "median", False),
    ("forget_saturation", "share", "share of saturated forget gate activations", "one", "median", False),
    ("output_saturation", "share", "share of saturated output gate activations", "one", "median", False),
    ("reset_saturation", "share", "share of saturated reset gate activations", "one", "median", False),
    ("update_saturation", "share", "share of saturated update gate activations", "one", "median", False),
    ("candidate_saturation", "share", "share of saturated candidates", "one", "median", False),
    ("tau_f", "steps", "time constant of the mean forget gate (update gate of a GRU)", "one", "full", True),
)
_LINEAR = (
    ("pole", "", "share of a small change that is left a step later: at 1 and above it does not fade", "one", "table",
     False),
    ("pole_frequency", "cycles/step", "frequency at which a small change rings while it fades: 0 if it does not", "one",
     "table", False),
    ("time_constant", "steps", "time in which a small change fades to 1/e", "one", "table", True),
    ("dc_gain", "", "lasting change by a small constant input, for one standard deviation", "one", "table", True),
    ("gain", "", "size of the oscillation by a small input, for one standard deviation", "one", "table", True),
    ("phase_lag", "radians", "how far the cell is behind a small input", "one", "table", False),
    ("cutoff_frequency", "cycles/step", "frequency above which the cell no longer follows a small input", "one",
     "table", True),
)  # fmt: skip
_ALONE = ("peak_response", "settling_time", "amplitude", "cutoff_frequency")
"""What is logged of decoupled cells; all the rest is in the report."""


def _specs() -> tuple[MetricSpec, ...]:
    groups = {"step": _STEP, "sine": _SINE, "activity": _ACTIVITY, "gates": _GATES}
    specs = [MetricSpec(group, *row) for group, rows in groups.items() for row in rows]  # type: ignore[arg-type]
    for group in ("step", "sine"):
        for name, unit, words, summary, _, log in groups[group]:
            shown = "median" if name in _ALONE else "table"
            words = f"{words}; every cell alone"
            specs.append(MetricSpec(f"{group}_alone", name, unit, words, summary, shown, log))  # type: ignore[arg-type]
    specs += [
        MetricSpec("linear", name, unit, f"{words}; every cell alone", *rest)  # type: ignore[arg-type]
        for name, unit, words, *rest in _LINEAR
    ]
    return tuple(specs)


CATALOG: dict[str, MetricSpec] = {spec.path: spec for spec in _specs()}
"""All metrics by ``group/name``."""

DRIFTING = ("step/settling_time", "step/peak_response", "sine/amplitude", "activity/std", "gates/tau_f")
"""The metrics whose drift is logged; the drift of every metric is in the report."""

MAIN_PERIOD = 16
"""The sine's period in steps whose values stand for a cell in tables and scalars; all are in the Bode picture."""
