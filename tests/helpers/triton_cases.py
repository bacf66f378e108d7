"""The Triton kernels, run by Triton's interpreter: `test_triton_engine.py` runs this file in a process of its own."""

import math

import numpy as np
import pytest
import torch

from lstm_monitor.core.definitions import Thresholds
from lstm_monitor.core.weights import LayerWeights
from lstm_monitor.engines.facts import Signals, StepFacts, window_of
from lstm_monitor.engines.lone_cells import LoneCells, cells_of
from lstm_monitor.engines.torch_engine.engine import ENGINE as TORCH
from lstm_monitor.engines.triton_engine.engine import ENGINE
from tests.helpers import oracles

thorough = pytest.mark.thorough
GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}
OFTEN = ["lstm", "gru", *(pytest.param(kind, marks=thorough) for kind in ("rnn_tanh", "rnn_relu"))]
FREQUENCIES = (0.3, 1 / 4)
EDGE = 2e-5
INDICES = ("peak_at", "rise_from", "rise_to", "outside")


def _layer(kind, size, scale=0.7):
    rows = GATES[kind] * size
    return LayerWeights(kind, *(scale * torch.randn(rows, *shape) for shape in ((3,), (size,), (), ())))


def _cells(kind, size, scale=0.7):
    return cells_of(_layer(kind, size, scale), torch.zeros(size), torch.zeros(3), torch.randn(3, 2))


def _state(kind, size, count=1):
    return tuple(0.4 * torch.randn(count, size) for _ in range(2 if kind == "lstm" else 1))


def _signals(steps, samples, main=1):
    time = torch.arange(samples, dtype=torch.float64)
    sines = torch.stack([torch.sin(2 * math.pi * f * time) for f in FREQUENCIES], dim=1).float()
    return Signals(torch.tensor([[1.0, -0.5]]).repeat(steps, 1), torch.tensor([0, 1]), sines, torch.tensor([1, 0]),
                 FREQUENCIES, main)  # fmt: skip


def _oracle(layer, directions, signals, way, mean, hidden_mean, state):
    """The response ``(T, S, H)`` in float64, and the cell state where there is one."""
    x = mean.double() + signals.double()[..., None] * directions.double().T[way]
    rest = [part.expand(signals.shape[1], -1).numpy() for part in state]
    found = oracles.run_alone(
        layer.kind, x.numpy(), layer.weight_ih.numpy(), layer.weight_hh.numpy(), layer.bias_ih.numpy(),
        layer.bias_hh.numpy(), hidden_mean.numpy(), state0=(rest[0], rest[1] if len(rest) > 1 else None),
    )  # fmt: skip
    return found["hidden"], found.get("cell")


@pytest.mark.parametrize("kind", OFTEN)
def test_the_trace_is_that_of_the_oracle(kind):
    layer, mean, hidden_mean, directions = _layer(kind, 4), torch.randn(3), torch.randn(4), torch.randn(3, 2)
    signals, way = torch.randn(12, 3), torch.tensor([1, 0, 1])
    for state in (_state(kind, 4), _state(kind, 4, count=3)):
        hidden, last = ENGINE.cell_trace(cells_of(layer, hidden_mean, mean, directions), signals, way, state)
        expected, cell = _oracle(layer, directions, signals, way, mean, hidden_mean, state)
        np.testing.assert_allclose(hidden, expected, atol=1e-5, rtol=1e-5)
        np.testing.assert_allclose(last[0], expected[-1], atol=1e-5, rtol=1e-5)
        if cell is not None:
            np.testing.assert_allclose(last[1], cell[-1], atol=1e-5, rtol=1e-5)


