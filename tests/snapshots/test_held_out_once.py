"""What layers do on held-out data is computed once, by compiled loops where there are some, and is still the same."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import lstm_monitor as lm
from lstm_monitor.core.records import Snapshot
from lstm_monitor.core.terms import GATES, Kind
from lstm_monitor.core.undisturbed import undisturbed
from lstm_monitor.core.weights import LayerWeights
from lstm_monitor.engines import choice
from lstm_monitor.engines import run as engines_run
from lstm_monitor.engines.backward import reverse
from lstm_monitor.engines.fused import run_fused
from lstm_monitor.engines.gates import cell_of, cell_states, gate_values, named
from lstm_monitor.importance.scoring import assess
from lstm_monitor.importance.sensitivity.scores import sensitivities
from lstm_monitor.layers.finding import find_layers
from lstm_monitor.metrics import activity
from lstm_monitor.snapshots.runs import runs_of
from lstm_monitor.snapshots.taking import run_sequences, with_gates

KINDS: dict[Kind, tuple[type[nn.RNNBase], dict[str, Any]]] = {
    "lstm": (nn.LSTM, {}),
    "gru": (nn.GRU, {}),
    "rnn_tanh": (nn.RNN, {}),
    "rnn_relu": (nn.RNN, {"nonlinearity": "relu"}),
}


class Net(nn.Module):
    """A layer, or several, with a readout of the last step and of the final state."""

    def __init__(self, kind: Kind = "lstm", layers: int = 1, *, size: int = 6, **options: Any) -> None:
        super().__init__()
        module, more = KINDS[kind]
        self.rnn = module(3, size, layers, batch_first=True, **more, **options)
        self.head = nn.Linear(size * (1 + self.rnn.bidirectional), 2)

    def forward(self, x: Any, lengths: Any = None) -> Tensor:
        if lengths is not None:
            x = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        out, final = self.rnn(x)
        out = out if lengths is None else pad_packed_sequence(out, batch_first=True)[0]
        last = (final[1] if isinstance(final, tuple) else final).sum()
        return self.head(out.mul_(2)[:, -1]) + last


def weights_of(kind: Kind, size: int, dtype: torch.dtype = torch.float32) -> LayerWeights:
    gates = len(GATES[kind])
    shapes = [(gates * size, 3), (gates * size, size), (gates * size,), (gates * size,)]
    return LayerWeights(kind, *(torch.randn(*shape, dtype=dtype) / math.sqrt(size) for shape in shapes))


def as_double(weights: LayerWeights) -> LayerWeights:
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    return LayerWeights(weights.kind, *(getattr(weights, name).double() for name in names))


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The kinds of the layers that were run by ourselves."""
    runs: list[str] = []

    def run(weights: LayerWeights, *args: Any) -> Any:
        runs.append(weights.kind)
        return run_fused(weights, *args)

    monkeypatch.setattr(engines_run, "run_fused", run)
    monkeypatch.setattr("lstm_monitor.importance.replay.stages.run_fused", run)
    return runs


def asked(model: nn.Module, batch: Any) -> tuple[Snapshot, ...]:
    layers = find_layers(model)
    return assess(lm.snapshot(model, batch), model, layers, runs_of(model, layers, batch))


def plain_scores(model: nn.Module, batch: Any) -> list[Tensor]:
    layers = find_layers(model)
    with undisturbed(model):
        return list(sensitivities(model, layers, runs_of(model, layers, batch)).values())


def same_as_computed(snap: Snapshot) -> None:
    assert snap.held_out is not None
    assert snap.held_out_hidden is not None
    again = run_sequences(snap.weights, snap.held_out).transpose(0, 1)[snap.held_out.mask]
    torch.testing.assert_close(snap.held_out_hidden.transpose(0, 1)[snap.held_out.mask], again, rtol=0, atol=1e-6)


