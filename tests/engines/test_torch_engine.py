"""The engine of torch alone: cells against the float64 oracle, facts against their definitions in plain Python."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from lstm_monitor import Thresholds
from lstm_monitor.core.terms import GATES, Kind
from lstm_monitor.core.weights import LayerWeights
from lstm_monitor.engines import trace_facts
from lstm_monitor.engines.facts import ResponseFacts, Signals, SineFacts, StepFacts
from lstm_monitor.engines.fused import State, run_fused
from lstm_monitor.engines.lone_cells import LoneCells, LoneWeights, cells_in, decouple, dense
from lstm_monitor.engines.loop_engine import run_loop
from lstm_monitor.engines.torch_engine import engine, scan
from lstm_monitor.engines.torch_engine.engine import ENGINE
from lstm_monitor.engines.torch_engine.scan import run_alone
from tests.helpers import oracles

ROOT = Path(__file__).parents[2]
KINDS = [kind for kind in get_args(Kind) if kind != "custom"]
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}
LIMITS = Thresholds()
NEAR = 2e-5
SIZES = [1, 37, 300]
"""One cell; no whole number of vectors; no whole number of groups, and more than the fused op takes."""

every_kind = pytest.mark.parametrize("kind", KINDS)
both_types = pytest.mark.parametrize("dtype", list(TOLERANCE), ids=["float32", "float64"])


def cells_of(kind: Kind, size: int, dtype: torch.dtype = torch.float32, scale: float = 0.6, ways: int = 3) -> LoneCells:
    def drawn(*shape: int) -> Tensor:
        return (torch.randn(*shape, dtype=torch.float64) * scale).to(dtype)

    gates = len(GATES[kind])
    inner = drawn(size) if kind == "gru" else None
    own = drawn(gates, size) * (0.5 if kind == "rnn_relu" else 1.0)  # so that they stay finite
    return LoneCells(kind, own, drawn(gates, size), inner, drawn(ways, gates, size))


def state_of(cells: LoneCells, rows: int = 1) -> State:
    parts = 2 if cells.kind == "lstm" else 1
    return tuple(0.5 * torch.randn(rows, cells.hidden_size, dtype=cells.own.dtype) for _ in range(parts))


def oracle(cells: LoneCells, signals: Tensor, way: Tensor, state: State) -> NDArray[np.float64]:
    """Every cell by the naive loops in float64."""
    inputs = (signals[..., None] * torch.nn.functional.one_hot(way, len(cells.drive))).double()
    recurrent = torch.zeros_like(cells.bias)
    if cells.inner is not None:
        recurrent[2] = cells.inner
    start = [part.expand(signals.shape[1], -1).double().numpy() for part in state]
    return oracles.run_alone(
        cells.kind,
        inputs.numpy(),
        cells.drive.flatten(1).T.numpy(),
        torch.diag_embed(cells.own).flatten(0, 1).numpy(),
        cells.bias.flatten().numpy(),
        recurrent.flatten().numpy(),
        np.zeros(cells.hidden_size),
        state0=(start[0], start[1] if start[1:] else None),
    )["hidden"]


def probe_signals(t_steps: int, t_sines: int, dtype: torch.dtype = torch.float32, moving: bool = False) -> Signals:
    """Eleven steps along three directions, and the sines of whole and other periods that fit."""
    steps = torch.linspace(-1.5, 1.5, 11, dtype=dtype).repeat(t_steps, 1)
    if moving:
        steps = steps * torch.linspace(1, 2, t_steps, dtype=dtype)[:, None]
    frequencies = tuple(f for f in (1 / 64, 1 / 16, 0.0913, 0.25, 0.31) if t_sines // 2 * f >= 1)
    time = torch.arange(t_sines, dtype=torch.float64)
    sines = torch.stack([torch.sin(2 * math.pi * f * time) for f in frequencies], dim=1).to(dtype)
    ways = torch.arange(11) % 3, torch.full((len(frequencies),), 1)
    return Signals(steps, ways[0], sines, ways[1], frequencies, len(frequencies) - 1)


# --- cells alone ---------------------------------------------------------------------------------------------


@pytest.mark.sweep
@every_kind
@both_types
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("moving", [True, False])
def test_cells_do_what_the_oracle_does(kind: Kind, dtype: torch.dtype, size: int, moving: bool) -> None:
    cells, way = cells_of(kind, size, dtype), torch.arange(20) % 3
    state = state_of(cells)
    signals = torch.randn(8 if moving else 1, 20, dtype=dtype).expand(8, -1)
    hidden, end = ENGINE.cell_trace(cells, signals, way, state)
    assert hidden.dtype == dtype
    np.testing.assert_allclose(hidden.numpy(), oracle(cells, signals, way, state), rtol=0, atol=TOLERANCE[dtype])
    on, _ = ENGINE.cell_trace(cells, signals, way, end)
    again, _ = ENGINE.cell_trace(cells, torch.cat([signals, signals]), way, state)
    torch.testing.assert_close(on, again[8:], rtol=0, atol=TOLERANCE[dtype])


@every_kind
def test_one_step(kind: Kind) -> None:
    cells = cells_of(kind, 9)
    signals, way, state = torch.randn(1, 1), torch.tensor([2]), state_of(cells)
    hidden, end = ENGINE.cell_trace(cells, signals, way, state)
    assert hidden.shape == (1, 1, 9)
    torch.testing.assert_close(end[0], hidden[0])
    np.testing.assert_allclose(hidden.numpy(), oracle(cells, signals, way, state), atol=1e-6)


@pytest.mark.parametrize("scale", [1e-8, 30.0, 1e4], ids=["tiny", "saturated", "huge"])
@pytest.mark.parametrize("kind", ["lstm", "gru", "rnn_tanh"])
@pytest.mark.parametrize("size", [7, 300])
def test_extreme_weights_one_step_from_the_state_of_the_oracle(kind: Kind, scale: float, size: int) -> None:
    """Over many steps float32 is chaotic there."""
    cells, steps = cells_of(kind, size, scale=scale), 40
    weights = dense(lone(double(cells)))
    signals = torch.randn(steps, 1)
    hidden, _, traces = run_loop(weights, signals[..., None].double().expand(-1, 1, 3), state_of(double(cells)))
    states = (hidden[:-1, 0], traces["cell"][:-1, 0]) if kind == "lstm" else (hidden[:-1, 0],)
    one, way = replace(cells, drive=cells.drive.sum(0, keepdim=True)), torch.zeros(steps - 1, dtype=torch.long)
    found, _ = ENGINE.cell_trace(one, signals[1:].T, way, tuple(part.float() for part in states))
    expected = oracle(one, signals[1:].T, way, tuple(part.float() for part in states))
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-5 if scale < 1e4 else 5e-3)
    assert float(np.median(np.abs(found.numpy() - expected))) < 1e-7


def double(cells: LoneCells) -> LoneCells:
    inner = None if cells.inner is None else cells.inner.double()
    return LoneCells(cells.kind, cells.own.double(), cells.bias.double(), inner, cells.drive.double())


def lone(cells: LoneCells) -> LoneWeights:
    recurrent = torch.zeros_like(cells.bias)
    if cells.inner is not None:
        recurrent[2] = cells.inner
    own, drive = cells.own.reshape(-1, 1), cells.drive.flatten(1).T
    return LoneWeights(cells.kind, drive, own, cells.bias.flatten(), recurrent.flatten())


@pytest.mark.sweep
@every_kind
@both_types
@pytest.mark.parametrize("size", SIZES)
def test_decoupled_layers_on_any_inputs(kind: Kind, dtype: torch.dtype, size: int) -> None:
    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=dtype) * 0.4

    gates, mean = len(GATES[kind]), drawn(size)
    layer = LayerWeights(
        kind, drawn(gates * size, 3), drawn(gates * size, size), drawn(gates * size), drawn(gates * size)
    )
    weights, inputs = decouple(layer, mean), drawn(9, 20, 3)
    assert (weights.hidden_size, weights.weight_hh.numel()) == (size, gates * size)
    state = tuple(drawn(20, size) for _ in range(2 if kind == "lstm" else 1))
    (found, ends), (whole, final) = run_alone(weights, inputs, state), run_fused(dense(weights), inputs, state)
    for one, other in zip((found, *ends), (whole, *final), strict=True):
        torch.testing.assert_close(one, other, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
    arrays = (layer.weight_ih, layer.weight_hh, layer.bias_ih, layer.bias_hh, mean)
    start = (state[0].numpy(), state[1].numpy() if state[1:] else None)
    expected = oracles.run_alone(kind, inputs.numpy(), *(a.numpy() for a in arrays), state0=start)["hidden"]
    np.testing.assert_allclose(found.numpy(), expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


def test_a_cell_that_overflows_spoils_no_other() -> None:
    cells = cells_of("rnn_relu", 12)
    wild = replace(cells, own=cells.own.clone(), bias=cells.bias.abs())
    wild.own[0, 4] = 50.0
    signals, initial = probe_signals(64, 128), torch.zeros(12)
    found, calm = (ENGINE.cell_facts(each, signals, state_of(cells), initial, LIMITS) for each in (wild, cells))
    assert calm.steps.top.isfinite().all()
    for name in (field.name for field in fields(StepFacts) if field.name != "steps"):
        values = getattr(found.steps, name)
        assert values[:, 4].isnan().any(), name
        assert values[:, torch.arange(12) != 4].isfinite().all(), name
    assert not found.sines.std[:, 4].isfinite().all()


# --- facts of steps ------------------------------------------------------------------------------------------


def naive_step_facts(y: NDArray[np.float64], y0: float) -> dict[str, float]:
    """By the definitions, of one response (T,)."""
    values = [float(v) for v in y]
    horizon, tail = len(values), oracles.tail_length(len(values))
    last, before = values[max(0, horizon - tail) :], values[max(0, horizon - 2 * tail) : max(0, horizon - tail)]
    final = oracles.mean(last)
    starts = [oracles.first_reach(values, y0, final - y0, share) for share in (0.1, 0.9)]
    rise = [horizon if math.isnan(start) else start for start in starts]
    return {
        "initial": y0,
        "top": max(values),
        "bottom": min(values),
        "final": final,
        "before": oracles.mean(before) if before else math.nan,
        "last": values[-1],
        "tail_top": max(last),
        "tail_bottom": min(last),
        "peak_at": oracles.first_peak(values, y0)[1],
        "rise_from": rise[0],
        "rise_to": rise[1],
        "outside": oracles.steps_outside(values, final, oracles.band_of(values, y0)) - 1,
    }


def decays(steps: int, count: int, size: int, dtype: torch.dtype) -> Tensor:
    """Responses ``(T, S, H)`` that rise, overshoot, ring, return to where they were or only wander."""
    time = torch.arange(steps, dtype=torch.float64)[:, None, None]
    rate, ring = torch.rand(count, size, dtype=torch.float64) * 0.3, torch.rand(count, size, dtype=torch.float64)
    goal = torch.randn(count, size, dtype=torch.float64) * (torch.rand(count, size) > 0.3)
    wave = torch.exp(-rate * time) * torch.cos(ring * time)
    return (goal * (1 - wave) + 0.3 * ring * wave + 1e-3 * torch.randn(steps, count, size, dtype=torch.float64)).to(
        dtype
    )


@pytest.mark.parametrize("steps", [1, 2, 4, 5, 7, 8, 31, 64, 130, 257])
@pytest.mark.parametrize(("count", "size"), [(1, 1), (3, 17)])
def test_facts_of_a_trace_are_their_definitions(steps: int, count: int, size: int) -> None:
    y, initial = decays(steps, count, size, torch.float64), torch.randn(size, dtype=torch.float64) * 0.1
    found = ENGINE.step_facts(y, initial, LIMITS)
    assert found.steps == steps
    for s in range(count):
        for h in range(size):
            for name, value in naive_step_facts(y[:, s, h].numpy(), float(initial[h])).items():
                fact = float(getattr(found, name)[s, h])
                assert fact == pytest.approx(value, abs=1e-13, nan_ok=True), (name, s, h)


def test_facts_of_a_float32_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Times differ from float64's only where a sample lies at the edge."""
    y, initial = decays(200, 4, 150, torch.float32), torch.randn(150) * 0.1
    found = ENGINE.step_facts(y, initial, LIMITS)
    monkeypatch.setattr(trace_facts, "LANES", {"cpu": 28})
    parts = ENGINE.step_facts(y, initial, LIMITS)
    exact = ENGINE.step_facts(y.double(), initial.double(), LIMITS)
    close_times(found, exact, y.double())
    close_times(parts, exact, y.double())


