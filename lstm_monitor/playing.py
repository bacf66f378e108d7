"""Play a check's steps and sines to the layers, coupled and alone, and keep what metrics need of the responses."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from lstm_monitor.kernels.cells import cells_of, joined_cells
from lstm_monitor.kernels.choice import engine_for
from lstm_monitor.kernels.engines import in_mode, run
from lstm_monitor.kernels.facts import Played, Score, SineFacts, StepFacts, stacked_sines, stacked_steps
from lstm_monitor.kernels.memory import stimuli_at_once, with_less
from lstm_monitor.metrics.measuring import flagged, shown_of
from lstm_monitor.metrics.step import StepSummary
from lstm_monitor.precision import doubled, product_type
from lstm_monitor.reasons import Thresholds
from lstm_monitor.records import CellWeights, LayerWeights, Mode, Probe, Snapshot, Stimulus
from lstm_monitor.responses import Rest, in_ways, settle, settle_cells, ways_of


@dataclass(frozen=True, eq=False)
class Case:
    """One layer, around the operating point of the probe that is played to it."""

    snap: Snapshot
    probe: Probe


@dataclass(frozen=True, eq=False)
class Shown:
    """The response that pictures show, ``change (H, T)`` from rest, to the step of this `number` ``()``."""

    number: Tensor
    change: Tensor


@dataclass(frozen=True, eq=False)
class Heard:
    """What was found of the cells of one layer or more in one mode, and where they came to rest before."""

    played: Played
    rest: Rest
    shown: Shown | None = None


@dataclass(frozen=True, eq=False)
class Coded:
    """A probe's stimuli as a score along ``directions (I, D)``.

    Layers with the same `kind` are measured together, those that have the same `content` too are played together.
    """

    score: Score
    directions: Tensor
    kind: tuple[object, ...]
    content: tuple[object, ...]


_coded: WeakKeyDictionary[Probe, Coded] = WeakKeyDictionary()
"""A probe stays the same from check to check."""


def coded(case: Case) -> Coded:
    """A probe's stimuli as a score, of the layer's type and on its device."""
    known, like = _coded.get(case.probe), case.snap.weights.like
    if known is None or (known.directions.dtype, known.directions.device) != (like.dtype, like.device):
        known = _coded[case.probe] = _code(case.probe, like)
    return known


def _code(probe: Probe, like: Tensor) -> Coded:
    directions, way = ways_of((*probe.steps, *probe.sines), like.device)
    count = len(probe.steps)
    steps, sines = (_signals(stimuli, like) for stimuli in (probe.steps, probe.sines))
    frequencies = tuple(float(sine.frequency or 0) for sine in probe.sines)
    score = Score(steps, way[:count], sines, way[count:], frequencies, shown_of(frequencies))
    kind = (like.dtype, like.device, steps.shape, sines.shape, frequencies)
    return Coded(score, directions.to(like), kind, tuple(part.cpu().numpy().tobytes() for part in (steps, sines, way)))


def _signals(stimuli: Sequence[Stimulus], like: Tensor) -> Tensor:
    return torch.stack([stimulus.signal for stimulus in stimuli], dim=1).to(like)


def play_traces(case: Case, mode: Mode, thresholds: Thresholds) -> Heard:
    """Play to one layer in batches of 16 stimuli or fewer; the responses to one batch are in memory at a time."""
    rest, score = settle(case.snap, mode, thresholds), coded(case).score
    steps = max(len(score.steps), len(score.sines))
    at_once = stimuli_at_once(score.steps.device, case.snap.hidden_size, steps, product_type(score.steps))
    return with_less(lambda count: _play_traces(case, mode, rest, thresholds, count), at_once)


def _play_traces(case: Case, mode: Mode, rest: Rest, thresholds: Thresholds, at_once: int) -> Heard:
    code = coded(case)
    hear = _hearing(case.snap, mode, code.directions, rest)
    engine = engine_for(rest.hidden.device, rest.hidden.dtype)
    steps: list[StepFacts] = []
    sines: list[SineFacts] = []
    for signals, way, waves in _batches(code.score, at_once):
        known = None  # before the next batch is played
        hidden = hear(signals, way)
        if waves:
            frequencies = [code.score.frequencies[k] for k in waves]
            shown = waves.index(code.score.shown) if code.score.shown in waves else None
            sines.append(engine.sine_facts(hidden[:, : len(waves)], frequencies, shown))
        if len(waves) < len(way):
            steps.append(engine.step_facts(hidden[:, len(waves) :], rest.hidden, thresholds))
        known = hidden[:, len(waves) :] if len(steps) == 1 else None
        del hidden
    played = Played(stacked_steps(steps), stacked_sines(sines))
    number = (StepSummary(played.steps, thresholds).reason == 0).sum(1).argmax()
    if known is None:
        one = slice(int(number), int(number) + 1)
        response = hear(code.score.steps[:, one], code.score.step_way[one])[:, 0]
    else:
        response = known.index_select(1, number[None])[:, 0]
    return Heard(played, rest, Shown(number, (response - rest.hidden).T.contiguous()))


def _hearing(snap: Snapshot, mode: Mode, directions: Tensor, rest: Rest) -> Callable[[Tensor, Tensor], Tensor]:
    """What gives the responses ``(T, S, H)`` from rest to ``signals (T, S)`` along the ways ``(S,)``."""
    weights = in_mode(snap.weights, mode, snap.hidden_mean).from_mean(snap.point.mean).along(directions)

    def hear(signals: Tensor, way: Tensor) -> Tensor:
        start = tuple(part.expand(len(way), *part.shape[1:]) for part in rest.state)
        return run(weights, mode, in_ways(signals, way, directions.shape[1]), start)[0]

    return hear


def _batches(score: Score, at_once: int) -> Iterator[tuple[Tensor, Tensor, range]]:
    """Signals ``(T, S)``, their ways ``(S,)``, and which sines come first among them; all after them are steps."""
    count = score.sines.shape[1]
    if len(score.steps) == len(score.sines):
        signals, way = torch.cat([score.sines, score.steps], dim=1), torch.cat([score.sine_way, score.step_way])
        runs = [(signals, way, count)]
    else:
        runs = [(score.sines, score.sine_way, count), (score.steps, score.step_way, 0)]
    for signals, way, waves in runs:
        for start in range(0, len(way), at_once):
            part = slice(start, start + at_once)
            yield signals[:, part], way[part], range(min(start, waves), min(start + at_once, waves))


def together(cases: Sequence[Case]) -> list[list[int]]:
    """The numbers of the layers whose cells can be played alone as if they were one layer's."""
    groups: dict[tuple[object, ...], list[int]] = {}
    for k, case in enumerate(cases):
        code, custom = coded(case), k if isinstance(case.snap.weights, CellWeights) else None
        groups.setdefault((case.snap.kind, custom, code.kind, code.content), []).append(k)
    return list(groups.values())


