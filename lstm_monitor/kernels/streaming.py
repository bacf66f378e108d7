"""Cells alone without their responses: block after block of cells, in memory near the core."""

from __future__ import annotations

from torch import Tensor

from lstm_monitor.kernels.alone import trace_alone
from lstm_monitor.kernels.cells import Cells, cells_in
from lstm_monitor.kernels.chunks import chunked_step_facts, plan_of
from lstm_monitor.kernels.elementwise import Driven, is_still, scan
from lstm_monitor.kernels.facts import Played, Score, SineFacts, StepFacts, joined_facts, window_of
from lstm_monitor.kernels.fused import State
from lstm_monitor.kernels.trace_facts import late_sine_facts, sine_facts, step_facts
from lstm_monitor.reasons import Thresholds

SMALL = 12 << 20
"""Bytes of a trace that is rather kept whole: it is near the core anyway."""
KEPT = {"cpu": 8 << 20, "cuda": 64 << 20}
"""Bytes for what is kept of one block of cells."""
LANES = {"cpu": 8192, "cuda": 1 << 19}
"""Stimuli times cells of one block: a step is then no small operation, and its gates stay in the second cache."""
EARLY = 16
"""Rows of the buffer for the first half of the sines, which nothing reads."""


def cell_facts(cells: Cells, score: Score, state: State, initial: Tensor, thresholds: Thresholds) -> Played:
    """What metrics need of cells alone, from ``state``, each part ``(1, H)``; ``initial (H,)`` before it."""
    if max(score.steps.numel(), score.sines.numel()) * cells.own[0].nbytes > SMALL:
        return Played(_steps(cells, score, state, initial, thresholds), _sines(cells, score, state))
    steps, _ = trace_alone(cells, score.steps, score.step_way, state)
    facts = step_facts(steps, initial, thresholds)
    del steps
    sines, _ = trace_alone(cells, score.sines, score.sine_way, state)
    return Played(facts, sine_facts(sines, score.frequencies, score.shown))


def _steps(cells: Cells, score: Score, state: State, initial: Tensor, thresholds: Thresholds) -> StepFacts:
    still, found = is_still(score.steps), []
    rows, count = sum(plan_of(len(score.steps), thresholds).rows(len(state))), score.steps.shape[1]
    parts = _blocks(cells, rows, count)
    room = _room(cells, rows, count, parts[0])
    for part in parts:
        driven, start = Driven(cells_in(cells, part), score.step_way, still), tuple(s[:, part] for s in state)
        here = room[..., : driven.cells.hidden_size]
        found.append(chunked_step_facts(driven, score.steps, start, initial[part], thresholds, here))
    return joined_facts(found)


def _sines(cells: Cells, score: Score, state: State) -> SineFacts:
    (steps, count), frequencies, shown = score.sines.shape, score.frequencies, score.shown
    rows = EARLY + steps - steps // 2
    parts = _blocks(cells, rows, count)
    room, whole = _room(cells, rows, count, parts[0]), _unfilled(cells, steps, frequencies, shown)
    for part in parts:
        driven, start = Driven(cells_in(cells, part), score.sine_way, still=False), tuple(s[:, part] for s in state)
        late = _late(driven, score.sines, start, room[..., : driven.cells.hidden_size])
        _fill(whole, part, late_sine_facts(late, steps, frequencies, shown))
    return whole


def _unfilled(cells: Cells, steps: int, frequencies: tuple[float, ...], shown: int) -> SineFacts:
    """Room for the facts of all cells, which are too large to be held twice."""
    windows, size = [window_of(steps, frequency) for frequency in frequencies], cells.hidden_size
    folded = tuple(cells.own.new_empty(size, window.period) for window in windows)
    std, window = cells.own.new_empty(len(frequencies), size), cells.own.new_empty(size, windows[shown].size)
    return SineFacts(steps, frequencies, folded, std, window)


def _fill(whole: SineFacts, part: slice, found: SineFacts) -> None:
    assert whole.window is not None
    assert found.window is not None
    whole.std[:, part], whole.window[part] = found.std, found.window
    for all_cells, cells in zip(whole.folded, found.folded, strict=True):
        all_cells[part] = cells


def _blocks(cells: Cells, rows: int, count: int) -> list[slice]:
    """Blocks of cells of about one size, of which `rows` rows of `count` stimuli fit into memory."""
    size, device = cells.hidden_size, cells.own.device.type
    kept, lanes = (limits.get(device, limits["cpu"]) for limits in (KEPT, LANES))
    most = max(1, min(kept // (rows * cells.own.element_size()), lanes) // count)
    wide = -(-size // -(-size // most))
    return [slice(start, min(start + wide, size)) for start in range(0, size, wide)]


def _room(cells: Cells, rows: int, count: int, part: slice) -> Tensor:
    """Memory ``(rows, count, H)`` that all blocks share; the last one may need less."""
    return cells.own.new_empty(rows, count, part.stop - part.start)


def _late(driven: Driven, signals: Tensor, state: State, room: Tensor) -> Tensor:
    """The responses ``(T - T // 2, S, H)`` after the first half; the first half is only run."""
    half, early, late = len(signals) // 2, room[:EARLY], room[EARLY:]
    state = tuple(part.expand_as(early[0]) for part in state)
    for part in signals[:half].split(EARLY):
        state = scan(driven, part, state, early[: len(part)])
    scan(driven, signals[half:], state, late)
    return late