def close_times(found: StepFacts, exact: StepFacts, y: Tensor) -> None:
    """Values agree to 1e-5, times exactly unless the sample at either is at an edge ``(S, H)`` of the exact facts."""
    delta = exact.final - exact.initial
    peak = torch.maximum(exact.top - exact.initial, exact.initial - exact.bottom)
    washout = (delta.abs() < 0.1 * peak) & (peak >= 1e-3)
    band = 0.1 * torch.where(washout, peak, delta.abs())
    edges = {
        "peak_at": [exact.initial + peak, exact.initial - peak],
        "rise_from": [exact.initial + 0.1 * delta],
        "rise_to": [exact.initial + 0.9 * delta],
        "outside": [exact.final - band, exact.final + band],
    }
    for name in (field.name for field in fields(StepFacts) if field.name != "steps"):
        mine, theirs = getattr(found, name), getattr(exact, name)
        if name not in edges:
            torch.testing.assert_close(mine.double(), theirs.double(), rtol=1e-5, atol=1e-5, equal_nan=True)
            continue
        differs = mine != theirs
        assert name == "peak_at" or differs.double().mean() < 0.05, name  # a saturated cell peaks for long
        times = torch.stack([mine.double(), theirs.double()]).long().clamp(0, len(y) - 1)
        samples = y.gather(0, times)
        distance = torch.stack([(samples - edge).abs() for edge in edges[name]]).amin(0).amin(0)
        assert bool((distance[differs] < NEAR).all()), (name, distance[differs].max())


