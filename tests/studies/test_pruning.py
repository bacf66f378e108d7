"""The pruned model computes what the whole one does with its other cells held at zero, and is really smaller."""

import copy
import importlib
import io
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence, pad_packed_sequence

import lstm_monitor as lm
from lstm_monitor.studies.pruning.pruning import prune
from lstm_monitor.studies.pruning.torch_layers import ThinCell, ThinRecurrent

KINDS = {
    "lstm": (nn.LSTM, {}),
    "gru": (nn.GRU, {}),
    "tanh": (nn.RNN, {"nonlinearity": "tanh"}),
    "relu": (nn.RNN, {"nonlinearity": "relu"}),
    "projected": (nn.LSTM, {"proj_size": 2}),
}
CELL_KINDS = {
    "lstm": (nn.LSTMCell, {}),
    "gru": (nn.GRUCell, {}),
    "tanh": (nn.RNNCell, {"nonlinearity": "tanh"}),
    "relu": (nn.RNNCell, {"nonlinearity": "relu"}),
}
HIDDEN = 6
UNIFORM = {"l0": [0, 2, 5], "l0_reverse": [1, 2, 3], "l1": [5, 4, 0], "l1_reverse": [0, 1, 4]}
RAGGED = {"l0": [0, 2, 5], "l0_reverse": [1, 2, 3, 4, 5], "l1_reverse": [0, 4, 1, 2]}  # l1 stays whole


# --- the oracle: one step after the other in float64, the removed cells held at zero ------------------------


