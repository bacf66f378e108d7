"""The compiled engine against the naive float64 loops of tests/helpers/oracles.py, and its facts against numpy."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import numba
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lstm_monitor.core.definitions import Thresholds
from lstm_monitor.core.terms import GATES, Kind
from lstm_monitor.core.weights import LayerWeights
from lstm_monitor.engines.facts import ResponseFacts, Signals, SineFacts, StepFacts, window_of
from lstm_monitor.engines.fused import State
from lstm_monitor.engines.lone_cells import LoneCells, cells_in, cells_of
from lstm_monitor.engines.numba_engine import compile as compiling
from lstm_monitor.engines.numba_engine.compile import compiled
from lstm_monitor.engines.numba_engine.engine import ENGINE
from tests.helpers import oracles

KINDS: tuple[Kind, ...] = ("lstm", "gru", "rnn_tanh", "rnn_relu")
EACH_KIND = pytest.mark.parametrize("kind", KINDS)
DIRECTIONS, FEATURES = 3, 4
PERIODS = (16.0, 8.0, 4.0, 6.5, 3.0)
THRESHOLDS = Thresholds()


def layer(kind: Kind, size: int, scale: float = 1.0, seed: int = 0) -> LayerWeights:
    """A layer as torch would draw it, times `scale`; its own recurrence stays below 1, so that nothing explodes."""
    generator = torch.Generator().manual_seed(seed)
    rows = len(GATES[kind]) * size

    def draw(*shape: int) -> Tensor:
        return scale * torch.randn(shape, generator=generator) * 0.5

    return LayerWeights(kind, draw(rows, FEATURES), 0.8 * draw(rows, size).clamp(-1, 1), draw(rows), draw(rows))


def cells_and_state(weights: LayerWeights) -> tuple[LoneCells, State, Tensor, Tensor]:
    """Its cells alone, a state, the inputs' mean ``(I,)`` and directions ``(I, D)``."""
    generator = torch.Generator().manual_seed(1)
    size, count = weights.hidden_size, 2 if weights.kind == "lstm" else 1
    mean, ways = torch.randn(FEATURES, generator=generator), torch.randn(FEATURES, DIRECTIONS, generator=generator)
    state = tuple(torch.rand(1, size, generator=generator) - 0.5 for _ in range(count))
    return cells_of(weights, torch.zeros(size), mean, ways), state, mean, ways


