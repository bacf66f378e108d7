"""Simulate the responses of layers to a check's steps and sines, coupled and alone, and measure them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from lstm_monitor.core.definitions import Thresholds
from lstm_monitor.core.float64 import doubled, product_type
from lstm_monitor.core.records import Metric, Probe, Snapshot, Stimulus
from lstm_monitor.core.terms import Mode
from lstm_monitor.core.weights import CellWeights, LayerWeights
from lstm_monitor.engines.batch_size import stimuli_at_once, with_less
from lstm_monitor.engines.choice import engine_for
from lstm_monitor.engines.facts import ResponseFacts, Signals, SineFacts, StepFacts, stacked_sines, stacked_steps
from lstm_monitor.engines.lone_cells import cells_of, joined_cells
from lstm_monitor.engines.run import in_mode, run
from lstm_monitor.metrics.measuring import MeasuredCells, flagged, main_of, measure, measure_facts, not_measured
from lstm_monitor.metrics.step import StepSummary
from lstm_monitor.responses.linear import linear_metrics
from lstm_monitor.responses.rest import Rest, settle, settle_cells
from lstm_monitor.responses.simulation import in_ways, respond, ways_of


@dataclass(frozen=True, eq=False)
class Case:
    """One layer, around the operating point of the probe that it is given."""

    snap: Snapshot
    probe: Probe


@dataclass(frozen=True, eq=False)
class Traced:
    """The response that pictures show, ``change (H, T)`` from rest, to the step of this `number` ``()``."""

    number: Tensor
    change: Tensor


@dataclass(frozen=True, eq=False)
class Simulated:
    """What was found of the cells of one layer or more in one mode, and where they came to rest before."""

    facts: ResponseFacts
    rest: Rest
    traced: Traced | None = None


@dataclass(frozen=True, eq=False)
class Encoded:
    """A probe's stimuli as signals along ``directions (I, D)``.

    Layers with the same `kind` are measured together, those that have the same `content` too are simulated together.
    """

    signals: Signals
    directions: Tensor
    kind: tuple[object, ...]
    content: tuple[object, ...]


_encoded: WeakKeyDictionary[Probe, Encoded] = WeakKeyDictionary()
"""A probe stays the same from check to check."""


def encoded(case: Case) -> Encoded:
    """A probe's stimuli as signals, of the layer's type and on its device."""
    known, like = _encoded.get(case.probe), case.snap.weights.like
    if known is None or (known.directions.dtype, known.directions.device) != (like.dtype, like.device):
        known = _encoded[case.probe] = _encode(case.probe, like)
    return known


def _encode(probe: Probe, like: Tensor) -> Encoded:
    directions, way = ways_of((*probe.steps, *probe.sines), like.device)
    count = len(probe.steps)
    steps, sines = (_signals(stimuli, like) for stimuli in (probe.steps, probe.sines))
    frequencies = tuple(float(sine.frequency or 0) for sine in probe.sines)
    signals = Signals(steps, way[:count], sines, way[count:], frequencies, main_of(frequencies))
    kind = (like.dtype, like.device, steps.shape, sines.shape, frequencies)
    return Encoded(
        signals, directions.to(like), kind, tuple(part.cpu().numpy().tobytes() for part in (steps, sines, way))
    )


def _signals(stimuli: Sequence[Stimulus], like: Tensor) -> Tensor:
    return torch.stack([stimulus.signal for stimulus in stimuli], dim=1).to(like)


def simulate(case: Case, mode: Mode, thresholds: Thresholds) -> Simulated:
    """The responses of one layer, to 16 stimuli at a time or fewer; those to one batch are in memory at a time."""
    rest, signals = settle(case.snap, mode, thresholds), encoded(case).signals
    steps = max(len(signals.steps), len(signals.sines))
    at_once = stimuli_at_once(signals.steps.device, case.snap.hidden_size, steps, product_type(signals.steps))
    return with_less(lambda count: _simulate(case, mode, rest, thresholds, count), at_once)


def _simulate(case: Case, mode: Mode, rest: Rest, thresholds: Thresholds, at_once: int) -> Simulated:
    code = encoded(case)
    respond_to = _responder(case.snap, mode, code.directions, rest)
    engine = engine_for(rest.hidden.device, rest.hidden.dtype)
    steps: list[StepFacts] = []
    sines: list[SineFacts] = []
    for signals, way, waves in _batches(code.signals, at_once):
        known = None  # before the next batch is simulated
        hidden = respond_to(signals, way)
        if waves:
            frequencies = [code.signals.frequencies[k] for k in waves]
            main = waves.index(code.signals.main) if code.signals.main in waves else None
            sines.append(engine.sine_facts(hidden[:, : len(waves)], frequencies, main))
        if len(waves) < len(way):
            steps.append(engine.step_facts(hidden[:, len(waves) :], rest.hidden, thresholds))
        known = hidden[:, len(waves) :] if len(steps) == 1 else None
        del hidden
    facts = ResponseFacts(stacked_steps(steps), stacked_sines(sines))
    number = (StepSummary(facts.steps, thresholds).reason == 0).sum(1).argmax()
    if known is None:
        one = slice(int(number), int(number) + 1)
        response = respond_to(code.signals.steps[:, one], code.signals.step_way[one])[:, 0]
    else:
        response = known.index_select(1, number[None])[:, 0]
    return Simulated(facts, rest, Traced(number, (response - rest.hidden).T.contiguous()))


def _responder(snap: Snapshot, mode: Mode, directions: Tensor, rest: Rest) -> Callable[[Tensor, Tensor], Tensor]:
    """What gives the responses ``(T, S, H)`` from rest to ``signals (T, S)`` along the ways ``(S,)``."""
    weights = in_mode(snap.weights, mode, snap.hidden_mean).from_mean(snap.point.mean).along(directions)

    def respond_to(signals: Tensor, way: Tensor) -> Tensor:
        start = tuple(part.expand(len(way), *part.shape[1:]) for part in rest.state)
        return run(weights, mode, in_ways(signals, way, directions.shape[1]), start)[0]

    return respond_to


def _batches(given: Signals, at_once: int) -> Iterator[tuple[Tensor, Tensor, range]]:
    """Signals ``(T, S)``, their ways ``(S,)``, and which sines come first among them; all after them are steps."""
    count = given.sines.shape[1]
    if len(given.steps) == len(given.sines):
        signals, way = torch.cat([given.sines, given.steps], dim=1), torch.cat([given.sine_way, given.step_way])
        runs = [(signals, way, count)]
    else:
        runs = [(given.sines, given.sine_way, count), (given.steps, given.step_way, 0)]
    for signals, way, waves in runs:
        for start in range(0, len(way), at_once):
            part = slice(start, start + at_once)
            yield signals[:, part], way[part], range(min(start, waves), min(start + at_once, waves))


def together(cases: Sequence[Case]) -> list[list[int]]:
    """The numbers of the layers whose cells can be simulated alone as if they were one layer's."""
    groups: dict[tuple[object, ...], list[int]] = {}
    for k, case in enumerate(cases):
        code, custom = encoded(case), k if isinstance(case.snap.weights, CellWeights) else None
        groups.setdefault((case.snap.kind, custom, code.kind, code.content), []).append(k)
    return list(groups.values())


