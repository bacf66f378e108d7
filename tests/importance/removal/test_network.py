"""Effects of removing cells, against a naive copy that is unrolled step by step."""

from __future__ import annotations

import copy
import math
import random
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from lstm_monitor.core.terms import LayerKey
from lstm_monitor.core.undisturbed import undisturbed
from lstm_monitor.importance.removal.network import Network
from lstm_monitor.importance.removal.outcomes import output_change, output_variance, score_weights, weighted_mean
from lstm_monitor.importance.removal.single_cells import Singles, singles
from lstm_monitor.layers.finding import find_layers
from lstm_monitor.snapshots.runs import Run, runs_of
from tests.helpers.clocks import QuietClock
from tests.helpers.masked import masked, rewritten

N, T, IN = 4, 5, 3
LENGTHS = torch.tensor([5, 2, 4, 1])


class Net(nn.Module):
    """A recurrent module and a linear reader of its last step."""

    def __init__(self, rnn: nn.Module, outputs: int = 2) -> None:
        super().__init__()
        self.rnn = rnn
        width = (getattr(rnn, "proj_size", 0) or rnn.hidden_size) * (1 + getattr(rnn, "bidirectional", False))
        self.head = nn.Linear(width, outputs)

    def forward(self, x: Tensor, hx: Any = None) -> Tensor:
        out = self.rnn(x, hx)[0]
        return self.head(out[:, -1] if self.rnn.batch_first else out[-1])


class EveryStep(Net):
    def forward(self, x: Tensor, hx: Any = None) -> Tensor:
        return self.head(self.rnn(x, hx)[0])


class Packed(Net):
    """Reads packed sequences; padded values a step."""

    def forward(self, x: Tensor) -> Tensor:
        packed = pack_padded_sequence(x, LENGTHS, batch_first=True, enforce_sorted=False)
        return self.head(pad_packed_sequence(self.rnn(packed)[0], batch_first=True)[0])


class Chunks(Net):
    """Carries the state from one piece of the sequence to the next, from a first state that is not zero."""

    def forward(self, x: Tensor) -> Tensor:
        state: Any = x.new_full((1, len(x), self.head.in_features), 0.3)
        state = (state, state + 0.4)
        for piece in x.split(2, dim=1):
            out, state = self.rnn(piece, state)
        return self.head(out[:, -1])


class Twice(Net):
    """One module called twice, the second time on its own output."""

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(self.rnn(x)[0])[0][:, -1])


class EncoderDecoder(nn.Module):
    """The decoder starts with the encoder's state and reads what it said itself."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.LSTM(IN, 4, batch_first=True), nn.LSTM(2, 4, batch_first=True)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        _, state = self.encoder(x)
        said, all_said = x.new_ones(len(x), 1, 2), []
        for _ in range(3):
            out, state = self.decoder(said, state)
            said = self.head(out)
            all_said.append(said)
        return torch.cat(all_said, 1)


class Steps(nn.Module):
    """Two stacked cells, stepped by a loop."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.first, self.second = getattr(nn, kind)(IN, 4), getattr(nn, kind)(4, 3)
        self.head = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        a = b = None
        for t in range(x.shape[1]):
            a = self.first(x[:, t], a)
            b = self.second(a[0] if isinstance(a, tuple) else a, b)
        return self.head(b[0] if isinstance(b, tuple) else b)


class Towers(nn.Module):
    """Two modules, of which the second reads the first; both are read."""

    def __init__(self) -> None:
        super().__init__()
        self.low, self.high = nn.GRU(IN, 4, batch_first=True), nn.LSTM(4, 3, batch_first=True)
        self.head = nn.Linear(7, 2)

    def forward(self, x: Tensor) -> Tensor:
        low = self.low(x)[0]
        return self.head(torch.cat([low[:, -1], self.high(low.tanh())[0][:, -1]], 1))


def build(kind: str, *args: Any, **options: Any) -> Any:
    name, _, nonlinearity = kind.partition(" ")
    return getattr(nn, name)(*args, **options, **({"nonlinearity": nonlinearity} if nonlinearity else {}))