def signals_of(steps: int, rows: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(steps, rows, generator=generator), torch.arange(rows) % DIRECTIONS


def oracle(weights: LayerWeights, inputs: Tensor, state: State) -> oracles.Traces:
    count = inputs.shape[1]
    start = [part.expand(count, -1).numpy() for part in state]
    parts = (weights.weight_ih, weights.weight_hh, weights.bias_ih, weights.bias_hh)
    h_mean = np.zeros(weights.hidden_size)
    return oracles.run_alone(
        weights.kind,
        inputs.numpy(),
        *(part.numpy() for part in parts),
        h_mean,
        state0=(start[0], start[1] if len(start) > 1 else None),
    )


def inputs_of(signals: Tensor, way: Tensor, mean: Tensor, ways: Tensor) -> Tensor:
    return mean.double() + signals.double()[..., None] * ways.double().T[way]


def probe_signals(steps: int, longer: int) -> Signals:
    signs = torch.tensor([1.0, -1.0, 2.0, 0.5])
    time = torch.arange(longer)[:, None]
    frequencies = tuple(1 / period for period in PERIODS)
    sines = torch.sin(2 * torch.pi * torch.tensor(frequencies) * time)
    return Signals(signs.expand(steps, 4), torch.arange(4) % DIRECTIONS, sines, torch.arange(5) % 2, frequencies, 1)


@EACH_KIND
@pytest.mark.parametrize(("steps", "rows", "size"), [(1, 1, 1), (7, 3, 63), (30, 20, 2), (9, 2, 129)])
def test_a_trace_is_that_of_the_float64_loop(kind: Kind, steps: int, rows: int, size: int) -> None:
    weights = layer(kind, size)
    cells, state, mean, ways = cells_and_state(weights)
    signals, way = signals_of(steps, rows)
    hidden, last = ENGINE.cell_trace(cells, signals, way, state)
    wanted = oracle(weights, inputs_of(signals, way, mean, ways), state)
    np.testing.assert_allclose(hidden, wanted["hidden"], rtol=1e-5, atol=1e-5)
    ends = [wanted["hidden"][-1]] + ([wanted["cell"][-1]] if kind == "lstm" else [])
    for found, end in zip(last, ends, strict=True):
        np.testing.assert_allclose(found, end, rtol=1e-5, atol=1e-5)


@EACH_KIND
@pytest.mark.parametrize("scale", [1e-8, 30.0, 1e4])
def test_one_step_from_the_oracles_state_holds_with_any_weights(kind: Kind, scale: float) -> None:
    weights = layer(kind, 20, scale)
    cells, state, mean, ways = cells_and_state(weights)
    signals, way = signals_of(12, 1)
    wanted = oracle(weights, inputs_of(signals, way, mean, ways), state)
    for t in range(1, len(signals)):
        before = [torch.tensor(wanted[name][t - 1], dtype=torch.float32) for name in ("hidden", "cell")[: len(state)]]
        rounded = oracle(weights, inputs_of(signals[t : t + 1], way, mean, ways), tuple(before))
        hidden, _ = ENGINE.cell_trace(cells, signals[t : t + 1], way, tuple(before))
        sensitive = 1e-6 * scale  # float32 keeps six digits of a gate's sum
        np.testing.assert_allclose(hidden, rounded["hidden"], rtol=1e-5, atol=1e-5 + sensitive)


def test_saturated_gates_are_open_or_shut_to_the_last_digit() -> None:
    big = torch.tensor([[200.0], [200.0], [200.0], [200.0]])
    cells = LoneCells("lstm", torch.zeros(4, 1), big, None, torch.zeros(1, 4, 1))
    state = (torch.zeros(1, 1), torch.zeros(1, 1))
    hidden, (_, cell) = ENGINE.cell_trace(cells, torch.zeros(300, 1), torch.zeros(1, dtype=torch.long), state)
    assert cell.item() == 300
    assert hidden[-1].item() == 1
    shut = LoneCells("lstm", torch.zeros(4, 1), -big, None, torch.zeros(1, 4, 1))
    hidden, (_, cell) = ENGINE.cell_trace(shut, torch.zeros(3, 1), torch.zeros(1, dtype=torch.long), state)
    assert abs(cell.item()) < 1e-11
    assert abs(hidden[-1].item()) < 1e-11


@EACH_KIND
@pytest.mark.parametrize(("steps", "longer", "size"), [(64, 96, 70), (64, 64, 1), (5, 40, 64), (1, 33, 3)])
def test_facts_found_meanwhile_are_those_of_the_trace(kind: Kind, steps: int, longer: int, size: int) -> None:
    cells, state, _, _ = cells_and_state(layer(kind, size))
    signals, initial = probe_signals(steps, longer), state[0][0]
    found = ENGINE.cell_facts(cells, signals, state, initial, THRESHOLDS)
    of_steps, _ = ENGINE.cell_trace(cells, signals.steps, signals.step_way, state)
    of_sines, _ = ENGINE.cell_trace(cells, signals.sines, signals.sine_way, state)
    alike(found.steps, ENGINE.step_facts(of_steps, initial, THRESHOLDS))
    alike(found.sines, ENGINE.sine_facts(of_sines, signals.frequencies, signals.main))
    steps_right(found.steps, of_steps.numpy(), initial.numpy(), THRESHOLDS)
    sines_right(found.sines, of_sines.numpy(), signals.main)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.data())
