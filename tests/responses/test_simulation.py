"""respond() against the naive float64 loops of tests/helpers/oracles.py, and against the live modules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from lstm_monitor import (
    Response,
    Sequences,
    Snapshot,
    Stimulus,
    Thresholds,
    random_bank,
    respond,
    sinusoid,
    snapshot,
    step,
)
from lstm_monitor.core.terms import GATES, Mode
from lstm_monitor.engines.fused import run_fused
from lstm_monitor.engines.gates import cell_of, gates_of
from lstm_monitor.engines.lone_cells import decouple, dense
from lstm_monitor.engines.loop_engine import run_loop
from lstm_monitor.engines.torch_engine.scan import run_alone
from tests.helpers import oracles

# torch says once that a projection runs without oneDNN, of the user's own module.
pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")

Array = NDArray[np.float64]
KINDS: list[tuple[type[nn.RNNBase], dict[str, Any]]] = [
    (nn.LSTM, {}),
    (nn.GRU, {}),
    (nn.RNN, {"nonlinearity": "tanh"}),
    (nn.RNN, {"nonlinearity": "relu"}),
]
CASES = [
    *KINDS,
    *((kind, {**options, "bias": False}) for kind, options in KINDS),
    *((kind, {**options, "num_layers": 2, "bidirectional": True}) for kind, options in KINDS),
    (nn.LSTM, {"proj_size": 2}),
    (nn.LSTM, {"proj_size": 2, "num_layers": 2, "bidirectional": True, "bias": False}),
]
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}
PRECISIONS = pytest.mark.parametrize("dtype", list(TOLERANCE), ids=["float32", "float64"])
MODE_NAMES: tuple[Mode, ...] = ("coupled", "alone")
MODES = pytest.mark.parametrize("mode", MODE_NAMES)
N, T, F, H = 4, 12, 3, 5


def data(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.tensor(np.random.default_rng(seed).normal(size=shape) * 0.8 + 0.3, dtype=dtype)


def built(kind: type[nn.RNNBase], options: Mapping[str, Any], dtype: torch.dtype, size: int = H) -> nn.RNNBase:
    torch.manual_seed(1)
    return kind(F, size, batch_first=True, dtype=dtype, **options)


def states_of(rnn: nn.RNNBase, dtype: torch.dtype) -> Any:
    rows = rnn.num_layers * (1 + rnn.bidirectional)
    h0 = data(rows, N, rnn.proj_size or H, seed=2, dtype=dtype)
    return (h0, data(rows, N, H, seed=3, dtype=dtype)) if isinstance(rnn, nn.LSTM) else h0


def array(tensor: Tensor) -> Array:
    return tensor.detach().double().numpy()


def live_weights(rnn: nn.Module, snap: Snapshot) -> dict[str, Array | None]:
    """The weights from the module itself, not from the snapshot."""
    suffix = "" if snap.key.index is None else f"_l{snap.key.index}{'_reverse' * snap.key.reverse}"
    named = {"w_ih": "weight_ih", "w_hh": "weight_hh", "b_ih": "bias_ih", "b_hh": "bias_hh", "w_hr": "weight_hr"}
    tensors = {short: dict(rnn.named_parameters()).get(name + suffix) for short, name in named.items()}
    return {short: None if tensor is None else array(tensor) for short, tensor in tensors.items()}


def oracle(
    rnn: nn.Module, snap: Snapshot, x: Array, mode: Mode, h0: Array | None = None, c0: Array | None = None
) -> Mapping[str, Array]:
    """Every trace ``(T, N, H)`` on x (T, N, F), from states of the units before the projection."""
    weights = live_weights(rnn, snap)
    zeros = np.zeros((x.shape[1], snap.hidden_size))
    h0, c0 = zeros if h0 is None else h0, zeros if c0 is None else c0
    if mode == "alone":
        return named(oracles.run_alone(snap.kind, x, **weights, h_mean=array(snap.hidden_mean), state0=(h0, c0)))
    w_hr = weights.pop("w_hr")
    if snap.kind == "lstm":
        return named(oracles.run_lstm(x, **weights, h0=h0 if w_hr is None else h0 @ w_hr.T, c0=c0, w_hr=w_hr))
    if snap.kind == "gru":
        return named(oracles.run_gru(x, **weights, h0=h0))
    return named(oracles.run_rnn(x, **weights, h0=h0, nonlinearity=snap.kind.removeprefix("rnn_")))


def named(traces: Mapping[str, Array]) -> dict[str, Array]:
    """The oracle's traces under the library's names."""
    renamed = {"output" if name == "output_gate" else name: value for name, value in traces.items() if name != "output"}
    return renamed if "input" in renamed or "update" in renamed else {**renamed, "candidate": renamed["hidden"]}


def settled_for(rnn: nn.Module, snap: Snapshot, mode: Mode) -> int:
    """Steps at the operating point before a stimulus: 64 at a time until all cells rest, at most 256."""
    still = np.broadcast_to(array(snap.point.mean), (256, 1, len(snap.point.mean)))
    hidden = oracle(rnn, snap, still, mode)["hidden"][:, 0]
    ranges = {count: np.ptp(hidden[count - 8 : count], axis=0).max() for count in (64, 128, 192)}
    return next((count for count, moved in ranges.items() if moved <= 1e-3), 256)


def expected_of_stimuli(rnn: nn.Module, snap: Snapshot, stimuli: Sequence[Stimulus], mode: Mode) -> dict[str, Array]:
    before = settled_for(rnn, snap, mode)
    mean = array(snap.point.mean)
    waves = [mean + array(s.signal)[:, None] * array(s.direction) for s in stimuli]
    still = np.broadcast_to(mean, (before, len(stimuli), len(mean)))
    traces = oracle(rnn, snap, np.concatenate([still, np.stack(waves, axis=1)]), mode)
    baseline = traces["hidden"][before - 1, 0]
    return {name: value[before:] for name, value in traces.items()} | {"baseline": baseline}


def assert_agree(response: Response, expected: Mapping[str, Array], tolerance: float) -> None:
    """Hidden, and what else was recorded, equal the oracle's ``(T, N, H)``."""
    traces = {"hidden": response.hidden, **response.gates}
    if response.kind == "lstm":
        assert response.cell is not None
        traces["cell"] = response.cell
    assert set(traces) == set(expected) - {"baseline"}
    for name, trace in traces.items():
        np.testing.assert_allclose(
            array(trace), expected[name].transpose(1, 2, 0), rtol=0, atol=tolerance, err_msg=name
        )


