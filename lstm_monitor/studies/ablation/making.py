"""The stages of an ablation study: run, remove, rank, and draw the curves; within a given time."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from lstm_monitor.core.distributed import from_first, processes
from lstm_monitor.core.records import Ranking, Snapshot
from lstm_monitor.core.terms import Better, LayerKey
from lstm_monitor.core.undisturbed import undisturbed
from lstm_monitor.importance.removal.curves import (
    area,
    counts_to_try,
    curves,
    order_gap,
    random_orders,
    scale_of,
    value_of,
)
from lstm_monitor.importance.removal.estimates import spearman
from lstm_monitor.importance.removal.outcomes import output_change, output_variance
from lstm_monitor.layers.layer import Layers
from lstm_monitor.report.ablation.records import Correlation, LayerStudy, Noise, Trial
from lstm_monitor.report.ablation.result import Study
from lstm_monitor.snapshots.outputs import Select
from lstm_monitor.snapshots.runs import Run
from lstm_monitor.studies.ablation.bench import Bench, Progress, StudyOptions, checked, mean_score, set_up, weights_kept
from lstm_monitor.studies.ablation.distributed import check_same_everywhere, take_first_buffers
from lstm_monitor.studies.ablation.effects import Found, effects_of
from lstm_monitor.studies.ablation.rankings import made, rankings_of

SINGLES, GREEDY = 0.4, 0.6
"""By which part of a layer's time the single cells, and the rankings, have to be done; the curves take the rest."""
FEW_POINTS = 4
"""Random orders are given up before a curve has fewer points than this."""
REPEATED = 1e-6
"""Two runs of the same network that differ by less, relatively, differ by rounding only."""


def make_study(
    model: nn.Module,
    layers: Layers,
    runs: Sequence[Run],
    options: StudyOptions,
    *,
    snaps: Sequence[Snapshot] | None = None,
    select: Select | None = None,
    progress: Progress | None = None,
    live: bool | None = None,
) -> Study:
    """A study of these layers on these runs. `snaps`: their snapshots; without them they are taken from the runs.

    `live`: edit the live weights instead of computing with copies, as where the runs cast to half precision.

    Raises:
        ValueError: a run whose score is NaN for the whole network, or that changes the weights; no output and no score.
    """
    began = time.perf_counter()
    with undisturbed(model), _numbers_with_gradients(), weights_kept(model) as weights_back:
        take_first_buffers(model)
        network, taken = set_up(model, layers, runs, options, select, live, weights_back, snaps)
        bench = Bench(network, options, began, checked(network), progress)
        check_same_everywhere(network)
        repeat = from_first(partial(_repeat, bench))
        found = rankings_of(bench, taken)
        better = from_first(partial(_better, bench)) if options.better is None else options.better
        results = tuple(_layer(bench, layer.key, found[layer.key], better, repeat) for layer in layers)
    if progress is not None:
        progress(1.0, "done")
    outputs = sum(len(rows) for outcome in network.intact for rows in outcome.outputs)
    count = max(outputs, sum(len(outcome.score) for outcome in network.intact))
    notes = tuple(dict.fromkeys(bench.notes))
    seconds = time.perf_counter() - began
    study = Study(results, options.score_name, mean_score(network), better, options.mode, count, seconds, notes)
    return from_first(lambda: study)


@contextmanager
def _numbers_with_gradients() -> Iterator[None]:
    """Torch warns of ``float(loss)`` while gradients are taken, as they are for some rankings; that is no fault."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Converting a tensor with requires_grad=True to a scalar")
        yield


def _better(bench: Bench) -> Better:
    """The direction away from which the score goes when all layers are emptied."""
    if not bench.scored:
        return "lower"
    everything = {key: torch.arange(part.weights.hidden_size) for key, part in bench.network.parts.items()}
    emptied, intact = (
        value_of(bench.network, everything, of_score=True, runs=bench.judged_runs),
        mean_score(bench.network),
    )
    if emptied != emptied or emptied == intact:
        what = "gives NaN" if emptied != emptied else "does not change the score"
        bench.notes.append(f"removing all cells {what}; lower is taken for better (else give better='higher')")
    return "higher" if emptied < intact else "lower"


def _repeat(bench: Bench) -> float:
    """The score's change when the intact network is run again, with a note where that or the output is random."""
    network = bench.network
    again = [(network.outcome(index, {}), network.intact[index]) for index in bench.judged_runs]
    changes = [float(output_change(now, then).mean()) for now, then in again if now.outputs]
    if any(change > REPEATED * output_variance(network.intact) for change in changes):
        bench.notes.append("the network's output is random: two runs of the same network differ")
    if not bench.scored:
        return math.nan
    repeat = float(torch.cat([now.score - then.score for now, then in again]).abs().mean())
    if repeat > REPEATED * abs(mean_score(network)):
        bench.notes.append(
            f"evaluate is random: two evaluations of the same network differ by {repeat:.3g}; "
            "effects smaller than that mean nothing"
        )
    return repeat