def play_alone(cases: Sequence[Case], thresholds: Thresholds) -> Heard:
    """Play to the cells of a group of layers, each cell alone; no response is kept but those of a registered cell."""
    codes, lone = [coded(case) for case in cases], []
    for case, code in zip(cases, codes, strict=True):
        snap = case.snap
        if isinstance(snap.weights, CellWeights):
            return play_traces(case, "alone", thresholds)
        lone.append(cells_of(snap.weights, snap.hidden_mean, snap.point.mean, code.directions))
    cells = joined_cells(lone)
    rest = settle_cells(cells, [case.snap.hidden_size for case in cases], thresholds)
    engine = engine_for(rest.hidden.device, rest.hidden.dtype)
    return Heard(engine.cell_facts(cells, codes[0].score, rest.state, rest.hidden, thresholds), rest)


def cost_of(case: Case, mode: Mode) -> float:
    """About how long it takes to play to a layer, in any unit: coupled, every cell hears all others."""
    samples = sum(part.numel() for part in (coded(case).score.steps, coded(case).score.sines)) * case.snap.hidden_size
    others = 0.0 if mode == "alone" and isinstance(case.snap.weights, LayerWeights) else case.snap.hidden_size / 16
    return samples * (4 + others)


def flagged_share(snap: Snapshot, steps: Sequence[Stimulus], rest: Rest, thresholds: Thresholds) -> Tensor:
    """The share ``()`` of cells that most of these steps leave drifting or oscillating at the end, coupled."""
    directions, way = ways_of(steps, snap.weights.like.device)
    signals = _signals(steps, snap.weights.like)
    hear = _hearing(snap, "coupled", directions.to(signals), rest)
    engine = engine_for(signals.device, signals.dtype)
    at_once = stimuli_at_once(signals.device, snap.hidden_size, len(signals), product_type(signals))
    parts = [
        engine.step_facts(hear(signals[:, part], way[part]), rest.hidden, thresholds)
        for part in (slice(start, start + at_once) for start in range(0, len(way), at_once))
    ]
    return doubled(flagged(StepSummary(stacked_steps(parts), thresholds).reason)).mean()