def everything(snap: Snapshot) -> tuple[str, ...]:
    return ("cell", "gates") if snap.kind == "lstm" else ("gates",)


def stimuli_for(snap: Snapshot, steps: int = 40) -> list[Stimulus]:
    d = torch.linspace(-1, 1, len(snap.point.mean), dtype=snap.point.mean.dtype)
    return [
        step(d, steps=steps),
        step(d.flip(0) * 0.5, steps=steps, amplitude=-2.0),
        sinusoid(d, 1 / 16, steps=steps),
        sinusoid(d.square(), 0.21, steps=steps, amplitude=1.5),
    ]


# --- against the float64 loop ------------------------------------------------------------------------------


@pytest.mark.sweep
@PRECISIONS
@MODES
@pytest.mark.parametrize(("kind", "options"), CASES)
def test_steps_and_sines(kind: type[nn.RNNBase], options: dict[str, Any], mode: Mode, dtype: torch.dtype) -> None:
    rnn = built(kind, options, dtype)
    for snap in snapshot(rnn, data(N, T, F, dtype=dtype)):
        stimuli = stimuli_for(snap)
        response = respond(snap, stimuli, mode, record=everything(snap))
        expected = expected_of_stimuli(rnn, snap, stimuli, mode)
        assert_agree(response, expected, TOLERANCE[dtype])
        assert response.baseline is not None
        np.testing.assert_allclose(array(response.baseline), expected["baseline"], rtol=0, atol=TOLERANCE[dtype])
        assert (response.key, response.kind, response.mode) == (snap.key, snap.kind, mode)
        assert response.stimuli == tuple(stimuli)