def test_an_edge_of_the_band_is_inside_and_a_goal_is_reached_at_equality() -> None:
    y = torch.zeros(64, 1, 1)
    y[:, 0, 0] = torch.tensor([0.0, 0.25, 0.5, 1.125, 0.875] + [1.0] * 59)
    found = ENGINE.step_facts(y, torch.zeros(1), replace(LIMITS, band=0.125))
    assert (float(found.final), float(found.outside)) == (1.0, 2.0)
    assert float(found.peak_at) == 3.0
    late = ENGINE.step_facts(y, torch.zeros(1), replace(LIMITS, band=0.12))
    assert float(late.outside) == 4.0


def test_a_response_that_is_not_finite_has_no_facts() -> None:
    y = torch.randn(40, 2, 6)
    clean = ENGINE.step_facts(y, torch.zeros(6), LIMITS)
    y[7, 0, 1], y[39, 1, 4], y[0, 1, 5] = math.nan, math.inf, -math.inf
    found = ENGINE.step_facts(y, torch.zeros(6), LIMITS)
    lost = torch.zeros(2, 6, dtype=torch.bool)
    lost[0, 1] = lost[1, 4] = lost[1, 5] = True
    for name in (field.name for field in fields(StepFacts) if field.name != "steps"):
        values = getattr(found, name)
        assert torch.equal(values.isnan(), lost), name
        assert torch.equal(values[~lost], getattr(clean, name)[~lost]), name