def simulate_alone(cases: Sequence[Case], thresholds: Thresholds) -> Simulated:
    """Those of the cells of a group of layers, each cell alone; no response is kept but those of a registered cell."""
    codes, lone = [encoded(case) for case in cases], []
    for case, code in zip(cases, codes, strict=True):
        snap = case.snap
        if isinstance(snap.weights, CellWeights):
            return simulate(case, "alone", thresholds)
        lone.append(cells_of(snap.weights, snap.hidden_mean, snap.point.mean, code.directions))
    cells = joined_cells(lone)
    rest = settle_cells(cells, [case.snap.hidden_size for case in cases], thresholds)
    engine = engine_for(rest.hidden.device, rest.hidden.dtype)
    return Simulated(engine.cell_facts(cells, codes[0].signals, rest.state, rest.hidden, thresholds), rest)


def cost_of(case: Case, mode: Mode) -> float:
    """About how long a layer's simulation takes, in any unit: coupled, every cell receives all others."""
    samples = (
        sum(part.numel() for part in (encoded(case).signals.steps, encoded(case).signals.sines)) * case.snap.hidden_size
    )
    others = 0.0 if mode == "alone" and isinstance(case.snap.weights, LayerWeights) else case.snap.hidden_size / 16
    return samples * (4 + others)