@pytest.mark.sweep
@pytest.mark.parametrize(
    ("name", "dtype"), [("numba", torch.float32), *((name, dtype) for name in ("torch", "loop") for dtype in TOLERANCE)]
)
@pytest.mark.parametrize(("kind", "options"), CASES)
def test_every_engine_that_may_be_chosen(
    kind: type[nn.RNNBase], options: dict[str, Any], name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LSTM_MONITOR_ENGINE", name)
    rnn = built(kind, options, dtype)
    for snap in snapshot(rnn, data(N, T, F, dtype=dtype)):
        for mode in MODE_NAMES if name == "loop" else MODE_NAMES[1:]:
            stimuli = stimuli_for(snap)
            response = respond(snap, stimuli, mode, record=everything(snap))
            assert_agree(response, expected_of_stimuli(rnn, snap, stimuli, mode), TOLERANCE[dtype])


@pytest.mark.sweep
@PRECISIONS
@MODES
@pytest.mark.parametrize("source", ["held_out", "random_bank"])
@pytest.mark.parametrize(("kind", "options"), CASES)
def test_sequences_in_the_order_in_which_a_direction_reads_them(
    kind: type[nn.RNNBase], options: dict[str, Any], source: str, mode: Mode, dtype: torch.dtype
) -> None:
    rnn = built(kind, options, dtype)
    for snap in snapshot(rnn, (data(N, T, F, dtype=dtype), states_of(rnn, dtype))):
        sequences = snap.held_out if source == "held_out" else random_bank(snap.point, count=6)
        assert sequences is not None
        response = respond(snap, sequences, mode, record=everything(snap))
        h0, c0 = (None if state is None else array(state) for state in (sequences.h0, sequences.c0))
        expected = oracle(rnn, snap, array(sequences.inputs).transpose(1, 0, 2), mode, h0, c0)
        assert_agree(response, expected, TOLERANCE[dtype])
        assert (response.source, response.baseline) == (source, None)
        assert response.mask is sequences.mask


@pytest.mark.parametrize("kind", [nn.LSTMCell, nn.GRUCell, nn.RNNCell])
@MODES
def test_single_step_cells(kind: type[nn.Module], mode: Mode) -> None:
    torch.manual_seed(1)
    cell = kind(F, H, dtype=torch.float64)
    (snap,) = snapshot(cell)
    stimuli = stimuli_for(snap)
    response = respond(snap, stimuli, mode, record=everything(snap))
    assert_agree(response, expected_of_stimuli(cell, snap, stimuli, mode), 1e-12)


@PRECISIONS
@MODES
@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_one_step_from_the_oracles_state_with_extreme_weights(
    kind: type[nn.RNNBase], options: dict[str, Any], mode: Mode, dtype: torch.dtype
) -> None:
    """Weights times 20: whole float32 trajectories are chaotic, so every step starts from the oracle's state."""
    rnn = built(kind, options, dtype)
    with torch.no_grad():
        for parameter in rnn.parameters():
            parameter.mul_(20)
    snap = replace(snapshot(rnn)[0], hidden_mean=data(H, seed=4, dtype=dtype))
    x = data(30 if snap.kind != "rnn_relu" else 3, 2, F, seed=5, dtype=dtype)
    traces = oracle(rnn, snap, array(x), mode)
    before = {name: torch.tensor(value[:-1].reshape(-1, H), dtype=dtype) for name, value in traces.items()}
    inputs = x[1:].reshape(-1, 1, F)
    start = Sequences(inputs, torch.ones(len(inputs), 1, dtype=torch.bool), None, before["hidden"], before.get("cell"))
    response = respond(snap, start, mode, record=everything(snap))
    h0, c0 = array(before["hidden"]), array(before["cell"]) if "cell" in before else None
    expected = oracle(rnn, snap, array(inputs).transpose(1, 0, 2), mode, h0, c0)
    scale = max(1.0, np.abs(expected["hidden"]).max())  # an RNN with ReLU explodes
    assert_agree(response, expected, TOLERANCE[dtype] * scale)


@pytest.mark.sweep
@pytest.mark.parametrize("field", ["weight_ih", "weight_hh", "bias_ih", "bias_hh"])
@pytest.mark.parametrize("wanted", ["coupled", "alone"])
@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_a_planted_error_in_one_weight_is_seen(
    kind: type[nn.RNNBase], options: dict[str, Any], wanted: Mode, field: str
) -> None:
    rnn = built(kind, options, torch.float32)
    (snap,) = snapshot(rnn, data(N, T, F))
    planted = getattr(snap.weights, field).clone()
    planted[(0, 0) if planted.dim() == 2 else 0] += 0.01
    wrong = replace(snap, weights=replace(snap.weights, **{field: planted}))
    stimuli = stimuli_for(snap)
    expected = expected_of_stimuli(rnn, snap, stimuli, wanted)
    assert_agree(respond(snap, stimuli, wanted, record=everything(snap)), expected, 1e-5)
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        assert_agree(respond(wrong, stimuli, wanted, record=everything(snap)), expected, 1e-5)


@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_coupled_and_alone_are_told_apart(kind: type[nn.RNNBase], options: dict[str, Any]) -> None:
    rnn = built(kind, options, torch.float64)
    (snap,) = snapshot(rnn, data(N, T, F, dtype=torch.float64))
    alone = respond(snap, stimuli_for(snap), "alone", record=everything(snap))
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        assert_agree(alone, expected_of_stimuli(rnn, snap, stimuli_for(snap), "coupled"), 1e-5)
    cut = replace(snap, hidden_mean=torch.zeros_like(snap.hidden_mean))
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        assert_agree(alone, expected_of_stimuli(rnn, cut, stimuli_for(snap), "alone"), 1e-5)


# --- against the live module -------------------------------------------------------------------------------


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize(("kind", "options"), [*CASES, (nn.LSTM, {"num_layers": 3, "dropout": 0.5})])
def test_held_out_responses_are_the_live_modules_own(
    kind: type[nn.RNNBase], options: dict[str, Any], given: bool, packed: bool
) -> None:
    rnn = built(kind, options, torch.float32)
    lengths = torch.tensor([5, 12, 1, 9] if packed else [T] * N)
    x: Any = data(N, T, F)
    x = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False) if packed else x
    batch = (x, states_of(rnn, torch.float32) if given else None)
    top = snapshot(rnn, batch)[-1 - rnn.bidirectional :]
    rnn.eval()
    live = rnn(*batch)[0]
    if packed:
        live, _ = nn.utils.rnn.pad_packed_sequence(live, batch_first=True)
    for snap, output in zip(top, live.detach().chunk(1 + rnn.bidirectional, -1), strict=True):
        assert snap.held_out is not None
        hidden = respond(snap, snap.held_out).hidden.transpose(1, 2)
        hidden = hidden if snap.weights.weight_hr is None else hidden @ snap.weights.weight_hr.T
        for row, out, length in zip(hidden, output, lengths, strict=True):
            mine = row[:length].flip(0) if snap.key.reverse else row[:length]
            torch.testing.assert_close(mine, out[:length], rtol=0, atol=1e-6)


