"""What the ablation check at the end of a training does, and how a plain loop makes it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from lstm_monitor.core.records import Ranking
from lstm_monitor.core.terms import AblationMode, Better
from lstm_monitor.importance.ranking import check_ranking_name
from lstm_monitor.report.ablation.result import Study
from lstm_monitor.snapshots.outputs import Select
from lstm_monitor.studies.ablation.bench import RANKINGS, StudyOptions
from lstm_monitor.studies.ablation.study import ablation_study


@dataclass(frozen=True)
class AblationCheck:
    """How a training's last check holds the rankings against the measured effect of removing cells.

    Args:
        score: a function ``evaluate(model)`` that returns a number, or one a sequence ``(N,)``; the name of a metric
            that the module logs in its validation, such as "val_acc"; or None for the loss: what ``validation_step``
            returns or logs. In a plain loop None scores nothing: only the output's change is measured.
        layers: glob or globs over layer names; by default those that are watched.
        mode: removed cells give "zero", or their "mean" over the sequences.
        rankings: which to compare: `Ranking` records or names as in ``rank_by``. The watched one always comes first.
        sequences: about how many sequences of a Trainer's validation are used: whole batches until there are as many.
        seconds: about how long it may take; None for as long as it takes.
        random_orders: orders of removal that the rankings are held against.
        points: how many points a curve has beside its first.
        better: whether "lower" or "higher" scores are better; by default as known, else what emptied layers make worse.
        output: selects the output tensor from what the model returns; by default the first.

    Raises:
        TypeError: a `score` or `output` of another type.
        ValueError: a value that is not allowed.
    """

    score: Callable[[nn.Module], float | Tensor] | str | None = None
    layers: str | Sequence[str] = "*"
    mode: AblationMode = "zero"
    rankings: Sequence[Ranking | str] = RANKINGS
    sequences: int = 256
    seconds: float | None = 60.0
    random_orders: int = 8
    points: int = 16
    better: Better | None = None
    output: Select | None = None

    def __post_init__(self) -> None:
        """Check every value."""
        if not (self.score is None or isinstance(self.score, str) or callable(self.score)):
            raise TypeError(
                f"score={self.score!r}: give a function evaluate(model), a logged metric's name such as 'val_acc', or "
                "None for the loss"
            )
        if self.output is not None and not callable(self.output):
            raise TypeError(f"output={self.output!r}: give a function that takes a tensor from what the model returns")
        if isinstance(self.sequences, bool) or not isinstance(self.sequences, int) or self.sequences < 1:
            raise ValueError(f"sequences={self.sequences!r} must be an integer of at least 1, such as 256")
        if isinstance(self.rankings, str):
            raise ValueError(f"rankings={self.rankings!r} is one name; give a list, such as [{self.rankings!r}]")
        options_of(self, "auto", None, None)

    def layers_or(self, watched: str | Sequence[str]) -> str | Sequence[str]:
        """The layers to study where those are `watched`."""
        return watched if self.layers == "*" else self.layers


def as_check(ablation: AblationCheck | bool | None) -> AblationCheck | None:
    """The check that a user asked for: True is the default one, False and None are none.

    Raises:
        TypeError: something else.
    """
    if ablation is None or isinstance(ablation, AblationCheck):
        return ablation
    if isinstance(ablation, bool):
        return AblationCheck() if ablation else None
    raise TypeError(f"ablation={ablation!r}: give True, or AblationCheck(...) with what it shall do")


def loop_check(ablation: AblationCheck | bool | None, held_out: Any) -> AblationCheck | None:
    """The same for a plain loop, which has no validation of its own.

    Raises:
        TypeError: no such check.
        ValueError: a score that only a Trainer can have, or nothing to measure.
    """
    check = as_check(ablation)
    if check is not None and isinstance(check.score, str):
        raise ValueError(
            f"score={check.score!r} names a metric that a Trainer's module logs; in your own loop give a function, "
            "AblationCheck(score=evaluate), where evaluate(model) returns a number"
        )
    if check is not None and check.score is None and held_out is None:
        raise ValueError(
            "ablation has nothing to measure: give held_out=, or AblationCheck(score=evaluate), where evaluate(model) "
            "returns a number"
        )
    return check


def options_of(check: AblationCheck, rank_by: str, score: str | None, better: Better | None) -> StudyOptions:
    """A study's options, the ranking that is watched before the others.

    Raises:
        ValueError: a value that is not allowed.
    """
    return StudyOptions(
        mode=check.mode,
        rankings=rankings_of(check, rank_by),
        random_orders=check.random_orders,
        points=check.points,
        seconds=check.seconds,
        better=check.better or better,
        score_name=score,
    )


def rankings_of(check: AblationCheck, rank_by: str) -> tuple[Ranking | str, ...]:
    """The rankings on trial, the one that is watched first."""
    check_ranking_name(rank_by)
    others = (item for item in check.rankings if not isinstance(item, str) or item != rank_by)
    return (rank_by, *others)


def study_of_loop(
    model: nn.Module,
    check: AblationCheck,
    held_out: Any,
    *,
    layers: str | Sequence[str],
    rank_by: str,
    select: Select | None,
    data: dict[str, Any],
) -> Study:
    """The study of a plain loop, on its held-out data; `data` holds ``forward``, ``lengths`` and ``mask``."""
    assert not isinstance(check.score, str)
    return ablation_study(
        model,
        check.score,
        held_out=held_out,
        layers=check.layers_or(layers),
        mode=check.mode,
        rankings=rankings_of(check, rank_by),
        random_orders=check.random_orders,
        points=check.points,
        seconds=check.seconds,
        better=check.better,
        output=check.output or select,
        **data,
    )