KINDS = ("LSTM", "GRU", "RNN", "RNN relu")
STACKED: dict[str, Callable[[], nn.Module]] = {
    f"{kind}{', 2 layers' * (layers - 1)}{', both ways' * two}": lambda k=kind, n=layers, b=two: Net(  # type: ignore[misc]
        build(k, IN, 4, n, bidirectional=b, batch_first=True)
    )
    for kind in KINDS
    for layers in (1, 2)
    for two in (False, True)
}
MODELS: dict[str, Callable[[], nn.Module]] = {
    **STACKED,
    "no bias": lambda: Net(nn.LSTM(IN, 4, bias=False, batch_first=True)),
    "projection": lambda: Net(nn.LSTM(IN, 4, 2, proj_size=2, batch_first=True)),
    "packed LSTM": lambda: Packed(nn.LSTM(IN, 4, 2, bidirectional=True, batch_first=True)),
    "packed GRU": lambda: Packed(nn.GRU(IN, 4, bidirectional=True, batch_first=True)),
    "carried states": lambda: Chunks(nn.LSTM(IN, 4, batch_first=True)),
    "shared": lambda: Twice(nn.LSTM(3, 3, batch_first=True)),
    "encoder-decoder": EncoderDecoder,
    "LSTMCell": lambda: Steps("LSTMCell"),
    "GRUCell": lambda: Steps("GRUCell"),
    "RNNCell": lambda: Steps("RNNCell"),
    "towers": Towers,
}


def data(count: int = N, steps: int = T, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(count, steps, IN, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)


def network_of(model: nn.Module, x: Any, **options: Any) -> Network:
    layers = find_layers(model)
    given = {name: options.pop(name) for name in ("lengths", "mask", "forward") if name in options}
    return Network(model, layers, runs_of(model, layers, x, **given), **options)


def sizes(network: Network) -> dict[LayerKey, int]:
    return {key: part.weights.hidden_size for key, part in network.parts.items()}


def naive_change(model: nn.Module, other: nn.Module, x: Tensor) -> Tensor:
    """Mean squared change of each sequence's output, sequences first."""
    with torch.no_grad():
        return (other(x) - copy.deepcopy(model).eval()(x)).square().flatten(1).mean(1)


def chosen(network: Network) -> list[dict[LayerKey, Tensor]]:
    """Every cell alone, and groups over several layers."""
    alone = [{key: torch.tensor([cell])} for key, size in sizes(network).items() for cell in range(size)]
    most = {key: torch.arange(size - 1) for key, size in sizes(network).items()}
    everything = {key: torch.arange(size) for key, size in sizes(network).items()}
    first = next(iter(sizes(network)))
    return [*alone, most, everything, {first: torch.tensor([0, 2])}, {first: torch.arange(sizes(network)[first])}, {}]


@pytest.mark.parametrize("name", MODELS)
def test_it_equals_a_masked_unroll(name: str) -> None:
    model, x = MODELS[name]().double(), data()
    with undisturbed(model):
        network = network_of(model, x)
        for removed in chosen(network):
            gone = {str(key): cells.tolist() for key, cells in removed.items()}
            expected = naive_change(model, masked(model, gone), x)
            torch.testing.assert_close(network.changes(0, removed)[0], expected, rtol=1e-10, atol=1e-14, msg=f"{gone}")


@pytest.mark.parametrize("name", STACKED)
def test_single_precision_and_the_plainest_copy(name: str) -> None:
    model, x = MODELS[name](), data(dtype=torch.float32)
    with undisturbed(model):
        network = network_of(model, x)
        for removed in chosen(network):
            other = rewritten(model, {str(key): cells.tolist() for key, cells in removed.items()})
            assert (network.outcome(0, removed).outputs[0] - other(x)).abs().max() < 1e-6


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_many_cells_are_cut_out(kind: str) -> None:
    model, x = Net(build(kind, IN, 22, 2, bidirectional=True, batch_first=True)).double(), data()
    with undisturbed(model):
        network = network_of(model, x)
        for key in network.parts:
            for count in (15, 16, 17, 21, 22):
                cells = torch.randperm(22)[:count]
                expected = naive_change(model, rewritten(model, {str(key): cells.tolist()}), x)
                torch.testing.assert_close(network.changes(0, {key: cells})[0], expected, rtol=1e-10, atol=1e-15)


def counted_means(model: nn.Module, x: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
    """Means of all layers by a loop over the steps of an unroll; padding of packed sequences was never unrolled."""
    unrolled: Any = masked(model, {})
    with torch.no_grad():
        unrolled(x)
    found = {}
    for path, stand in unrolled.named_modules():
        for suffix, calls in getattr(stand, "seen", {}).items():
            rows = []
            for call in calls:
                for t, hidden in enumerate(call):
                    rows += [row for n, row in enumerate(hidden) if mask is None or mask[n, t]]
            found[f"{path}.{suffix[1:]}".strip(".")] = torch.stack(rows).mean(0)
    return found


MASK = torch.arange(T) < LENGTHS[:, None]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        *((name, {}) for name in MODELS if name != "projection"),
        ("LSTM, 2 layers, both ways", {"mask": MASK}),
        ("GRU, both ways", {"lengths": LENGTHS}),
        ("RNN", {"mask": torch.rand(N, T) < 0.6}),
    ],
)
def test_cells_at_their_mean_equal_a_masked_unroll(name: str, options: dict[str, Any]) -> None:
    model, x = MODELS[name]().double(), data()
    with undisturbed(model):
        network = network_of(model, x, **options)
        network.means = network.hidden_means()
        mask = MASK if "lengths" in options else options.get("mask")
        means = counted_means(model, x, mask)
        for key, mean in network.means.items():
            torch.testing.assert_close(mean, means[str(key)], rtol=1e-12, atol=1e-14)
        for removed in chosen(network):
            gone = {str(key): cells.tolist() for key, cells in removed.items()}
            expected = naive_change(model, masked(model, gone, means), x)
            torch.testing.assert_close(network.changes(0, removed)[0], expected, rtol=1e-9, atol=1e-14, msg=f"{gone}")


