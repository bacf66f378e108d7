"""What a module logs while it validates, and the values that Lightning makes of it."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from lstm_monitor.integrations.lightning_callback.batches import Batch

RETURNED = ""
"""The key of the loss that ``validation_step`` returns; no logged one is empty."""


@dataclass(frozen=True, eq=False)
class Entry:
    """One value of a key: a number or a Metric object, how much it counts, and how Lightning reduces such values.

    ``number`` and ``loader`` are those of the batch; None for what is logged when all batches are over.
    """

    value: Any
    size: int
    reduce: str
    number: int | None
    loader: int | None

    @property
    def is_mean(self) -> bool:
        """Whether it is a number of one batch, of which Lightning takes the mean over batches."""
        return self.number is not None and self.reduce == "mean"


class Logs:
    """Stands in for a module's ``log``: keeps values by key, as ``callback_metrics`` names them."""

    def __init__(self, signature: inspect.Signature) -> None:
        """Nothing is logged yet; `signature` is that of Lightning's ``log``."""
        self.signature = signature
        self.entries: dict[str, list[Entry]] = {}
        self.aliases: dict[str, str] = {}
        self.higher_is_better: dict[str, bool] = {}
        self.values: dict[str, float] = {}
        self.batch: Batch | None = None

    def log(self, *args: Any, **kwargs: Any) -> None:
        """Take what ``self.log`` is given."""
        given = self.signature.bind(None, *args, **kwargs).arguments
        name, value = given["name"], given["value"]
        ending = self._ending() if given.get("add_dataloader_idx", True) else ""
        if given.get("on_step") and given.get("on_epoch"):
            self.aliases[f"{name}_epoch{ending}"] = name + ending
        self._add(name + ending, value, given.get("batch_size"), _reduction(value, given.get("reduce_fx", "mean")))

    def returned(self, result: Any) -> None:
        """Take what ``validation_step`` returned: a loss, by itself or as "loss" in a dict."""
        loss = result.get("loss") if isinstance(result, Mapping) else result
        if isinstance(loss, torch.Tensor) and loss.numel() == 1:
            self._add(RETURNED, loss, None, "mean")

    def compute(self) -> None:
        """Reduce every key's values to one, as Lightning does at the end of a validation."""
        self.values = {key: _reduced(entries) for key, entries in self.entries.items()}

    def keys(self) -> list[str]:
        """Everything that was logged, the aliases last."""
        return [key for key in [*self.entries, *self.aliases] if key != RETURNED]

    def _ending(self) -> str:
        loader = None if self.batch is None else self.batch.loader
        return "" if loader is None else f"/dataloader_idx_{loader}"

    def _add(self, key: str, value: Any, size: int | None, reduce: str) -> None:
        batch = self.batch
        if reduce == "metric":
            better = getattr(value, "higher_is_better", None)
            self.higher_is_better |= {} if better is None else {key: better}
        else:
            value = float(torch.as_tensor(value).detach())
        if size is None:
            size = 1 if batch is None else batch.size
        number, loader = (None, None) if batch is None else (batch.number, batch.loader)
        self.entries.setdefault(key, []).append(Entry(value, size, reduce, number, loader))


def _reduction(value: Any, given: Any) -> str:
    """How values become one: "metric", "mean", "sum", "min" or "max"."""
    if hasattr(value, "compute"):
        return "metric"
    name = str(given if isinstance(given, str) else getattr(given, "__name__", given)).lower()
    return "mean" if name == "avg" else name


def _reduced(entries: list[Entry]) -> float:
    reduce, values = entries[-1].reduce, [entry.value for entry in entries]
    if reduce == "metric":
        return float(values[-1].compute())
    if reduce == "mean":
        return sum(entry.value * entry.size for entry in entries) / sum(entry.size for entry in entries)
    return float(sum(values) if reduce == "sum" else max(values) if reduce == "max" else min(values))


def sizes_by_batch(entries: list[Entry]) -> Iterator[tuple[int, int | None, int]]:
    """(number, loader, weight) of each batch that has values."""
    weights: dict[tuple[int, int | None], int] = {}
    for entry in entries:
        assert entry.number is not None
        place = (entry.number, entry.loader)
        weights[place] = weights.get(place, 0) + entry.size
    return ((number, loader, weight) for (number, loader), weight in weights.items())
