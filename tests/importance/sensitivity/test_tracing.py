"""Derivatives by every hidden state equal those of a naive unroll by autograd, in every kind of model."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from lstm_monitor.core.undisturbed import undisturbed
from lstm_monitor.importance.replay.stages import Part, silenced, whole, without
from lstm_monitor.importance.sensitivity import tracing
from lstm_monitor.importance.sensitivity.tracing import pull, trace
from lstm_monitor.layers.finding import find_layers
from lstm_monitor.snapshots.outputs import output_tensor
from lstm_monitor.snapshots.runs import runs_of
from tests.helpers.unrolls import key_of, unrolled

KINDS = ("LSTM", "GRU", "tanh", "relu")
Derivatives = dict[tuple[str, int], Tensor]


def recurrent(kind: str, *args: Any, cell: bool = False, **options: Any) -> nn.Module:
    name = "RNN" if kind in ("tanh", "relu") else kind
    if name == "RNN":
        options["nonlinearity"] = kind
    return getattr(nn, name + ("Cell" if cell else ""))(*args, **options)


def ours(model: nn.Module, batch: Any, vectors: Tensor, rows: dict[int, int] | None = None) -> Derivatives:
    """By layer and call, the total derivatives ``(V, n, T, H)``."""
    layers = find_layers(model)
    stages = {layer.module: whole(layer.module, layer) for layer in layers}
    found = {}
    with undisturbed(model):
        done = trace(model, runs_of(model, layers, batch)[0], stages)
        for traced, run, total in pull(done, done.outputs()[0], vectors, rows or {}):
            found[str(run.part.layer.key), traced.ordinal] = total.permute(1, 2, 0, 3)
    return found


def naive(model: nn.Module, names: tuple[str, ...], batch: Any, vectors: Tensor) -> Derivatives:
    twin, made = unrolled(model, *names)
    output = output_tensor(twin(*batch) if isinstance(batch, tuple) else twin(batch))
    places = [(name, seen) for name, module in made.items() for seen in module.seen]
    leaves = [seen.nudge for _, seen in places]
    found: Derivatives = {}
    for v, vector in enumerate(vectors):
        grads = torch.autograd.grad(output, leaves, vector, retain_graph=True, allow_unused=True)
        for (name, seen), grad in zip(places, grads, strict=True):
            key = (key_of(name, seen), seen.call)
            if key not in found:
                mine = [item for other, item in places if (key_of(other, item), item.call) == key]
                shape = (max(item.sequence for item in mine) + 1, max(item.read for item in mine) + 1)
                found[key] = torch.zeros(len(vectors), *shape, len(seen.value), dtype=torch.float64)
            if grad is not None:
                found[key][v, seen.sequence, seen.read] = grad
    return found


def same(model: nn.Module, names: tuple[str, ...], batch: Any, count: int = 2) -> None:
    model.double().eval()
    with torch.no_grad():
        shape = output_tensor(model(*batch) if isinstance(batch, tuple) else model(batch)).shape
    vectors = torch.randn(count, *shape, dtype=torch.float64)
    expected, got = naive(model, names, batch, vectors), ours(model, batch, vectors)
    assert any(float(values.abs().max()) > 1e-6 for values in expected.values())
    for key, values in expected.items():
        if key in got:
            torch.testing.assert_close(got[key], values, rtol=1e-8, atol=1e-12)
        else:
            assert not values.any(), f"{key} was not reached"
    assert got.keys() <= expected.keys()


class Reader(nn.Module):
    """One module; the output is read from every step and from the final state."""

    def __init__(self, rnn: nn.Module, width: int) -> None:
        super().__init__()
        self.before = nn.Linear(3, 3)
        self.rnn = rnn
        self.readout = nn.Linear(width, 2)

    def forward(self, x: Any, lengths: Any = None, *hx: Tensor) -> Tensor:
        state = None if not hx else hx if len(hx) > 1 else hx[0]
        x = self.before(x).tanh()
        if lengths is not None:
            x = pack_padded_sequence(x, lengths, batch_first=self.rnn.batch_first, enforce_sorted=False)
        out, final = self.rnn(x, state)
        if lengths is not None:
            out = pad_packed_sequence(out, batch_first=self.rnn.batch_first)[0]
        finals = sum(part.square().sum() for part in (final if isinstance(final, tuple) else (final,)))
        return self.readout(out).tanh() + finals


@pytest.mark.sweep
@pytest.mark.parametrize(
    ("kind", "layers", "both", "bias", "batch_first"),
    list(product(KINDS, (1, 2), (False, True), (False, True), (False, True))),
)
def test_every_option_and_form_of_input(kind: str, layers: int, both: bool, bias: bool, batch_first: bool) -> None:
    rnn = recurrent(kind, 3, 4, layers, bias=bias, bidirectional=both, batch_first=batch_first)
    model, count = Reader(rnn, 4 * (1 + both)), layers * (1 + both)
    x = torch.randn(3, 5, 3).double() if batch_first else torch.randn(5, 3, 3).double()
    states = tuple(torch.randn(1 + (kind == "LSTM"), count, 3, 4).double())
    lengths = torch.tensor([2, 5, 4])
    same(model, ("rnn",), x)
    same(model, ("rnn",), (x, None, *states))
    same(model, ("rnn",), (x, lengths))
    same(model, ("rnn",), (x, lengths, *states))


@pytest.mark.parametrize(("layers", "both"), [(1, False), (2, True)])
def test_projections(layers: int, both: bool) -> None:
    rnn = nn.LSTM(3, 5, layers, proj_size=2, bidirectional=both, batch_first=True)
    states = (torch.randn(layers * (1 + both), 3, 2).double(), torch.randn(layers * (1 + both), 3, 5).double())
    model, x = Reader(rnn, 2 * (1 + both)), torch.randn(3, 5, 3).double()
    same(model, ("rnn",), x)
    same(model, ("rnn",), (x, torch.tensor([2, 5, 4]), *states))


class Cells(nn.Module):
    """Two cells over time, the second reading the first; the last output is fed back in."""

    def __init__(self, kind: str, feed_back: bool) -> None:
        super().__init__()
        self.low, self.high = recurrent(kind, 3, 4, cell=True), recurrent(kind, 4, 4, cell=True)
        self.readout = nn.Linear(4, 3)
        self.feed_back = feed_back

    def forward(self, x: Tensor) -> Tensor:
        a = b = None
        outputs: list[Tensor] = []
        for step in x.unbind(1):
            a = self.low(step + outputs[-1] if self.feed_back and outputs else step, a)
            b = self.high(a[0] if isinstance(a, tuple) else a, b)
            outputs.append(self.readout(b[0] if isinstance(b, tuple) else b).tanh())
        return torch.stack(outputs, 1)


@pytest.mark.parametrize(("kind", "feed_back"), list(product(KINDS, (False, True))))
def test_cells_that_are_called_at_each_step(kind: str, feed_back: bool) -> None:
    same(Cells(kind, feed_back), ("low", "high"), torch.randn(2, 4, 3).double())


def test_a_cell_on_a_single_sequence() -> None:
    model = nn.Sequential()
    model.rnn = nn.LSTMCell(3, 4)
    model.forward = lambda x: model.rnn(x[1], model.rnn(x[0]))[0]  # type: ignore[method-assign]
    model.double()
    got = ours(model, torch.randn(2, 3).double(), torch.eye(4).double())
    torch.testing.assert_close(got["rnn", 1][:, 0, 0], torch.eye(4).double())
    assert got["rnn", 0].abs().sum() > 0


class SequenceToSequence(nn.Module):
    """An encoder's state starts a decoder that reads its own output and attends to the encoder."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.encoder = recurrent(kind, 3, 4, 2, bidirectional=True, batch_first=True)
        self.decoder = recurrent(kind, 2 + 8, 4, 4, batch_first=True)
        self.readout = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> dict[str, Any]:
        seen, state = self.encoder(x)
        token, tokens = x.new_ones(len(x), 1, 2), []
        for _ in range(3):
            scores = (seen[..., :4] * token.mean(-1, keepdim=True)).sum(-1).softmax(-1)
            context = (scores[..., None] * seen).sum(1, keepdim=True)
            out, state = self.decoder(torch.cat([token, context], -1), state)
            token = self.readout(out).sigmoid()
            tokens.append(token)
        return {"steps": 3, "tokens": torch.cat(tokens, 1)}


