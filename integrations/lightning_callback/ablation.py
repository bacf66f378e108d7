"""The ablation check at the end of a Lightning training: the Trainer's own validation, with cells removed."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lstm_monitor.core.distributed import from_first, processes
from lstm_monitor.core.errors import nearest
from lstm_monitor.core.guard import LOG
from lstm_monitor.core.terms import Better
from lstm_monitor.core.undisturbed import undisturbed
from lstm_monitor.importance.replay.calls import standing_in
from lstm_monitor.integrations.lightning_callback.batches import Batch, first_batches, has_validation
from lstm_monitor.integrations.lightning_callback.logged import RETURNED, Logs, sizes_by_batch
from lstm_monitor.integrations.lightning_callback.validation import Steps, as_validating
from lstm_monitor.layers.finding import removable_layers
from lstm_monitor.monitor.monitor import LSTMMonitor
from lstm_monitor.report.ablation.result import Study
from lstm_monitor.snapshots.runs import Run
from lstm_monitor.studies.ablation.bench import Progress
from lstm_monitor.studies.ablation.check import AblationCheck, options_of
from lstm_monitor.studies.ablation.distributed import by_itself
from lstm_monitor.studies.ablation.making import make_study

PAUSE = 0.1
"""Seconds between two changes of the bar."""
DIGITS = 1e-4
"""The Trainer's own value is told where it differs by more, relatively."""


@dataclass(frozen=True, eq=False)
class Scored:
    """What a study runs and how it is scored: the score's name, which values are better if known, and notes."""

    runs: tuple[Run, ...]
    name: str
    better: Better | None
    notes: tuple[str, ...] = ()


def lightning_study(trainer: Any, check: AblationCheck, monitor: LSTMMonitor) -> Study | None:
    """A study on the Trainer's validation, or without one on the monitor's held-out data.

    None, with a line in the log, where neither is there, or the training runs in several processes that do not share
    (no DDP).

    Raises:
        ValueError: a score that the validation does not log, or what `make_study` raises.
    """
    module: Any = monitor.model
    alone = trainer.world_size > processes()
    reason = from_first(lambda: _reason_against(trainer, module, check, alone=alone))
    if reason and monitor.held_out is not None and not alone and check.score is None:
        return monitor.held_out_study(check)
    if reason:
        if trainer.is_global_zero:
            LOG.warning("lstm_monitor makes no ablation check: %s", reason)
        return None
    found = removable_layers(module, check.layers_or(monitor.layers))
    with undisturbed(module), as_validating(trainer), _bar(trainer) as progress:
        scored = _scored(trainer, module, check)
        options = options_of(check, monitor.rank_by, scored.name, scored.better)
        select = check.output or monitor.output
        live = True if "mixed" in str(trainer.precision) else None  # copies in single precision are another network
        study = make_study(module, found, scored.runs, options, select=select, progress=progress, live=live)
    return replace(study, notes=(*scored.notes, *_other_value(trainer, scored, study), *study.notes))


def _reason_against(trainer: Any, module: Any, check: AblationCheck, *, alone: bool) -> str:
    """Why there can be no study; empty if there can. `alone`: the training's other processes do not share it."""
    if alone:
        return f"the training runs in {trainer.world_size} processes, and one alone cannot make it"
    if not callable(check.score) and not has_validation(trainer, module):
        return (
            "the Trainer has no validation (a validation_step and a loader); give one, or "
            "ablation=AblationCheck(score=evaluate), where evaluate(model) returns a number"
        )
    return ""


def _scored(trainer: Any, module: Any, check: AblationCheck) -> Scored:
    if callable(check.score):
        return _own(trainer, module, check.score, check.sequences)
    steps = Steps(trainer, module)
    batches, left_out = first_batches(trainer, module, check.sequences)
    key, logs, hooks = _chosen(steps, batches, check.score)
    runs = _runs(steps, batches, key, logs, hooks)
    better = _better(trainer, key, logs)
    return Scored(tuple(runs), key or "loss", better, (left_out,) if left_out else ())


def _own(trainer: Any, module: Any, evaluate: Callable[[Any], Any], sequences: int) -> Scored:
    """The user's function; the output's change is that on the Trainer's validation where there is one."""
    name = getattr(evaluate, "__name__", "score")
    batches, left_out = first_batches(trainer, module, sequences) if has_validation(trainer, module) else ([], "")
    steps = Steps(trainer, module) if batches else None
    shown = [Run(partial(steps.run, [batch]), score=_nothing) for batch in batches if steps is not None]
    runs = (*shown, Run(partial(evaluate, module), score=_itself, watched=not shown))
    notes = (left_out,) if left_out else ()
    return Scored(runs, "score" if name.startswith("<") else name, None, notes)


def _itself(result: Any) -> Any:
    return result


def _nothing(logs: Logs) -> Tensor:
    """The score of a run that has none."""
    return torch.empty(0)


