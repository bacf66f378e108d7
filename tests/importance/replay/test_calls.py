"""Modules computed from records of weights give what the modules themselves give."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from lstm_monitor.importance.replay.calls import Call, standing_in
from lstm_monitor.importance.replay.stages import run_module, whole, without
from lstm_monitor.layers.finding import find_layers

KINDS = ("LSTM", "GRU", "RNN")


def stand_in(module: nn.Module) -> Any:
    stages = whole(module, find_layers(module)[0])
    return {module: lambda call: run_module(call, stages)[:2]}


def flat(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, PackedSequence):
        return [value.data, value.batch_sizes]
    return [tensor for part in value for tensor in flat(part)]


def same(module: nn.Module, *args: Any) -> None:
    with torch.no_grad():
        expected = flat(module(*args))
        with standing_in(stand_in(module)):
            got = flat(module(*args))
    assert "forward" not in vars(module)
    for a, b in zip(expected, got, strict=True):
        torch.testing.assert_close(b, a, rtol=0, atol=1e-12 if a.dtype == torch.float64 else 1e-6)


@pytest.mark.parametrize(
    ("kind", "layers", "both", "bias", "batch_first"),
    list(product(KINDS, (1, 2), (False, True), (False, True), (False, True))),
)
def test_every_option_and_form_of_input(kind: str, layers: int, both: bool, bias: bool, batch_first: bool) -> None:
    module = getattr(nn, kind)(3, 5, layers, bias=bias, bidirectional=both, batch_first=batch_first).double().eval()
    count = layers * (1 + both)
    x = torch.randn(4, 7, 3).double() if batch_first else torch.randn(7, 4, 3).double()
    states = [torch.randn(count, 4, 5).double() for _ in range(2)]
    hx = tuple(states) if kind == "LSTM" else states[0]
    same(module, x)
    same(module, x, hx)
    single = tuple(state[:, 0] for state in states) if kind == "LSTM" else states[0][:, 0]
    same(module, torch.randn(7, 3).double(), single)
    lengths = torch.tensor([3, 7, 5, 7])
    packed = pack_padded_sequence(x, lengths, batch_first=batch_first, enforce_sorted=False)
    same(module, packed)
    same(module, packed, hx)


@pytest.mark.parametrize(("layers", "both"), [(1, False), (2, True)])
def test_projections(layers: int, both: bool) -> None:
    module = nn.LSTM(3, 6, layers, proj_size=2, bidirectional=both, batch_first=True).double()
    count = layers * (1 + both)
    x, hx = torch.randn(4, 7, 3).double(), (torch.randn(count, 4, 2).double(), torch.randn(count, 4, 6).double())
    same(module, x)
    same(module, x, hx)


@pytest.mark.parametrize("kind", ["LSTMCell", "GRUCell", "RNNCell"])
def test_cells(kind: str) -> None:
    module = getattr(nn, kind)(3, 5).double()
    hidden, memory = torch.randn(2, 4, 5).double()
    hx = (hidden, memory) if kind == "LSTMCell" else hidden
    same(module, torch.randn(4, 3).double())
    same(module, torch.randn(4, 3).double(), hx)
    same(module, torch.randn(3).double())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_outputs_have_the_type_of_the_inputs(dtype: torch.dtype) -> None:
    module, x = nn.LSTM(3, 5, 2).to(dtype), torch.randn(7, 4, 3).to(dtype)
    with torch.no_grad(), standing_in(stand_in(module)):
        out, (h, c) = module(x)
    assert (out.dtype, h.dtype, c.dtype) == (dtype, dtype, dtype)


def test_a_stand_in_computes_a_changed_network() -> None:
    module, x = nn.LSTM(3, 5), torch.randn(7, 4, 3)
    stages = whole(module, find_layers(module)[0])
    thin = [[without(stages[0][0], torch.tensor([1, 3]))]]
    with torch.no_grad(), standing_in({module: lambda call: run_module(call, thin)[:2]}):
        out, (h, c) = module(x)
    assert (out[..., [1, 3]] == 0).all()
    assert (h[..., [1, 3]] == 0).all()
    assert (c[..., [1, 3]] == 0).all()
    assert (out[..., [0, 2, 4]] != 0).all()


def test_the_module_is_as_before_after_an_interrupt() -> None:
    module, mine = nn.LSTM(3, 5), lambda *_: None
    vars(module)["forward"] = mine

    def interrupted(call: Call) -> Any:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), standing_in({module: interrupted}):
        module(torch.randn(2, 1, 3))
    assert vars(module)["forward"] is mine


def test_compiled_models_run_the_stand_in_too() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.LSTM(3, 5, batch_first=True))
    compiled = torch.compile(model, backend="eager")
    x = torch.randn(4, 7, 3)
    with torch.no_grad():
        before = compiled(x)[0]
        with standing_in({model[1]: lambda call: (call.inputs.new_ones(7, 4, 5), (torch.zeros(1, 4, 5),) * 2)}):
            assert (compiled(x)[0] == 1).all()
        assert torch.equal(compiled(x)[0], before)