def test_with_a_projection_cells_at_their_mean_start_there() -> None:
    model, x = MODELS["projection"]().double(), data()
    hr = model.rnn.weight_hr_l0.detach()
    with undisturbed(model):
        network = network_of(model, x)
        network.means = network.hidden_means()
        key = LayerKey("rnn", 0)
        means = counted_means(model, x, None)
        torch.testing.assert_close(network.means[key], means["rnn.l0"])
        start = (means["rnn.l0"][1] * hr[:, 1]).expand(N, 2)  # the cell at its mean already moves the first state
        h0 = torch.stack([start, torch.zeros(N, 2).double()])
        other = masked(model, {"rnn.l0": [1]}, means)
        expected = naive_change(model, lambda given: other(given, (h0, torch.zeros(2, N, 4).double())), x)  # type: ignore[arg-type]
        torch.testing.assert_close(network.changes(0, {key: torch.tensor([1])})[0], expected, rtol=1e-9, atol=1e-14)


# --- live weights ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["zero", "mean"])
@pytest.mark.parametrize("name", ["LSTM, 2 layers, both ways", "packed GRU", "encoder-decoder", "shared", "LSTMCell"])
def test_live_weights_give_the_same(name: str, mode: str) -> None:
    model, x = MODELS[name]().double(), data()
    with undisturbed(model):
        copied, live = network_of(model, x), network_of(model, x, live=True)
        assert (copied.live, live.live) == (False, True)
        if mode == "mean":
            copied.means, live.means = copied.hidden_means(), live.hidden_means()
        for removed in chosen(copied):
            a, b = copied.changes(0, removed)[0], live.changes(0, removed)[0]
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-15)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_runs_live(dtype: torch.dtype) -> None:
    model, x = Net(nn.LSTM(IN, 6, batch_first=True)).to(dtype), data().to(dtype)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with undisturbed(model):
        network = network_of(model, x)
        assert network.live
        for cell in range(6):
            found = network.outcome(0, {LayerKey("rnn", 0): torch.tensor([cell])}).outputs[0]
            assert torch.equal(found, rewritten(model, {"rnn.l0": [cell]})(x).float())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


# --- nothing is left behind -----------------------------------------------------------------------------------