def flagged_share(snap: Snapshot, steps: Sequence[Stimulus], rest: Rest, thresholds: Thresholds) -> Tensor:
    """The share ``()`` of cells that most of these steps leave drifting or oscillating at the end, coupled."""
    directions, way = ways_of(steps, snap.weights.like.device)
    signals = _signals(steps, snap.weights.like)
    respond_to = _responder(snap, "coupled", directions.to(signals), rest)
    engine = engine_for(signals.device, signals.dtype)
    at_once = stimuli_at_once(signals.device, snap.hidden_size, len(signals), product_type(signals))
    parts = [
        engine.step_facts(respond_to(signals[:, part], way[part]), rest.hidden, thresholds)
        for part in (slice(start, start + at_once) for start in range(0, len(way), at_once))
    ]
    return doubled(flagged(StepSummary(stacked_steps(parts), thresholds).reason)).mean()


def measured(
    cases: Sequence[Case],
    groups: Sequence[Sequence[int]],
    coupled: Sequence[Simulated],
    alone: Sequence[Simulated],
    thresholds: Thresholds,
) -> list[list[Metric]]:
    """The metrics of each layer from what was simulated of it, all layers of the same stimuli in one pass."""
    order = [([k], "", simulated) for k, simulated in enumerate(coupled)]
    order += [(list(group), "_alone", simulated) for group, simulated in zip(groups, alone, strict=True)]
    passes: dict[tuple[object, ...], list[tuple[list[int], str, Simulated]]] = {}
    for item in order:
        passes.setdefault(encoded(cases[item[0][0]]).kind, []).append(item)
    found: list[list[Metric]] = [[] for _ in cases]
    for items in passes.values():
        numbers = [k for group, _, _ in items for k in group]
        parts = [_part(cases[k], ending) for group, ending, _ in items for k in group]
        results = measure_facts([simulated.facts for _, _, simulated in items], parts, thresholds)
        for k, metrics in zip(numbers, results, strict=True):
            found[k] += metrics
    for group, simulated in zip(groups, alone, strict=True):
        for k, rest in zip(group, _apart(simulated.rest, [cases[k].snap.hidden_size for k in group]), strict=True):
            found[k] += linear_metrics(cases[k].snap, cases[k].probe, thresholds, rest)
    return found


def _part(case: Case, ending: str) -> MeasuredCells:
    names = (tuple(stimulus.name for stimulus in group) for group in (case.probe.steps, case.probe.sines))
    return MeasuredCells(case.snap.hidden_size, ending, *names)


def _apart(rest: Rest, sizes: Sequence[int]) -> list[Rest]:
    """The rest of each of several layers."""
    if len(sizes) == 1:
        return [rest]
    states = zip(*(part.split(list(sizes), dim=-1) for part in rest.state), strict=True)
    settled, hidden = rest.settled.split(list(sizes)), rest.hidden.split(list(sizes))
    return [Rest(*parts) for parts in zip(states, settled, hidden, strict=True)]


def held_out_metrics(snap: Snapshot, thresholds: Thresholds) -> list[Metric]:
    """Activity and gates on the held-out sequences; NaN with the reason without any."""
    if snap.held_out is not None:
        response = respond(snap, snap.held_out, record=("gates",))
        return list(measure(response, thresholds=thresholds).items)
    size, like = snap.hidden_size, snap.hidden_mean
    return [m for group in ("activity", "gates") for m in not_measured(snap.key, size, group, snap.kind, like)]


def held_out_cost(snap: Snapshot) -> float:
    """About how long the held-out metrics take, in the unit of `cost_of`."""
    return 0.0 if snap.held_out is None else 16.0 * snap.held_out.mask.numel() * snap.hidden_size
