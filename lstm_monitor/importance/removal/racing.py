"""Find the cells whose removal changes most without measuring all of them on all sequences."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from lstm_monitor.core.distributed import in_time, shared
from lstm_monitor.core.errors import choose
from lstm_monitor.core.terms import Better, LayerKey
from lstm_monitor.importance.removal.estimates import FEWEST, slopes
from lstm_monitor.importance.removal.greedy import By
from lstm_monitor.importance.removal.network import Network

EFFECTIVE = 30
"""A cheap score corrects nothing where fewer sequences carry its variance: then those not met yet decide."""


class Measure(Protocol):
    """Takes cells and the number of a batch; gives the effect of removing each on each of its sequences ``(C, n)``."""

    def __call__(self, cells: Sequence[int], index: int, /) -> Tensor:
        """The effects."""
        ...


@dataclass(frozen=True, eq=False)
class Race:
    """The k cells whose removal changes most.

    ``top (k,)``: these cells, the greatest effect first; ``mean (H,)`` and ``error (H,)``: each cell's effect with its
    standard error, from the ``sequences (H,)`` that it was measured on. ``settled (H,)``: whether a cell is in or out
    with the asked confidence. ``work``: measured cells times sequences over those of all cells on all sequences.
    ``corrected``: whether a cheap score took variance out of the effects.
    """

    top: Tensor
    mean: Tensor
    error: Tensor
    sequences: Tensor
    settled: Tensor
    work: float
    corrected: bool

    @property
    def decided(self) -> bool:
        """Whether every cell is settled; else neither the data nor the time was enough to tell some apart."""
        return bool(self.settled.all())


def race(
    network: Network,
    key: LayerKey,
    k: int,
    *,
    by: By = "output",
    better: Better = "lower",
    confidence: float = 0.95,
    deadline: float = math.inf,
    cheap: Tensor | None = None,
) -> Race:
    """The k cells of a layer whose removal changes the output most, or worsens the score most.

    All cells start; after each of the network's runs those that are in or out for sure are measured no more. Runs of
    about 32 sequences, in random order, save most. What is found holds for the mean over all sequences, each
    counted alike. Nothing is saved where a few sequences make the effects, as the losses of a network that is nearly
    always right; and without a cheap score nothing warns of them.

    Args:
        network: the model on its runs.
        key: the layer.
        k: how many cells.
        by: the mean squared change of the "output", or the change of the "score".
        better: whether a "lower" or a "higher" score is better.
        confidence: the probability that all settled cells are settled rightly.
        deadline: on the clock of `time.perf_counter`; at least one run is made.
        cheap: a score of every cell on every sequence ``(H, N)`` that goes along with its effect, in the order of the
            runs, such as `output_changes` in `sensitivity`. It corrects the effects, so that fewer are needed, where at
            least 30 sequences carry its variance; and it keeps the race from ending before those that do were met.

    Raises:
        ValueError: a value that is not allowed, an effect that is NaN, or runs without what is judged.

    Source: O. Maron and A. Moore, Hoeffding races, NIPS 1993; with paired differences, and the variances measured.
    """
    place = ("output", "score").index(choose("by", by, ("output", "score")))
    sign = -1.0 if place and choose("better", better, ("lower", "higher")) == "higher" else 1.0
    sizes = [len(o.score) if place else sum(map(len, o.outputs)) for o in network.intact]
    if not sum(sizes):
        raise ValueError(f"by={by!r}: the runs have no {by}; give by={('score', 'output')[place]!r}")

    def change(index: int, cell: int) -> Tensor:
        return network.changes(index, {key: torch.tensor([cell])})[place]

    def measure(cells: Sequence[int], index: int) -> Tensor:
        return sign * torch.stack(shared([partial(change, index, cell) for cell in cells])).cpu().double()

    size = network.parts[key].weights.hidden_size
    return race_on(measure, sizes, size, k, confidence=confidence, deadline=deadline, cheap=cheap)


def race_on(
    measure: Measure,
    sizes: Sequence[int],
    cells: int,
    k: int,
    *,
    confidence: float = 0.95,
    deadline: float = math.inf,
    cheap: Tensor | None = None,
) -> Race:
    """`race` on anything that can be measured: batches of ``sizes`` sequences, of so many `cells`."""
    _check(sizes, cells, k, confidence, cheap)
    field = _Field(torch.full((cells, sum(sizes)), math.nan, dtype=torch.float64, device="cpu"), _as_host(cheap), k)
    for index, size in enumerate(sizes):
        if field.over or (index > 0 and not in_time(deadline)):
            break
        if size:
            field.add(measure(field.running.tolist(), index))
            field.settle((1 - confidence) / ((index + 1) * (index + 2)))  # all looks together: 1 - confidence
    return field.result()


def _check(sizes: Sequence[int], cells: int, k: int, confidence: float, cheap: Tensor | None) -> None:
    if not 1 <= k < cells:
        raise ValueError(f"k={k} must be from 1 to {cells - 1}, fewer than the layer's {cells} cells")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence={confidence!r} must lie between 0 and 1, such as 0.95")
    if cheap is not None and tuple(cheap.shape) != (cells, sum(sizes)):
        raise ValueError(f"cheap has shape {tuple(cheap.shape)}; give (cells, sequences) = ({cells}, {sum(sizes)})")


def _as_host(cheap: Tensor | None) -> Tensor | None:
    return None if cheap is None else cheap.detach().cpu().double()


class _Field:
    """The cells in a race, what was measured of them ``(H, N)``, and which are in or out."""

    def __init__(self, values: Tensor, cheap: Tensor | None, k: int) -> None:
        self.values, self.cheap, self.k, self.seen = values, cheap, k, 0
        self.corrects = cheap is not None and effective_sequences(cheap) >= EFFECTIVE
        cells = len(values)
        self.running = torch.arange(cells, device="cpu")
        self.inside = torch.zeros(cells, dtype=torch.bool, device="cpu")
        self.mean, self.error = (values.new_full((cells,), math.nan) for _ in range(2))
        self.sequences = torch.zeros(cells, dtype=torch.long, device="cpu")

    @property
    def over(self) -> bool:
        """Whether every cell is settled."""
        return len(self.running) == 0

    def add(self, effects: Tensor) -> None:
        """Effects of the running cells on the next sequences ``(C, n)``."""
        bad = ~effects.isfinite().all(1)
        if bool(bad.any()):
            raise ValueError(f"removing the cells {self.running[bad].tolist()} gave effects that are NaN or infinite")
        end = self.seen + effects.shape[1]
        self.values[self.running, self.seen : end] = effects.to(self.values)
        self.seen = end
        self.sequences[self.running] = end

    def settle(self, chance: float) -> None:
        """Settle the running cells that are in or out, wrongly with at most this chance."""
        rows = self._adjusted()
        self.mean[self.running] = rows.mean(1)
        left = 1 - self.seen / self.values.shape[1]  # nothing is uncertain when all sequences are seen
        self.error[self.running] = (rows.var(1) * left / self.seen).sqrt() if self.seen > 1 else math.nan
        if left == 0:
            return self._finish()
        beats = _beats(rows, left, chance / (self.k * (len(self.values) - self.k)), self._unseen())
        wanted = self.k - int(self.inside.sum())
        ins, outs = beats.sum(1) >= len(rows) - wanted, beats.sum(0) >= wanted
        self.inside[self.running[ins]] = True
        self.running = self.running[~(ins | outs)]

    def _adjusted(self) -> Tensor:
        """Effects so far ``(C, n)``, less what the cheap score explains of them."""
        rows = self.values[self.running, : self.seen]
        if self.cheap is None or not self.corrects or self.seen < FEWEST:
            return rows
        cheap = self.cheap[self.running]
        known = cheap[:, : self.seen]
        slope = slopes(rows - rows.mean(1, keepdim=True), known - known.mean(1, keepdim=True))
        return rows - slope[:, None] * (known - cheap.mean(1, keepdim=True))

    def _unseen(self) -> Tensor | float:
        """How much wider the cheap score's differences vary over all sequences than over those seen ``(C, C)``.

        So that a few sequences on which every cell matters much, not met so far, keep a race from ending early. At
        least 1; infinite where nothing has moved so far.
        """
        if self.cheap is None or self.seen < 2:
            return 1.0
        everything, seen = _spread(self.cheap[self.running]), _spread(self.cheap[self.running, : self.seen])
        return torch.where(everything > 0, everything / seen, 1.0).clamp(min=1)

    def _finish(self) -> None:
        """All sequences are seen: what is left is settled by the means themselves."""
        wanted = self.k - int(self.inside.sum())
        best = self.mean[self.running].argsort(descending=True, stable=True)[:wanted]
        self.inside[self.running[best]] = True
        self.running = self.running[:0]

    def result(self) -> Race:
        settled = torch.ones(len(self.values), dtype=torch.bool)
        settled[self.running] = False
        place = torch.where(self.inside, math.inf, torch.where(settled, -math.inf, self.mean))
        top = place.argsort(descending=True, stable=True)[: self.k]
        top = top[self.mean[top].argsort(descending=True, stable=True)]
        work = int(self.sequences.sum()) / self.values.numel()
        return Race(top, self.mean, self.error, self.sequences, settled, work, self.corrects)


def effective_sequences(cheap: Tensor) -> float:
    """How many sequences carry the variance of a score ``(H, N)``: N if all of them alike, 1 if only one does."""
    shares = (cheap - cheap.mean(1, keepdim=True)).square().sum(0)
    total = float(shares.sum())
    return total**2 / float(shares.square().sum()) if total else 0.0


def _beats(rows: Tensor, left: float, chance: float, unseen: Tensor | float) -> Tensor:
    """Which cell's mean is above which other's ``(C, C)``, each wrongly with at most this chance.

    By Student's t for the differences on the same sequences, of which a share ``left`` of all is still to be seen;
    their variance is multiplied by ``unseen (C, C)``.
    """
    from scipy.stats import t as student

    count = rows.shape[1]
    if count < 2:
        return torch.zeros(len(rows), len(rows), dtype=torch.bool)
    error = (_spread(rows) * unseen * left / count).sqrt()
    mean = rows.mean(1)
    return mean[:, None] - mean > float(student.isf(chance, count - 1)) * error


def _spread(rows: Tensor) -> Tensor:
    """The variance of the differences of any two rows ``(C, C)``."""
    both = torch.cov(rows).reshape(len(rows), len(rows))
    return (both.diagonal()[:, None] + both.diagonal() - 2 * both).clamp(min=0)
