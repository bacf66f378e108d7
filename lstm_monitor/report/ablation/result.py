"""What an ablation study found: the effect of every cell, and which rankings foretell it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING

import torch

from lstm_monitor.core.errors import nearest, require
from lstm_monitor.report.ablation import pictures as study_figures
from lstm_monitor.report.ablation.records import LayerStudy, StudyRecord, Trial
from lstm_monitor.report.ablation.tables import layer_words, study_table
from lstm_monitor.report.ablation.words import study_lines
from lstm_monitor.report.canvas import as_png
from lstm_monitor.report.notebook import page

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


@dataclass(frozen=True, eq=False, repr=False)
class Study(StudyRecord):
    """An ablation study of some layers of a network, all values on the host: `StudyRecord` says what it holds."""

    def __getitem__(self, layer: str) -> LayerStudy:
        """The study of a layer by its name, such as ``rnn.l0``; KeyError with the nearest match."""
        for item in self.layers:
            if str(item.key) == layer:
                return item
        raise KeyError(f"no layer {layer!r}. {nearest(layer, (str(item.key) for item in self.layers))}")

    def keep(self, max_loss: float, by: str | None = None) -> dict[str, list[int]]:
        """Which cells stay if the score may worsen by at most `max_loss`, as `prune` takes them.

        From each layer as many of the least important cells are removed as its measured curve allows. The allowance is
        shared equally among the layers: effects in several layers may add, and were measured one layer at a time.

        Args:
            max_loss: in the score's own unit, such as 0.01 of accuracy.
            by: the ranking whose order is used; by default the one that lets most cells go, for each layer.

        Returns:
            Kept cells by layer, ascending; at least one a layer.

        Raises:
            ValueError: `max_loss` is negative or NaN; `by` was not on trial, or nothing was.
        """
        if not max_loss >= 0:
            raise ValueError(f"max_loss={max_loss!r} must be 0 or more, in the unit of the score, such as 0.01")
        share = max_loss / max(len(self.layers), 1)
        return {str(layer.key): self._fewest(layer, by, share) for layer in self.layers}

    def _fewest(self, layer: LayerStudy, by: str | None, allowed: float) -> list[int]:
        """The fewest cells that any of the rankings (or the one named) leaves; of equals those of the best curve."""
        trials = [_trial(layer, None), *layer.trials] if by is None else [_trial(layer, by)]
        return min((self._kept(layer, trial, allowed) for trial in trials), key=len)

    def _kept(self, layer: LayerStudy, trial: Trial, allowed: float) -> list[int]:
        """The cells left after the longest run of measured removals that all stay within what is allowed."""
        within = (layer.harm(trial.least_first, self.better) <= allowed) & (layer.counts < layer.hidden_size)
        good = int(torch.cat([within, within.new_zeros(1)]).long().argmin())  # the first that is not
        removed = int(layer.counts[good - 1]) if good else 0
        return sorted(trial.ranking.order[: layer.hidden_size - removed].tolist())

    def to_pandas(self) -> pd.DataFrame:
        """One row a cell: its layer, its effects with their errors, and its place in each ranking (0 is first).

        Raises:
            ImportError: pandas is not installed (extra ``plots``).
        """
        return require("pandas", "plots").DataFrame(study_table(self))

    def plot(self) -> Figure:
        """One picture, a row a layer: the curves of the rankings, the effect of each cell, and rho of each ranking.

        Raises:
            ImportError: matplotlib is not installed (extra ``plots``).
        """
        require("matplotlib", "plots")
        return study_figures.study_overview(self)

    def in_words(self, count: int = 3) -> str:
        """Two short tables a layer: the rankings on trial, and the `count` cells that matter most and least."""
        return "\n\n".join("\n".join(layer_words(layer, self.score, count)) for layer in self.layers)

    def __repr__(self) -> str:
        """A few lines for people: what was done, and which ranking could be trusted in each layer."""
        return "\n".join(study_lines(self))

    def _repr_html_(self) -> str:
        """The same for a notebook, with the picture where matplotlib is installed."""
        shows = "performance kept while cells are removed, the effect of each cell, and how the rankings agree with it"
        return page(repr(self), as_png(self.plot()) if find_spec("matplotlib") is not None else None, shows)


def _trial(layer: LayerStudy, by: str | None) -> Trial:
    if not layer.trials:
        raise ValueError(f"no ranking was on trial in {layer.key}: give some, such as rankings=[report.ranking]")
    if by is None:
        return layer.best
    names: Mapping[str, Trial] = {trial.ranking.name: trial for trial in layer.trials}
    if by not in names:
        raise ValueError(f"by={by!r} was not on trial. {nearest(by, names)}")
    return names[by]
