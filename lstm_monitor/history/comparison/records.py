"""What a comparison of runs holds: layer by layer what was found last in each, and how far it lies apart."""

from __future__ import annotations

from dataclasses import dataclass

from lstm_monitor.core.terms import OneLine
from lstm_monitor.history.comparison.trajectory import Course, LayerCourse
from lstm_monitor.report.ablation.records import LayerStudy


@dataclass(frozen=True)
class ComparedMetric:
    """One metric of one layer at the last check of each run.

    ``quantiles``: p10, p50, p90 over the cells; ``distances``: Wasserstein's from the first run that has the layer,
    over the pooled p90 - p10, as in `lstm_monitor.Drift`; ``chance``: the distance that two random halves of the two
    runs' cells stay under in 95% of splits. NaN for the first run itself, and where not defined.
    """

    metric: str
    quantiles: tuple[tuple[float, float, float], ...]
    distances: tuple[float, ...]
    chance: tuple[float, ...]

    def differs(self, run: int) -> bool:
        """Whether a run lies further from the first than chance."""
        return self.distances[run] > self.chance[run]


@dataclass(frozen=True, eq=False, repr=False)
class ComparedLayer(OneLine):
    """One layer: its course in each run (None: that run has no such layer), its metrics, its ablation studies."""

    courses: tuple[LayerCourse | None, ...]
    studies: tuple[LayerStudy | None, ...]
    metrics: tuple[ComparedMetric, ...]

    @property
    def names(self) -> tuple[str | None, ...]:
        """Its name in each run."""
        return tuple(None if course is None else course.name for course in self.courses)

    @property
    def name(self) -> str:
        """Its name in the first run that has it."""
        return next(name for name in self.names if name is not None)


@dataclass(frozen=True, eq=False, repr=False)
class ComparisonRecord(OneLine):
    """Runs side by side; `lstm_monitor.history.comparison.result.RunComparison` is one that can show itself.

    ``runs``: the runs as they went; ``names``: what tells them apart, in the same order; ``layers``: those that two
    or more of them have; ``notes``: what some lack, and how layers were matched.
    """

    runs: tuple[Course, ...]
    names: tuple[str, ...]
    layers: tuple[ComparedLayer, ...]
    notes: tuple[str, ...] = ()