def test_known_held_out_states_are_not_computed_again() -> None:
    (snap,) = snapshot(built(nn.LSTM, {}, torch.float32), data(N, T, F))
    assert snap.held_out is not None
    assert snap.held_out_hidden is not None
    assert respond(snap, snap.held_out).hidden.data_ptr() == snap.held_out_hidden.data_ptr()
    assert respond(snap, snap.held_out, "alone").hidden.data_ptr() != snap.held_out_hidden.data_ptr()


@MODES
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_output_gate_times_tanh_of_the_cell_is_the_hidden_state(mode: Mode, dtype: torch.dtype) -> None:
    (snap,) = snapshot(built(nn.LSTM, {}, dtype), data(N, T, F, dtype=dtype))
    for stimuli in (stimuli_for(snap), snap.held_out, random_bank(snap.point)):
        assert stimuli is not None
        response = respond(snap, stimuli, mode, record=("cell", "gates"))
        assert response.cell is not None
        again = response.gates["output"] * response.cell.tanh()
        torch.testing.assert_close(again, response.hidden, rtol=0, atol=1e-6 if dtype == torch.float32 else 1e-14)


# --- shapes, batches, groups, engines ----------------------------------------------------------------------


@pytest.mark.parametrize("record", [(), ("cell",), ("gates",), ("cell", "gates")])
def test_only_what_was_asked_for_is_kept(record: tuple[str, ...]) -> None:
    (snap,) = snapshot(built(nn.LSTM, {}, torch.float32))
    for stimuli in (stimuli_for(snap), random_bank(snap.point, count=4, steps=40)):
        response = respond(snap, stimuli, record=record)
        assert response.hidden.shape == (4, H, 40)
        assert (response.cell is not None) == ("cell" in record)
        assert tuple(response.gates) == (GATES["lstm"] if "gates" in record else ())
        assert all(gate.shape == (4, H, 40) for gate in response.gates.values())