# --- facts of sines ------------------------------------------------------------------------------------------


@both_types
@pytest.mark.parametrize("steps", [64, 128, 130, 512])
def test_facts_of_sines_are_their_definitions(steps: int, dtype: torch.dtype) -> None:
    frequencies = probe_signals(1, steps).frequencies
    y = (torch.randn(steps, len(frequencies), 13, dtype=torch.float64) * 1e-3 + 0.9).to(
        dtype
    )  # far from its mean's zero
    found = ENGINE.sine_facts(y, frequencies, 1)
    start = steps // 2
    for k, f in enumerate(frequencies):
        size = oracles.whole_periods(steps - start, f)
        samples = y[start : start + size, k].double().numpy()
        period = round(1 / f) if abs(round(1 / f) * f - 1) < 1e-9 else size
        folded = samples.reshape(-1, period, 13).mean(0).T
        np.testing.assert_allclose(found.folded[k].numpy(), folded, rtol=1e-6)
        np.testing.assert_allclose(found.std[k].numpy(), samples.std(0), rtol=2e-4 if dtype == torch.float32 else 1e-9)
        if k == 1:
            assert found.window is not None
            np.testing.assert_array_equal(found.window.numpy(), samples.T)
    assert ENGINE.sine_facts(y, frequencies, None).window is None


# --- without the trace ---------------------------------------------------------------------------------------


def streamed(
    monkeypatch: pytest.MonkeyPatch, cells: LoneCells, signals: Signals, state: State, initial: Tensor
) -> ResponseFacts:
    """In blocks of five cells or so."""
    monkeypatch.setattr(engine, "SMALL", 0)
    monkeypatch.setattr(engine, "LANES", {"cpu": 60})
    return ENGINE.cell_facts(cells, signals, state, initial, LIMITS)