def bits(model: nn.Module) -> list[Any]:
    tensors = {name: value.clone() for name, value in model.state_dict().items()}
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks), "forward" in vars(m)) for m in model.modules()]
    global_hooks = [len(getattr(nn.modules.module, f"_global_forward{name}_hooks")) for name in ("", "_pre")]
    modes = [m.training for m in model.modules()]
    states = [torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()]  # type: ignore[index]
    return [{name: value.tolist() for name, value in tensors.items()}, hooks, global_hooks, modes, states]


@pytest.mark.parametrize("live", [False, True])
@pytest.mark.parametrize("name", ["LSTM, 2 layers, both ways", "encoder-decoder", "GRUCell"])
def test_the_model_and_the_random_states_are_as_before(name: str, live: bool) -> None:
    model, x = MODELS[name]().double().train(), data()
    before, versions = bits(model), [p._version for p in model.parameters()]
    with undisturbed(model):
        network = network_of(model, x, live=live)
        singles(network, next(iter(network.parts)))
        network.means = network.hidden_means()
        network.outcome(0, {key: torch.tensor([0]) for key in network.parts})
    assert bits(model) == before
    assert [p._version for p in model.parameters()] == versions


@pytest.mark.parametrize("live", [False, True])
def test_a_run_that_fails_leaves_nothing(live: bool) -> None:
    model = Net(nn.LSTM(IN, 4, batch_first=True)).double()
    before, calls = bits(model), 0

    def run() -> Tensor:
        nonlocal calls
        calls += 1
        result = model(data())
        if calls > 3:
            raise KeyboardInterrupt
        return result

    with undisturbed(model):
        network = Network(model, find_layers(model), [Run(run, score=lambda out: out.mean())], live=live)
        with pytest.raises(KeyboardInterrupt):
            singles(network, LayerKey("rnn", 0))
    assert bits(model) == before


# --- caches ---------------------------------------------------------------------------------------------------


def test_what_is_known_is_not_used_after_something_changed() -> None:
    model, x = Towers().double(), data()
    low, high = LayerKey("low", 0), LayerKey("high", 0)
    with undisturbed(model):
        network = network_of(model, x)
        both = {low: torch.tensor([1]), high: torch.tensor([0])}
        for removed in (both, {high: torch.tensor([0])}, {low: torch.tensor([1])}, both, {}):
            gone = {str(key): cells.tolist() for key, cells in removed.items()}
            expected = naive_change(model, rewritten(model, gone), x)
            torch.testing.assert_close(network.changes(0, removed)[0], expected, rtol=1e-10, atol=1e-16)


def test_runs_do_not_mix() -> None:
    model, batches = Net(nn.LSTM(IN, 4, batch_first=True)).double(), [data(), data(3) + 1, data(N, 7)]
    key = LayerKey("rnn", 0)
    with undisturbed(model):
        network = network_of(model, batches)
        for index in (2, 0, 1, 0):
            expected = naive_change(model, rewritten(model, {"rnn.l0": [2]}), batches[index])
            torch.testing.assert_close(
                network.changes(index, {key: torch.tensor([2])})[0], expected, rtol=1e-10, atol=0
            )


class Moody(Net):
    """Keeps a count of its calls in an attribute and a running mean in a buffer; both change what it says."""

    def __init__(self) -> None:
        super().__init__(nn.LSTM(IN, 4, batch_first=True))
        self.count = 0
        self.register_buffer("running", torch.zeros(2))

    def forward(self, x: Tensor, hx: Any = None) -> Tensor:
        out = super().forward(x, hx) + self.running + self.count
        self.running += 1
        self.count += 1
        return out


def test_every_run_starts_from_the_same_state() -> None:
    model = Moody().double()
    with undisturbed(model):
        network = network_of(model, data())
        assert float(network.changes(0, {})[0].max()) == 0
        expected = naive_change(model, rewritten(model, {"rnn.l0": [0]}), data())
        torch.testing.assert_close(network.changes(0, {LayerKey("rnn", 0): torch.tensor([0])})[0], expected)


