"""What a capacity study found: networks of several sizes, and the size to take."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from typing import TYPE_CHECKING

from lstm_monitor.capacity import figures as capacity_figures
from lstm_monitor.capacity.advice import Advice, advise
from lstm_monitor.capacity.records import Trained, capacity_rows
from lstm_monitor.capacity.words import capacity_lines, sentences, support
from lstm_monitor.drawing import as_png
from lstm_monitor.errors import require
from lstm_monitor.pages import page
from lstm_monitor.records import Better, _OneLine

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


@dataclass(frozen=True, eq=False, repr=False)
class CapacityStudy(_OneLine):
    """Networks of several sizes, each trained and measured; all values on the host.

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

    @property
    def reason(self) -> str:
        """Why this size is recommended, what is not known, and what the cells of this and the largest network say."""
        size = self.recommendation
        told = () if size is None else support(self.trained, size, self.harmless)
        return " ".join([self.advice.reason, *told])

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
        return capacity_figures.capacity_overview(self)

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