@pytest.mark.parametrize("kind", KINDS)
def test_a_decoder_fed_with_its_own_output(kind: str) -> None:
    same(SequenceToSequence(kind), ("encoder", "decoder"), torch.randn(2, 4, 3).double())


class Chunked(nn.Module):
    """The state is carried over chunks of time; the input of a later chunk depends on the one before."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.rnn = nn.LSTM(3, 4, 2, batch_first=True, **options)

    def forward(self, x: Tensor) -> Tensor:
        first, state = self.rnn(x[:, :2])
        state = tuple(part.flip(-1) * 0.5 for part in state)
        second, state = self.rnn(x[:, 2:] + first.mean((1, 2), keepdim=True), state)
        second += 1  # written into, which a leaf would refuse
        return torch.cat([first, second], 1)


def test_states_carried_from_call_to_call() -> None:
    same(Chunked(), ("rnn",), torch.randn(3, 5, 3).double())
    same(Chunked(proj_size=2), ("rnn",), torch.randn(3, 5, 3).double())


@pytest.mark.parametrize("cut", [without, silenced])
def test_states_of_removed_cells_are_not_carried(cut: Callable[..., Part]) -> None:
    """A cell that was removed starts at 0, whatever state it is given: cut out and silenced, the others agree."""
    model, vectors = Chunked().double(), torch.randn(2, 3, 5, 4).double()
    batch, layers, gone = torch.randn(3, 5, 3).double(), find_layers(model), torch.tensor([1, 3])
    stages = whole(model.rnn, layers[0])
    stages[0][0] = cut(stages[0][0], gone)
    with undisturbed(model):
        done = trace(model, runs_of(model, layers, batch)[0], {model.rnn: stages})
        pulled = list(pull(done, done.outputs()[0], vectors, {}))
    model.register_buffer("keep", torch.ones(4).double().index_fill(0, gone, 0))
    twin, made = unrolled(model, "rnn")
    for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
        getattr(made["rnn"].inner, f"{name}_l0").data[8 + gone] = 0
    twin.forward = lambda x: _chunks_held(made["rnn"], x, twin.keep)  # type: ignore[method-assign]
    output = twin(batch)
    for traced, run, total in pulled:
        seen = [s for s in made["rnn"].seen if s.call == traced.ordinal and f"rnn.{s.layer}" == str(run.part.layer.key)]
        grads = torch.autograd.grad(output, [s.nudge for s in seen], vectors[0], retain_graph=True)
        for state, grad in zip(seen, grads, strict=True):
            mine = total[state.read, 0, state.sequence]
            kept = [0, 2] if state.layer == "l0" else [0, 1, 2, 3]
            torch.testing.assert_close(
                mine if len(mine) == len(kept) else mine[kept], grad[kept], rtol=1e-8, atol=1e-12
            )


def _chunks_held(rnn: nn.Module, x: Tensor, keep: Tensor) -> Tensor:
    """What Chunked does, with the removed cells of the first layer held at 0 in the state that is carried."""
    masks = torch.stack([keep, torch.ones_like(keep)])[:, None]
    first, state = rnn(x[:, :2])
    second, _ = rnn(x[:, 2:] + first.mean((1, 2), keepdim=True), tuple(part.flip(-1) * 0.5 * masks for part in state))
    return torch.cat([first, second + 1], 1)


class Twins(nn.Module):
    """One module on two streams with different numbers of rows; a second one is never read."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.idle = nn.GRU(3, 4, batch_first=True), nn.GRU(3, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        self.idle(x)
        words = self.rnn(x.reshape(-1, 2, 3))[1][0].reshape(len(x), -1, 4)
        return self.rnn(words[..., :3] + x[:, ::2])[0].sum((1, 2))


