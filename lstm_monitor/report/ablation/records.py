"""The records of an ablation study: the effect of every cell of a layer, and the rankings that foretell it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from lstm_monitor.core.records import Ranking
from lstm_monitor.core.terms import AblationMode, Better, LayerKey, OneLine


@dataclass(frozen=True)
class Correlation:
    """Spearman's rho with its 95% bootstrap interval over the cells; NaN where fewer than 3 cells are defined."""

    rho: float
    low: float
    high: float


@dataclass(frozen=True, eq=False, repr=False)
class Effects(OneLine):
    """What removing each cell by itself does, on held-out sequences; all ``(H,)``.

    ``output``: mean squared change of the network's output, per element; ``score``: by how much the score worsens (in
    its own unit, positive is worse). Each with its standard error over the sequences (NaN where the score is one
    number for all of them), and NaN where nothing was measured or the score was NaN. ``exact``: False where an effect
    is an estimate from a part of the sequences.
    """

    output: Tensor
    output_error: Tensor
    score: Tensor
    score_error: Tensor
    exact: Tensor


@dataclass(frozen=True, eq=False, repr=False)
class Trial(OneLine):
    """One ranking held against the measured effects.

    ``most_first (K,)`` and ``least_first (K,)``: performance kept (1 intact, 0 with the whole layer removed) after
    ``counts`` cells were removed, in the ranking's order and in reverse. NaN if a layer's removal changes nothing.
    """

    ranking: Ranking
    output: Correlation
    score: Correlation
    most_first: Tensor
    least_first: Tensor
    auc_most: float
    auc_least: float

    @property
    def gap(self) -> float:
        """AUC with the least important cells removed first, less that with the most important removed first."""
        return self.auc_least - self.auc_most


@dataclass(frozen=True)
class Noise:
    """What can be told from noise.

    ``repeat``: the score's change when the intact network is evaluated again. ``halves_output`` and ``halves_score``:
    Spearman's rho of the single-cell effects on one half of the sequences with those on the other (NaN where they
    are not known for single sequences). ``order_gap``: how far the AUCs of two random orders lie apart, 95% of pairs.
    """

    repeat: float
    halves_output: float
    halves_score: float
    order_gap: float


@dataclass(frozen=True, eq=False, repr=False)
class LayerStudy(OneLine):
    """One layer: effects, the rankings on trial, and random orders ``random (R, K)`` at the same ``counts (K,)``.

    ``intact`` and ``emptied`` are the score (of ``judged`` "output": the mean squared change of the output) of the
    whole network and with all of the layer's cells removed: the 1 and the 0 of the curves. ``variance``: that of the
    output over the sequences, its mean over the elements, beside which a change is small or large.
    """

    key: LayerKey
    effects: Effects
    counts: Tensor
    trials: tuple[Trial, ...]
    random: Tensor
    noise: Noise
    judged: Literal["score", "output"]
    intact: float
    emptied: float
    variance: float = 1.0

    @property
    def hidden_size(self) -> int:
        """H, the number of cells."""
        return len(self.effects.output)

    @property
    def best(self) -> Trial:
        """The ranking with the best AUC when its least important cells go first; the first of equals."""
        return max(self.trials, key=lambda trial: (trial.auc_least == trial.auc_least, trial.auc_least))

    def harm(self, kept: Tensor, better: Better) -> Tensor:
        """By how much the score (of `judged` "output": the output) is worse, from the performance kept.

        Negative where it is better than the intact network's, of which `better` says what that is; NaN as `kept`.
        """
        worse = (
            self.intact - self.emptied if self.judged == "score" and better == "higher" else self.emptied - self.intact
        )
        return (1 - kept) * worse


@dataclass(frozen=True, eq=False, repr=False)
class StudyRecord(OneLine):
    """What a study holds; `lstm_monitor.report.ablation.result.Study` is one that can show itself.

    ``score``: the name of what was evaluated (None: only the output's change); ``intact`` its value, ``better``
    whether lower or higher values are better; ``mode``: cells were set to zero or to their held-out mean;
    ``sequences`` and ``seconds``: on how many sequences and how long; ``notes``: what a reader has to know.
    """

    layers: tuple[LayerStudy, ...]
    score: str | None
    intact: float
    better: Better
    mode: AblationMode
    sequences: int
    seconds: float
    notes: tuple[str, ...] = ()