def test_a_run_with_other_weights_is_refused() -> None:
    model = Net(nn.LSTM(IN, 4, batch_first=True)).double()

    def averaged() -> Tensor:
        weight, kept = model.rnn.weight_hh_l0, model.rnn.weight_hh_l0.detach().clone()  # type: ignore[union-attr]
        weight.data.mul_(0.9)
        try:
            return model(data())
        finally:
            weight.data.copy_(kept)

    with undisturbed(model), pytest.raises(ValueError, match="rnn.l0 runs with other weights than the model has"):
        Network(model, find_layers(model), [Run(averaged)])


def test_layers_that_receive_nothing_are_an_error() -> None:
    model = Net(nn.LSTM(IN, 4, batch_first=True))
    other = copy.deepcopy(model)
    with undisturbed(model), pytest.raises(ValueError, match=r"rnn.l0\) received nothing"):
        Network(model, find_layers(model), [Run(lambda: other(data(dtype=torch.float32)))])


# --- a row a sequence -----------------------------------------------------------------------------------------


class TimeFirst(Net):
    def forward(self, x: Tensor, hx: Any = None) -> Tensor:
        return self.head(self.rnn(x, hx)[0]).transpose(0, 1)


@pytest.mark.parametrize("steps", [T, N])
@pytest.mark.parametrize("net", [Net, EveryStep])
def test_rows_are_those_of_the_sequences(net: type[Net], steps: int) -> None:
    model, x = net(nn.GRU(IN, 4, batch_first=True)).double(), data(steps=steps)
    x[2] = 0  # the same at every step
    with undisturbed(model):
        rows = network_of(model, x).intact[0].outputs[0]
        assert rows.shape[0] == N
        torch.testing.assert_close(rows, model(x).flatten(1))


def test_rows_where_time_comes_first() -> None:
    model, x = TimeFirst(nn.GRU(IN, 4, batch_first=True)).double(), data()
    with undisturbed(model):
        rows = network_of(model, x).intact[0].outputs[0]
        torch.testing.assert_close(rows, model(x).transpose(0, 1).flatten(1))


def test_rows_of_packed_outputs_are_in_the_order_of_the_sequences() -> None:
    model, x = nn.LSTM(IN, 4).double(), data()
    packed = pack_padded_sequence(x, LENGTHS, batch_first=True, enforce_sorted=False)
    with undisturbed(model):
        rows = network_of(model, packed).intact[0].outputs[0]
        for n, length in enumerate(LENGTHS.tolist()):
            torch.testing.assert_close(rows[n, : 4 * length], model(x[n, :length])[0].flatten())
            assert float(rows[n, 4 * length :].abs().sum()) == 0


@pytest.mark.parametrize("net", [EveryStep, TimeFirst])
def test_a_mask_leaves_padding_out(net: type[Net]) -> None:
    model, x = net(nn.LSTM(IN, 4, batch_first=True)).double(), data()
    other = rewritten(model, {"rnn.l0": [1]})
    with undisturbed(model):
        found = network_of(model, x, lengths=LENGTHS).changes(0, {LayerKey("rnn", 0): torch.tensor([1])})[0]
        square = (model(x) - other(x)).square()
        square = square.transpose(0, 1) if net is TimeFirst else square
        expected = [float(square[n, :length].sum()) / (T * 2) for n, length in enumerate(LENGTHS.tolist())]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))


def test_an_output_without_a_sequence_axis_is_one_row() -> None:
    model, x = Net(nn.LSTM(IN, 4, batch_first=True)).double(), data()
    with undisturbed(model):
        network = network_of(model, x, forward=lambda model, x: model(x).mean(0))
        assert network.intact[0].outputs[0].shape == (1, 2)


def test_the_variance_of_the_output_is_that_over_sequences() -> None:
    model, batches = Net(nn.LSTM(IN, 4, batch_first=True)).double(), [data(), data() * 2]
    with undisturbed(model):
        network = network_of(model, batches)
        one, two = (model(x).var(0, correction=0).mean() for x in batches)
        assert output_variance(network.intact) == pytest.approx(float(one + two) / 2)
        assert output_variance(network.intact[:1]) == pytest.approx(float(one))
    assert math.isnan(output_variance([]))


# --- scores ---------------------------------------------------------------------------------------------------


def scored(model: nn.Module, values: Sequence[Any]) -> Network:
    runs = [Run(lambda v=v: v(model), score=lambda result: result) for v in values]  # type: ignore[misc]
    return Network(model, find_layers(model), runs)