def test_shared_modules_and_calls_with_more_rows() -> None:
    same(Twins(), ("rnn", "idle"), torch.randn(3, 4, 3).double())


@settings(max_examples=25, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    sizes=st.tuples(*[st.integers(1, 4)] * 5),
    both=st.booleans(),
    data=st.data(),
)
def test_random_sizes(kind: str, sizes: tuple[int, ...], both: bool, data: st.DataObject) -> None:
    count, steps, hidden, layers, vectors = sizes
    lengths = data.draw(st.lists(st.integers(1, steps), min_size=count, max_size=count))
    torch.manual_seed(data.draw(st.integers(0, 99)))
    rnn = recurrent(kind, 3, hidden, layers, bidirectional=both, batch_first=True)
    x = torch.randn(count, steps, 3).double()
    same(Reader(rnn, hidden * (1 + both)), ("rnn",), (x, torch.tensor(lengths)), vectors)


def test_only_the_first_rows_are_followed_where_that_is_asked() -> None:
    model, x = SequenceToSequence("LSTM").double(), torch.randn(5, 4, 3).double()
    vectors = torch.randn(3, 5, 3, 2).double()
    full, part = ours(model, x, vectors), ours(model, x, vectors, {5: 2})
    assert full.keys() == part.keys()
    for key, values in full.items():
        assert part[key].shape[1] == 2
        torch.testing.assert_close(part[key], values[:, :2], rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("cut", [without, silenced])
@pytest.mark.parametrize("gone", [[1, 3], [0, 1, 2, 3, 4]])
def test_a_network_without_some_cells(cut: Callable[..., Part], gone: list[int]) -> None:
    """The removed cells held at 0 in the naive unroll by a mask after each step."""
    rnn = nn.LSTM(3, 5, 2, proj_size=2, bidirectional=True, batch_first=True)
    model, batch = Reader(rnn, 4).double(), torch.randn(3, 5, 3).double()
    stages = whole(rnn, find_layers(model)[0])
    stages[0][1] = cut(stages[0][1], torch.tensor(gone))
    vectors = torch.randn(2, 3, 5, 2).double()
    with undisturbed(model):
        done = trace(model, runs_of(model, find_layers(model), batch)[0], {rnn: stages})
        got = {str(run.part.layer.key): total for _, run, total in pull(done, done.outputs()[0], vectors, {})}
    with torch.no_grad():  # the same by zero rows of the candidate, in the oracle's weights
        for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
            getattr(rnn, f"{name}_l0_reverse")[[10 + cell for cell in gone]] = 0
    expected = naive(model, ("rnn",), batch, vectors)
    kept = [cell for cell in range(5) if cell not in gone]
    for (name, _), values in expected.items():
        mine = got[name].permute(1, 2, 0, 3)
        if name == "rnn.l0_reverse":
            mine, values = mine if mine.shape[-1] == len(kept) else mine[..., kept], values[..., kept]
        torch.testing.assert_close(mine, values, rtol=1e-8, atol=1e-12)


def test_low_precision_models_are_followed_in_float32() -> None:
    model = Reader(nn.LSTM(3, 4, 2, batch_first=True), 4)
    x, vectors = torch.randn(3, 5, 3), torch.randn(1, 3, 5, 2)
    exact = ours(model, x, vectors)
    rough = ours(model.bfloat16(), x.bfloat16(), vectors)
    for key, values in exact.items():
        assert rough[key].dtype == torch.float32
        torch.testing.assert_close(rough[key], values, rtol=0.1, atol=0.1)


def test_a_planted_fault_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    real = tracing.through

    def faulty(*args: Any, **options: Any) -> Any:
        totals, back = real(*args, **options)
        return [(run, total * 1.000001) for run, total in totals], back

    monkeypatch.setattr(tracing, "through", faulty)
    with pytest.raises(AssertionError):
        same(Chunked(), ("rnn",), torch.randn(3, 5, 3).double())