def test_facts_of_any_trace_are_those_of_numpy(data: st.DataObject) -> None:
    steps, rows = data.draw(st.integers(1, 70)), data.draw(st.integers(1, 3))
    size = data.draw(st.sampled_from([1, 5, 64, 67]))
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    rough = rng.normal(size=(steps, rows, size))
    kinds = {"noise": rough, "walk": rough.cumsum(0), "levels": rough.round(), "still": 0 * rough + 0.3}
    hidden = (kinds[data.draw(st.sampled_from(sorted(kinds)))] * 10.0 ** data.draw(st.integers(-6, 2))).astype("f")
    initial = rng.choice([0.0, 0.3, 5.0], size).astype("f")
    limits = Thresholds(
        band=data.draw(st.sampled_from([0.02, 0.1])),
        tail_least=data.draw(st.integers(1, 9)),
        washout=data.draw(st.sampled_from([0.1, 0.9])),
    )
    steps_right(ENGINE.step_facts(torch.tensor(hidden), torch.tensor(initial), limits), hidden, initial, limits)
    sines = ENGINE.sine_facts(torch.tensor(hidden), [1 / period for period in PERIODS[:rows]], None)
    assert sines.window is None
    sines_right(sines, hidden, None)


@EACH_KIND
def test_settling_indices_are_the_oracles_unless_at_the_edge(kind: Kind) -> None:
    weights = layer(kind, 60, 1.5)
    cells, state, mean, ways = cells_and_state(weights)
    signals, initial = probe_signals(80, 64), state[0][0]
    found = ENGINE.cell_facts(cells, signals, state, initial, THRESHOLDS).steps
    exact = oracle(weights, inputs_of(signals.steps, signals.step_way, mean, ways), state)["hidden"]
    final = exact[-10:].mean(0)
    peak, delta = abs(exact - initial.numpy()).max(0), abs(final - initial.numpy())
    band = 0.1 * np.where(delta < 0.1 * peak, peak, delta)
    distance = abs(exact - final) - band
    wanted = np.where(distance > 0, np.arange(80)[:, None, None], -1).max(0)
    clear = (abs(distance) > 2e-5).all(0) & (abs(delta - 0.1 * peak) > 1e-6) & (peak > 2e-3)
    assert clear.mean() > 0.8
    assert (found.outside.numpy() == wanted)[clear].all()


def test_a_value_that_is_not_finite_makes_its_facts_nan() -> None:
    hidden = torch.rand(40, 2, 70)
    hidden[39, 0, 3], hidden[0, 1, 66], hidden[17, 1, 69] = torch.nan, torch.inf, -torch.inf
    found = ENGINE.step_facts(hidden, torch.zeros(70), THRESHOLDS)
    broken = ~torch.isfinite(hidden).all(0)
    for name in ("top", "bottom", "final", "before", "last", "peak_at", "rise_from", "rise_to", "outside"):
        assert torch.equal(torch.isnan(getattr(found, name)), broken), name


@pytest.mark.parametrize("height", [1.0, 5e-4])
def test_a_silent_pulse_is_no_washout(height: float) -> None:
    pulse = (height * np.exp(-np.arange(64) / 4)).astype("f").reshape(-1, 1, 1)
    found = ENGINE.step_facts(torch.tensor(pulse), torch.zeros(1), THRESHOLDS)
    steps_right(found, pulse, np.zeros(1, "f"), THRESHOLDS)
    assert found.outside.item() == (9 if height == 1 else 63)


@EACH_KIND
def test_nan_weights_and_overflow_stay_with_their_cell(kind: Kind) -> None:
    cells, state, _, _ = cells_and_state(layer(kind, 5))
    cells.bias[0, 2] = torch.nan
    if kind == "rnn_relu":
        cells.own[0, 4], cells.bias[0, 4] = 1e9, 1.0
    found = ENGINE.cell_facts(cells, probe_signals(64, 64), state, state[0][0], THRESHOLDS)
    broken = [2, 4] if kind == "rnn_relu" else [2]
    bad = torch.zeros(5, dtype=torch.bool).index_fill(0, torch.tensor(broken), True)
    assert torch.equal(torch.isnan(found.steps.top), bad.expand(4, 5))
    assert all(torch.equal(torch.isnan(rows).any(-1) | torch.isinf(rows).any(-1), bad) for rows in found.sines.folded)


