"""Why a value is undefined, and the named numbers in the metrics' definitions."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum


class Reason(IntEnum):
    """Why a value is NaN; ``DEFINED`` where it is not."""

    DEFINED = 0
    SILENT = 1
    WASHOUT = 2
    DRIFTING = 3
    OSCILLATING = 4
    OUTSIDE = 5
    TOO_SHORT = 6
    NONFINITE = 7
    NO_HARMONICS = 8
    NEVER = 9
    NO_HELD_OUT = 10
    NO_SUCH_GATE = 11
    NEVER_FORGETS = 12
    NOT_AT_REST = 13
    UNSTABLE = 14
    NO_CLOSED_FORM = 15

    @property
    def words(self) -> str:
        """The reason as a phrase to show to people."""
        return _REASON_WORDS[self]


_REASON_WORDS = {
    Reason.DEFINED: "defined",
    Reason.SILENT: "the cell hardly moves",
    Reason.WASHOUT: "the response returns to where it was",
    Reason.DRIFTING: "still drifting when the horizon ends",
    Reason.OSCILLATING: "oscillates without settling",
    Reason.OUTSIDE: "the last sample is outside the band",
    Reason.TOO_SHORT: "the response is too short",
    Reason.NONFINITE: "the response is not finite",
    Reason.NO_HARMONICS: "no harmonic lies below half a cycle per step",
    Reason.NEVER: "never falls below the threshold",
    Reason.NO_HELD_OUT: "no held-out data was given",
    Reason.NO_SUCH_GATE: "this kind of layer has no such gate",
    Reason.NEVER_FORGETS: "the gate never closes: it is 1 to the last digit",
    Reason.NOT_AT_REST: "the cell moves by itself where it should rest",
    Reason.UNSTABLE: "the cell's rest is unstable: any small change grows",
    Reason.NO_CLOSED_FORM: "a registered cell has no closed form",
}


@dataclass(frozen=True)
class Thresholds:
    """The named numbers in the metrics' definitions (this project's own, measured in its guide)."""

    silent: float = 1e-3
    washout: float = 0.1
    band: float = 0.1
    drift: float = 0.25
    tail_share: int = 8
    tail_least: int = 4
    least_amplitude: float = 1e-3
    least_std: float = 1e-6
    dead: float = 1e-3
    saturated: float = 0.05
    candidate_saturated: float = 0.95
    unsettled: float = 1e-3