# Which score


def _chosen(steps: Steps, batches: Sequence[Batch], asked: str | None) -> tuple[str, Logs, bool]:
    """The score's key, what the intact network logs, and whether the module's hooks have to be called for it.

    The steps alone come first: an epoch's hooks may draw and write much more than a score.
    """
    error: Exception | None = None
    logs: Logs | None = None
    try:
        logs = _rehearsed(steps, batches, hooks=False)
        key = _pick(logs, asked)
        if key is not None:
            return key, logs, False
    except Exception as caught:  # steps that need what the hooks prepare
        error = caught
    logs = _rehearsed(steps, batches, hooks=True)
    key = _pick(logs, asked)
    if key is None:
        raise _no_score(asked, logs) from error
    return key, logs, True


def _rehearsed(steps: Steps, batches: Sequence[Batch], *, hooks: bool) -> Logs:
    with standing_in({}), by_itself():  # nothing stands in; what is compiled runs uncompiled, as in the study
        return steps.run(batches, hooks=hooks)


def _pick(logs: Logs, asked: str | None) -> str | None:
    """The key that is asked for, else that of the loss, else the first; None if there is none."""
    if asked is not None:
        key = logs.aliases.get(asked, asked)
        return key if key in logs.entries else None
    logged = list(logs.entries)
    losses = [key for key in logged if key == RETURNED] + [key for key in logged if "loss" in key.lower()]
    return next(iter([*losses, *logged]), None)


def _no_score(asked: str | None, logs: Logs) -> ValueError:
    if asked is not None:
        return ValueError(f"score={asked!r} is not logged by the module's validation. {nearest(asked, logs.keys())}")
    return ValueError(
        "validation_step neither returns a loss nor logs anything; give ablation=AblationCheck(score=evaluate), where "
        "evaluate(model) returns a number"
    )


def _better(trainer: Any, key: str, logs: Logs) -> Better | None:
    """Which values are better, as far as the metric itself, its name or another callback says it."""
    if key in logs.higher_is_better:
        return "higher" if logs.higher_is_better[key] else "lower"
    names = {key, *(alias for alias, name in logs.aliases.items() if name == key)}
    modes = [getattr(item, "mode", "") for item in trainer.callbacks if getattr(item, "monitor", None) in names]
    for mode in modes:
        if mode in ("min", "max"):
            return "lower" if mode == "min" else "higher"
    return "lower" if key == RETURNED or "loss" in key.lower() else None


# What is run


def _runs(steps: Steps, batches: Sequence[Batch], key: str, logs: Logs, hooks: bool) -> Iterator[Run]:
    """A run for each batch where the score is a mean over batches; else one run of all of them."""
    entries = logs.entries[key]
    places = {(entry.number, entry.loader) for entry in entries}
    of_key = [batch for batch in batches if (batch.number, batch.loader) in places] or list(batches)
    if hooks or not all(entry.is_mean for entry in entries):
        used = batches if hooks else [batch for batch in batches if batch.loader in {item.loader for item in of_key}]
        yield _run(steps, used, key, hooks, 1.0)
        return
    weights = {(number, loader): weight for number, loader, weight in sizes_by_batch(entries)}
    for batch in of_key:
        yield _run(steps, [batch], key, hooks, float(weights[batch.number, batch.loader]))


def _run(steps: Steps, batches: Sequence[Batch], key: str, hooks: bool, weight: float) -> Run:
    return Run(partial(steps.run, batches, hooks=hooks), score=lambda logs: logs.values[key], weight=weight)


def _other_value(trainer: Any, scored: Scored, study: Study) -> Iterator[str]:
    """A note where the Trainer's last validation gave another value on the same batches."""
    known = trainer.callback_metrics.get(scored.name)
    if known is None or scored.notes or processes() > 1:  # each process may know only that of its own data
        return
    value = float(known)
    if abs(value - study.intact) > DIGITS * max(abs(value), abs(study.intact)):
        yield f"the Trainer's own last validation gave {scored.name} = {value:.5g}"


# Progress


@contextmanager
def _bar(trainer: Any) -> Iterator[Progress | None]:
    """A bar that is gone at the end, where the Trainer shows its own."""
    own = trainer.progress_bar_callback
    if own is None or not own.is_enabled or not trainer.is_global_zero:
        yield None
        return
    from tqdm import tqdm

    form = "{desc}: {percentage:3.0f}%|{bar}| {elapsed} {postfix}"
    with tqdm(total=1.0, desc="ablation", leave=False, bar_format=form, file=sys.stdout) as bar:
        last = 0.0

        def progress(share: float, words: str) -> None:
            nonlocal last
            bar.n = max(share, bar.n)
            if time.monotonic() > last + PAUSE:
                last = time.monotonic()
                bar.set_postfix_str(words)

        yield progress
