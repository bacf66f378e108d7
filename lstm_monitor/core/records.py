"""The records that pass between the stages: plain, frozen, one a stage.

Axis order is the same everywhere: ``(stimulus, cell, time)``, time last. Time is in steps,
frequency in cycles per step, phase in radians with a lag positive.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from torch import Tensor

from lstm_monitor.core.definitions import Reason
from lstm_monitor.core.errors import nearest
from lstm_monitor.core.terms import GATES, Kind, LayerKey, Mode, OneLine
from lstm_monitor.core.weights import CellWeights, LayerWeights


@dataclass(frozen=True)
class Skipped:
    """A module that looks recurrent and is not characterized, with the reason."""

    path: str
    type_name: str
    reason: str

    def __str__(self) -> str:
        """One line for people."""
        return f"{self.path or '(the model itself)'} ({self.type_name}): {self.reason}"


@dataclass(frozen=True, eq=False, repr=False)
class Sequences(OneLine):
    """Input sequences of one layer, as it received them (or random ones in their place).

    ``inputs (N, T, I)``; ``lengths (N,)`` where the layer was given packed sequences: it then ran over that many
    steps; ``mask (N, T)`` is True for the steps that count in a statistic; ``h0`` and ``c0 (N, H)``.
    """

    inputs: Tensor
    mask: Tensor
    lengths: Tensor | None = None
    h0: Tensor | None = None
    c0: Tensor | None = None
    source: Literal["held_out", "random_bank"] = "held_out"


@dataclass(frozen=True, eq=False, repr=False)
class OperatingPoint(OneLine):
    """What a layer really receives: ``mean (I,)``, ``covariance (I, I)``; zero and one without data.

    ``length`` is the usual number of steps of a sequence (the task's length), None without data.
    """

    mean: Tensor
    covariance: Tensor
    length: int | None
    source: Literal["held_out", "default"]


@dataclass(frozen=True, eq=False, repr=False)
class Importance(OneLine):
    """How much the network's output needs each cell, ``scores (H,)``, found by running the whole network.

    ``name`` and ``words`` say how it was found. ``scores`` None: it could not be, and ``words`` say why.
    """

    name: str
    words: str
    scores: Tensor | None


@dataclass(frozen=True, eq=False, repr=False)
class Snapshot(OneLine):
    """A detached copy of one layer at one moment, with its operating point.

    ``outgoing (H,)``: norm of each cell's outgoing columns in the module that reads the layer, ``reader`` its name
    (None where none was found). ``hidden_mean (H,)``: mean hidden state on the held-out sequences, at which the
    cross-recurrence of the decoupled responses is frozen (zero without data). ``held_out_hidden (T, N, H)`` are the
    hidden states on ``held_out``, ``held_out_gates`` what `gate_values` makes of them, once it is known.
    ``importance``: what the whole network says of each cell, where it was asked.
    ``frozen``: none of its weights learns. ``probe``: the stimuli of the check that it was kept by.
    """

    key: LayerKey
    weights: LayerWeights | CellWeights
    point: OperatingPoint
    hidden_mean: Tensor
    held_out: Sequences | None = None
    held_out_hidden: Tensor | None = None
    held_out_gates: Tensor | None = None
    outgoing: Tensor | None = None
    reader: str | None = None
    importance: Importance | None = None
    frozen: bool = False
    probe: Probe | None = None

    @property
    def kind(self) -> Kind:
        """The kind of layer."""
        return self.weights.kind

    @property
    def hidden_size(self) -> int:
        """H, the number of cells."""
        return self.weights.hidden_size


@dataclass(frozen=True, eq=False, repr=False)
class Stimulus(OneLine):
    """A rank-1 input ``x_t = mean + signal_t * direction``: ``signal (T,)``, ``direction (I,)`` with its scale."""

    name: str
    kind: Literal["step", "sine"]
    signal: Tensor
    direction: Tensor
    frequency: float | None = None


@dataclass(frozen=True, eq=False, repr=False)
class Response(OneLine):
    """What the cells did: ``hidden (S, H, T)``, and on request ``cell`` and ``gates[name]`` of the same shape.

    ``baseline (H,)`` is the hidden state before the stimulus, ``settled (H,)`` whether it was at rest (both None for
    sequences). ``mask (S, T)`` marks the steps that count, for sequences.
    """

    key: LayerKey
    kind: Kind
    mode: Mode
    hidden: Tensor
    stimuli: tuple[Stimulus, ...] = ()
    baseline: Tensor | None = None
    settled: Tensor | None = None
    mask: Tensor | None = None
    source: Literal["held_out", "random_bank"] | None = None
    cell: Tensor | None = None
    gates: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, eq=False, repr=False)
class Metric(OneLine):
    """One metric of one layer: ``values (S, H)`` with ``reasons (S, H)``, and one value a cell, ``cells (H,)``.

    ``labels`` names the S rows (stimuli; for the cut-off frequency and held-out statistics there is one row).
    ``cells`` is the summary over the rows that `lstm_monitor.metrics.catalog` states for the metric.
    """

    group: str
    name: str
    values: Tensor
    reasons: Tensor
    labels: tuple[str, ...]
    cells: Tensor

    @property
    def path(self) -> str:
        """``group/name``, as in logged keys."""
        return f"{self.group}/{self.name}"

    def why_nan(self, cell: int) -> str:
        """The reasons of the undefined values of one cell, in words; empty if every value is defined."""
        codes = {int(code) for code in self.reasons[:, cell]} - {0}
        return "; ".join(Reason(code).words for code in sorted(codes))


_GATE_PATHS = {"gates/tau_f", *(f"gates/{gate}_saturation" for names in GATES.values() for gate in names)}
"""The metrics of single gates, of which every kind of layer has its own."""


@dataclass(frozen=True, eq=False, repr=False)
class Metrics(OneLine):
    """All metrics of one layer, by ``group/name``."""

    key: LayerKey
    items: tuple[Metric, ...]

    @cached_property
    def by_path(self) -> Mapping[str, Metric]:
        """The items by ``group/name``."""
        return {item.path: item for item in self.items}

    def __getitem__(self, path: str) -> Metric:
        """The metric ``group/name``; KeyError with the nearest match, or that this kind of layer has no such gate."""
        if path not in self.by_path:
            raise KeyError(f"no metric {path!r} of {self.key}. {self._hint(path)}")
        return self.by_path[path]

    def _hint(self, path: str) -> str:
        has_gates = any(item.group == "gates" for item in self.items)
        if has_gates and path in _GATE_PATHS:
            there = [name for name in self.by_path if name in _GATE_PATHS]
            return f"This kind of layer has no such gate; it has {', '.join(there)}."
        return nearest(path, self.by_path)

    def __contains__(self, path: str) -> bool:
        """Whether this metric was measured."""
        return path in self.by_path

    def paths(self) -> tuple[str, ...]:
        """Every ``group/name``."""
        return tuple(self.by_path)


@dataclass(frozen=True, eq=False, repr=False)
class Ranking(OneLine):
    """Cells of one layer in descending order: ``order (H,)`` of ``scores (H,)``, undefined ones last.

    ``name`` is what was asked for or, for "auto", what was used; ``words`` says it in a sentence.
    """

    key: LayerKey
    name: str
    words: str
    scores: Tensor
    order: Tensor


@dataclass(frozen=True)
class Agreement:
    """How two rankings of the same cells agree: Kendall's tau-b and the shared part of their top tenths."""

    tau: float
    overlap: float


@dataclass(frozen=True)
class Drift:
    """How far one metric's distribution over the cells moved since an earlier report.

    ``distance``: Wasserstein distance over the pooled p90 - p10 (NaN if fewer than two cells are defined in either,
    or the spread is 0 while the distributions differ); ``quantiles``: p10, p50, p90 now; ``earlier``: then.
    """

    metric: str
    distance: float
    quantiles: tuple[float, float, float]
    earlier: tuple[float, float, float]


@dataclass(frozen=True)
class Alarm:
    """A sign that the training of a layer goes wrong: what was seen, and what to do.

    ``layer``: its name, such as ``rnn.l0``; ``name``: the rule in `lstm_monitor.report.alarms`.
    """

    layer: str
    name: str
    words: str
    advice: str

    def __str__(self) -> str:
        """One line for people."""
        return f"{self.layer}: {self.words}; {self.advice}"


@dataclass(frozen=True, eq=False, repr=False)
class Probe(OneLine):
    """What is fixed at a layer's first check, so that all its checks can be compared."""

    point: OperatingPoint
    steps: tuple[Stimulus, ...]
    sines: tuple[Stimulus, ...]

    @property
    def horizon(self) -> int:
        """Steps of a step response."""
        return self.steps[0].signal.shape[0]


@dataclass(frozen=True, eq=False)
class Trace:
    """The step response that pictures show: ``change (H, T)`` from rest, to one stimulus."""

    label: str
    change: Tensor