@pytest.mark.sweep
@MODES
@pytest.mark.parametrize("count", [16, 17, 40])
@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_many_stimuli_equal_one_at_a_time(kind: type[nn.RNNBase], options: Any, mode: Mode, count: int) -> None:
    (snap,) = snapshot(built(kind, options, torch.float64), data(N, T, F, dtype=torch.float64))
    stimuli = [
        replace(stimulus, name=f"{k}") if k % 3 else step(data(F, seed=k, dtype=torch.float64), steps=32)
        for k, stimulus in enumerate((stimuli_for(snap, 32) * count)[:count])
    ]
    together = respond(snap, stimuli, mode, record=everything(snap))
    assert together.hidden.shape == (count, H, 32)
    for k, stimulus in enumerate(stimuli):
        single = respond(snap, [stimulus], mode, record=everything(snap))
        torch.testing.assert_close(single.hidden[0], together.hidden[k], rtol=0, atol=1e-13)
        for name, gate in single.gates.items():
            torch.testing.assert_close(gate[0], together.gates[name][k], rtol=0, atol=1e-13)


@pytest.mark.parametrize("size", [1, 63, 64, 65, 130])
@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_groups_of_lone_cells_equal_the_whole_and_the_oracle(
    kind: type[nn.RNNBase], options: dict[str, Any], size: int
) -> None:
    rnn = built(kind, options, torch.float64, size)
    (snap,) = snapshot(rnn, data(N, T, F, dtype=torch.float64))
    weights = decouple(snap.weights, snap.hidden_mean)
    x = data(T, 2, F, seed=6, dtype=torch.float64)
    state = tuple(data(2, size, seed=seed, dtype=torch.float64) for seed in ((7, 8) if snap.kind == "lstm" else (7,)))
    (grouped, ends), (whole, final) = run_alone(weights, x, state), run_fused(dense(weights), x, state)
    torch.testing.assert_close(grouped, whole, rtol=0, atol=1e-13)
    for end, expected in zip(ends, final, strict=True):
        torch.testing.assert_close(end, expected, rtol=0, atol=1e-13)
    c0 = array(state[1]) if len(state) > 1 else None
    expected_traces = oracle(rnn, snap, array(x), "alone", array(state[0]), c0)
    np.testing.assert_allclose(array(grouped), expected_traces["hidden"], rtol=0, atol=1e-12)


@MODES
@PRECISIONS
@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_the_plain_loop_and_the_engines_are_one(
    kind: type[nn.RNNBase], options: dict[str, Any], dtype: torch.dtype, mode: Mode
) -> None:
    (snap,) = snapshot(built(kind, options, dtype, 70), data(N, T, F, dtype=dtype))
    weights = snap.weights if mode == "coupled" else decouple(snap.weights, snap.hidden_mean)
    x = data(T, 3, F, seed=6, dtype=dtype)
    state = tuple(data(3, 70, seed=seed, dtype=dtype) for seed in ((7, 8) if snap.kind == "lstm" else (7,)))
    hidden, final = (run_fused if mode == "coupled" else run_alone)(weights, x, state)
    looped, last, traces = run_loop(weights, x, state)
    gates = gates_of(weights, x, hidden, state[0])
    mine = {**gates, "cell": cell_of(gates, state[1])} if snap.kind == "lstm" else dict(gates)
    assert mine.keys() == traces.keys()
    pairs = [(hidden, looped), *zip(final, last, strict=True), *((mine[name], traces[name]) for name in mine)]
    for one, other in pairs:
        torch.testing.assert_close(one, other, rtol=0, atol=TOLERANCE[dtype])