def next_state(kind: str, weights: list[Tensor | None], x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """One update: the unit before the projection, and the cell state (zeros where the kind has none)."""
    w_ih, w_hh, b_ih, b_hh = weights
    from_x = x @ w_ih.T + (0 if b_ih is None else b_ih)
    from_h = h @ w_hh.T + (0 if b_hh is None else b_hh)
    if kind in ("lstm", "projected"):
        i, f, g, o = (from_x + from_h).chunk(4, -1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        return o.sigmoid() * c.tanh(), c
    if kind == "gru":
        (x_r, x_z, x_n), (h_r, h_z, h_n) = from_x.chunk(3, -1), from_h.chunk(3, -1)
        z = (x_z + h_z).sigmoid()
        return (1 - z) * (x_n + (x_r + h_r).sigmoid() * h_n).tanh() + z * h, c
    return (from_x + from_h).tanh() if kind == "tanh" else (from_x + from_h).relu(), c


def unroll(
    kind: str, layer: Any, suffix: str, x: Tensor, alive: Tensor, h: Tensor, c: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """One layer over x (T, I) from h and c: outputs (T, H or P), and the last h and c."""
    weights = [getattr(layer, name + suffix, None) for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
    projection = getattr(layer, f"weight_hr{suffix}", None)
    h, c, steps = h if projection is not None else h * alive, c * alive, []
    for x_t in x.flip(0) if suffix.endswith("reverse") else x:
        h, c = next_state(kind, weights, x_t, h, c)
        h, c = h * alive, c * alive
        h = h if projection is None else h @ projection.T
        steps.append(h)
    output = torch.stack(steps)
    return output.flip(0) if suffix.endswith("reverse") else output, h, c


def masked(kind: str, module: Any, x: Tensor, keep: dict[str, list[int]], h0: Tensor, c0: Tensor) -> list[Tensor]:
    """The whole module on one sequence x (T, I), states (L, width): output, h_n, c_n."""
    finals, directions = [], ("", "_reverse")[: 1 + module.bidirectional]
    for index in range(module.num_layers):
        outputs = []
        for end in directions:
            name = f"l{index}{end}"
            alive = torch.zeros(HIDDEN, dtype=x.dtype)
            alive[keep.get(name, list(range(HIDDEN)))] = 1
            place = len(finals)
            output, h, c = unroll(kind, module, f"_{name}", x, alive, h0[place], c0[place])
            outputs.append(output)
            finals.append((h, c))
        x = torch.cat(outputs, -1)
    return [x, torch.stack([h for h, _ in finals]), torch.stack([c for _, c in finals])]


def states(module: Any, batch: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    rows = module.num_layers * (1 + module.bidirectional)
    return (
        torch.randn(rows, batch, module.proj_size or HIDDEN, dtype=dtype),
        torch.randn(rows, batch, HIDDEN, dtype=dtype),
    )


def flat(result: Any) -> list[Tensor]:
    output, state = result
    return [output, *(state if isinstance(state, tuple) else (state,))]


def assert_near(actual: list[Tensor], expected: list[Tensor], dtype: torch.dtype) -> None:
    limit = 1e-12 if dtype == torch.float64 else 1e-6
    for a, e in zip(actual, expected, strict=False):  # only the LSTM has a c_n
        assert a.shape == e.shape
        assert a.dtype == dtype
        torch.testing.assert_close(a.double(), e.double(), rtol=0, atol=limit)


OPTIONS = [
    {"num_layers": layers, "bidirectional": two, "bias": bias, "batch_first": first}
    for layers, two, bias, first in itertools.product((1, 2), (False, True), (True, False), (False, True))
]


@pytest.mark.sweep
@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")  # said once a process
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("keep", [UNIFORM, RAGGED], ids=["uniform", "ragged"])
@pytest.mark.parametrize("kind", KINDS)
def test_it_is_the_masked_layer(kind: str, keep: dict[str, list[int]], dtype: torch.dtype) -> None:
    base, own = KINDS[kind]
    for options in OPTIONS:
        whole = base(3, HIDDEN, **own, **options, dtype=dtype)
        present = {str(layer.key) for layer in lm.find_layers(whole)}
        chosen = {name: cells for name, cells in keep.items() if name in present}
        thin, double = prune(whole, chosen), copy.deepcopy(whole).double()
        h0, c0 = states(whole, 4, dtype)
        x = torch.randn(5, 4, 3, dtype=dtype)
        given = x.transpose(0, 1) if whole.batch_first else x
        for start in (True, False):
            hx = ((h0, c0) if base is nn.LSTM else h0) if start else None
            actual = flat(thin(given, hx))
            parts = [
                masked(kind, double, x[:, n].double(), chosen, start * h0[:, n].double(), start * c0[:, n].double())
                for n in range(4)
            ]
            expected = [torch.stack(part, 1) for part in zip(*parts, strict=True)]
            if whole.batch_first:
                expected[0] = expected[0].transpose(0, 1)
            assert_near(actual, expected, dtype)
        assert sum(p.numel() for p in thin.parameters()) < sum(p.numel() for p in whole.parameters())


@pytest.mark.parametrize("keep", [UNIFORM, RAGGED], ids=["uniform", "ragged"])
@pytest.mark.parametrize("kind", KINDS)
def test_packed_and_unbatched_sequences(kind: str, keep: dict[str, list[int]]) -> None:
    base, own = KINDS[kind]
    for first in (False, True):
        whole = base(3, HIDDEN, 2, bidirectional=True, batch_first=first, **own).double()
        thin = prune(whole, keep)
        h0, c0 = states(whole, 4, torch.float64)
        sequences = [torch.randn(length, 3, dtype=torch.float64) for length in (3, 7, 1, 5)]
        packed = pack_sequence(sequences, enforce_sorted=False)
        for start in (True, False):
            hx = ((h0, c0) if base is nn.LSTM else h0) if start else None
            output, *final = flat(thin(packed, hx))
            assert isinstance(output, PackedSequence)
            padded, _ = pad_packed_sequence(output, batch_first=True)
            for n, x in enumerate(sequences):
                expected = masked(kind, whole, x, keep, start * h0[:, n], start * c0[:, n])
                assert_near([padded[n, : len(x)], *(f[:, n] for f in final)], expected, torch.float64)
                alone = None if hx is None else (h0[:, n], c0[:, n]) if base is nn.LSTM else h0[:, n]
                assert_near(flat(thin(x, alone)), expected, torch.float64)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", CELL_KINDS)
def test_single_cells(kind: str, bias: bool) -> None:
    base, own = CELL_KINDS[kind]
    whole = base(3, HIDDEN, bias=bias, **own).double()
    thin = prune(whole, {"cell": [5, 1, 2]})
    assert isinstance(thin, ThinCell)
    assert (thin.input_size, thin.hidden_size, thin.inner.weight_hh.shape[1]) == (3, HIDDEN, 3)
    alive = torch.zeros(HIDDEN, dtype=torch.float64)
    alive[[5, 1, 2]] = 1
    for shape in ((4,), ()):
        x, h, c = (torch.randn(*shape, size, dtype=torch.float64) for size in (3, HIDDEN, HIDDEN))
        _, h_n, c_n = unroll(kind, whole, "", x[None], alive, h, c)
        given, expected = ((h, c), [h_n, c_n]) if base is nn.LSTMCell else (h, [h_n])
        result = thin(x, given)
        assert_near(list(result) if isinstance(result, tuple) else [result], expected, torch.float64)
        _, h_n, _ = unroll(kind, whole, "", x[None], alive, 0 * h, 0 * c)
        torch.testing.assert_close(flat((None, thin(x)))[1], h_n)


@settings(max_examples=40, deadline=None)
@given(data=st.data(), kind=st.sampled_from(sorted(KINDS)), two=st.booleans(), layers=st.integers(1, 3))
def test_any_cells(data: st.DataObject, kind: str, two: bool, layers: int) -> None:
    base, own = KINDS[kind]
    whole = base(3, HIDDEN, layers, bidirectional=two, **own).double()
    names = [str(layer.key) for layer in lm.find_layers(whole)]
    least = 1 + own.get("proj_size", 0)
    cells = st.lists(st.integers(0, HIDDEN - 1), min_size=least, unique=True)
    keep = data.draw(st.dictionaries(st.sampled_from(names), cells))
    h0, c0 = states(whole, 2, torch.float64)
    x = torch.randn(4, 2, 3, dtype=torch.float64)
    actual = flat(prune(whole, keep)(x, (h0, c0) if base is nn.LSTM else h0))
    for n in range(2):
        expected = masked(kind, whole, x[:, n], keep, h0[:, n], c0[:, n])
        assert_near([part[:, n] for part in actual], expected, torch.float64)


# --- what reads a layer -------------------------------------------------------------------------------------

X = torch.randn(4, 7, 3, generator=torch.Generator().manual_seed(5))
KEEP = [0, 3, 4]


class Reading(nn.Module):
    """An LSTM of six cells, and `read`, which makes the answer of its results."""

    def __init__(self, **modules: nn.Module) -> None:
        super().__init__()
        self.rnn = nn.LSTM(3, HIDDEN, batch_first=True)
        self.head = nn.Linear(HIDDEN, 2)
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, x: Tensor) -> Any:
        output, (h, c) = self.rnn(x)
        return self.read(x, output, h, c)


class Last(Reading):
    def read(self, x: Tensor, output: Tensor, h: Tensor, c: Tensor) -> Any:
        return self.head(output[:, -1])


class FinalState(Reading):
    def read(self, x: Tensor, output: Tensor, h: Tensor, c: Tensor) -> Any:
        return {"score": self.head(h[-1]), "copy": (self.head(c[0]).relu(),)}


class Both(Reading):
    def read(self, x: Tensor, output: Tensor, h: Tensor, c: Tensor) -> Any:
        return self.head(output[:, -1]) + self.head(h[-1])


class Pooled(Reading):
    def read(self, x: Tensor, output: Tensor, h: Tensor, c: Tensor) -> Any:
        return self.head(output.mean(1)) + self.head(F.dropout(output, 0.5, self.training).max(1).values)


class Concatenated(Reading):
    def read(self, x: Tensor, output: Tensor, h: Tensor, c: Tensor) -> Any:
        return self.wide(torch.cat([x, output], -1)).sum(1)


class Stacked(Reading):
    def read(self, x: Tensor, output: Tensor, h: Tensor, c: Tensor) -> Any:
        return self.head(self.above(output)[0][:, -1])


class Packed(Reading):
    def forward(self, x: Tensor) -> Any:
        output, _ = self.rnn(pack_padded_sequence(x, torch.tensor([7, 6, 6, 2]), batch_first=True))
        return self.head(self.above(output)[0].data), self.head2(pad_packed_sequence(output, batch_first=True)[0])


class StepByStep(Reading):
    def forward(self, x: Tensor) -> Any:
        state, cell = None, self.cell
        for x_t in x.unbind(1):
            state = cell(x_t, state)
        return self.head(state[0])


class Rollout(Reading):
    def forward(self, x: Tensor) -> Any:
        state = None
        for x_t in x.split(1, dim=1):
            output, state = self.rnn(x_t, state)
        return self.head(output)


@dataclass
class Answer:
    score: Tensor


class Wrapped(Reading):
    def read(self, x: Tensor, output: Tensor, h: Tensor, c: Tensor) -> Any:
        return Answer(self.head(output))


CUT: dict[str, tuple[Callable[[], Reading], dict[str, list[int]], dict[str, int]]] = {
    "last": (Last, {"rnn.l0": KEEP}, {"head": 3}),
    "final state": (FinalState, {"rnn.l0": KEEP}, {"head": 3}),
    "both": (Both, {"rnn.l0": KEEP}, {"head": 3}),
    "in a dataclass": (Wrapped, {"rnn.l0": KEEP}, {"head": 3}),
    "pooled": (Pooled, {"rnn.l0": KEEP}, {"head": 3}),
    "rollout": (Rollout, {"rnn.l0": KEEP}, {"head": 3}),
    "concatenated": (lambda: Concatenated(wide=nn.Linear(3 + HIDDEN, 2)), {"rnn.l0": KEEP}, {"wide": 6}),
    "stacked": (lambda: Stacked(above=gru()), {"rnn.l0": KEEP}, {"above": 3, "head": HIDDEN}),
    "stacked, both": (lambda: Stacked(above=gru()), {"rnn.l0": KEEP, "above.l0": [1]}, {"above": 3, "head": 1}),
    "packed": (
        lambda: Packed(above=gru(bidirectional=True), head=nn.Linear(12, 1), head2=nn.Linear(HIDDEN, 1)),
        {"rnn.l0": KEEP, "above.l0": [1, 4], "above.l0_reverse": [0, 2, 5]},
        {"above": 3, "head": 5, "head2": 3},
    ),
    "cell": (lambda: StepByStep(cell=nn.LSTMCell(3, HIDDEN)), {"cell": KEEP}, {"head": 3}),
}


def gru(**options: Any) -> nn.GRU:
    return nn.GRU(HIDDEN, HIDDEN, batch_first=True, **options)


@pytest.mark.parametrize("case", CUT)
def test_readers_that_can_be_followed_are_cut(case: str) -> None:
    make, keep, widths = CUT[case]
    net = make().eval()
    padded, thin = prune(net, keep), prune(net, keep, example=X)
    for name, width in widths.items():
        reader = thin.get_submodule(name)
        assert (reader.in_features if isinstance(reader, nn.Linear) else reader.input_size) == width
    assert_same(thin(X), padded(X))
    assert not torch.equal(first(padded(X)), first(net(X)))
    assert sum(p.numel() for p in thin.parameters()) < sum(p.numel() for p in padded.parameters())


def first(output: Any) -> Tensor:
    output = getattr(output, "score", output)
    while not isinstance(output, Tensor):
        output = next(iter(output.values())) if isinstance(output, dict) else output[0]
    return output


def assert_same(actual: Any, expected: Any) -> None:
    actual, expected = (getattr(output, "score", output) for output in (actual, expected))
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-6)


def test_where_torch_can_hold_it_the_layer_is_a_plain_smaller_one() -> None:
    thin = prune(Last(), {"rnn.l0": KEEP}, example=X)
    assert type(thin.rnn) is nn.LSTM
    assert (thin.rnn.hidden_size, thin.rnn.weight_ih_l0.shape) == (3, (12, 3))
    assert [str(layer.key) for layer in lm.find_layers(thin)] == ["rnn.l0"]
    assert [name for name, _ in thin.named_parameters()] == [name for name, _ in Last().named_parameters()]


class Normed(Reading):
    def read(self, x: Tensor, output: Tensor, h: Tensor, c: Tensor) -> Any:
        return self.head(self.norm(output))


class Attending(Reading):
    def read(self, x: Tensor, output: Tensor, h: Tensor, c: Tensor) -> Any:
        return self.head(self.attention(output, output, output)[0])


class LargestFeature(Reading):
    def read(self, x: Tensor, output: Tensor, h: Tensor, c: Tensor) -> Any:
        return self.head(output), (output + 0.9).max(-1).values


class Squashed(Reading):
    def read(self, x: Tensor, output: Tensor, h: Tensor, c: Tensor) -> Any:
        return self.head(output.sigmoid())


class Shifted(Reading):
    """By less than the tolerance: the columns are no zeros, and the bias would be wrong without them."""

    def read(self, x: Tensor, output: Tensor, h: Tensor, c: Tensor) -> Any:
        return self.head(output + 1e-5)


class ByWeight(Reading):
    def read(self, x: Tensor, output: Tensor, h: Tensor, c: Tensor) -> Any:
        return self.head(output) + F.linear(output, self.head.weight)


class Scaled(Reading):
    def read(self, x: Tensor, output: Tensor, h: Tensor, c: Tensor) -> Any:
        return self.head(output / output.shape[-1])


class Handed(Reading):
    def read(self, x: Tensor, output: Tensor, h: Tensor, c: Tensor) -> Any:
        return self.head(output), output


class SharedHead(Reading):
    def read(self, x: Tensor, output: Tensor, h: Tensor, c: Tensor) -> Any:
        return self.head(output) + self.head(torch.cat([x, x], -1))


class TwoPartsOfOne(Reading):
    def read(self, x: Tensor, output: Tensor, h: Tensor, c: Tensor) -> Any:
        return self.head(output) + self.part(output[..., : HIDDEN // 2])


class Tied(Reading):
    def __init__(self) -> None:
        super().__init__(head=nn.Linear(HIDDEN, 9), embedding=nn.Embedding(9, HIDDEN))
        self.head.weight = self.embedding.weight

    def read(self, x: Tensor, output: Tensor, h: Tensor, c: Tensor) -> Any:
        return self.head(output)


class HidesNaN(Reading):
    def read(self, x: Tensor, output: Tensor, h: Tensor, c: Tensor) -> Any:
        return self.head(output), output.nan_to_num().sum(-1)


class Padding(Reading):
    """Padded steps hold no zeros: the head reads them too."""

    def read(self, x: Tensor, output: Tensor, h: Tensor, c: Tensor) -> Any:
        return self.head(output.masked_fill(x[..., :1] > 0, -1.0))


WHOLE: dict[str, Callable[[], Reading]] = {
    "layer norm": lambda: Normed(norm=nn.LayerNorm(HIDDEN)),
    "attention": lambda: Attending(attention=nn.MultiheadAttention(HIDDEN, 2, batch_first=True)),
    "the largest feature": LargestFeature,
    "squashed, no longer zero": Squashed,
    "shifted by a little": Shifted,
    "by the weight alone": ByWeight,
    "scaled by the width": Scaled,
    "handed to the caller": Handed,
    "a head with other inputs": SharedHead,
    "a slice by number": lambda: TwoPartsOfOne(part=nn.Linear(HIDDEN // 2, 2)),
    "tied weights": Tied,
    "a sum that hides NaN": HidesNaN,
    "padded with -1": Padding,
}


@pytest.mark.parametrize("zero_head", [False, True])
@pytest.mark.parametrize("name", WHOLE)
def test_anything_else_gets_the_full_width(name: str, zero_head: bool) -> None:
    net = WHOLE[name]()
    if zero_head:  # then the answers alone prove nothing
        nn.init.zeros_(net.head.weight)
    thin, padded = prune(net, {"rnn.l0": KEEP}, example=X), prune(net, {"rnn.l0": KEEP})
    assert isinstance(thin.rnn, ThinRecurrent)
    assert thin.head.in_features == HIDDEN
    assert_same(thin(X), padded(X))
    output, (h, c) = thin.rnn(X)
    assert output.shape[-1] == h.shape[-1] == c.shape[-1] == HIDDEN


def test_tied_weights_stay_tied_and_shared_modules_shared() -> None:
    tied = prune(Tied(), {"rnn.l0": KEEP}, example=X)
    assert tied.head.weight is tied.embedding.weight
    net = Last()
    net.again, net.listed = net.rnn, [net.rnn]
    for thin in (prune(net, {"rnn.l0": KEEP}), prune(net, {"rnn.l0": KEEP}, example=X)):
        assert thin.rnn is thin.again is thin.listed[0] is not net.rnn


class TwoLayers(Reading):
    """One head that reads two layers."""

    def read(self, x: Tensor, output: Tensor, h: Tensor, c: Tensor) -> Any:
        return self.head(output) + self.head(self.other(x)[0])


def test_a_head_that_reads_two_layers_is_cut_where_both_keep_the_same() -> None:
    net = TwoLayers(other=nn.GRU(3, HIDDEN, batch_first=True))
    alike = prune(net, {"rnn.l0": KEEP, "other.l0": KEEP}, example=X)
    assert (alike.head.in_features, type(alike.rnn), type(alike.other)) == (3, nn.LSTM, nn.GRU)
    unlike = prune(net, {"rnn.l0": KEEP, "other.l0": [1, 2, 3]}, example=X)
    assert unlike.head.in_features == HIDDEN
    for thin, other in ((alike, KEEP), (unlike, [1, 2, 3])):
        assert_same(thin(X), prune(net, {"rnn.l0": KEEP, "other.l0": other})(X))


def test_one_layer_that_cannot_be_followed_does_not_hinder_another() -> None:
    net = Stacked(above=gru(), head=nn.LayerNorm(HIDDEN))
    thin = prune(net, {"rnn.l0": KEEP, "above.l0": [1, 2]}, example=[X, X[:2]])
    assert type(thin.rnn) is nn.LSTM
    assert isinstance(thin.above, ThinRecurrent)
    assert thin.above.input_size == 3
    assert_same(thin(X), prune(net, {"rnn.l0": KEEP, "above.l0": [1, 2]})(X))


class Started(Reading):
    """Its initial state has the width that was built in."""

    def forward(self, x: Tensor) -> Any:
        zeros = x.new_ones(1, len(x), HIDDEN)
        return self.head(self.rnn(x, (zeros, zeros))[0])


class GivesState(Reading):
    """The caller gets the final state and the model reads the output."""

    def read(self, x: Tensor, output: Tensor, h: Tensor, c: Tensor) -> Any:
        return self.head(output), (h, c)


class Translator(Reading):
    """The second layer starts where the first one ends."""

    def read(self, x: Tensor, output: Tensor, h: Tensor, c: Tensor) -> Any:
        return self.head(self.decoder(x, (h, c))[0])


@pytest.mark.parametrize("kind", [Started, GivesState])
def test_a_state_from_or_for_outside_keeps_the_full_width(kind: type[Reading]) -> None:
    net = kind()
    thin = prune(net, {"rnn.l0": KEEP}, example=X)
    assert isinstance(thin.rnn, ThinRecurrent)
    assert (thin.rnn.hidden_size, thin.head.in_features) == (HIDDEN, 3)
    assert_same(prune(net, {"rnn.l0": KEEP}, example=X)(X), prune(net, {"rnn.l0": KEEP})(X))


@pytest.mark.parametrize("above", [KEEP, [0, 3, 5], [1], range(HIDDEN)], ids=str)
def test_a_state_handed_from_layer_to_layer(above: Any) -> None:
    net = Translator(decoder=nn.LSTM(3, HIDDEN, batch_first=True))
    keep = {"rnn.l0": KEEP, "decoder.l0": above}
    thin = prune(net, keep, example=X)
    assert_same(thin(X), prune(net, keep)(X))
    assert (type(thin.rnn) is nn.LSTM) == (above is KEEP)
    assert thin.head.in_features == len(above)


# --- the result is a model like any other -------------------------------------------------------------------


class Deep(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(3, HIDDEN, 2, bidirectional=True, batch_first=True, dropout=0.2)
        self.head = nn.Linear(2 * HIDDEN, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0].mean(1))


FORMS = {
    "plain": ({f"rnn.{name}": cells for name, cells in UNIFORM.items()}, X),
    "padded": ({f"rnn.{name}": cells for name, cells in UNIFORM.items()}, None),
    "ragged": ({f"rnn.{name}": cells for name, cells in RAGGED.items()}, X),
    "ragged, padded": ({f"rnn.{name}": cells for name, cells in RAGGED.items()}, None),
}


@pytest.mark.parametrize("form", FORMS)
def test_saving_loading_and_copying(form: str) -> None:
    keep, example = FORMS[form]
    thin, other = (prune(Deep().eval(), keep, example=example) for _ in range(2))
    assert not torch.equal(thin(X), other(X))
    other.load_state_dict(thin.state_dict())
    file = io.BytesIO()
    torch.save(thin, file)
    file.seek(0)
    for same in (other, copy.deepcopy(thin), torch.load(file, weights_only=False)):
        assert torch.equal(thin(X), same(X))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.filterwarnings("ignore:.*were assigned during export")  # torch says so of every nn.LSTM
def test_exporting(form: str) -> None:
    keep, example = FORMS[form]
    thin = prune(Deep().eval(), keep, example=example)
    exported = torch.export.export(thin, (X,)).module()
    torch.testing.assert_close(exported(X), thin(X))


@pytest.mark.parametrize("form", FORMS)
def test_it_can_be_trained_on(form: str) -> None:
    keep, example = FORMS[form]
    thin = prune(Deep(), keep, example=example)
    before = {name: p.detach().clone() for name, p in thin.named_parameters()}
    optimizer = torch.optim.Adam(thin.parameters(), 0.05)
    losses = []
    for _ in range(40):
        loss = F.mse_loss(thin(X), X[:, 0, :2])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-5:]) < 0.3 * sum(losses[:5])
    assert all(not torch.equal(p, before[name]) for name, p in thin.named_parameters())


@pytest.mark.parametrize("form", FORMS)
def test_the_layers_of_the_result_are_found_and_can_be_pruned_again(form: str) -> None:
    keep, example = FORMS[form]
    thin = prune(Deep().eval(), keep, example=example)
    layers = lm.find_layers(thin)
    assert not layers.skipped
    assert [layer.weights().hidden_size for layer in layers] == [len(keep.get(f"rnn.{n}", range(6))) for n in UNIFORM]
    again = {str(layers[0].key): [0, 2]}
    torch.testing.assert_close(prune(thin, again)(X), prune(thin, again, example=X)(X))
    first_cells = sorted(keep["rnn.l0"])
    once = prune(Deep().eval(), {**keep, "rnn.l0": [first_cells[0], first_cells[2]]})
    assert once(X).shape == (4, 2)


def test_flags_dtype_and_dropout_are_kept() -> None:
    net = Deep().double().eval()
    net.rnn.weight_hh_l1.requires_grad_(False)
    net.rnn.train()
    for keep, example in FORMS.values():
        thin = prune(net, keep, example=None if example is None else X.double())
        frozen = [name for name, p in thin.named_parameters() if not p.requires_grad]
        assert len(frozen) == 1
        assert "weight_hh_l" in frozen[0]
        assert {p.dtype for p in thin.parameters()} == {torch.float64}
        assert not thin.training
        assert not thin.head.training
        assert all(module.training for module in thin.rnn.modules())
        assert thin.rnn.dropout == 0.2
        assert not torch.equal(thin(X.double()), thin(X.double()))  # dropout between the layers is on
        thin.rnn.flatten_parameters()


def test_the_given_model_and_the_random_states_are_untouched() -> None:
    net = Deep()
    net.last = net(X)  # a tensor with a history, which torch would not copy
    before, state = copy.deepcopy(net.state_dict()), torch.get_rng_state()
    attributes = {name: dict(vars(module)) for name, module in net.named_modules()}
    for keep, example in FORMS.values():
        prune(net, keep, example=example)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    for name, module in net.named_modules():
        assert all(vars(module)[key] is value for key, value in attributes[name].items())
        assert not module._forward_pre_hooks


def test_a_model_pruned_inside_inference_mode_can_be_trained() -> None:
    for keep, example in FORMS.values():
        with torch.inference_mode():
            thin = prune(Deep(), keep, example=example)
        thin(X).sum().backward()
        assert all(p.grad is not None for p in thin.parameters())


def test_a_compiled_model_is_pruned_as_what_was_compiled() -> None:
    net = Last()
    nested = nn.Sequential(torch.compile(net, backend="eager"))
    expected = prune(net, {"rnn.l0": KEEP})(X)
    whole = prune(torch.compile(net, backend="eager"), {"rnn.l0": KEEP}, example=X)
    assert type(whole) is Last
    part = prune(nested, {"0.rnn.l0": KEEP}, example=X)
    assert type(part[0]) is Last
    assert_same(whole(X), expected)
    assert_same(part(X), expected)


@pytest.mark.parametrize("package", ["lightning.pytorch", "pytorch_lightning"])
def test_a_lightning_module_leaves_its_trainer_behind(package: str) -> None:
    lightning = importlib.import_module(package)

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = Last()

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x)

    module = Module()
    trainer = lightning.Trainer(logger=False, enable_checkpointing=False, accelerator="cpu", barebones=True)
    module.trainer = trainer
    module.helper = [trainer]
    thin = prune(module, {"net.rnn.l0": KEEP}, example=X)
    assert thin._trainer is None
    assert thin.helper == [None]
    assert module._trainer is trainer
    assert_same(thin(X), prune(module.net, {"rnn.l0": KEEP})(X))


def test_keeping_every_cell_changes_nothing() -> None:
    net = Deep().eval()
    for keep in ({}, {"rnn.l0": torch.ones(HIDDEN, dtype=torch.bool)}):
        thin = prune(net, keep, example=X)
        assert type(thin.rnn) is nn.GRU
        assert torch.equal(thin(X), net(X))


def test_a_mask_is_as_good_as_numbers() -> None:
    net = Last()
    mask = torch.zeros(HIDDEN, dtype=torch.bool)
    mask[KEEP] = True
    expected = prune(net, {"rnn.l0": KEEP})(X)
    for cells in (mask, mask.tolist(), mask.numpy(), torch.tensor(KEEP), tuple(reversed(KEEP))):
        assert torch.equal(prune(net, {"rnn.l0": cells})(X), expected)


def test_an_example_is_run_as_it_is_given() -> None:
    net = Last()
    for example, forward in (((X,), None), ({"x": X}, None), ([X, (X,)], None), ("x", lambda model, _: model(X))):
        assert prune(net, {"rnn.l0": KEEP}, example=example, forward=forward).head.in_features == 3


# --- errors -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        ({"rnn.l1": [0]}, "keep='rnn.l1' is not known. Did you mean 'rnn.l0'?"),
        ({"rnn.l0": []}, r"keep\['rnn.l0'\] is empty, but a layer must keep at least one cell"),
        ({"rnn.l0": [False] * 6}, "is empty, but a layer must keep"),
        ({"rnn.l0": [2, 6, -1]}, r"holds \[6, -1\]; the layer has the cells 0 to 5"),
        ({"rnn.l0": [2, 3, 2]}, r"holds \[2\] more than once"),
        ({"rnn.l0": [[1, 2]]}, r"has shape \(1, 2\)"),
        ({"rnn.l0": [True, False]}, "or a boolean mask of 6"),
    ],
)
def test_wrong_cells(keep: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        prune(Last(), keep)


@pytest.mark.parametrize("cells", [[0.5, 1.0], "abc", {0, 1}, [None]])
def test_cells_that_are_no_integers(cells: Any) -> None:
    with pytest.raises(TypeError, match="give the numbers of the cells that stay"):
        prune(Last(), {"rnn.l0": cells})


def test_what_cannot_be_pruned_is_refused_with_the_reason() -> None:
    with pytest.raises(TypeError, match="model=int is no"):
        prune(3, {})
    diverged = Last()
    diverged.rnn.weight_hh_l0.data[3, 1] = torch.nan
    with pytest.raises(ValueError, match="rnn: weight_hh_l0 holds NaN or infinite values"):
        prune(diverged, {"rnn.l0": KEEP})
    with pytest.raises(ValueError, match="holds 2 cells; torch needs 3 at least with proj_size=2"):
        prune(nn.LSTM(3, 6, proj_size=2), {"l0": [0, 1]})
    hooked = Last()
    hooked.rnn.register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match="rnn has hooks"):
        prune(hooked, {"rnn.l0": KEEP})
    normed = Last(other=nn.utils.parametrizations.weight_norm(nn.LSTM(3, 4), "weight_hh_l0"))
    with pytest.raises(ValueError, match=r"'other.l0' cannot be pruned. other \(.*weight_hh_l0 is no parameter"):
        prune(normed, {"other.l0": [0]})
    twins = Last(other=nn.LSTM(3, HIDDEN))
    twins.other.weight_hh_l0 = twins.rnn.weight_hh_l0
    with pytest.raises(ValueError, match="weight_hh_l0 is shared with another"):
        prune(twins, {"rnn.l0": KEEP})
    stack = nn.GRU(HIDDEN, HIDDEN, 2)
    stack.weight_hh_l1 = stack.weight_hh_l0
    with pytest.raises(ValueError, match="the model itself: weight_hh_l0 is shared with another"):
        prune(stack, {"l0": KEEP, "l1": KEEP})


def test_an_example_that_does_not_fit() -> None:
    with pytest.raises(ValueError, match="example: the model could not be run on it: RuntimeError"):
        prune(Last(), {"rnn.l0": KEEP}, example=X[..., :2])
    with pytest.raises(ValueError, match="forward= was given without example="):
        prune(Last(), {"rnn.l0": KEEP}, forward=lambda model, batch: model(batch))
    with pytest.raises(ValueError, match="example: head.weight, head.bias is not initialized yet"):
        prune(Last(head=nn.LazyLinear(2)), {"rnn.l0": KEEP}, example=X)
    thin = prune(nn.LSTM(3, HIDDEN), {"l0": KEEP})
    with pytest.raises(ValueError, match="hx has 3 features, but the state shows 6"):
        thin(torch.zeros(2, 1, 3), (torch.zeros(1, 1, 3), torch.zeros(1, 1, 3)))


def test_a_number_of_cells_is_no_choice_of_cells() -> None:
    with pytest.raises(TypeError, match=r"keep=8 is no mapping; give the cells of each layer"):
        lm.prune(nn.LSTM(2, 9), keep=8)  # type: ignore[arg-type]  # that is the mistake
