"""The records of a capacity study: networks of several sizes, each trained and measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from lstm_monitor.core.float64 import doubled
from lstm_monitor.core.terms import Better, LayerKey, OneLine
from lstm_monitor.metrics.distributions import finite, quantiles
from lstm_monitor.report.layer_report import LayerReport
from lstm_monitor.report.report import Report
from lstm_monitor.studies.capacity.advice import Advice, advise

VARIANCE = 0.95
"""The share of a layer's variance that its counted principal components hold."""

DISTRIBUTIONS: Mapping[str, str] = {
    "settling_time": "step/settling_time",
    "peak_response": "step/peak_response",
    "amplitude": "sine/amplitude",
    "cutoff_frequency": "sine/cutoff_frequency",
    "std": "activity/std",
    "tau_f": "gates/tau_f",
}
"""The metrics whose p10, p50 and p90 over the cells stand in the table, by column."""


@dataclass(frozen=True, eq=False, repr=False)
class SizedLayer(OneLine):
    """One layer of one trained network.

    ``components``: how many principal components hold 95% of the variance of the hidden states on held-out data; NaN
    if they do not vary or there were none. ``effects (H,)``: the mean squared change of the network's output when each
    cell alone is removed (set to zero), as a share of the output's variance; NaN where it could not be measured.
    """

    report: LayerReport
    components: float
    effects: Tensor

    @property
    def key(self) -> LayerKey:
        """The layer's name."""
        return self.report.key

    @property
    def hidden_size(self) -> int:
        """H, the number of cells."""
        return self.report.hidden_size

    @property
    def components_share(self) -> float:
        """The components over the number of cells: 1 if every cell moves in a way of its own."""
        return self.components / self.hidden_size

    @property
    def mean_effect(self) -> float:
        """The mean over the cells of what removing one of them changes."""
        return float(self.effects.mean())

    @property
    def never_settled(self) -> float:
        """The share of cells that have no settling time for any step."""
        return float(torch.isnan(self.report.metrics["step/settling_time"].cells).double().mean())

    def harmless(self, threshold: float) -> float:
        """The share of cells whose removal changes the output by less than this share; NaN if not measured."""
        known = self.effects[~torch.isnan(self.effects)]
        return float((known < threshold).double().mean())

    def quantiles(self, path: str) -> tuple[float, float, float]:
        """p10, p50, p90 over the cells of a metric; NaN where no cell has it."""
        if path not in self.report.metrics:
            return (float("nan"),) * 3
        return quantiles(finite(self.report.metrics[path].cells))


@dataclass(frozen=True, eq=False, repr=False)
class Trained(OneLine):
    """One training of one size.

    ``score``: NaN if there was none, or the training failed; ``seconds`` the training alone took; ``parameters``: how
    many numbers were trained; ``layers``: empty where nothing could be measured (the study's notes say why);
    ``variance``: that of the network's output over the held-out sequences, NaN if not known.
    """

    size: int
    seed: int
    score: float
    seconds: float
    parameters: int
    layers: tuple[SizedLayer, ...] = ()
    report: Report | None = None
    variance: float = float("nan")

    def layer(self, name: str) -> SizedLayer | None:
        """The layer of that name, None where it was not measured."""
        return next((item for item in self.layers if str(item.key) == name), None)


@dataclass(frozen=True, eq=False, repr=False)
class CapacityRecord(OneLine):
    """Networks of several sizes, each trained and measured; all values on the host.

    `lstm_monitor.studies.capacity.result.CapacityStudy` is one that can show itself.

    ``trained``: one record a training, sizes ascending. ``better``: whether higher or lower scores are; ``tolerance``:
    the given one or None; ``harmless``: the share of the output's variance under which the change by a cell's
    removal counts as none; ``notes``: what failed. ``study[32]`` is the tuple of the trainings of size 32.
    """

    trained: tuple[Trained, ...]
    better: Better
    tolerance: float | None
    harmless: float
    notes: tuple[str, ...] = ()

    @property
    def sizes(self) -> tuple[int, ...]:
        """All sizes, ascending."""
        return tuple(dict.fromkeys(item.size for item in self.trained))

    def __getitem__(self, size: int) -> tuple[Trained, ...]:
        """The trainings of one size, one a seed; KeyError if there are none."""
        found = tuple(item for item in self.trained if item.size == size)
        if not found:
            raise KeyError(f"no size {size!r}; there are {', '.join(map(str, self.sizes))}")
        return found

    @cached_property
    def advice(self) -> Advice:
        """The recommended size, the best one, and by how much a score may be worse to be as good."""
        scores = {size: [item.score for item in self[size]] for size in self.sizes}
        return advise(scores, self.better, self.tolerance)

    @property
    def recommendation(self) -> int | None:
        """The smallest size whose score is as good as the best (`advise` says what that is); None without scores."""
        return self.advice.size


def layer_names(trained: Sequence[Trained]) -> tuple[str, ...]:
    """Every layer that was measured in any of the trainings, in the order of the networks."""
    return tuple(dict.fromkeys(str(layer.key) for item in trained for layer in item.layers))


def components_for(hidden: Tensor, share: float = VARIANCE) -> float:
    """The least number of principal components that hold `share` of the variance of ``hidden (M, H)``.

    NaN if nothing varies (a variance under 1e-12 per cell) or a value is not finite.
    """
    states = doubled(hidden.detach())
    centred = states - states.mean(0)
    covariance = centred.T @ centred / max(len(states), 1)
    total = float(covariance.trace())
    if not (torch.isfinite(covariance).all() and total > 1e-12 * states.shape[1]):
        return float("nan")
    held = torch.linalg.eigvalsh(covariance).flip(0).clamp(min=0).cumsum(0) / total
    return float((held < share - 1e-9).sum() + 1)


def capacity_rows(trained: Sequence[Trained], harmless: float) -> list[dict[str, Any]]:
    """A row a training and layer, as `CapacityStudy.to_pandas` describes them; NaN where nothing is known."""
    names = layer_names(trained) or ("",)
    return [_row(item, name, harmless) for item in trained for name in names]


def _row(item: Trained, name: str, harmless: float) -> dict[str, Any]:
    row = {"size": item.size, "seed": item.seed, "layer": name, "score": item.score, "seconds": item.seconds}
    return row | {"parameters": item.parameters} | _layer_columns(item.layer(name), harmless)


def _layer_columns(layer: SizedLayer | None, harmless: float) -> dict[str, float]:
    names = ("cells", "components", "components_share", "harmless_share", "mean_effect", "never_settled")
    values = (float("nan"),) * len(names)
    if layer is not None:
        shares = (layer.components, layer.components_share, layer.harmless(harmless))
        values = (layer.hidden_size, *shares, layer.mean_effect, layer.never_settled)
    columns = dict(zip(names, values, strict=True))
    for column, path in DISTRIBUTIONS.items():
        found = (float("nan"),) * 3 if layer is None else layer.quantiles(path)
        columns |= {f"{column}_{name}": value for name, value in zip(("p10", "p50", "p90"), found, strict=True)}
    return columns
