"""Runs side by side, as a table, a picture and words."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING

from lstm_monitor.core.errors import require
from lstm_monitor.history.comparison import pictures as run_figures
from lstm_monitor.history.comparison.records import ComparisonRecord
from lstm_monitor.history.comparison.words import comparison_lines, sentences, table
from lstm_monitor.report.canvas import as_png
from lstm_monitor.report.notebook import page

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


@dataclass(frozen=True, eq=False, repr=False)
class RunComparison(ComparisonRecord):
    """Two or more runs, layer by layer: `ComparisonRecord` says what it holds."""

    def to_pandas(self) -> pd.DataFrame:
        """One row a layer and metric: ``value:<run>`` (over the cells the median), ``p10:``, ``p90:``, ``distance:``.

        The distance is Wasserstein's from the first run over the pooled p90 - p10; ``chance:<run>`` is the one that
        random splits of both runs' cells stay under in 95%. Then rows of what is one number a run: cells, checks,
        shares of cells, stability of the ranking, the ablation check. NaN where a run lacks it.

        Raises:
            ImportError: pandas is not installed (extra ``plots``).
        """
        return require("pandas", "plots").DataFrame(table(self))

    def plot(self) -> Figure:
        """One picture: the metrics of every layer over the trainings, a colour a run.

        Raises:
            ImportError: matplotlib is not installed (extra ``plots``).
        """
        require("matplotlib", "plots")
        return run_figures.comparison_overview(self)

    def in_words(self, count: int = 3) -> str:
        """What differs most, the `count` largest differences of each run from the first, and what some runs lack."""
        return "\n".join(sentences(self, count))

    def __repr__(self) -> str:
        """The table and the words, in lines of at most 80 letters."""
        return "\n".join(comparison_lines(self))

    def _repr_html_(self) -> str:
        """The same for a notebook, with the picture where matplotlib is installed."""
        has_pictures = find_spec("matplotlib") is not None and bool(self.layers)
        return page(
            repr(self), as_png(self.plot()) if has_pictures else None, "the metrics of each layer over the runs"
        )