# --- once ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("layers", "both", "runs"), [(1, False, 0), (1, True, 0), (3, False, 2), (2, True, 2)])
@pytest.mark.parametrize("lengths", [None, torch.tensor([2, 9, 5, 7])])
def test_nothing_runs_twice_and_the_scores_are_the_same(
    counted: list[str], kind: Kind, layers: int, both: bool, runs: int, lengths: Tensor | None
) -> None:
    model = Net(kind, layers, bidirectional=both).double()
    x = torch.randn(4, 9, 3, dtype=torch.float64)
    batch = x if lengths is None else (x, lengths)
    snaps = asked(model, batch)
    assert len(counted) == runs  # the last layer's states are what the model's own run returned
    for snap, expected in zip(snaps, plain_scores(model, batch), strict=True):
        same_as_computed(snap)
        assert snap.importance is not None
        torch.testing.assert_close(snap.importance.scores, expected, rtol=1e-9, atol=1e-12)
        assert not snap.held_out_hidden.requires_grad  # type: ignore[union-attr]


def test_gates_are_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Tensor] = []

    def make(*args: Any) -> Tensor:
        made.append(gate_values(*args))
        return made[-1]

    for place in ("snapshots.taking", "importance.replay.stages", "engines.backward", "engines.gates"):
        monkeypatch.setattr(f"lstm_monitor.{place}.gate_values", make)
    model, x = Net().double(), torch.randn(4, 9, 3, dtype=torch.float64)
    found = lm.characterize(model, x, horizon=16).layers[0].metrics
    assert len(made) == 1
    (snap,) = lm.snapshot(model, x)
    for item in lm.measure(lm.respond(snap, snap.held_out, record=("gates",))).items:  # type: ignore[arg-type]
        torch.testing.assert_close(found[item.path].cells, item.cells, rtol=1e-9, atol=0, equal_nan=True)


def test_a_call_on_other_data_is_computed(counted: list[str]) -> None:
    model, x = Net().double(), torch.randn(4, 9, 3, dtype=torch.float64)
    layers, other = find_layers(model), torch.randn(4, 9, 3, dtype=torch.float64)
    (snap,) = assess(lm.snapshot(model, x), model, layers, runs_of(model, layers, other))
    assert counted == ["lstm"]
    assert snap.importance is not None
    torch.testing.assert_close(snap.importance.scores, plain_scores(model, other)[0], rtol=1e-12, atol=0)


# --- what a module returned is not always what its cells did -----------------------------------------------


def scaled(model: Net) -> None:
    model.rnn.register_forward_hook(lambda _, __, out: (out[0] * 3, out[1]))


def still_training(model: Net) -> None:
    model.register_forward_pre_hook(lambda module, _: module.rnn.train() and None)


@pytest.mark.parametrize("change", [scaled, still_training])
def test_outputs_that_were_changed_are_not_taken_for_the_states(change: Callable[[Net], None]) -> None:
    model = Net(layers=2, dropout=0.9)
    change(model)
    for snap in lm.snapshot(model, torch.randn(4, 9, 3)):
        same_as_computed(snap)


@pytest.mark.parametrize("options", [{"proj_size": 2}, {"bidirectional": True, "layers": 2}, {}])
@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
def test_projections_long_sequences_and_several_batches(options: dict[str, Any]) -> None:
    size = options.pop("layers", 1)
    module = nn.LSTM(3, 6, size, batch_first=True, **options)
    for held_out in ([torch.randn(2, 5, 3), torch.randn(3, 8, 3)], torch.randn(2, 1100, 3)):
        for snap in lm.snapshot(module, held_out, max_steps=3000):
            if not (snap.key.reverse and len(held_out) > 1):
                same_as_computed(snap)


def test_states_that_the_model_writes_into_are_kept_as_they_were() -> None:
    model = Net()  # which doubles what its layer returned, in place
    (snap,) = asked(model, torch.randn(4, 9, 3))
    same_as_computed(snap)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_full(dtype: torch.dtype) -> None:
    for snap in lm.snapshot(nn.LSTM(3, 6, batch_first=True).to(dtype), torch.randn(4, 9, 3).to(dtype)):
        same_as_computed(snap)


# --- compiled loops -----------------------------------------------------------------------------------------


@pytest.fixture(params=["numba", "torch"])
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("LSTM_MONITOR_ENGINE", request.param)
    assert (choice.loops_for(torch.ones(1)) is None) == (request.param == "torch")
    assert choice.loops_for(torch.ones(1).double()) is None if request.param == "torch" else True
    return str(request.param)