# --- the baseline ------------------------------------------------------------------------------------------


def two_cells(own: float = -3.0, nonlinearity: str = "tanh") -> nn.RNN:
    """An RNN of two cells each by itself: one forgets at once, the other has its `own` recurrence."""
    rnn = nn.RNN(1, 2, nonlinearity=nonlinearity)
    with torch.no_grad():
        for value in rnn.parameters():
            value.fill_(0.2)
        rnn.weight_hh_l0.copy_(torch.diag(torch.tensor([0.0, own])))
    return rnn


@pytest.mark.parametrize(("own", "steps"), [(0.5, 64), (0.92, 128), (0.95, 192), (0.98, 256)])
@MODES
def test_the_baseline_is_settled_for_as_long_as_it_moves(own: float, steps: int, mode: Mode) -> None:
    rnn = two_cells(own, "relu")
    (snap,) = snapshot(rnn)
    assert settled_for(rnn, snap, mode) == steps
    still = np.zeros((steps, 1, 1))
    expected = oracle(rnn, snap, still, mode)["hidden"][-1, 0]
    response = respond(snap, [step(torch.ones(1))], mode)
    assert response.baseline is not None
    np.testing.assert_allclose(array(response.baseline), expected, rtol=1e-5)


@MODES
def test_a_cell_that_still_moves_has_an_unsettled_baseline(mode: Mode) -> None:
    response = respond(snapshot(two_cells())[0], [step(torch.ones(1))], mode)
    assert response.settled is not None
    assert response.settled.tolist() == [True, False]


def test_when_a_baseline_is_unsettled_is_a_threshold() -> None:
    response = respond(snapshot(two_cells())[0], [step(torch.ones(1))], thresholds=Thresholds(unsettled=10.0))
    assert response.settled is not None
    assert response.settled.tolist() == [True, True]


def test_an_overflowing_baseline_is_unsettled_and_its_neighbours_are_not_touched() -> None:
    rnn = two_cells(9.0, "relu")
    response = respond(snapshot(rnn)[0], [step(torch.ones(1))], "alone")
    assert response.settled is not None
    assert response.settled.tolist() == [True, False]
    assert bool(response.hidden[:, 0].isfinite().all())


def test_a_zero_stimulus_from_rest_moves_nothing() -> None:
    (snap,) = snapshot(built(nn.LSTM, {}, torch.float64), data(N, T, F, dtype=torch.float64))
    response = respond(snap, [step(torch.ones(F, dtype=torch.float64), amplitude=0.0)])
    assert response.baseline is not None
    assert response.settled is not None
    assert bool(response.settled.all())
    torch.testing.assert_close(response.hidden[0], response.baseline[:, None].expand(-1, 200), rtol=0, atol=1e-3)


# --- errors ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mode": "couple"}, "mode='couple' is not known. Did you mean 'coupled'"),
        ({"record": ["gate"]}, "record='gate' is not known. Did you mean 'gates'"),
        ({"record": ["cell"]}, "record='cell' asks for a cell state, which a gru layer"),
    ],
)
def test_unknown_requests(options: dict[str, Any], words: str) -> None:
    (snap,) = snapshot(nn.GRU(F, H))
    with pytest.raises(ValueError, match=words):
        respond(snap, stimuli_for(snap), **options)


@pytest.mark.parametrize("horizons", [(), (40, 64)])
def test_stimuli_of_several_horizons_or_none(horizons: tuple[int, ...]) -> None:
    (snap,) = snapshot(nn.GRU(F, H))
    with pytest.raises(ValueError, match=r"stimuli have horizons \[.*all of one horizon"):
        respond(snap, [step(torch.ones(F), steps=steps) for steps in horizons])


@MODES
def test_no_gradient_is_recorded_and_no_random_number_drawn(mode: Mode) -> None:
    (snap,) = snapshot(built(nn.LSTM, {}, torch.float32), data(N, T, F))
    before = torch.get_rng_state()
    assert not respond(snap, stimuli_for(snap), mode, record=("gates",)).gates["input"].requires_grad
    assert torch.equal(torch.get_rng_state(), before)
