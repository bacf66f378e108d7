"""Ablation: exact against a naive unroll that silences cells after each step, and every bit back afterwards."""

from __future__ import annotations

import copy
import random
import sys
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from itertools import product
from types import FrameType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils.prune import random_unstructured
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from lstm_monitor.core import changes, undisturbed
from lstm_monitor.core.terms import LayerKey
from lstm_monitor.importance.removal import cells, weight_edits
from lstm_monitor.importance.removal import contexts as ablation
from lstm_monitor.importance.removal.contexts import ablated, thinned
from lstm_monitor.importance.replay.calls import Call, standing_in
from lstm_monitor.importance.replay.stages import run_module, whole
from lstm_monitor.layers import inner_calls
from lstm_monitor.layers.finding import find_layers
from lstm_monitor.snapshots.taking import snapshot

KINDS = ("LSTM", "GRU", "RNN", "RNN relu")
CELLS = ("LSTMCell", "GRUCell", "RNNCell", "RNNCell relu")
TOLERANCE = {torch.float64: 1e-15, torch.float32: 1e-6, torch.bfloat16: 2e-2}
"""Of bfloat16, whose numbers have 8 bits, a few roundings at each of 7 steps; what must be 0 is 0 in all three."""

Gone = Mapping[str, tuple[list[int], float]]


def build(kind: str, *args: Any, **options: Any) -> Any:
    name, _, nonlinearity = kind.partition(" ")
    return getattr(nn, name)(*args, **options, **({"nonlinearity": nonlinearity} if nonlinearity else {}))


# --- the oracle: one sequence, one step at a time, in float64 -------------------------------------------------


def weight(module: nn.Module, name: str, suffix: str) -> Any:
    value = getattr(module, name + suffix, None)
    return 0.0 if value is None else value.detach().double()


