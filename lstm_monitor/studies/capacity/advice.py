"""Which size to take, from the scores of all sizes, and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lstm_monitor.core.terms import Better

OF_BEST, OF_RANGE = 0.01, 0.05
"""Without a tolerance: a score may be worse than the best by this part of it, or of the range of all scores."""

Scores = Mapping[int, Sequence[float]]
"""The scores of a size's trainings, by size, ascending; NaN where one failed."""


@dataclass(frozen=True)
class Advice:
    """The size to take (None if it cannot be told) and why.

    ``best`` is the size with the best mean score; sizes whose mean is worse by at most ``margin`` are as good, and
    the smallest of them is advised. ``source`` says where the margin comes from.
    """

    size: int | None
    best: int | None
    margin: float
    source: str
    reason: str


def advise(scores: Scores, better: Better, tolerance: float | None = None) -> Advice:
    """The smallest size whose mean score is as good as the best.

    As good: worse by at most `tolerance`. By default by at most 1% of the best score or 5% of the range of the mean
    scores, whichever is more, and never less than the standard error of the best over its seeds (the rule of one
    standard error: Breiman, Friedman, Olshen and Stone, Classification and Regression Trees, 1984, section 3.4.3).
    """
    means = _means(scores)
    if not means:
        return Advice(None, None, float("nan"), "", "No size has a score: give evaluate=, or return one from train.")
    best = min(means, key=lambda size: means[size] if better == "lower" else -means[size])
    margin, source = _margin(means, scores[best], best, tolerance)
    size = next(size for size, mean in means.items() if abs(mean - means[best]) <= margin)
    words = [_choice(size, best, means, f"{margin:.2g} ({source})"), *_chance(scores, means, best)]
    return Advice(size, best, margin, source, " ".join(words + _direction(means, better)))


def _means(scores: Scores) -> dict[int, float]:
    """The mean of each size that has a finite score, ascending in size."""
    known = {size: [value for value in values if np.isfinite(value)] for size, values in sorted(scores.items())}
    return {size: float(np.mean(values)) for size, values in known.items() if values}


def _margin(
    means: Mapping[int, float], of_best: Sequence[float], best: int, tolerance: float | None
) -> tuple[float, str]:
    if tolerance is not None:
        return tolerance, "tolerance="
    candidates = [
        (OF_BEST * abs(means[best]), f"{OF_BEST:.0%} of the best"),
        (OF_RANGE * (max(means.values()) - min(means.values())), f"{OF_RANGE:.0%} of the range of the scores"),
        (_standard_error(of_best), "the standard error of the best over the seeds"),
    ]
    return max(candidates, key=lambda pair: pair[0])


def _standard_error(values: Sequence[float]) -> float:
    """Of the mean; 0 where fewer than two values are finite."""
    known = [value for value in values if np.isfinite(value)]
    return float(np.std(known, ddof=1) / np.sqrt(len(known))) if len(known) > 1 else 0.0


def _choice(size: int, best: int, means: Mapping[int, float], margin: str) -> str:
    sizes, top = list(means), f"{means[best]:.4g} at {best}"
    if len(sizes) == 1:
        return f"Only size {size} has a score ({means[size]:.4g}): there is nothing to compare it with."
    if size == sizes[-1]:
        below = sizes[-2]
        worse = f"{means[below]:.4g} at {below}"
        return f"The largest size is still the best by more than {margin}: {top}, {worse}. Try larger sizes."
    as_good = "has the best score" if size == best else f"is as good as the best to within {margin}"
    lead = f"Size {size} {as_good}: {top}" + ("" if size == best else f", {means[size]:.4g} at {size}")
    if size == sizes[0]:
        return f"{lead}. It is the smallest: try smaller sizes."
    below = sizes[sizes.index(size) - 1]
    return f"{lead}, {means[below]:.4g} at {below}."


def _chance(scores: Scores, means: Mapping[int, float], best: int) -> list[str]:
    """What is known about chance: the spread over the seeds, or that there is one training a size."""
    groups = [np.array([v for v in scores[size] if np.isfinite(v)]) for size in means]
    repeated = [group for group in groups if len(group) > 1]
    if len(means) < 2:
        return []
    if not repeated:
        return ["One training a size: differences of this order may be chance; seeds=3 would tell."]
    spread = float(np.sqrt(np.mean([group.var(ddof=1) for group in repeated])))
    words = [f"Trainings of the same size differ by {spread:.2g} (standard deviation over the seeds)."]
    if len(repeated) == len(groups) and _by_chance(repeated) > 0.05:
        words.append(
            "The sizes differ by no more than that explains, so no size can be told from another: use more seeds."
        )
    return words


def _by_chance(groups: Sequence[NDArray[Any]]) -> float:
    """How likely means differ like this if all sizes are alike (one-way analysis of variance); 0 without any spread."""
    from scipy.stats import f

    count, every = len(groups), np.concatenate(groups)
    within = sum(float(((group - group.mean()) ** 2).sum()) for group in groups)
    between = sum(len(group) * float((group.mean() - every.mean()) ** 2) for group in groups)
    if within == 0:
        return 0.0 if between > 0 else 1.0
    rest = len(every) - count
    return float(f.sf(between / (count - 1) / (within / rest), count - 1, rest))


def _direction(means: Mapping[int, float], better: Better) -> list[str]:
    """A warning if every larger network scores worse: then `better` is likely the wrong way round."""
    values = np.array(list(means.values()))
    steps = np.diff(values) if better == "higher" else -np.diff(values)
    if len(steps) < 2 or not (steps < 0).all():
        return []
    other = "lower" if better == "higher" else "higher"
    return [
        f"Every larger size scores worse, {better} being better: if it is the other way round, give better={other!r}."
    ]