@pytest.mark.sweep
@every_kind
@both_types
@pytest.mark.parametrize(("t_steps", "t_sines"), [(1, 64), (5, 66), (8, 130), (64, 128), (531, 67)])
@pytest.mark.parametrize("moving", [False, True], ids=["still", "moving"])
def test_facts_without_a_trace_are_those_of_the_trace(
    monkeypatch: pytest.MonkeyPatch, kind: Kind, dtype: torch.dtype, t_steps: int, t_sines: int, moving: bool
) -> None:
    monkeypatch.setattr(scan, "FEW", 0)  # the fused op rounds in another way
    cells, signals = cells_of(kind, 23, dtype), probe_signals(t_steps, t_sines, dtype, moving)
    state, initial = state_of(cells), torch.randn(23, dtype=dtype) * 0.1
    steps, _ = ENGINE.cell_trace(cells, signals.steps, signals.step_way, state)
    sines, _ = ENGINE.cell_trace(cells, signals.sines, signals.sine_way, state)
    found = streamed(monkeypatch, cells, signals, state, initial)
    close_times(found.steps, ENGINE.step_facts(steps, initial, LIMITS), steps)
    same_sines(found.sines, ENGINE.sine_facts(sines, signals.frequencies, signals.main), dtype)


def same_sines(found: SineFacts, expected: SineFacts, dtype: torch.dtype) -> None:
    assert (found.steps, found.frequencies) == (expected.steps, expected.frequencies)
    assert found.window is not None
    assert expected.window is not None
    pairs = [(found.std, expected.std), (found.window, expected.window)]
    for one, other in (*pairs, *zip(found.folded, expected.folded, strict=True)):
        torch.testing.assert_close(one, other, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@every_kind
def test_facts_are_those_of_the_oracle(monkeypatch: pytest.MonkeyPatch, kind: Kind) -> None:
    cells, signals, initial = cells_of(kind, 24), probe_signals(96, 128), torch.zeros(24)
    state = state_of(cells)
    steps, sines = (
        torch.from_numpy(oracle(cells, signals, way, state))
        for signals, way in ((signals.steps, signals.step_way), (signals.sines, signals.sine_way))
    )
    expected = ENGINE.sine_facts(sines, signals.frequencies, None)
    whole = ENGINE.cell_facts(cells, signals, state, initial, LIMITS)
    for found in (whole, streamed(monkeypatch, cells, signals, state, initial)):
        close_times(found.steps, ENGINE.step_facts(steps, initial.double(), LIMITS), steps)
        torch.testing.assert_close(found.sines.std.double(), expected.std, rtol=1e-5, atol=1e-5)


def test_each_cell_has_its_own_facts(monkeypatch: pytest.MonkeyPatch) -> None:
    cells, signals, initial = cells_of("lstm", 31), probe_signals(64, 128), torch.randn(31) * 0.1
    state = state_of(cells)
    found = streamed(monkeypatch, cells, signals, state, initial)
    part = slice(17, 18)
    one = ENGINE.cell_facts(cells_in(cells, part), signals, tuple(s[:, part] for s in state), initial[part], LIMITS)
    torch.testing.assert_close(found.steps.final[:, part], one.steps.final, rtol=0, atol=1e-6)
    torch.testing.assert_close(found.sines.std[:, part], one.sines.std, rtol=0, atol=1e-6)


PEAK = """
import re

import torch

from lstm_monitor import Thresholds
from lstm_monitor.engines.facts import Signals
from lstm_monitor.engines.torch_engine import engine
from lstm_monitor.engines.torch_engine.engine import ENGINE
from tests.engines.test_torch_engine import cells_of, probe_signals

SINES = tuple(1 / period for period in (64, 32, 16, 8, 4))


def most():
    with open("/proc/self/status") as status:
        return int(re.search(r"VmHWM:\\s+(\\d+)", status.read()).group(1)) / 1024


def risen(size, steps):
    cells, state = cells_of("lstm", size), (torch.zeros(1, size), torch.zeros(1, size))
    signals = probe_signals(steps, steps)
    signals = Signals(signals.steps, signals.step_way, signals.sines, signals.sine_way, SINES, 1)
    before = most()
    ENGINE.cell_facts(cells, signals, state, torch.zeros(size), Thresholds())
    return most() - before


torch.set_num_threads(1)
small, engine.SMALL = engine.SMALL, 0
risen(16, 128)  # torch loads what it needs
engine.SMALL = small
print(risen(4096, 1024))
"""


@pytest.mark.thorough
def test_a_large_layer_needs_little_memory() -> None:
    """4,096 cells, 16 stimuli and 1,024 steps, a trace of 268 MB, in less than 32 MiB."""
    done = subprocess.run([sys.executable, "-c", PEAK], cwd=ROOT, capture_output=True, text=True, check=True)
    assert 0 < float(done.stdout) < 32