def step(module: nn.Module, suffix: str, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """One step: the hidden state ``(N, H)`` before a projection, and the cell state."""
    a = x @ weight(module, "weight_ih", suffix).T + weight(module, "bias_ih", suffix)
    b = h @ weight(module, "weight_hh", suffix).T + weight(module, "bias_hh", suffix)
    if isinstance(module, nn.LSTM | nn.LSTMCell):
        i, f, g, o = (a + b).chunk(4, -1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        return o.sigmoid() * c.tanh(), c
    if isinstance(module, nn.GRU | nn.GRUCell):
        (ar, az, an), (br, bz, bn) = a.chunk(3, -1), b.chunk(3, -1)
        r, z = (ar + br).sigmoid(), (az + bz).sigmoid()
        return (1 - z) * (an + r * bn).tanh() + z * h, c
    return ((a + b).relu() if module.nonlinearity == "relu" else (a + b).tanh()), c


def direction(module: nn.Module, suffix: str, xs: Tensor, start: list[Tensor], gone: Gone) -> list[Tensor]:
    """All steps ``xs (T, N, I)`` in one direction, cells silenced before the first and after each step; and the end."""
    numbers, value = gone.get(suffix, ([], 0.0))
    h, c = (state.double().clone() for state in start)
    c[:, numbers] = 0.0
    projected, outputs = hasattr(module, "weight_hr" + suffix), []
    if not projected:
        h[:, numbers] = value
    for x in xs.flip(0) if "reverse" in suffix else xs:
        h, c = step(module, suffix, x, h, c)
        h[:, numbers], c[:, numbers] = value, 0.0
        h = h @ weight(module, "weight_hr", suffix).T if projected else h
        outputs.append(h)
    steps = torch.stack(outputs)
    return [steps.flip(0) if "reverse" in suffix else steps, h, c]


def unroll(module: nn.Module, x: Tensor, states: list[Tensor], lengths: list[int], gone: Gone) -> list[Tensor]:
    """Output ``(T, N, W)``, zero beyond the lengths, and the final h and c, each ``(layers * directions, N, size)``."""
    if len(set(lengths)) > 1:  # each sequence by itself
        alone = [
            unroll(module, x[:length, [n]], [state[:, [n]] for state in states], [length], gone)
            for n, length in enumerate(lengths)
        ]
        return [torch.cat([nn.functional.pad(r[0], (0, 0, 0, 0, 0, len(x) - len(r[0]))) for r in alone], dim=1)] + [
            torch.cat([run[which] for run in alone], dim=1) for which in (1, 2)
        ]
    ways = ("", "_reverse") if module.bidirectional else ("",)
    xs, ends = x.double(), []
    for layer in range(module.num_layers):
        done = []
        for way in ways:
            start = [state[len(ends)] for state in states]
            done.append(direction(module, f"_l{layer}{way}", xs, start, gone))
            ends.append(done[-1][1:])
        xs = torch.cat([run[0] for run in done], dim=-1)
    return [xs, *(torch.stack([end[which] for end in ends]) for which in (0, 1))]


def tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, PackedSequence):
        return [pad_packed_sequence(value)[0]]
    return [tensor for part in value for tensor in tensors(part)]


def agree(got: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    for a, b in zip(got, expected, strict=False):  # the oracle gives a cell state for every kind
        torch.testing.assert_close(a.double(), b.double(), rtol=0, atol=tolerance)


def calls(module: Any, size: int) -> Iterator[tuple[tuple[Any, ...], Tensor, list[Tensor], list[int]]]:
    """Arguments in every form, with the inputs ``(T, N, I)``, states and lengths that they mean."""
    dtype, count = module.weight_ih_l0.dtype, module.num_layers * (1 + module.bidirectional)
    width = getattr(module, "proj_size", 0) or size
    x, lengths = torch.randn(7, 4, 3).to(dtype), [3, 7, 5, 7]
    states = [torch.randn(count, 4, width).to(dtype), torch.randn(count, 4, size).to(dtype)]
    zeros = [torch.zeros_like(state) for state in states]
    put = (lambda value: value.transpose(0, 1)) if module.batch_first else (lambda value: value)
    state: Callable[[list[Tensor]], Any] = lambda parts: tuple(parts) if isinstance(module, nn.LSTM) else parts[0]  # noqa: E731
    yield (put(x),), x, zeros, [7] * 4
    yield (put(x), state(states)), x, states, [7] * 4
    single = [part[:, 1] for part in states]
    yield (x[:, 1], state(single)), x[:, 1:2], [part[:, 1:2] for part in states], [7]
    if dtype != torch.bfloat16 or not isinstance(module, nn.LSTM):
        packed = pack_padded_sequence(put(x), torch.tensor(lengths), module.batch_first, enforce_sorted=False)
        yield (packed,), x, zeros, lengths
        yield (packed, state(states)), x, states, lengths


def removal(module: Any, value: float = 0.0) -> tuple[dict[str, list[int]], Gone]:
    """Some cells of every layer and direction, by layer name and by the ending of the parameter names."""
    ways = ("", "_reverse") if module.bidirectional else ("",)
    names = [f"l{layer}{way}" for layer in range(module.num_layers) for way in ways]
    chosen = {name: [(place + 1) % 5, (place + 3) % 5] for place, name in enumerate(names)}
    return chosen, {f"_{name}": (numbers, value) for name, numbers in chosen.items()}


# --- exactness --------------------------------------------------------------------------------------------


MATRIX = list(product(KINDS, (1, 2), (False, True), (False, True), (False, True), TOLERANCE))


@pytest.mark.sweep
@pytest.mark.parametrize(("kind", "layers", "both", "bias", "batch_first", "dtype"), MATRIX)
def test_zero_is_the_masked_unroll_in_every_form_of_call(
    kind: str, layers: int, both: bool, bias: bool, batch_first: bool, dtype: torch.dtype
) -> None:
    module = build(kind, 3, 5, layers, bias=bias, bidirectional=both, batch_first=batch_first).to(dtype).eval()
    chosen, gone = removal(module)
    for args, x, states, lengths in calls(module, 5):
        before = copy.deepcopy(args[1:])
        with torch.no_grad(), ablated(module, chosen):
            got = module(*args)
        for a, b in zip(tensors(args[1:]), tensors(before), strict=True):
            assert torch.equal(a, b), "the caller's states"
        out, *final = as_padded(module, got, args[0])
        agree([out, *final], unroll(module, x, states, lengths, gone), TOLERANCE[dtype])
        last = [f"_l{layers - 1}", f"_l{layers - 1}_reverse"][: 1 + both]
        for place, suffix in enumerate(last):
            assert (out[..., [5 * place + cell for cell in gone[suffix][0]]] == 0).all(), "exactly"
        for place, (numbers, _) in enumerate(gone.values()):
            assert all((part[place][:, numbers] == 0).all() for part in final), "exactly"


def as_padded(module: Any, got: Any, given: Any) -> list[Tensor]:
    out, *final = tensors(got)
    if isinstance(given, PackedSequence):
        return [out, *final]
    if given.dim() == 2:
        return [out[:, None], *(part[:, None] for part in final)]
    return [out.transpose(0, 1) if module.batch_first else out, *final]


PROJECTS = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
"""torch's own, of any such LSTM in float32."""


@PROJECTS
@pytest.mark.parametrize(
    ("layers", "both", "dtype"), list(product((1, 2), (False, True), (torch.float32, torch.float64)))
)
def test_projections_lose_the_unit_before_them(layers: int, both: bool, dtype: torch.dtype) -> None:
    module = nn.LSTM(3, 5, layers, proj_size=2, bidirectional=both, batch_first=True).to(dtype)
    chosen, gone = removal(module)
    for args, x, states, lengths in calls(module, 5):
        with torch.no_grad(), ablated(module, chosen):
            got = module(*args)
        agree(as_padded(module, got, args[0]), unroll(module, x, states, lengths, gone), TOLERANCE[dtype])


@pytest.mark.parametrize(("kind", "bias", "dtype"), list(product(CELLS, (False, True), TOLERANCE)))
def test_cells_step_by_step(kind: str, bias: bool, dtype: torch.dtype) -> None:
    module = build(kind, 3, 5, bias=bias).to(dtype)
    x, hidden, memory = torch.randn(6, 4, 3).to(dtype), *torch.randn(2, 4, 5).to(dtype)
    hx: Any = (hidden, memory) if kind == "LSTMCell" else hidden
    with torch.no_grad(), ablated(module, {"cell": [0, 3]}):
        states, got = hx, []
        for inputs in x:
            states = module(input=inputs, hx=states)
            got.append(tensors(states)[0])
    agree(
        [torch.stack(got)], direction(module, "", x.double(), [hidden, memory], {"": ([0, 3], 0.0)}), TOLERANCE[dtype]
    )
    assert (torch.stack(got)[..., [0, 3]] == 0).all()


@pytest.mark.parametrize(("kind", "both", "dtype"), list(product(KINDS, (False, True), TOLERANCE)))
def test_the_other_cells_are_those_of_a_network_that_does_not_read_the_removed_ones(
    kind: str, both: bool, dtype: torch.dtype
) -> None:
    module = build(kind, 3, 8, 2, bidirectional=both).to(dtype).eval()
    x = torch.randn(9, 4, 3).to(dtype)
    with torch.no_grad(), ablated(module, {"l0": [1, 6]}):
        got = tensors(module(x))
        deaf = copy.deepcopy(module)
        for name in ("weight_hh_l0", "weight_ih_l1", *(["weight_ih_l1_reverse"] if both else [])):
            getattr(deaf, name)[:, [1, 6]] = 0
        for a, b in zip(got, tensors(deaf(x)), strict=True):
            assert torch.equal(a, b), "bit for bit"


@pytest.mark.parametrize("kind", KINDS)
def test_carried_states_of_truncated_sequences(kind: str) -> None:
    module = build(kind, 3, 5, 2).double()
    x, states = torch.randn(12, 4, 3).double(), [torch.randn(2, 4, 5).double() for _ in range(2)]
    chosen, gone = removal(module)
    carried: Any = tuple(states) if kind == "LSTM" else states[0]
    outs = []
    with torch.no_grad(), ablated(module, chosen):
        for piece in x.split(4):
            out, carried = module(piece, carried)
            outs.append(out)
    agree([torch.cat(outs), *tensors(carried)], unroll(module, x, states, [12] * 4, gone), 1e-15)


MEANS = list(product(KINDS, (1, 2), (False, True), (False, True), (torch.float32, torch.float64)))


@pytest.mark.sweep
@pytest.mark.parametrize(("kind", "layers", "both", "bias", "dtype"), MEANS)
def test_mean_is_the_unroll_with_cells_that_stand_still(
    kind: str, layers: int, both: bool, bias: bool, dtype: torch.dtype
) -> None:
    module = build(kind, 3, 5, layers, bias=bias, bidirectional=both, batch_first=both).to(dtype)
    chosen, gone = removal(module, value=0.25)
    means = {name: torch.full((5,), 0.25) for name in chosen}
    for context in (ablated, thinned):
        for args, x, states, lengths in calls(module, 5):
            with torch.no_grad(), context(module, chosen, "mean", means=means):
                got = module(*args)
            tolerance = 1e-6 if dtype == torch.float32 else 1e-12
            agree(as_padded(module, got, args[0]), unroll(module, x, states, lengths, gone), tolerance)


@PROJECTS
@pytest.mark.parametrize(("mode", "dtype"), list(product(("zero", "mean"), (torch.float32, torch.float64))))
def test_thinned_projections_and_states_that_are_given(mode: Any, dtype: torch.dtype) -> None:
    module = nn.LSTM(3, 5, proj_size=2, bidirectional=True).to(dtype)
    value = 0.25 if mode == "mean" else 0.0
    means = {name: torch.full((5,), value) for name in ("l0", "l0_reverse")} if value else None
    chosen, gone = removal(module, value)
    for context in (thinned, ablated):
        for args, x, states, lengths in calls(module, 5):
            if len(args) == 1:  # no state is given: the removed cells start where they stand
                states[0] = torch.stack([weight(module, "weight_hr", s)[:, n].sum(1) * v for s, (n, v) in gone.items()])
                states[0] = states[0][:, None].expand(-1, 4, -1)
            with torch.no_grad(), context(module, chosen, mode, means=means):
                got = as_padded(module, module(*args), args[0])
            agree(got, unroll(module, x, states, lengths, gone), 1e-6 if dtype == torch.float32 else 1e-12)


@pytest.mark.sweep
@pytest.mark.parametrize(
    ("kind", "both", "bias", "dtype"), list(product(KINDS, (False, True), (False, True), TOLERANCE))
)
def test_thinned_is_ablated(kind: str, both: bool, bias: bool, dtype: torch.dtype) -> None:
    module = build(kind, 3, 5, 2, bias=bias, bidirectional=both).to(dtype).eval()
    chosen = {**removal(module)[0], "l1": [0, 1, 2, 3, 4]}
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-6, torch.bfloat16: 2e-2}[dtype]
    for args, *_ in calls(module, 5):
        with torch.no_grad():
            with ablated(module, chosen):
                expected = tensors(module(*args))
            with thinned(module, chosen):
                got = tensors(module(*args))
        agree(got, expected, tolerance)
        assert [part.dtype for part in got] == [part.dtype for part in expected]


def test_means_are_taken_on_held_out_data_of_which_only_some_steps_count() -> None:
    model, x = nn.Sequential(nn.GRU(3, 5, batch_first=True)), torch.randn(6, 9, 3)
    lengths = torch.tensor([9, 2, 5, 9, 1, 7])
    out, _ = model(x)
    with torch.no_grad(), ablated(model, {"0.l0": [2]}, "mean", held_out=x, lengths=lengths):
        got = model(x)[0][..., 2]
    mean = torch.cat([out[n, :length] for n, length in enumerate(lengths)]).mean(0)[2]
    torch.testing.assert_close(got, mean.expand(6, 9), rtol=0, atol=1e-6)


@pytest.mark.parametrize("mode", ["zero", "mean"])
def test_all_cells_of_a_layer(mode: Any) -> None:
    module, x = nn.LSTM(3, 5, 2), torch.randn(7, 4, 3)
    means = {"l1": torch.arange(5) / 10} if mode == "mean" else None
    for context in (ablated, thinned):
        with torch.no_grad(), context(module, {"l1": range(5)}, mode, means=means):
            out, (h, _) = module(x)
        expected = torch.zeros(5) if means is None else means["l1"]
        assert torch.equal(out, expected.expand(7, 4, 5))
        assert torch.equal(h[1], expected.expand(4, 5))


def test_every_way_to_name_cells() -> None:
    module, x = nn.GRU(3, 4), torch.randn(5, 2, 3)
    mask = torch.tensor([False, True, False, True])
    ways: list[Any] = [[1, 3], (3, 1, 3), {1, 3}, mask, mask.tolist(), np.array([1, 3]), torch.tensor([3, 1])]
    ways += [range(1, 4, 2), torch.tensor([1, 3], dtype=torch.int16), mask.numpy()]
    for way in ways:
        with torch.no_grad(), ablated(module, {"l0": way}):
            assert (module(x)[0] == 0).all(0).all(0).tolist() == mask.tolist(), way
    with ablated(module, {LayerKey(""): [1]}):  # type: ignore[dict-item]  # its text is the name
        assert (module(x)[0][..., 1] == 0).all()
    before = module(x)[0]
    nothing: list[Any] = [{}, {"l0": []}, {"l0": torch.tensor([])}, {"l0": torch.zeros(4, dtype=torch.bool)}]
    for none in nothing:
        with ablated(module, none):
            assert torch.equal(module(x)[0], before)


# --- modules that are not plain ------------------------------------------------------------------------------


class WeightDrop(nn.Module):
    """As AWD-LSTM's: the recurrent weight is a dropped copy of a raw parameter, made anew for each call."""

    def __init__(self, module: nn.Module, share: float) -> None:
        super().__init__()
        self.module, self.share = module, share
        raw = module.weight_hh_l0
        del module._parameters["weight_hh_l0"]
        self.raw = nn.Parameter(raw.detach().clone())
        self.set()

    def set(self) -> None:
        self.module.weight_hh_l0 = nn.functional.dropout(self.raw, self.share, self.training)

    def forward(self, *args: Any) -> Any:
        self.set()
        return self.module(*args)


def weight_normed() -> nn.Module:
    with pytest.warns(FutureWarning):
        return nn.utils.weight_norm(nn.LSTM(3, 5), "weight_hh_l0")


def hidden_cells(model: nn.Module) -> str:
    return "module.l0" if isinstance(model, WeightDrop) else "l0"


ODD: dict[str, Callable[[], nn.Module]] = {
    "weight norm by hook": weight_normed,
    "weight norm by parametrization": lambda: nn.utils.parametrizations.weight_norm(nn.LSTM(3, 5), "weight_hh_l0"),
    "orthogonal": lambda: nn.utils.parametrizations.orthogonal(nn.GRU(3, 5), "weight_ih_l0"),
    "spectral norm": lambda: nn.utils.parametrizations.spectral_norm(nn.RNN(3, 5), "weight_hh_l0").eval(),
    "torch's pruning": lambda: random_unstructured(nn.LSTM(3, 5), "weight_hh_l0", 0.3),
    "weight drop": lambda: WeightDrop(nn.LSTM(3, 5), 0.5).eval(),
    "weight drop, training": lambda: WeightDrop(nn.LSTM(3, 5), 0.5),
}


@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize("value", [0.0, 0.25])
def test_weights_that_are_computed_at_each_call(name: str, value: float) -> None:
    model, x = ODD[name](), torch.randn(7, 4, 3)
    inner_calls = model.module if isinstance(model, WeightDrop) else model
    cells_of = {hidden_cells(model): [1, 3]}
    means = {hidden_cells(model): torch.full((5,), value)} if value else None
    with torch.no_grad(), ablated(model, cells_of, "mean" if value else "zero", means=means):
        for parameter in model.parameters():
            parameter += 0.1  # weights are read at the call, not on entry
        got = tensors(model(x))
        states = [torch.zeros(1, 4, 5)] * 2
        agree(got, unroll(inner_calls, x, states, [7] * 4, {"_l0": ([1, 3], value)}), 1e-6)
        again = tensors(model(x))
    assert torch.equal(got[0], again[0]) != ("training" in name), "each call draws its own weights"
    assert "forward" not in vars(inner_calls)


def test_tied_weights_lose_cells_only_where_they_were_named() -> None:
    model = nn.ModuleDict({"a": nn.LSTM(3, 5), "b": nn.LSTM(3, 5), "c": nn.GRU(5, 5, 2)})
    model["b"].weight_hh_l0 = model["a"].weight_hh_l0
    model["c"].weight_hh_l1 = nn.Parameter(model["c"].weight_hh_l0.data[:])  # the same memory, another parameter
    x, y = torch.randn(7, 4, 3), torch.randn(7, 4, 5)
    with torch.no_grad():
        before = model["b"](x)[0]
        with ablated(model, {"a.l0": [1, 2], "c.l1": [0]}):
            assert torch.equal(model["b"](x)[0], before)
            states = [torch.zeros(2, 4, 5)] * 2
            agree(tensors(model["a"](x)), unroll(model["a"], x, states, [7] * 4, {"_l0": ([1, 2], 0.0)}), 1e-6)
            agree(tensors(model["c"](y)), unroll(model["c"], y, states, [7] * 4, {"_l1": ([0], 0.0)}), 1e-6)


def test_a_bias_that_is_one_number_for_all() -> None:
    module, x = nn.RNN(3, 5), torch.randn(7, 4, 3)
    module.bias_ih_l0 = nn.Parameter(torch.full((1,), 0.3).expand(5))
    states = [torch.zeros(1, 4, 5)] * 2
    expected = unroll(module, x, states, [7] * 4, {"_l0": ([1], 0.0)})
    with torch.no_grad(), ablated(module, {"l0": [1]}):
        agree(tensors(module(x)), expected, 1e-6)
    assert (module.bias_ih_l0 == 0.3).all()


def test_a_module_that_is_used_twice_is_ablated_twice() -> None:
    rnn = nn.LSTM(3, 3)
    model = nn.Sequential()
    model.add_module("first", rnn)
    model.add_module("second", rnn)
    with torch.no_grad(), ablated(model, {"first.l0": [1]}):
        assert (model.first(torch.randn(7, 4, 3))[0][..., 1] == 0).all()
        assert (model.second(torch.randn(7, 4, 3))[0][..., 1] == 0).all()


def test_compiled_models() -> None:
    class Loop(nn.Module):
        """A cell in a loop of its own, in compiled code, from a state that is not zero."""

        def __init__(self) -> None:
            super().__init__()
            self.cell = nn.GRUCell(3, 5)

        def forward(self, x: Tensor, h: Tensor) -> Tensor:
            for inputs in x:
                h = self.cell(inputs, h)
            return h

    model, x, h = Loop(), torch.randn(6, 4, 3), torch.randn(4, 5)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with torch.no_grad():
        before = compiled(x, h)
        for mode, means in (("zero", None), ("mean", {"cell": torch.zeros(5)})):
            with ablated(compiled, {"cell": [1, 3]}, mode, means=means):  # type: ignore[arg-type]
                assert (compiled(x, h)[:, [1, 3]] == 0).all()
                assert (compiled(x, h)[:, [0, 2, 4]] != 0).all()
        assert torch.equal(compiled(x, h), before)


def test_autocast_does_not_remember_other_weights() -> None:
    model, x, h = nn.GRUCell(3, 5), torch.randn(4, 3), torch.randn(4, 5)
    with torch.autocast("cpu", torch.bfloat16):
        before = model(x, h)
        with ablated(model, {"cell": [1]}):
            assert (model(x, h)[:, 1] == 0).all()
        assert torch.equal(model(x, h), before)


def test_hooks_of_the_user_that_give_a_state() -> None:
    module, x = nn.GRU(3, 5), torch.randn(7, 4, 3)
    module.register_forward_pre_hook(lambda _, args: (args[0], torch.ones(1, 4, 5)))
    with torch.no_grad(), ablated(module, {"l0": [1]}):
        assert (module(x)[0][..., 1] == 0).all()


def test_wrong_states_are_left_for_torch_to_refuse() -> None:
    with ablated(module := nn.GRU(3, 5), {"l0": [1]}):
        for wrong in (torch.zeros(1, 4, 6), torch.zeros(2, 4, 5)):
            with pytest.raises(RuntimeError, match="Expected hidden"):
                module(torch.randn(7, 4, 3), wrong)


# --- everything back, bit for bit ------------------------------------------------------------------------------


def everything(model: nn.Module) -> list[Any]:
    """All that must not change: every bit of memory, where it lies, counters, flags, attributes, random states."""
    found: list[Any] = [torch.get_rng_state().numpy().tobytes(), random.getstate(), np.random.get_state()[1].tobytes()]
    found += [dict(changes._OPEN), torch._dynamo.eval_frame._stance.stance]
    for module in model.modules():
        found += [type(module), {name: id(value) for name, value in vars(module).items()}]
        found += [list(module._forward_pre_hooks), list(module._forward_pre_hooks_with_kwargs)]
    for p in model.parameters():
        version = None if p.is_inference() else p._version
        grad = None if p.grad is None else (id(p.grad), p.grad.tolist())
        bits = p.detach().contiguous().view(torch.uint8).numpy().tobytes()
        found += [id(p), bits, p.data_ptr(), p.stride(), version, p.requires_grad, grad]
    return found


def network() -> nn.ModuleDict:
    model = nn.ModuleDict({"rnn": nn.LSTM(3, 5, 2, bidirectional=True), "cell": nn.GRUCell(10, 4)})
    model["rnn"].weight_ih_l0.requires_grad_(False)
    model["rnn"].weight_hh_l0.data = torch.randn(5, 20).T  # another layout
    model["rnn"].weight_hh_l0.data[0, 0] = -0.0
    model["cell"].bias_hh.grad = torch.ones(12)
    model["rnn"].eval()
    model["rnn"].register_forward_pre_hook(lambda *_: None)
    torch.compiler.set_stance("default")  # its module is imported once
    return model


MEANS_OF = {name: torch.full((size,), 0.25) for name, size in (("rnn.l0", 5), ("rnn.l1_reverse", 5), ("cell", 4))}
CONTEXTS: list[Callable[[nn.Module], AbstractContextManager[Any]]] = [
    lambda model: ablated(model, {"rnn.l0": [0, 3], "cell": [1]}),
    lambda model: ablated(model, {"rnn.l0": [3, 4], "rnn.l1_reverse": [2]}),
    lambda model: ablated(model, {"rnn.l0": [1, 3], "cell": [1, 2]}, "mean", means=MEANS_OF),
    lambda model: thinned(model, {"rnn.l1_reverse": [0, 1]}, "mean", means=MEANS_OF),
    lambda model: thinned(model, {"cell": [0]}),
]


class PlantedError(RuntimeError):
    """A failure inside."""


@pytest.mark.parametrize("error", [None, PlantedError, KeyboardInterrupt, SystemExit, GeneratorExit])
def test_every_bit_is_back_after_any_end(error: type[BaseException] | None) -> None:
    model = network()
    before = everything(model)
    for context in CONTEXTS:
        with nullcontext() if error is None else pytest.raises(error), context(model):
            assert everything(model) != before, "the check sees a change"
            if error is not None:
                raise error
        assert everything(model) == before


def test_a_generator_that_is_dropped() -> None:
    model = network()
    before = everything(model)

    def scores() -> Iterator[Any]:
        for context in CONTEXTS:
            with context(model):
                yield model

    running = scores()
    next(running)
    next(running)
    del running
    assert everything(model) == before


def test_inference_tensors_and_half_precision() -> None:
    for dtype in (torch.float16, torch.bfloat16):
        with torch.inference_mode():
            model = nn.ModuleDict({"cell": nn.LSTMCell(3, 5)}).to(dtype)
        before = everything(model)
        with ablated(model, {"cell": [1]}):
            assert (model["cell"].weight_ih[11] == 0).all()
            assert everything(model) != before
        assert everything(model) == before
        with torch.inference_mode(), ablated(plain := nn.LSTMCell(3, 5), {"cell": [1]}):
            assert (plain(torch.randn(2, 3))[0][:, 1] == 0).all()


ACTIONS = st.lists(st.tuples(st.sampled_from(range(len(CONTEXTS))), st.integers(0, 3)), max_size=10)


@settings(max_examples=60, deadline=None)
@given(ACTIONS)
def test_contexts_opened_and_left_in_any_order(actions: list[tuple[int, int]]) -> None:
    """Each action opens a context, and leaves one of those that are open, or none."""
    model, x = network(), torch.randn(3, 2, 3)
    before = everything(model)
    still = {
        0: [("l0", [0, 3])],
        1: [("l0", [3, 4]), ("l1_reverse", [2])],
        2: [("l0", [1, 3])],
        3: [("l1_reverse", [0, 1])],
    }
    opened: list[tuple[int, Any]] = []
    for which, leave in actions:
        context = CONTEXTS[which](model)
        context.__enter__()
        opened.append((which, context))
        if leave < len(opened):
            opened.pop(leave)[1].__exit__(None, None, None)
        with torch.no_grad():
            out = model["rnn"](x)[1][0]
        for name, numbers in (item for number, _ in opened for item in still.get(number, ())):
            final = out[("l0", "l0_reverse", "l1", "l1_reverse").index(name)][:, numbers]
            assert ((final == 0) | (final == 0.25)).all()
    for _, context in opened:
        context.__exit__(None, None, None)
    assert everything(model) == before


def test_nested_contexts_of_the_same_cells_keep_what_the_outer_one_set() -> None:
    model, x = nn.LSTM(3, 5), torch.randn(6, 2, 3)
    quarter, half = ({"l0": torch.full((5,), value)} for value in (0.25, 0.5))
    with torch.no_grad(), ablated(model, {"l0": [0, 1]}, "mean", means=quarter):
        with ablated(model, {"l0": [1, 2]}, "mean", means=half), ablated(model, {"l0": [2, 3]}):
            got = model(x)[0]
            assert torch.equal(got[..., :4], torch.tensor([0.25, 0.25, 0.5, 0.0]).expand(6, 2, 4))
            assert (got[..., 4] != 0).all()
        assert torch.equal(model(x)[0][..., :2], torch.full((6, 2, 2), 0.25))
        assert (model(x)[0][..., 2:] != 0).all()


# --- interrupts at every line ------------------------------------------------------------------------------


OURS = {module.__file__ for module in (ablation, cells, changes, undisturbed, inner_calls, weight_edits)}
with open(changes.__file__) as source:
    LINES = source.read().splitlines()
FIRST = LINES.index("    finally:") + 1
BETWEEN = range(FIRST, FIRST + 4)
"""The lines from ``finally:`` to ``try:``. They call nothing, so that Python runs no signal handler there."""


def interrupted_at(place: int, act: Callable[[], None]) -> bool:
    """Run `act` with one Ctrl-C at the `place`-th line of our own code that it comes to; False if it ended before."""
    count, before = 0, sys.gettrace()

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal count
        if frame.f_code.co_filename not in OURS or frame.f_code.co_name == "<genexpr>":
            return None
        if event in ("line", "call") and not (
            frame.f_code.co_filename == changes.__file__ and frame.f_lineno - 1 in BETWEEN and event == "line"
        ):
            count += 1
            if count == place:
                raise KeyboardInterrupt
        return trace

    sys.settrace(trace)
    try:
        act()
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(before)
    return count >= place


class Around(nn.LSTM):
    """Does something around torch's own forward."""

    def forward(self, input: Tensor, hx: Any = None) -> Any:
        return super().forward(input * 2, hx)


@pytest.mark.parametrize("stride", [7, pytest.param(1, marks=pytest.mark.thorough)])
@pytest.mark.parametrize("around", [False, True])
def test_an_interrupt_at_any_line_of_ours_leaves_nothing_behind(around: bool, stride: int) -> None:
    model, x = network(), torch.randn(2, 1, 3)
    if around:
        model["rnn"] = Around(3, 5, 2, bidirectional=True)
        with CONTEXTS[0](model):
            pass  # what is remembered of a class is made once
    before = everything(model)

    def act() -> None:
        with CONTEXTS[0](model), CONTEXTS[2](model), torch.no_grad():
            model["rnn"](x, (torch.ones(4, 1, 5), torch.ones(4, 1, 5)))

    place = 1
    while interrupted_at(place, act):
        assert everything(model) == before, f"interrupted at {place}"
        place += stride
    assert place > 300, place


# --- beside a training ---------------------------------------------------------------------------------------


def test_a_backward_pass_around_the_context_is_that_without_it() -> None:
    model, x = nn.LSTM(3, 5, 2), torch.randn(7, 4, 3)
    model(x)[0].square().sum().backward()
    expected = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    loss = model(x)[0].square().sum()
    with torch.no_grad(), ablated(model, {"l0": [1]}):
        model(x)
    loss.backward()
    for p, grad in zip(model.parameters(), expected, strict=True):
        assert p.grad is not None
        assert torch.equal(p.grad, grad)


def test_gradients_inside_are_those_of_the_ablated_network() -> None:
    model, x = nn.GRU(3, 5).double(), torch.randn(7, 4, 3).double()
    h0 = torch.randn(1, 4, 5).double().requires_grad_()
    with ablated(model, {"l0": [1]}):
        model(x, h0)[0].sum().backward()
    assert h0.grad is not None
    assert (h0.grad[..., 1] == 0).all()
    assert (h0.grad[..., 0] != 0).all()
    assert model.weight_ih_l0.grad is not None
    assert (model.weight_ih_l0.grad[11] != 0).any(), "a removed cell would come back if training went on"


def test_gradients_reach_what_lies_before_a_stand_in() -> None:
    model, x = nn.LSTM(3, 5), torch.randn(7, 4, 3, requires_grad=True)
    with thinned(model, {"l0": [1]}):
        model(x)[0].sum().backward()
    with ablated(model, {"l0": [1]}):
        (expected,) = torch.autograd.grad(model(x)[0].sum(), x)
    torch.testing.assert_close(x.grad, expected, rtol=0, atol=1e-6)


def test_modes_are_left_as_they_are_and_dropout_is_refused_where_it_would_be_lost() -> None:
    model, x = nn.LSTM(3, 5, 2, dropout=0.5), torch.randn(7, 4, 3)
    with ablated(model, {"l0": [1]}):
        assert model.training
        assert not torch.equal(model(x)[0], model(x)[0]), "it is drawn as ever"
    with thinned(model, {"l0": [1]}):
        with pytest.raises(ValueError, match=r"dropout=0.5 between its layers.* call model.eval"):
            model(x)
        model.eval()
        assert torch.equal(model(x)[0], model(x)[0])
    assert not model.training, "what the caller set inside stays"


def test_nothing_holds_the_model_afterwards() -> None:
    model = nn.LSTM(3, 5)
    for mode, means in (("zero", None), ("mean", {"l0": torch.zeros(5)})):
        with ablated(model, {"l0": [1]}, mode, means=means):  # type: ignore[arg-type]
            pass
    gone = weakref.ref(model)
    del model
    assert gone() is None


def test_a_model_can_be_looked_at_without_some_cells() -> None:
    model = nn.LSTM(3, 5)
    with ablated(model, {"l0": [1]}):
        (snap,) = snapshot(model, torch.randn(7, 4, 3))
    assert snap.held_out_hidden is not None
    assert (snap.held_out_hidden[..., 1] == 0).all()


# --- refusals --------------------------------------------------------------------------------------------------


class Own(nn.LSTM):
    """Computes something else."""

    def forward(self, input: Tensor, hx: Any = None) -> Any:
        return input * 2, hx


def spoiled(name: str, value: float) -> nn.Module:
    module = nn.LSTM(3, 5)
    getattr(module, name).data.view(-1)[7] = value
    return module


def replaced(tensor: Callable[[], Any]) -> nn.Module:
    module = nn.LSTM(3, 5)
    module.weight_ih_l0 = nn.Parameter(tensor(), requires_grad=False)
    return module


REFUSED: list[tuple[Any, Any, dict[str, Any], type[Exception], str]] = [
    (3, {}, {}, TypeError, "model=int is no torch.nn.Module"),
    (None, [3, 17], {}, TypeError, r"cells=\[3, 17\] is no mapping; .*'rnn.l0': \[3\]"),
    (None, {"l1": [3]}, {}, ValueError, "cells='l1' is not known. Did you mean 'l0'"),
    (None, {"l0": 3}, {}, ValueError, r"cells\['l0'\]=3 has shape \(\); give a list of cell numbers from 0 to 4"),
    (None, {"l0": "3"}, {}, TypeError, r"cells\['l0'\]='3' cannot be read"),
    (None, {"l0": [[1]]}, {}, ValueError, r"has shape \(1, 1\)"),
    (None, {"l0": [1.0]}, {}, TypeError, r"cells\['l0'\]=\[1.0\] holds no integers"),
    (None, {"l0": [True, False]}, {}, ValueError, "or a boolean mask of 5"),
    (None, {"l0": [0, 5, -1]}, {}, ValueError, r"cells\['l0'\] holds \[5, -1\]; the layer has the cells 0 to 4"),
    (None, {"l0": [1]}, {"mode": "zeros"}, ValueError, "mode='zeros' is not known. Did you mean 'zero'"),
    (None, {"l0": [1]}, {"mode": "mean"}, ValueError, "neither held_out= nor means= was given; give one"),
    (None, {"l0": [1]}, {"held_out": torch.ones(3, 2, 3)}, ValueError, "held_out= was given with mode='zero'"),
    (None, {"l0": [1]}, {"mode": "mean", "means": {}}, ValueError, "means holds nothing, but cells names 'l0'"),
    (None, {"l0": [1]}, {"mode": "mean", "means": {"l0": torch.ones(4)}}, ValueError, r"shape \(4,\); .* the 5 cells"),
    (None, {"l0": [1]}, {"mode": "mean", "means": {"l0": [float("nan")] * 5}}, ValueError, "holds NaN or infinite"),
    (spoiled("weight_hh_l0", float("nan")), {"l0": [1]}, {}, ValueError, "l0: 1 of 100 values of weight_hh_l0 are NaN"),
    (
        spoiled("bias_ih_l0", float("inf")),
        {"l0": [1]},
        {},
        ValueError,
        "l0: 1 of 20 values of bias_ih_l0 are NaN or inf",
    ),
    (Own(3, 5), {"l0": [1]}, {}, ValueError, r"'l0' cannot be ablated. the model \(Own\): its forward is overridden"),
    (nn.LSTM(3, 5, device="meta"), {"l0": [1]}, {}, TypeError, "l0: weight_ih_l0 is on the meta device"),
    (replaced(lambda: torch.ones(20, 3).to_sparse()), {"l0": [1]}, {}, TypeError, "layout torch.sparse_coo"),
    (replaced(lambda: torch.ones(20, 3).long()), {"l0": [1]}, {}, TypeError, "weight_ih_l0 is of torch.int64"),
]


@pytest.mark.parametrize(("model", "chosen", "options", "error", "words"), REFUSED)
def test_what_is_refused_and_how(
    model: Any, chosen: Any, options: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words), ablated(model or nn.LSTM(3, 5), chosen, **options):
        pass


def test_sharded_weights_are_refused() -> None:
    module = nn.LSTM(3, 5)
    module.weight_hh_l0.data = torch.ones(50)
    with pytest.raises(ValueError, match="its parts lie elsewhere"), ablated(module, {"l0": [1]}):
        pass


def test_weights_of_other_tensor_classes_are_refused() -> None:
    class Shard(Tensor):
        """Stands for any subclass that keeps its values elsewhere."""

    module = nn.LSTM(3, 5)
    module.weight_hh_l0 = nn.Parameter(module.weight_hh_l0.data.as_subclass(Shard))
    with pytest.raises(TypeError, match="weight_hh_l0 is a Shard"), ablated(module, {"l0": [1]}):
        pass


def test_a_module_that_something_else_computes_is_refused() -> None:
    module = nn.LSTM(3, 5)
    stages = whole(module, find_layers(module)[0])

    def stand(call: Call) -> Any:
        return run_module(call, stages)[:2]

    refused = pytest.raises(ValueError, match="its forward is overridden")
    with standing_in({module: stand}), refused, ablated(module, {"l0": [1]}):
        pass
