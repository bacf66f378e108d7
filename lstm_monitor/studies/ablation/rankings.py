"""The rankings that an ablation study puts on trial."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from functools import cache

from torch import Tensor

from lstm_monitor.characterization import examine
from lstm_monitor.core.definitions import Thresholds
from lstm_monitor.core.records import Metrics, Ranking, Snapshot
from lstm_monitor.core.terms import LayerKey
from lstm_monitor.core.trees import to_host
from lstm_monitor.importance.ranking import GREEDY, MEASURED, rank, ranked
from lstm_monitor.importance.removal.greedy import removal_order
from lstm_monitor.importance.scoring import assess, greedy_scores
from lstm_monitor.studies.ablation.bench import STEPS, Bench


def rankings_of(bench: Bench, snaps: Sequence[Snapshot]) -> dict[LayerKey, list[Ranking | str]]:
    """The rankings of every layer, in the order asked for; those that a study makes itself by their names.

    Raises:
        ValueError: a given ranking of a studied layer that is not of its cells.
    """
    metrics = cache(lambda: _metrics(snaps))
    found: dict[LayerKey, list[Ranking | str]] = {snap.key: [] for snap in snaps}
    for asked in bench.options.rankings:
        named = _given(bench, asked, found) if isinstance(asked, Ranking) else _named(bench, snaps, asked, metrics)
        for key, ranking in named.items():
            found[key].append(ranking)
    return found


def _given(bench: Bench, asked: Ranking, layers: Container[LayerKey]) -> Mapping[LayerKey, Ranking]:
    if asked.key not in layers:
        bench.notes.append(f"ranking {asked.name!r} is of {asked.key}, which is not studied")
        return {}
    size = bench.network.parts[asked.key].weights.hidden_size
    if len(asked.scores) != size or sorted(asked.order.tolist()) != list(range(size)):
        raise ValueError(
            f"rankings: {asked.name!r} orders {len(asked.order)} cells of {asked.key}, which has {size}; give a "
            "ranking of this network"
        )
    return {asked.key: asked}


def _named(
    bench: Bench, snaps: Sequence[Snapshot], name: str, metrics: Callable[[], Mapping[LayerKey, Metrics]]
) -> Mapping[LayerKey, Ranking | str]:
    """A ranking by its name, for the layers of which it can be made; the others are noted."""
    if name in (MEASURED, GREEDY):
        return {snap.key: name for snap in snaps}
    network, found = bench.network, {}
    runs = [run for run in network.runs if run.watched]
    try:
        asked = assess(snaps, network.model, network.layers, runs, name, select=network.select, max_steps=STEPS)
    except (ValueError, TypeError, RuntimeError) as error:
        bench.notes.append(f"ranking {name!r} could not be made: {error}")
        return {}
    for snap in to_host(tuple(asked)):  # where the metrics are
        try:
            found[snap.key] = rank(snap, metrics()[snap.key], name)
        except ValueError as error:  # not a metric of this kind of layer
            bench.notes.append(f"ranking {name!r} could not be made: {error}")
    return found


def _metrics(snaps: Sequence[Snapshot]) -> Mapping[LayerKey, Metrics]:
    return {report.key: report.metrics for report, _ in examine(snaps, {}, "std_x_outgoing", Thresholds())}


def made(bench: Bench, key: LayerKey, asked: Ranking | str, effects: Tensor, deadline: float) -> Ranking:
    """The ranking itself, where it is one that the study makes."""
    if isinstance(asked, Ranking):
        return asked
    if asked == MEASURED:
        return ranked(key, MEASURED, "measured effect of removing the cell, on these sequences", effects)
    order = removal_order(bench.network, key, deadline=deadline)
    return ranked(key, GREEDY, "greedy order of removal on these sequences, the last to go first", greedy_scores(order))