def _hold(y, y0, facts: StepFacts, limits=Thresholds()):  # noqa: B008 - never changed
    """Every fact is that of the float64 response ``y (T, S, H)``; indices exactly, but for samples at an edge."""
    tail = max(limits.tail_least, len(y) // limits.tail_share)
    end = y[-tail:]
    final, top, bottom = end.mean(0), y.max(0), y.min(0)
    values = {"top": top, "bottom": bottom, "final": final, "last": y[-1], "tail_top": end.max(0),
              "tail_bottom": end.min(0), "initial": np.broadcast_to(y0, top.shape)}  # fmt: skip
    for name, expected in values.items():
        np.testing.assert_allclose(getattr(facts, name), expected, atol=1e-5, err_msg=name)
    delta, peak = final - y0, np.maximum(top - y0, y0 - bottom)
    washout = (abs(delta) < limits.washout * peak) & (peak >= limits.silent)
    band = limits.band * np.where(washout, peak, abs(delta))
    gone = np.sign(delta) * (y - y0)
    _first(abs(y - y0) - peak, facts.peak_at)
    _first(gone - 0.1 * abs(delta), facts.rise_from)
    _first(gone - 0.9 * abs(delta), facts.rise_to)
    _first((abs(y - final) - band)[::-1], len(y) - 1 - facts.outside)


def _first(beyond, index):
    """The first sample at which `beyond` is not negative is that of `index`, T if there is none; both within EDGE."""
    time, index = np.arange(len(beyond))[:, None, None], np.asarray(index)
    assert (beyond[(time < index)] < EDGE).all()
    assert (beyond[(time == index)] >= -EDGE).all()


@pytest.mark.parametrize("kind", OFTEN)
def test_the_facts_of_steps_are_those_of_the_oracle(kind):
    layer, mean, hidden_mean, directions = _layer(kind, 6, 0.4), torch.randn(3), torch.randn(6), torch.randn(3, 2)
    state, signals = _state(kind, 6), _signals(24, 8)
    found = ENGINE.cell_facts(cells_of(layer, hidden_mean, mean, directions), signals, state, state[0][0], Thresholds())
    y, _ = _oracle(layer, directions, signals.steps, signals.step_way, mean, hidden_mean, state)
    _hold(y, state[0].double().numpy(), found.steps)


@pytest.mark.parametrize(
    ("kind", "size", "steps", "samples", "limits"),
    [
        pytest.param("lstm", 67, 12, 17, Thresholds(), marks=thorough),
        pytest.param(
            "rnn_tanh",
            40,
            19,
            25,
            Thresholds(tail_share=4, tail_least=2, band=0.05, silent=0.1, washout=0.95),
            marks=thorough,
        ),
        ("gru", 5, 17, 8, Thresholds(tail_share=1)),
        pytest.param("rnn_tanh", 66, 16, 8, Thresholds(tail_least=3), marks=thorough),
        ("rnn_relu", 1, 6, 8, Thresholds()),
        ("rnn_relu", 3, 1, 8, Thresholds()),
    ],
)
def test_the_facts_are_those_of_the_trace(kind, size, steps, samples, limits):
    cells, state, signals = _cells(kind, size), _state(kind, size), _signals(steps, samples)
    found = ENGINE.cell_facts(cells, signals, state, state[0][0], limits)
    traced, _ = ENGINE.cell_trace(cells, signals.steps, signals.step_way, state)
    expected = TORCH.step_facts(traced, state[0][0], limits)
    scale = max(1.0, traced.abs().max().item())
    for name, values in vars(expected).items():
        if name != "steps":
            exact = name in INDICES
            torch.testing.assert_close(
                getattr(found.steps, name),
                values,
                atol=0.0 if exact else 1e-6 * scale,
                rtol=0,
                equal_nan=True,
                msg=name,
            )
    swung, _ = ENGINE.cell_trace(cells, signals.sines, signals.sine_way, state)
    _hold_sines(found.sines, swung.double(), samples, signals.main)


def _hold_sines(found, y, samples, main):
    scale = max(1.0, y.abs().max().item())
    assert (found.steps, found.frequencies) == (samples, FREQUENCIES)
    for number, frequency in enumerate(FREQUENCIES):
        window = window_of(samples, frequency)
        cut = y[window.start : window.start + window.size, number]
        folded = sum(cut[k : k + window.period] for k in range(0, window.size, window.period)).T
        mean_period = folded * window.period / window.size
        torch.testing.assert_close(found.folded[number].double(), mean_period, atol=1e-6 * scale, rtol=0)
        torch.testing.assert_close(found.std[number].double(), cut.std(0, correction=0), atol=1e-6 * scale, rtol=1e-5)
        if number == main:
            torch.testing.assert_close(found.window.double(), cut.T, atol=0, rtol=0)


@pytest.mark.parametrize("kind", OFTEN[:3])
@pytest.mark.parametrize("scale", [1e4, pytest.param(30.0, marks=thorough), pytest.param(1e-8, marks=thorough)])
def test_one_step_of_extreme_weights_is_that_of_the_oracle(kind, scale):
    layer, mean, directions = _layer(kind, 9, scale), torch.zeros(3), torch.randn(3, 1)
    signals, way, state = torch.randn(1, 5), torch.zeros(5, dtype=torch.long), _state(kind, 9, count=5)
    hidden, last = ENGINE.cell_trace(cells_of(layer, torch.zeros(9), mean, directions), signals, way, state)
    expected, cell = _oracle(layer, directions, signals, way, mean, torch.zeros(9), state)
    loose = 1e-5 if scale < 1e3 else 2e-3  # what float32 rounds off a sum of 1e4
    np.testing.assert_allclose(hidden, expected, atol=loose)
    if cell is not None:
        np.testing.assert_allclose(last[1], cell[-1], atol=loose)


def test_saturated_gates_keep_what_they_hold():
    """With the forget gate open and all others shut an LSTM's cell state stays; with ``z = 1`` a GRU's hidden state."""
    for kind, bias in (("lstm", [-1e4, 1e4, 0.0, 1e4]), ("gru", [0.0, 1e4, 0.0])):
        size = len(bias)
        gates = torch.tensor(bias)[:, None].repeat(1, size)
        still = torch.zeros(size, size)
        cells = LoneCells(kind, still, gates, torch.zeros(size) if kind == "gru" else None, torch.zeros(1, size, size))
        state = _state(kind, size)
        hidden, last = ENGINE.cell_trace(cells, torch.ones(12, 1), torch.tensor([0]), state)
        torch.testing.assert_close(last[-1], state[-1], atol=1e-5, rtol=0)
        torch.testing.assert_close(hidden[0], hidden[-1], atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["lstm", "rnn_relu"])
def test_a_cell_that_is_not_finite_spoils_no_other(kind):
    cells, state, signals = _cells(kind, 5), _state(kind, 5), _signals(8, 8)
    sound = ENGINE.cell_facts(cells, signals, state, state[0][0], Thresholds())
    cells.bias[0, 2] = math.nan
    if kind == "rnn_relu":  # it overflows, and is back at zero one step later
        cells.own[0, 3], cells.bias[0, 3], state[0][0, 3], cells.drive[:, 0, 3] = -3e38, 3e38, -1.0, 0.0
    else:
        cells.bias[2, 3] = math.nan
    with np.errstate(all="ignore"):
        found = ENGINE.cell_facts(cells, signals, state, state[0][0], Thresholds())
    for name, values in vars(found.steps).items():
        if name != "steps":
            assert values[:, 2:4].isnan().all(), name
            torch.testing.assert_close(values[:, [0, 1, 4]], getattr(sound.steps, name)[:, [0, 1, 4]], atol=0, rtol=0)
    assert found.sines.std[:, 2].isnan().all()
    torch.testing.assert_close(found.sines.std[:, [0, 1, 4]], sound.sines.std[:, [0, 1, 4]], atol=0, rtol=0)


def test_views_of_some_cells_are_simulated_as_they_are():
    cells, state, signals = _cells("gru", 12), _state("gru", 12), _signals(8, 8)
    part = slice(3, 8)
    view = LoneCells("gru", cells.own[:, part], cells.bias[:, part], cells.inner[part], cells.drive[..., part])
    some = ENGINE.cell_facts(view, signals, (state[0][:, part],), state[0][0, part], Thresholds())
    whole = ENGINE.cell_facts(cells, signals, state, state[0][0], Thresholds())
    torch.testing.assert_close(some.steps.final, whole.steps.final[:, part], atol=0, rtol=0)
    torch.testing.assert_close(some.sines.folded[0], whole.sines.folded[0][part], atol=0, rtol=0)


def test_double_precision_is_refused():
    cells = _cells("rnn_tanh", 2)
    double = LoneCells("rnn_tanh", cells.own.double(), cells.bias.double(), None, cells.drive.double())
    with pytest.raises(TypeError, match="computes in float32; these cells are torch.float64"):
        ENGINE.cell_trace(double, torch.ones(2, 1), torch.tensor([0]), _state("rnn_tanh", 2))
