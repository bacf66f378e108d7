"""What a capacity study found: networks of several sizes, and the size to take."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING

from lstm_monitor.core.errors import require
from lstm_monitor.report.canvas import as_png
from lstm_monitor.report.notebook import page
from lstm_monitor.studies.capacity import pictures
from lstm_monitor.studies.capacity.records import CapacityRecord, capacity_rows
from lstm_monitor.studies.capacity.words import capacity_lines, reason, sentences

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


@dataclass(frozen=True, eq=False, repr=False)
class CapacityStudy(CapacityRecord):
    """Networks of several sizes, each trained and measured: `CapacityRecord` says what it holds."""

    @property
    def reason(self) -> str:
        """Why this size is recommended, what is not known, and what the cells of this and the largest network say."""
        return reason(self)

    def to_pandas(self) -> pd.DataFrame:
        """One row a training (size and seed) and layer; NaN where a training failed.

        Columns: size, seed, layer, score, seconds, parameters, cells, components, components_share, harmless_share,
        mean_effect, never_settled, and p10, p50, p90 over the cells of settling_time, peak_response, amplitude,
        cutoff_frequency, std and tau_f.

        Raises:
            ImportError: pandas is not installed (extra ``plots``).
        """
        return require("pandas", "plots").DataFrame(capacity_rows(self.trained, self.harmless))

    def plot(self) -> Figure:
        """One picture over the size: score, components, harmless cells, effects, settling times and activity.

        Raises:
            ImportError: matplotlib is not installed (extra ``plots``).
        """
        require("matplotlib", "plots")
        return pictures.capacity_overview(self)

    def in_words(self) -> str:
        """What changes from the smallest to the largest size, and which size to take."""
        return "\n".join(sentences(self))

    def __repr__(self) -> str:
        """A table for people: the recommendation, and a line a size for each layer."""
        return "\n".join(capacity_lines(self))

    def _repr_html_(self) -> str:
        """The same for a notebook, with the picture where matplotlib is installed."""
        shows = "score, components, harmless cells, effects of removal, settling times and activity over the size"
        return page(repr(self), as_png(self.plot()) if find_spec("matplotlib") is not None else None, shows)