def _layer(bench: Bench, key: LayerKey, asked: Sequence[Ranking | str], better: Better, repeat: float) -> LayerStudy:
    network, options = bench.network, bench.options
    found = effects_of(bench, key, better, bench.until(key, SINGLES))
    rankings = [made(bench, key, item, _known_best(found), bench.until(key, GREEDY)) for item in asked]
    runs, counts, orders = _affordable(bench, key, len(rankings))
    scale = scale_of(network, key, of_score=bench.scored, runs=runs)
    removals = [*random_orders(network.parts[key].weights.hidden_size, orders, options.seed)]
    for ranking in rankings:
        removals += [ranking.order.cpu(), ranking.order.cpu().flip(0)]
    drawn = curves(network, scale, removals, counts, lambda: bench.advance(f"{key}: curves"))
    random, pairs = drawn[:orders], zip(drawn[orders::2], drawn[orders + 1 :: 2], strict=True)
    variance = output_variance(network.intact)
    return LayerStudy(
        key=key,
        effects=found.effects,
        counts=counts,
        trials=tuple(
            _trial(ranking, *pair, found, counts, options.seed) for ranking, pair in zip(rankings, pairs, strict=True)
        ),
        random=torch.stack(random) if random else torch.empty(0, len(counts), dtype=torch.float64, device="cpu"),
        noise=Noise(repeat, *found.halves, order_gap([area(kept, counts) for kept in random])),
        judged="score" if bench.scored else "output",
        intact=scale.intact,
        emptied=scale.emptied,
        variance=variance if variance == variance else 1.0,
    )


def _known_best(found: Found) -> Tensor:
    """The effects on the output; on the score where there is no output."""
    output = found.effects.output
    return output if bool(torch.isfinite(output).any()) else found.effects.score


def _affordable(bench: Bench, key: LayerKey, rankings: int) -> tuple[tuple[int, ...], Tensor, int]:
    """The runs, the points and the random orders of the curves for which there is time: fewer of each in this order.

    Judged by how long half a layer takes on one run. Left in any case is each ranking's curve of 2 points on one run.
    """
    runs, size, orders = bench.judged_runs, bench.network.parts[key].weights.hidden_size, bench.options.random_orders
    counts = counts_to_try(size, bench.options.points)
    end = bench.until(key, 1.0)
    if end == math.inf:
        return runs, counts, orders
    steps = processes() * from_first(partial(_steps_until, bench, key, end))
    curves = 2 * rankings + orders
    fewer = runs[: _between(1, steps / max(curves * (len(counts) - 2), 1), len(runs))]
    points = _between(FEW_POINTS, steps / max(curves * len(fewer), 1) + 1, len(counts) - 1)
    drawn = _between(0, steps / max((points - 1) * len(fewer), 1) - 2 * rankings, orders)
    points = points if drawn else _between(2, steps / max(2 * rankings * len(fewer), 1) + 1, points)
    if (len(fewer), points, drawn) == (len(runs), len(counts) - 1, orders):
        return runs, counts, orders
    words = f"{key}: curves on {len(fewer)} of {len(runs)} batches at {points} points"
    bench.notes.append(f"{words}, with {drawn} of {orders} random orders, for the time allowed")
    return fewer, counts_to_try(size, points), drawn


def _between(least: int, value: float, most: int) -> int:
    return min(max(int(min(value, most)), least), most)


def _steps_until(bench: Bench, key: LayerKey, end: float) -> float:
    """How often there is time for half a layer on one run."""
    began = time.perf_counter()
    half = torch.arange(bench.network.parts[key].weights.hidden_size // 2)
    value_of(bench.network, {key: half}, of_score=bench.scored, runs=bench.judged_runs[:1])
    now = time.perf_counter()
    return max(end - now, 0.0) / max(now - began, 1e-9)


def _trial(ranking: Ranking, most: Tensor, least: Tensor, found: Found, counts: Tensor, seed: int) -> Trial:
    truths = (found.effects.output, found.effects.score)
    output, score = (Correlation(*spearman(ranking.scores.cpu(), truth, seed=seed)) for truth in truths)
    return Trial(ranking, output, score, most, least, area(most, counts), area(least, counts))