def test_parts_of_responses_and_of_cells_are_read_where_they_lie() -> None:
    whole = torch.randn(40, 7, 90)
    for hidden in (whole[:, 2:5], whole[3:, :, 5:80], whole.transpose(0, 1), whole.permute(0, 2, 1)[:, :, :6]):
        steps_right(
            ENGINE.step_facts(hidden, torch.zeros(hidden.shape[2]), THRESHOLDS),
            hidden.numpy(),
            np.zeros(hidden.shape[2], "f"),
            THRESHOLDS,
        )
    cells, state, _, _ = cells_and_state(layer("gru", 90))
    signals, way = signals_of(20, 3)
    all_of_them, _ = ENGINE.cell_trace(cells, signals, way, state)
    part = slice(10, 75)
    some, _ = ENGINE.cell_trace(cells_in(cells, part), signals, way, tuple(one[:, part] for one in state))
    assert torch.equal(some, all_of_them[..., part])


def test_no_stimulus_of_a_sort_leaves_its_facts_empty() -> None:
    cells, state, _, _ = cells_and_state(layer("lstm", 5))
    full = probe_signals(20, 40)
    none = torch.zeros(0, dtype=torch.long)
    only_steps = Signals(full.steps, full.step_way, full.sines[:, :0], none, (), 0)
    found = ENGINE.cell_facts(cells, only_steps, state, state[0][0], THRESHOLDS)
    assert found.sines.folded == ()
    assert found.sines.window is None
    only_sines = Signals(full.steps[:, :0], none, full.sines, full.sine_way, full.frequencies, 1)
    assert ENGINE.cell_facts(cells, only_sines, state, state[0][0], THRESHOLDS).steps.top.shape == (0, 5)


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
def test_two_threads_find_the_same_and_end() -> None:
    cells, state, _, _ = cells_and_state(layer("lstm", 600))
    signals = probe_signals(400, 200)
    before = threading.active_count()
    both = ENGINE.cell_facts(cells, signals, state, state[0][0], THRESHOLDS)
    assert threading.active_count() == before
    assert torch.get_num_threads() == 2
    torch.set_num_threads(1)
    alone = ENGINE.cell_facts(cells, signals, state, state[0][0], THRESHOLDS)
    alike(both.steps, alone.steps)
    alike(both.sines, alone.sines)


