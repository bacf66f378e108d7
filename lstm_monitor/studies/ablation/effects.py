"""The effects of single cells in an ablation study: exact where there is time, else estimated, and said so."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from lstm_monitor.core.distributed import in_time
from lstm_monitor.core.terms import Better, LayerKey
from lstm_monitor.importance.removal.estimates import FEWEST, Estimate, estimate, half_correlation, standard_error
from lstm_monitor.importance.removal.greedy import By
from lstm_monitor.importance.removal.racing import race
from lstm_monitor.importance.removal.single_cells import Singles, singles
from lstm_monitor.importance.sensitivity.scores import loss_changes, output_changes
from lstm_monitor.report.ablation.records import Effects
from lstm_monitor.snapshots.runs import Run
from lstm_monitor.studies.ablation.bench import Bench

Cheap = Callable[[Sequence[Run]], Tensor]
CORRECTIONS = 0.5
"""By which part of a layer's time the first-order scores have to be known; else they correct nothing."""


@dataclass(frozen=True, eq=False)
class Found:
    """The effects of a layer's cells, and how the two halves of the sequences agree on them: output, score."""

    effects: Effects
    halves: tuple[float, float]


def effects_of(bench: Bench, key: LayerKey, better: Better, deadline: float) -> Found:
    """Remove every cell by itself; with `top`, only as long as a cell may be among the first."""
    top = bench.options.top
    if top is not None and top < bench.network.parts[key].weights.hidden_size:
        try:
            return _raced(bench, key, top, better, deadline)
        except ValueError as error:  # effects that are NaN
            bench.notes.append(f"{key}: cells could not race ({error}), so all were measured")
    found = singles(bench.network, key, deadline, tick=lambda: bench.advance(f"{key}: single cells"))
    halves = [half_correlation(values, seed=bench.options.seed) for values in (found.output, found.score)]
    return Found(_effects(bench, key, found, better), (halves[0], halves[1]))


def _effects(bench: Bench, key: LayerKey, found: Singles, better: Better) -> Effects:
    sign = 1 if better == "lower" else -1
    whole = found.runs == len(bench.network.runs)
    output, score = _values(bench, key, found, whole=whole)
    exact = torch.full_like(output.values, whole, dtype=torch.bool)
    judged = score.values if bench.scored else output.values
    lacking = int(torch.isnan(judged).sum())
    if lacking:
        bench.notes.append(
            f"{key}: cells without a measured effect: {lacking} (not reached in time, or the score was NaN)"
        )
    return Effects(output.values, output.errors, sign * score.values, score.errors, exact & ~torch.isnan(judged))


def _values(bench: Bench, key: LayerKey, found: Singles, *, whole: bool) -> tuple[Estimate, Estimate]:
    """Effects on the output and on the score: as measured, or corrected by what is known of all sequences."""
    output = Estimate(found.output_effects(), standard_error(found.output), used=False, rho=math.nan)
    score = Estimate(found.score_changes(), standard_error(found.score), used=False, rho=math.nan)
    if whole:
        return output, score
    seen = max(found.output.shape[1], found.score.shape[1])
    words = f"{key}: single cells were removed on {seen} sequences ({found.runs} of {len(bench.network.runs)} batches)"
    output = _corrected(found.output, partial(_cheap_outputs, bench, key), bench, key) or output
    score = _corrected(found.score, partial(_cheap_scores, bench, key), bench, key) or score
    bench.notes.append(f"{words}, for the time allowed; {_how({'output': output, 'score': score})}")
    return output, score


def _how(estimates: Mapping[str, Estimate]) -> str:
    used = [f"{name}'s effects (rho {part.rho:.2f})" for name, part in estimates.items() if part.used]
    return f"a first-order score of all sequences corrects the {' and the '.join(used)}" if used else "plain means"


def _corrected(pilot: Tensor, cheap: Cheap, bench: Bench, key: LayerKey) -> Estimate | None:
    """The pilot with the cheap score ``(N, H)`` as a control variate; None where there is none, or no time for it."""
    runs, began = bench.network.runs, time.perf_counter()
    if pilot.shape[1] < FEWEST:
        return None
    try:
        cheap(runs[:1])
        each = time.perf_counter() - began
        if not in_time(bench.until(key, CORRECTIONS) - each * len(runs)):
            return None
        rows = cheap(runs).T.cpu()
    except (ValueError, RuntimeError, TypeError):  # no derivative comes back, or no score a sequence
        return None
    if rows.shape[1] < pilot.shape[1]:
        return None
    return estimate(pilot, rows[:, : pilot.shape[1]], rows.mean(1))


def _cheap_outputs(bench: Bench, key: LayerKey, runs: Sequence[Run]) -> Tensor:
    if bench.options.mode == "mean":
        raise ValueError("the first-order score is that of removing a cell, not of holding it at its mean")
    network = bench.network
    watched = [run for run in runs if run.watched]
    return output_changes(network.model, network.layers, watched, output=network.select)[key]


def _cheap_scores(bench: Bench, key: LayerKey, runs: Sequence[Run]) -> Tensor:
    """By how much the loss changes to first order ``(N, H)``: removing a cell takes away what it adds."""
    network = bench.network
    return -loss_changes(network.model, network.layers, [run for run in runs if run.score is not None])[key]


def _raced(bench: Bench, key: LayerKey, top: int, better: Better, deadline: float) -> Found:
    by: By = "output" if any(outcome.outputs for outcome in bench.network.intact) else "score"
    found = race(
        bench.network, key, top, by=by, better=better, deadline=deadline
    )  # a cheap score saves less than it costs
    blank = torch.full_like(found.mean, torch.nan)
    outcomes = bench.network.intact
    exact = found.sequences == sum(sum(map(len, o.outputs)) if by == "output" else len(o.score) for o in outcomes)
    kept = Effects(found.mean, found.error, blank, blank, exact)
    cells = ", ".join(map(str, found.top.tolist()))
    sure = "settled with 95% confidence" if found.decided else "not all settled: too few sequences, or too little time"
    bench.notes.append(f"{key}: first by their effect on the {by}: {cells} ({sure}; {found.work:.0%} of the work)")
    effects = kept if by == "output" else Effects(blank, blank, found.mean, found.error, exact)
    return Found(effects, (math.nan, math.nan))