@pytest.mark.parametrize("form", ["float", "0-d", "(N,)", "(N, 1)", "list", "numpy"])
def test_scores_of_every_form(form: str) -> None:
    model, x = Net(nn.LSTM(IN, 4, batch_first=True)).double(), data()

    def evaluate(net: nn.Module) -> Any:
        each = net(x).square().mean(1)
        forms = {"float": lambda: float(each.mean()), "0-d": each.mean, "(N,)": lambda: each}
        forms |= {"(N, 1)": lambda: each[:, None], "list": each.tolist, "numpy": each.numpy}
        return forms[form]()

    with undisturbed(model):
        network = scored(model, [evaluate])
        found = network.changes(0, {LayerKey("rnn", 0): torch.tensor([3])})[1]
        change = rewritten(model, {"rnn.l0": [3]})(x).square().mean(1) - model(x).square().mean(1)
        expected = change if "N" in form or form in ("list", "numpy") else change.mean()[None]
        torch.testing.assert_close(found, expected.detach())


@pytest.mark.parametrize("value", [None, "good", {"loss": 1.0}, object()])
def test_a_score_that_is_no_number_is_an_error(value: Any) -> None:
    model = Net(nn.LSTM(IN, 4, batch_first=True)).double()
    with undisturbed(model), pytest.raises(TypeError, match=f"returned {type(value).__name__}; it must return one"):
        scored(model, [lambda net: (net(data()), value)[1]])


def test_a_score_of_another_length_is_an_error() -> None:
    model = Net(nn.LSTM(IN, 4, batch_first=True)).double()
    with undisturbed(model):
        network = scored(model, [lambda net: (lambda out: out[out > 0])(net(data(40)))])
        with pytest.raises(ValueError, match="evaluate returned .* values without some cells"):
            network.outcome(0, {LayerKey("rnn", 0): torch.arange(4)})


def test_an_output_of_another_shape_is_an_error() -> None:
    model = Net(nn.LSTM(IN, 4, batch_first=True)).double()
    with undisturbed(model):
        network = network_of(model, data(40), forward=lambda net, x: (lambda out: out[out > 0])(net(x)))
        with pytest.raises(ValueError, match="has another shape"):
            network.changes(0, {LayerKey("rnn", 0): torch.arange(4)})


def test_a_run_that_calls_the_network_often_has_all_its_sequences() -> None:
    model, batches = Net(nn.LSTM(IN, 4, batch_first=True)).double(), [data(), data(3) - 1, data(2) * 2]
    with undisturbed(model):
        network = scored(model, [lambda net: sum(float(net(x).mean()) for x in batches)])
        change, score = network.changes(0, {LayerKey("rnn", 0): torch.tensor([1])})
        other = rewritten(model, {"rnn.l0": [1]})
        expected = torch.cat([naive_change(model, other, x) for x in batches])
        torch.testing.assert_close(change, expected)
        assert score.shape == (1,)


def test_scores_are_weighed() -> None:
    one, many = torch.tensor([3.0]), torch.tensor([1.0, 2.0])
    run = Run(lambda: None, weight=5.0)
    assert score_weights(run, one).tolist() == [5.0]
    assert score_weights(run, many).tolist() == [1.0, 1.0]
    assert float(weighted_mean(torch.tensor([3.0, 1.0]), torch.tensor([5.0, 1.0]))) == pytest.approx(16 / 6)
    assert math.isnan(float(weighted_mean(torch.empty(0), torch.empty(0))))


# --- single cells ---------------------------------------------------------------------------------------------


def test_singles_equal_a_loop() -> None:
    model, batches = Net(nn.LSTM(IN, 6, batch_first=True)).double(), [data(), data(3) + 0.5]
    with undisturbed(model):
        network = scored(model, [lambda net, x=x: net(x).square().mean(1) for x in batches])
        found = singles(network, LayerKey("rnn", 0))
        for cell in range(6):
            other = rewritten(model, {"rnn.l0": [cell]})
            changes = torch.cat([naive_change(model, other, x) for x in batches])
            scores = torch.cat([(other(x).square() - model(x).square()).mean(1) for x in batches]).detach()
            torch.testing.assert_close(found.output[cell], changes, rtol=1e-10, atol=1e-16)
            torch.testing.assert_close(found.score[cell], scores, rtol=1e-10, atol=1e-14)
            assert float(found.output_effects()[cell]) == pytest.approx(float(changes.mean()), rel=1e-10)
        for cell in (5, 0):
            output, score = network.changes(1, {LayerKey("rnn", 0): torch.tensor([cell])})
            assert torch.equal(output, found.output[cell, N:])
            assert torch.equal(score, found.score[cell, N:])
    assert (found.runs, found.output.shape, found.score.shape) == (2, (6, 7), (6, 7))