def test_calls_from_several_threads_do_not_meet() -> None:
    many = [cells_and_state(layer(kind, 130, seed=seed)) for seed, kind in enumerate(KINDS)]
    signals = probe_signals(64, 64)
    found: dict[int, ResponseFacts] = {}

    def simulate(number: int) -> None:
        cells, state, _, _ = many[number]
        for _ in range(5):
            found[number] = ENGINE.cell_facts(cells, signals, state, state[0][0], THRESHOLDS)

    threads = [threading.Thread(target=simulate, args=(number,)) for number in range(len(many))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, (cells, state, _, _) in enumerate(many):
        alike(found[number].steps, ENGINE.cell_facts(cells, signals, state, state[0][0], THRESHOLDS).steps)


def test_other_types_are_refused_with_the_way_out() -> None:
    cells, state, _, _ = cells_and_state(layer("lstm", 5))
    signals, way = signals_of(4, 1)
    with pytest.raises(TypeError, match=r"state is torch.float64 on cpu; .* use the torch engine"):
        ENGINE.cell_trace(cells, signals, way, tuple(part.double() for part in state))
    with pytest.raises(TypeError, match=r"hidden is torch.float64 on cpu"):
        ENGINE.step_facts(torch.zeros(9, 1, 5, dtype=torch.float64), torch.zeros(5), THRESHOLDS)


def test_an_entry_is_compiled_without_a_cache_where_there_is_no_place_for_one() -> None:
    names: dict[str, Any] = {}
    exec("def twice(x):\n    return x + x\n", names)  # of no file, as numba sees a folder that it may not write to
    assert compiled("float32(float32)")(names["twice"])(np.float32(1.5)) == 3


def test_compiled_code_is_named_by_every_source_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Numba looks at the file of an entry only; without a source its age is not known."""
    monkeypatch.setattr(compiling, "__file__", str(tmp_path / "compile.py"))
    with pytest.raises(FileNotFoundError, match="no source"):
        compiling._version()
    for name in ("compile", "facts"):
        (tmp_path / f"{name}.py").write_text("1")
    known = compiling._version()
    (tmp_path / "facts.py").write_text("2")
    assert compiling._version() != known


def test_a_broken_cache_is_passed_by(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    for _ in range(2):

        def twice(x: float) -> float:
            return x + x

        assert compiled("float32(float32)")(twice)(np.float32(1.5)) == 3
        kept = [path for path in tmp_path.rglob("*") if path.is_file()]
        assert kept
        for path in kept:
            path.write_bytes(b"broken")


def alike(one: StepFacts | SineFacts, other: StepFacts | SineFacts) -> None:
    """To the last bit."""
    for field in fields(one):
        left, right = getattr(one, field.name), getattr(other, field.name)
        if isinstance(left, Tensor | tuple):
            torch.testing.assert_close(left, right, rtol=0, atol=0, equal_nan=True, msg=field.name)
        else:
            assert left == right


def steps_right(found: StepFacts, y: Any, initial: Any, limits: Thresholds) -> None:
    """Extremes and indices exactly as numpy has them, given the means; these to float32's rounding."""
    steps = len(y)
    tail = max(limits.tail_least, steps // limits.tail_share)
    last, earlier = y[-tail:], y[max(steps - 2 * tail, 0) : max(steps - tail, 0)]
    f = {field.name: np.asarray(getattr(found, field.name)) for field in fields(found)}
    assert f["steps"] == steps
    np.testing.assert_array_equal(f["initial"], np.broadcast_to(initial, y.shape[1:]))
    same = {"top": y.max(0), "bottom": y.min(0), "last": y[-1], "tail_top": last.max(0), "tail_bottom": last.min(0)}
    for name, values in same.items():
        np.testing.assert_array_equal(f[name], values, name)
    scale = abs(y).max() + 1e-30
    np.testing.assert_allclose(f["final"], last.mean(0, dtype="d"), rtol=0, atol=3e-7 * scale)
    if len(earlier):
        np.testing.assert_allclose(f["before"], earlier.mean(0, dtype="d"), rtol=0, atol=3e-7 * scale)
    else:
        assert np.isnan(f["before"]).all()
    up, down, delta = f["top"] - initial, initial - f["bottom"], f["final"] - initial
    at_peak = ((y >= f["top"]) & (up >= down)) | ((y <= f["bottom"]) & (down >= up))
    np.testing.assert_array_equal(f["peak_at"], at_peak.argmax(0))
    for name, share in (("rise_from", 0.1), ("rise_to", 0.9)):
        goal = initial + np.float32(share) * delta
        reached = np.where(delta > 0, y >= goal, y <= goal)
        np.testing.assert_array_equal(f[name], np.where(reached.any(0), reached.argmax(0), steps), name)
    peak = np.maximum(up, down)
    is_washout = (abs(delta) < np.float32(limits.washout) * peak) & (peak >= np.float32(limits.silent))
    band = np.float32(limits.band) * np.where(is_washout, peak, abs(delta))
    outside = (y < f["final"] - band) | (y > f["final"] + band)
    np.testing.assert_array_equal(f["outside"], np.where(outside, np.arange(steps)[:, None, None], -1).max(0))


def sines_right(found: SineFacts, y: Any, main: int | None) -> None:
    """To float32's rounding; the window exactly."""
    for row, frequency in enumerate(found.frequencies):
        window = window_of(len(y), frequency)
        samples = y[window.start : window.start + window.size, row].astype("d")
        assert found.folded[row].shape == (y.shape[2], window.period)
        if not window.size:
            assert torch.isnan(found.std[row]).all()
            continue
        scale = abs(samples).max() + 1e-30
        mean = samples.reshape(-1, window.period, y.shape[2]).mean(0)
        np.testing.assert_allclose(found.folded[row], mean.T, rtol=0, atol=5e-7 * scale)
        np.testing.assert_allclose(found.std[row], samples.std(0), rtol=1e-5, atol=5e-7 * scale)
    if main is not None:
        window = window_of(len(y), found.frequencies[main])
        assert found.window is not None
        np.testing.assert_array_equal(found.window, y[window.start : window.start + window.size, main].T)
