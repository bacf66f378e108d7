"""Ablation studies made by hand, with values that can be followed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lstm_monitor.core.records import Ranking
from lstm_monitor.core.terms import LayerKey
from lstm_monitor.report.ablation.records import Correlation, Effects, LayerStudy, Noise, Trial
from lstm_monitor.report.ablation.result import Study

NAN = float("nan")
NOWHERE = Correlation(NAN, NAN, NAN)
QUIET = Noise(repeat=0.0, halves_output=0.93, halves_score=0.8, order_gap=0.14)


def doubles(values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def correlation(rho: float, half_width: float = 0.05) -> Correlation:
    return Correlation(rho, rho - half_width, rho + half_width)


def trial(
    name: str = "output_sensitivity",
    scores: Sequence[float] = (4, 3, 2, 1),
    rho: Correlation = NOWHERE,
    least: Sequence[float] = (1, 0.9, 0.8, 0.6, 0),
    most: Sequence[float] = (1, 0.4, 0.2, 0.1, 0),
    **changes: Any,
) -> Trial:
    """A ranking of four cells with its curves at 0 to 4 cells removed; the AUCs are theirs."""
    given, kept, lost = doubles(scores), doubles(least), doubles(most)
    ranking = Ranking(LayerKey("rnn"), name, name, given, (-given).argsort(stable=True))
    areas = [float(torch.trapezoid(curve)) / (len(curve) - 1) for curve in (lost, kept)]
    values: dict[str, Any] = {"score": NOWHERE, "auc_most": areas[0], "auc_least": areas[1]} | changes
    return Trial(ranking, rho, most_first=lost, least_first=kept, **values)


def layer(*trials: Trial, path: str = "rnn", **changes: Any) -> LayerStudy:
    """Four cells, 0 the most and 3 the least harmful; the score goes from 1 to 3 as all are removed."""
    effects = Effects(
        output=doubles([0.5, 0.2, 0.01, 0.0002]),
        output_error=doubles([0.05, 0.02, 0.001, 0.0001]),
        score=doubles([0.9, 0.3, 0.02, -0.01]),
        score_error=doubles([0.1, 0.05, 0.01, 0.01]),
        exact=torch.tensor([True, True, True, False]),
    )
    random = doubles([[1, 0.7, 0.5, 0.3, 0], [1, 0.8, 0.5, 0.2, 0], [1, 0.9, 0.5, 0.1, 0]])
    values: dict[str, Any] = {"effects": effects, "counts": torch.arange(5), "trials": trials, "random": random}
    values |= {"noise": QUIET, "judged": "score", "intact": 1.0, "emptied": 3.0}
    return LayerStudy(LayerKey(path), **values | changes)


def study(*layers: LayerStudy, **changes: Any) -> Study:
    values: dict[str, Any] = {"score": "val_loss", "intact": 1.0, "better": "lower", "mode": "zero"}
    values |= {"sequences": 256, "seconds": 3.21}
    return Study(layers, **values | changes)