def test_means_of_batches_count_by_their_weight() -> None:
    found = Singles(torch.empty(2, 0), torch.tensor([[1.0, 4.0], [2.0, 2.0]]), torch.tensor([3.0, 1.0]), 2)
    assert found.score_changes().tolist() == [1.75, 2.0]
    assert bool(torch.isnan(found.output_effects()).all())


def slow(model: nn.Module, x: Tensor, seconds: float, clock: QuietClock) -> Run:
    def call() -> Tensor:
        clock.wait(seconds)
        return model(x)

    return Run(call)


def test_the_first_run_goes_as_far_as_there_is_time(quiet_clock: QuietClock) -> None:
    model = Net(nn.LSTM(IN, 40, batch_first=True)).double()
    ticks: list[int] = []
    with undisturbed(model):
        network = Network(model, find_layers(model), [slow(model, data(), 0.01, quiet_clock) for _ in range(2)])
        began = time.perf_counter()
        found = singles(network, LayerKey("rnn", 0), began + 0.1, tick=lambda: ticks.append(1))
        took = time.perf_counter() - began
    known = ~torch.isnan(found.output_effects())
    assert 0 < int(known.sum()) < 15
    assert known.nonzero()[:, 0].tolist() == list(range(int(known.sum())))
    assert took < 0.3
    assert found.runs == 1
    assert len(ticks) >= int(known.sum())


def test_later_runs_are_whole_or_left_out(quiet_clock: QuietClock) -> None:
    model = Net(nn.LSTM(IN, 10, batch_first=True)).double()
    with undisturbed(model):
        network = Network(model, find_layers(model), [slow(model, data(), 0.004, quiet_clock) for _ in range(5)])
        found = singles(network, LayerKey("rnn", 0), time.perf_counter() + 0.12)
    assert 1 <= found.runs < 5
    assert found.output.shape == (10, N * found.runs)
    assert not bool(torch.isnan(found.output).any())


def test_one_cell_is_measured_when_the_time_is_over_already() -> None:
    model = Net(nn.LSTM(IN, 10, batch_first=True)).double()
    with undisturbed(model):
        found = singles(network_of(model, [data(), data()]), LayerKey("rnn", 0), time.perf_counter() - 1)
    assert torch.isnan(found.output_effects()).tolist() == [False] + 9 * [True]


def test_half_of_the_time_is_left_for_the_score(quiet_clock: QuietClock) -> None:
    model = Net(nn.LSTM(IN, 8, batch_first=True)).double()
    key = LayerKey("rnn", 0)
    with undisturbed(model):
        shown = [slow(model, data(), 0.005, quiet_clock) for _ in range(20)]
        last = Run(lambda: float(model(data()).mean()), score=lambda value: value, watched=False)
        network = Network(model, find_layers(model), [*shown, last])
        found = singles(network, key, time.perf_counter() + 0.2)
    assert 1 < found.runs < 12
    assert not bool(torch.isnan(found.score_changes()).any())
    with torch.no_grad():
        changes = [(rewritten(model, {"rnn.l0": [cell]})(data()) - model(data())).mean() for cell in range(8)]
    torch.testing.assert_close(found.score_changes(), torch.stack(changes))


def test_changes_of_several_outputs_stand_in_one_row() -> None:
    model = Net(nn.LSTM(IN, 4, batch_first=True)).double()
    with undisturbed(model):
        network = scored(model, [lambda net: float(net(data()).mean() + net(data(2)).mean())])
        assert output_change(network.outcome(0, {}), network.intact[0]).tolist() == [0.0] * (N + 2)
