"""The first batches of a Trainer's validation, as its module receives them."""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import torch

from lstm_monitor.core.distributed import from_each, processes


@dataclass(frozen=True, eq=False)
class Batch:
    """A batch on the module's device: its number in its loader, the loader's number, and how many sequences it holds.

    ``loader`` is None where the module is given no loader's number, as with a single one.
    """

    value: Any
    number: int
    loader: int | None
    size: int

    def arguments(self) -> tuple[Any, ...]:
        """What ``validation_step`` and the hooks around it are given."""
        return (self.value, self.number, *(() if self.loader is None else (self.loader,)))


def part_of(trainer: Any, path: str) -> Any:
    """A module of the package that this Trainer is of, such as ``utilities.data``."""
    root = next(base.__module__ for base in type(trainer).__mro__ if base.__name__ == "Trainer")
    name = f"{root.split('.trainer')[0]}.{path}"
    return sys.modules.get(name) or __import__(name, fromlist=["_"])


def has_validation(trainer: Any, module: Any) -> bool:
    """Whether there is a validation to take batches from: loaders with batches, and a step that they are given to."""
    own = type(module).validation_step is not part_of(trainer, "core.module").LightningModule.validation_step
    return own and trainer.val_dataloaders is not None and sum(trainer.num_val_batches) > 0


def first_batches(trainer: Any, module: Any, sequences: int) -> tuple[list[Batch], str]:
    """Whole batches of each loader until they hold `sequences`, and words on what was left out, if anything was.

    Processes that share take them from all their loaders, among which Lightning has divided the data: together they are
    those that one process would take. Every generator that the loaders hold is as before; call it where the global ones
    are put back.
    """
    share = math.ceil(sequences / processes())
    parts = from_each(lambda: _first_batches(trainer, module, share))
    found = [
        replace(batch, number=batch.number * len(parts) + rank)
        for rank, (batches, _) in enumerate(parts)
        for batch in batches
    ]
    found.sort(key=lambda batch: (batch.loader or 0, batch.number))
    return found, _left_out(found, sum(available for _, available in parts))


def _first_batches(trainer: Any, module: Any, sequences: int) -> tuple[list[Batch], float]:
    """Those of this process, and how many it has."""
    streams = _streams(trainer)
    several = len(streams) > 1
    found: list[Batch] = []
    for place, (stream, limit) in enumerate(streams):
        with _same_generators(stream):
            held = 0
            for number, given in enumerate(islice(stream, None if limit == float("inf") else int(limit))):
                value = _on_device(trainer, module, given, place)
                found.append(Batch(value, number, place if several else None, size_of(trainer, value)))
                held += found[-1].size
                if held >= sequences:
                    break
    return found, sum(limit for _, limit in streams)


def _streams(trainer: Any) -> list[tuple[Iterable[Any], float]]:
    """What is iterated, with the number of its batches: each loader, or all at once where they are read together."""
    combine = part_of(trainer, "utilities.combined_loader").CombinedLoader
    limits = trainer.num_val_batches
    loop = getattr(trainer.fit_loop.epoch_loop, "val_loop", None)
    mode = getattr(getattr(loop, "_combined_loader", None), "_mode", "sequential")
    combined = combine(trainer.val_dataloaders, mode)
    if mode == "sequential":
        return list(zip(combined.flattened, limits, strict=True))
    combined.limits = limits
    return [(_Together(combined), max(limits) if mode.startswith("max") else min(limits))]


@dataclass(frozen=True, eq=False)
class _Together:
    """Loaders that are read side by side: one batch of each at a time."""

    combined: Any

    def __iter__(self) -> Iterator[Any]:
        return (batch for batch, *_ in iter(self.combined))

    @property
    def loaders(self) -> Sequence[Any]:
        return self.combined.flattened


def _on_device(trainer: Any, module: Any, batch: Any, loader: int) -> Any:
    """As the evaluation loop does it: precision, the module's own hooks, device."""
    batch = trainer.precision_plugin.convert_input(batch)
    before = getattr(module, "_on_before_batch_transfer", None)
    if before is not None:
        batch = before(batch, dataloader_idx=loader)
    return trainer.strategy.batch_to_device(batch, dataloader_idx=loader)


def size_of(trainer: Any, batch: Any) -> int:
    """The weight that Lightning gives a batch; 1 where it finds none, when ``log`` needs ``batch_size=`` anyway."""
    data = part_of(trainer, "utilities.data")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning's own, told in the training where it matters
        try:
            return int(data.extract_batch_size(batch))
        except Exception:
            return 1


def _left_out(batches: Sequence[Batch], available: float) -> str:
    if len(batches) >= available:
        return ""
    total = "" if available == float("inf") else f" of {int(available):,}"
    held = sum(batch.size for batch in batches)
    return f"on {held:,} sequences, the first {len(batches)}{total} validation batches (AblationCheck(sequences=))"


@contextmanager
def _same_generators(stream: Any) -> Iterator[None]:
    """Generators that a loader or its samplers were given are put back: iterating draws from them."""
    owners = list(_owners(stream))
    generators = [getattr(owner, "generator", None) for owner in owners]
    kept = [(item, item.get_state()) for item in generators if isinstance(item, torch.Generator)]
    try:
        yield
    finally:
        for generator, state in kept:
            generator.set_state(state)


def _owners(stream: Any) -> Iterator[Any]:
    for loader in getattr(stream, "loaders", [stream]):
        batching = getattr(loader, "batch_sampler", None)
        yield from (loader, getattr(loader, "sampler", None), batching, getattr(batching, "sampler", None))