@pytest.mark.parametrize(
    ("size", "count", "number", "steps"), [(1, 1, 1, 1), (5, 3, 2, 7), (64, 2, 1, 3), (130, 2, 3, 20)]
)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scale", [1.0, 8.0])
def test_one_way_back_in_float32(
    engine: str, kind: Kind, size: int, count: int, number: int, steps: int, scale: float
) -> None:
    torch.manual_seed(size)
    weights = weights_of(kind, size)
    inputs = torch.randn(steps, count, 3) * scale
    start = tuple(torch.randn(count, size).tanh() for _ in range(1 + (kind == "lstm")))
    direct = torch.randn(steps, number, count, size)
    end = tuple(torch.randn(number, count, size) for _ in start)
    lengths = torch.randint(1, steps + 1, (count,))
    direct *= (torch.arange(steps)[:, None] < lengths)[:, None, :, None]
    found = {}
    for double in (False, True):
        w = as_double(weights) if double else weights
        cast = [[v.double() if double else v for v in values] for values in ((inputs, direct), start, end)]
        hidden = run_fused(w, cast[0][0], tuple(cast[1]))[0]
        found[double] = reverse(w, cast[0][0], hidden, tuple(cast[1]), cast[0][1], tuple(cast[2]), lengths)
    largest = float(found[True].total.abs().max())
    for mine, exact in zip(found[False].start, found[True].start, strict=True):
        torch.testing.assert_close(mine.double(), exact, rtol=2e-4, atol=2e-6 * max(largest, 1))
    torch.testing.assert_close(found[False].total.double(), found[True].total, rtol=2e-4, atol=2e-6 * max(largest, 1))


def test_cell_states_are_those_of_the_scan(engine: str) -> None:
    weights, inputs, start = weights_of("lstm", 70), torch.randn(9, 4, 3), (torch.zeros(4, 70), torch.randn(4, 70))
    values = gate_values(weights, inputs, run_fused(weights, inputs, start)[0], start[0])
    expected = cell_of(named(weights, values), start[1])
    torch.testing.assert_close(cell_states(weights, values, start[1]), expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(cell_states(weights, values[:, :2], start[1][:2]), expected[:, :2], rtol=0, atol=1e-6)


def process(count: int, cells: int, steps: int) -> Tensor:
    """Slow, fast, still, diverged and ever rising cells ``(N, H, T)``."""
    keep = torch.linspace(0, 0.99, cells)[:, None]
    noise, y = torch.randn(count, cells, steps), torch.zeros(count, cells, steps)
    for t in range(1, steps):
        y[..., t] = keep[:, 0] * y[..., t - 1] + noise[..., t]
    y[:, 1], y[:, 2] = 0.25, torch.nan
    y[:, 3] = torch.arange(steps)
    return y


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("count", "cells", "steps"), [(3, 5, 60), (1, 130, 200), (16, 64, 30), (2, 4, 1)])
def test_autocorrelation_times_of_both_engines(
    monkeypatch: pytest.MonkeyPatch, masked: bool, count: int, cells: int, steps: int
) -> None:
    torch.manual_seed(cells)
    y = process(count, cells, steps)
    mask = torch.rand(count, steps) < 0.7 if masked else torch.ones(count, steps, dtype=torch.bool)
    mask[0, 0] = True
    monkeypatch.setenv("LSTM_MONITOR_ENGINE", "numba")
    assert choice.loops_for(y) is not None
    fast, fast_why = activity.autocorrelation_time_with_reason(y, mask)
    monkeypatch.setenv("LSTM_MONITOR_ENGINE", "torch")
    slow, slow_why = activity.autocorrelation_time_with_reason(y, mask)
    exact, why = activity.autocorrelation_time_with_reason(y.double(), mask)
    assert torch.equal(fast_why, why)
    assert torch.equal(slow_why, why)
    known = why == 0
    assert torch.equal(fast[known].double(), exact[known])
    assert torch.equal(slow[known].double(), exact[known])


def test_gates_of_a_snapshot_are_those_of_its_response() -> None:
    for kind in KINDS:
        (snap,) = lm.snapshot(Net(kind), torch.randn(4, 9, 3))
        full, plain = with_gates(snap), lm.respond(snap, snap.held_out, record=("gates",))  # type: ignore[arg-type]
        known = lm.respond(full, full.held_out, record=("gates",))  # type: ignore[arg-type]
        for name, gate in plain.gates.items():
            assert torch.equal(known.gates[name], gate)
