"""How far one report is from another: the largest difference, and how many values differ by more than rounding."""

from dataclasses import dataclass

import torch

ROUNDING = 2e-3
"""Of a value beside its own size, or of 1e-4: what float32 in another order can do to a ratio of small numbers."""
SMALL = 1e-4


@dataclass(frozen=True)
class Distance:
    """``largest``: of what hidden states and gates are; ``apart``: the share of all values that are not the same."""

    largest: float
    apart: float
    where: str

    def tell(self, tell):
        tell("largest difference", self.largest)
        tell("values that differ", f"{self.apart:.2%}" + (f", most in {self.where}" if self.apart else ""))


FREE = ("peak_time",)
"""Not compared: rounding decides when a response that creeps to its end arrives. The tests of the engines hold it."""
SMOOTH = (
    "initial_response",
    "final_response",
    "delta_response",
    "peak_response",
    "amplitude",
    "std",
    "rms",
    "saturation",
)
"""Metrics that are no ratio, time or angle: a small error makes a small difference."""


def distance(one, other):
    """Between two reports of the same layers and stimuli."""
    apart, count, largest, counts = 0, 0, 0.0, {}
    for mine, theirs in zip(one.layers, other.layers, strict=True):
        assert (mine.key, mine.horizon, mine.periods) == (theirs.key, theirs.horizon, theirs.periods)
        for metric in (item for item in mine.metrics.items if item.name not in FREE):
            a, b = metric.values.double().cpu(), theirs.metrics[metric.path].values.double().cpu()
            differs = a.isnan() != b.isnan()
            differs |= (a - b).abs() > torch.clamp(ROUNDING * torch.maximum(a.abs(), b.abs()), min=SMALL)
            counts[metric.path] = counts.get(metric.path, 0) + int(differs.sum())
            apart, count = apart + int(differs.sum()), count + differs.numel()
            if metric.name in SMOOTH and differs.numel():
                largest = max(largest, (a - b).abs().nan_to_num(0.0).max().item())
    return Distance(largest, apart / max(count, 1), max(counts, key=counts.__getitem__))


def ranks_agree(one, other):
    """The smallest Spearman correlation between the scores of the same layer."""
    return min(_spearman(a.ranking.scores, b.ranking.scores) for a, b in zip(one.layers, other.layers, strict=True))


def _spearman(a, b):
    places = [values.double().cpu().argsort().argsort().double() for values in (a, b)]
    return 1.0 if torch.equal(*places) else torch.corrcoef(torch.stack(places))[0, 1].item()
