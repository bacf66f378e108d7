"""Cells registered by their step: the same numbers as torch's own where they compute the same, and what goes wrong."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

import lstm_monitor as lm
from lstm_monitor.core import distributed
from lstm_monitor.layers.finding import find_layers
from lstm_monitor.layers.registered import registry
from lstm_monitor.metrics.catalog import CATALOG
from lstm_monitor.monitor import distributed as monitor_distributed
from lstm_monitor.snapshots.taking import with_own_weights
from tests.helpers.custom_modules import (
    GATES,
    F,
    H,
    N,
    NormCell,
    OwnCell,
    OwnLayer,
    Reader,
    Stepper,
    T,
    start,
    step,
    torch_twin,
    weights,
)

KINDS = list(GATES)


@pytest.fixture(autouse=True)
def _forgotten() -> Iterator[None]:
    yield
    registry._REGISTERED.clear()


def same(one: lm.LayerReport, other: lm.LayerReport, within: float) -> None:
    """Every metric but gates and what needs a closed form, and the reasons why values are undefined."""
    left_out = ("gates", "linear") if "custom" in (one.kind, other.kind) else ("gates",)
    paths = [path for path in one.metrics.paths() if not path.startswith(left_out)]
    assert len(paths) == len([path for path in CATALOG if not path.startswith(left_out)])
    for path in paths:
        mine, theirs = one.metrics[path], other.metrics[path]
        assert torch.equal(mine.reasons, theirs.reasons), path
        if mine.name in ("peak_time", "dominant_frequency"):
            continue  # rounding decides between equals: the last samples of a creeping cell, the harmonics of a pulse
        assert torch.allclose(mine.values, theirs.values, rtol=100 * within, atol=within, equal_nan=True), path
    assert torch.allclose(one.trace.change, other.trace.change, atol=within)


@pytest.mark.sweep
@pytest.mark.parametrize("how", ["step", "weights"])
@pytest.mark.parametrize("form", ["cell", "layer"])
@pytest.mark.parametrize("kind", KINDS)
def test_same_numbers_as_torch(kind: str, form: str, how: str) -> None:
    torch.manual_seed(0)
    module: Any = (OwnCell if form == "cell" else OwnLayer)(kind).double()
    model = Stepper(module).double() if form == "cell" else Reader(module).double()
    twin = Reader(torch_twin(getattr(module, "cell", module))).double()
    twin.head.load_state_dict(model.head.state_dict())
    x = torch.randn(N, T, F, dtype=torch.float64)
    how_read = {"step": step, "state": start} if how == "step" else {"weights": weights}
    with lm.register_cell(type(module), **how_read):
        report = lm.characterize(model, held_out=x, rank_by="std_x_outgoing")
    name = "cell" if form == "cell" else "rnn"
    torchs = lm.characterize(twin, held_out=x, rank_by="std_x_outgoing")["rnn.l0"]
    same(report[name], torchs, 1e-12)
    if how == "weights":
        assert report[name].kind == kind
        for path in (path for path in torchs.metrics.paths() if path.startswith("gates")):
            assert torch.allclose(report[name].metrics[path].cells, torchs.metrics[path].cells, equal_nan=True), path
        assert torch.allclose(report[name].ranking.scores, torchs.ranking.scores)


@pytest.mark.parametrize(("dtype", "within"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize("kind", KINDS)
def test_same_responses(kind: str, dtype: torch.dtype, within: float) -> None:
    torch.manual_seed(0)
    model = Stepper(OwnCell(kind)).to(dtype)
    twin, x = torch_twin(model.cell), torch.randn(N, T, F, dtype=dtype)
    lm.register_cell(OwnCell, step=step, state=start)
    (mine,), (theirs,) = lm.snapshot(model, x), lm.snapshot(twin, x)
    assert torch.allclose(mine.held_out_hidden, theirs.held_out_hidden, atol=within)
    for mode in ("coupled", "alone"):
        for stimuli in (lm.default_stimuli(theirs)[:4], theirs.held_out):
            responses = [lm.respond(snap, stimuli, mode).hidden for snap in (mine, theirs)]
            assert torch.allclose(*responses, atol=within), mode


def test_groups_of_cells_that_run_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Stepper(NormCell())
    lm.register_cell(NormCell, step=step, state=start)
    (snap,) = lm.snapshot(model, torch.randn(N, T, F))
    steps = lm.default_stimuli(snap)[:2]
    whole = lm.respond(snap, steps, "alone").hidden
    monkeypatch.setattr("lstm_monitor.engines.registered.MOST_VALUES", 2 * H * 2)
    assert torch.allclose(lm.respond(snap, steps, "alone").hidden, whole, atol=1e-6)


def test_a_cell_goes_to_another_process_without_its_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """There the width of its inputs is known from what came: that process has no data."""
    lm.register_cell(NormCell, step=lambda cell, x, state: step(cell, x, state), state=start)
    model, x = Stepper(NormCell()), torch.randn(N, T, F)
    found = find_layers(model)
    whole = lm.snapshot(model, x, layers=found)
    sent = distributed._packed([monitor_distributed._bare(snap) for snap in whole])
    monkeypatch.setattr(monitor_distributed, "processes", lambda: 2)
    monkeypatch.setattr(monitor_distributed, "from_first", lambda make: distributed._unpacked(sent))
    (received,) = monitor_distributed.first_snapshots(lambda: (), partial(with_own_weights, model, found))
    for mode in ("coupled", "alone"):
        expected, got = (lm.respond(snap, lm.default_stimuli(snap)[:3], mode) for snap in (*whole, received))
        assert torch.equal(got.hidden, expected.hidden)


def test_layer_norm_lstm_in_train_mode_is_left_alone() -> None:
    model = Stepper(NormCell()).train()
    seen: list[Any] = []
    model.cell.register_forward_hook(lambda *call: seen.append(call))
    before = copy.deepcopy(model.state_dict())
    lm.register_cell(NormCell, step=step, state=start)
    states = torch.get_rng_state(), np.random.get_state()[1].copy()
    report = lm.characterize(model, held_out=torch.randn(N, T, F))
    moved = torch.get_rng_state()
    torch.set_rng_state(states[0])
    torch.randn(N, T, F)
    assert torch.equal(torch.get_rng_state(), moved)
    assert len(seen) == T  # the copy has no hooks of the user's: only the held-out run was seen
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert model.cell.training
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    layer = report["cell"]
    assert layer.kind == "custom"
    assert layer.ranking.name == "std_x_outgoing"
    assert "into head" in layer.ranking.words
    assert "registered" in layer.ranking.words
    assert not report.skipped


def test_gates_are_none_of_its() -> None:
    lm.register_cell(NormCell, step=step, state=start)
    for held_out, reason in ((torch.randn(N, T, F), "no such gate"), (None, "no held-out data")):
        lm.register_cell(NormCell, step=step, state=start, input_size=F)
        metrics = lm.characterize(Stepper(NormCell()), held_out=held_out)["cell"].metrics
        gates = [path for path in metrics.paths() if path.startswith("gates")]
        assert gates == ["gates/saturation", "gates/tau_f"]
        assert all(bool(metrics[path].cells.isnan().all()) for path in gates)
        assert all(reason in metrics[path].why_nan(0) for path in gates)


class Shared(nn.Module):
    """A cell whose state has a matrix for each unit, and a counter and a clock that belong to none."""

    def __init__(self) -> None:
        super().__init__()
        self.keys, self.values, self.hidden_size = nn.Linear(F, 4), nn.Linear(F, H), H

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
        memory, clock, count = state
        key = self.keys(x).softmax(1)
        memory = 0.9 * memory + self.values(x)[:, :, None] * key[:, None]
        clock = 0.5 * clock + key[:, :2]
        hidden = torch.tanh((memory * key[:, None]).sum(2) * (1 + clock.sum(1, keepdim=True)))
        return hidden, (memory, clock, count + 1)


def shared_state(cell: nn.Module, n: int) -> tuple[Tensor, Tensor, Tensor]:
    return torch.zeros(n, H, 4), torch.zeros(n, 2), torch.zeros(n, dtype=torch.long)


def test_state_with_matrices_and_shared_parts() -> None:
    lm.register_cell(Shared, step=lambda cell, x, s: cell(x, s), state=shared_state, input_size=F)
    model = nn.ModuleDict({"cell": Shared()})
    (snap,) = lm.snapshot(model)
    steps = lm.default_stimuli(snap)[:3]
    coupled, alone = (lm.respond(snap, steps, mode) for mode in ("coupled", "alone"))
    assert torch.allclose(coupled.hidden, alone.hidden, atol=1e-6)  # its cells do not read each other
    assert coupled.settled.all()


def test_given_states_and_calls_that_go_on() -> None:
    torch.manual_seed(0)
    cell = OwnCell("lstm").double()
    lm.register_cell(OwnCell, step=step, state=start)
    x, state = torch.randn(N, T, F).double(), tuple(torch.randn(N, H).double() for _ in "hc")

    def run(model: nn.Module, batch: Tensor) -> Tensor:
        now = state
        for column in batch.unbind(1):
            now = model["cell"](x=column, state=now)
        return now[0]

    (mine,) = lm.snapshot(nn.ModuleDict({"cell": cell}), x, forward=run)
    assert mine.held_out.inputs.shape == (N, T, F)
    assert torch.equal(mine.held_out.c0, state[1])
    twin = torch_twin(cell)
    (theirs,) = lm.snapshot(twin, x, forward=lambda model, batch: model(batch, tuple(s[None] for s in state)))
    assert torch.allclose(mine.held_out_hidden, theirs.held_out_hidden, atol=1e-12)


class Packing(nn.Module):
    """A layer that takes packed sequences, and gives packed ones back."""

    def __init__(self) -> None:
        super().__init__()
        self.own = OwnLayer("gru")

    def forward(self, packed: PackedSequence) -> PackedSequence:
        padded, lengths = pad_packed_sequence(packed, batch_first=True)
        return pack_padded_sequence(self.own(padded)[0], lengths, batch_first=True, enforce_sorted=False)


def test_packed_sequences() -> None:
    torch.manual_seed(0)
    model, x = Packing().double(), torch.randn(N, T, F).double()
    lengths = torch.tensor([T, 3, 5, T, 7, 9])
    packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    lm.register_cell(Packing, step=lambda m, x, s: step(m.own, x, s), state=lambda m, n: start(m.own, n))
    mine = lm.characterize(model, held_out=packed)["cell"]
    twin = lm.characterize(torch_twin(model.own.cell), held_out=packed)["l0"]
    same(mine, twin, 1e-12)


def test_sequences_with_time_first_are_told_by_the_check_of_outputs() -> None:
    torch.manual_seed(0)

    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.own, self.hidden_size = OwnLayer("gru"), H

        def forward(self, x: Tensor) -> Tensor:
            return self.own(x)[0]

    def one(module: Any, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        return step(module.own, x, state)

    x, model = torch.randn(N, T, F), Plain()
    lm.register_cell(Plain, step=one)
    with pytest.raises(ValueError, match=r"differ by up to 0\.\d+, of values up to .*batch_first="):
        lm.characterize(model, held_out=x)
    lm.register_cell(Plain, step=one, batch_first=True)
    assert lm.characterize(model, held_out=x)["cell"].hidden_size == H
    lm.register_cell(Plain, step=lambda m, x, s: (2 * one(m, x, s)[0], one(m, x, s)[1]), batch_first=True)
    with pytest.raises(ValueError, match="step= registered for Plain does not give what the module puts out"):
        lm.characterize(model, held_out=x)
    lm.register_cell(Plain, step=lambda m, x, s: (2 * one(m, x, s)[0], s), batch_first=True, verify=False)
    lm.characterize(model, held_out=x)


def test_weight_norm_and_tensors_in_the_middle_of_a_graph_are_copied() -> None:
    cell = OwnCell("gru")
    parametrizations.weight_norm(cell.from_h)
    model = Stepper(cell)
    cell.last = model(torch.randn(N, T, F))  # has a graph: deepcopy alone would refuse it
    lm.register_cell(OwnCell, step=step)
    assert lm.characterize(model, held_out=torch.randn(N, T, F))["cell"].hidden_size == H


def test_half_precision_is_computed_in_single() -> None:
    model = Stepper(OwnCell("gru")).bfloat16()
    lm.register_cell(OwnCell, step=step)
    report = lm.characterize(model, held_out=torch.randn(N, T, F).bfloat16())
    assert report["cell"].metrics["activity/std"].cells.dtype == torch.float32


def test_a_snapshot_is_its_own() -> None:
    model = Stepper(OwnCell("gru"))
    lm.register_cell(OwnCell, step=step)
    (snap,) = lm.snapshot(model, torch.randn(N, T, F))
    steps = lm.default_stimuli(snap)[:2]
    before = lm.respond(snap, steps).hidden
    with torch.no_grad():
        model.cell.from_h.weight.zero_()
    assert torch.equal(lm.respond(snap, steps).hidden, before)
    assert "CellWeights" in repr(snap)
    assert "OwnCell" in repr(snap.weights)
    again = pickle.loads(pickle.dumps(snap))
    assert torch.equal(lm.respond(again, steps).hidden, before)


def test_monitored_training_is_untouched_and_resumes() -> None:
    lm.register_cell(NormCell, step=step, state=start)
    x, y = torch.randn(N, T, F), torch.randn(N, 1)

    def train(monitored: bool) -> tuple[nn.Module, lm.LSTMMonitor | None]:
        torch.manual_seed(1)
        model = Stepper(NormCell())
        optimizer = torch.optim.Adam(model.parameters(), 0.01)
        monitor = lm.LSTMMonitor(model, x, every_n_steps=2, budget=None, on_error="raise") if monitored else None
        if monitor is not None:
            monitor.on_train_begin()
        for i in range(4):
            optimizer.zero_grad()
            nn.functional.mse_loss(model(x), y).backward()
            optimizer.step()
            if monitor is not None:
                monitor.on_train_batch_end(i)
        return model, monitor

    (plain, _), (model, monitor) = train(False), train(True)
    assert monitor is not None
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), model.parameters(), strict=True))
    assert monitor.checks == 3
    assert monitor.report["cell"].drift
    again = lm.LSTMMonitor(model, x, on_error="raise")
    again.load_state_dict(monitor.state_dict())
    assert again.check()["cell"].previous.tau == pytest.approx(1)
    assert monitor.report["cell"].rank_history.ranks.shape == (3, H)


def test_a_failing_step_is_one_warning() -> None:
    def fail(cell: nn.Module, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        raise RuntimeError("planted")

    lm.register_cell(OwnCell, step=fail)
    monitor = lm.LSTMMonitor(Stepper(OwnCell("gru")), torch.randn(N, T, F), every_n_steps=1, budget=None)
    with pytest.warns(lm.MonitorWarning, match=r"step= registered for OwnCell failed.*planted"):
        monitor.on_train_begin()
    monitor.on_train_batch_end(0)  # a second warning would be an error


def test_beside_torchs_own_layers() -> None:
    """Rankings and studies go on for the others; the registered one is left out, and refused where it is named."""
    torch.manual_seed(0)
    model = nn.Sequential(OwnLayer("gru"), Firsts(), nn.LSTM(H, 4, batch_first=True), Firsts(), nn.Linear(4, 1))
    x = torch.randn(N, T, F)
    lm.register_cell(OwnLayer, step=lambda m, x, s: step(m.cell, x, s))
    report = lm.characterize(model, held_out=x)
    assert [str(layer.key) for layer in report.layers] == ["0", "2.l0"]
    assert report["2.l0"].ranking.name == "output_sensitivity"
    assert report["0"].ranking.name == "std_x_outgoing"
    assert "into 2" in report["0"].ranking.words
    assert [str(layer.key) for layer in lm.ablation_study(model, held_out=x, rankings=["auto"]).layers] == ["2.l0"]
    with pytest.raises(ValueError, match="registered by register_cell"):
        lm.ablation_study(model, held_out=x, layers="0")
    with (
        pytest.raises(ValueError, match="'0' cannot be ablated.*registered by register_cell"),
        lm.ablated(model, {"0": [1]}),
    ):
        pass
    with lm.ablated(model, {"2.l0": [1]}):
        model(x)


class Firsts(nn.Module):
    def forward(self, pair: tuple[Tensor, Any]) -> Tensor:
        return pair[0]


def wrong_shape(cell: nn.Module, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    return state[0], state


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"step": wrong_shape}, r"returned hidden \(5,\); it must return a tensor \(N, H\)"),
        ({"step": lambda cell, x, s: s}, "must return \\(hidden, new_state\\)"),
        ({"step": lambda cell, x, s: (s, s[:, :2])}, r"was given the state \(1, 5\) and returned \(1, 2\)"),
        ({"step": lambda cell, x, s: (s[:, :2], s)}, r"hidden is \(N, 2\), but no part of the state, \('N', 5\)"),
        ({"step": step, "state": lambda cell, n: torch.zeros(5)}, r"returned \[\(5,\)\] for n=1"),
        ({"step": step, "state": lambda cell, n: None}, "returned"),
        ({"step": step, "state": lambda cell, n: 1 / 0}, "state= registered for OwnCell failed: ZeroDivisionError"),
        ({"step": step, "input_size": 7}, r"input_size=7\), but it received 3 features"),
    ],
)
def test_a_wrong_step_is_told(options: dict[str, Any], message: str) -> None:
    lm.register_cell(OwnCell, **options)
    with pytest.raises(ValueError, match=message):
        lm.characterize(Stepper(OwnCell("gru")), held_out=torch.randn(N, T, F))


def test_what_is_not_known_of_a_cell() -> None:
    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.own = OwnCell("gru")

        def forward(self, x: Tensor, state: Tensor) -> Tensor:
            return self.own(x, state)

    model = nn.ModuleDict({"cell": Bare()})
    lm.register_cell(Bare, step=lambda cell, x, s: 2 * (cell(x, s),))
    with pytest.raises(ValueError, match=r"not known how many features it reads; .*register_cell\(input_size=...\)"):
        lm.characterize(model)
    lm.register_cell(Bare, step=lambda cell, x, s: 2 * (cell(x, s),), input_size=F)
    with pytest.raises(ValueError, match="Bare has no hidden_size, state_size, units; give register_cell"):
        lm.characterize(model)


def test_nonfinite_and_uncopyable_cells() -> None:
    lm.register_cell(OwnCell, step=step)
    model = Stepper(OwnCell("gru"))
    model.cell.stream = (one for one in "ab")
    with pytest.raises(TypeError, match="OwnCell cannot be copied.*generator"):
        lm.characterize(model)
    del model.cell.stream
    with torch.no_grad():
        model.cell.from_h.bias[0] = torch.nan
    with pytest.raises(ValueError, match=r"cell: 1 of 15 values of from_h.bias are NaN or infinite"):
        lm.characterize(model)
