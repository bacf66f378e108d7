"""The greedy order against plain loops, and on cells whose part in the output is known."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lstm_monitor.core.terms import LayerKey
from lstm_monitor.core.undisturbed import undisturbed
from lstm_monitor.importance.removal import greedy as removal_greedy
from lstm_monitor.importance.removal.greedy import removal_order
from lstm_monitor.importance.removal.network import Network
from lstm_monitor.importance.removal.single_cells import singles
from lstm_monitor.layers.finding import find_layers
from lstm_monitor.snapshots.runs import Run, runs_of


class Net(nn.Module):
    def __init__(self, rnn: nn.RNNBase, outputs: int = 3) -> None:
        super().__init__()
        self.rnn, self.head = rnn, nn.Linear(rnn.hidden_size * (2 if rnn.bidirectional else 1), outputs)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(self.rnn(x)[0][:, -1])
        return result


def network_of(
    model: nn.Module, *batches: Tensor, score: Callable[[Tensor], Any] | None = None, **options: Any
) -> Network:
    layers = find_layers(model)
    runs: Sequence[Run] = runs_of(model, layers, list(batches))
    if score is not None:
        runs = [Run(lambda x=x: model(x), score=score, **options) for x in batches]
    return Network(model, layers, runs)


def first(network: Network) -> LayerKey:
    return next(iter(network.parts))


def order_of(model: nn.Module, *batches: Tensor, **options: Any) -> list[int]:
    with undisturbed(model):
        network = network_of(model, *batches)
        return removal_order(network, first(network), **options).tolist()


def readers(inputs: Sequence[int], outgoing: Sequence[float]) -> tuple[Net, Tensor]:
    """Cells without recurrence, each of which passes on one of the inputs, times a weight; and orthogonal inputs."""
    model = Net(nn.RNN(max(inputs) + 1, len(inputs), bias=False, batch_first=True), 1).double()
    with torch.no_grad():
        model.rnn.weight_hh_l0.zero_()
        model.rnn.weight_ih_l0.zero_()
        model.rnn.weight_ih_l0[range(len(inputs)), list(inputs)] = 1e-3
        model.head.weight.copy_(torch.tensor([outgoing]))
    signs = torch.tensor([[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1]]).double()
    return model, signs[: max(inputs) + 1].T[:, None].contiguous()


def without(model: nn.Module, cells: Sequence[int]) -> nn.Module:
    """A copy with the candidate rows of these cells of an LSTM at zero."""
    model = copy.deepcopy(model)
    rnn: Any = model.rnn
    with torch.no_grad():
        for weight in (rnn.weight_ih_l0, rnn.weight_hh_l0, rnn.bias_ih_l0, rnn.bias_hh_l0):
            for cell in cells:
                weight[2 * rnn.hidden_size + cell] = 0
    return model


def change(model: nn.Module, cells: Sequence[int], x: Tensor) -> float:
    with torch.no_grad():
        return float((without(model, cells)(x) - model(x)).square().mean())


@pytest.mark.parametrize("blocks", [1, 3])
def test_cells_that_replace_each_other_do_not_both_go_first(blocks: int) -> None:
    model, x = readers([0, 0, 1], [1.0, 1.0, 1.5])  # alone 1, 1, 2.25; 0 with 1: 4, 0 with 2: 3.25
    order = order_of(model, x, blocks=blocks)
    assert order[1] == 2
    assert sorted(order) == [0, 1, 2]


@pytest.mark.parametrize("blocks", [1, 4])
def test_cells_that_cancel_go_together(blocks: int) -> None:
    model, x = readers([0, 0, 1, 2], [1.0, -1.0, 1.2, 1.3])
    assert order_of(model, x, blocks=blocks)[:2] == [3, 2]


def test_cell_by_cell_it_equals_a_plain_loop() -> None:
    model, x = Net(nn.LSTM(2, 7, batch_first=True)).double(), torch.randn(20, 6, 2).double()
    gone: list[int] = []
    while len(gone) < 7:
        left = [cell for cell in range(7) if cell not in gone]
        gone.append(min(left, key=lambda cell: change(model, [*gone, cell], x)))
    assert order_of(model, x[:12], x[12:], blocks=7) == gone[::-1]


def test_less_changes_than_with_the_order_of_single_effects() -> None:
    model, x = Net(nn.LSTM(2, 40, batch_first=True)).double(), torch.randn(30, 12, 2).double()
    with undisturbed(model):
        network = network_of(model, x)
        greedy = removal_order(network, first(network)).flip(0)
        alone = singles(network, first(network)).output_effects().argsort()
    for count in (10, 20, 30):
        assert change(model, greedy[:count].tolist(), x) < 0.8 * change(model, alone[:count].tolist(), x)


@pytest.mark.parametrize("rnn", [nn.GRU(2, 5, 2, bidirectional=True, batch_first=True), nn.LSTM(2, 1)])
def test_every_layer_gives_each_of_its_cells_once(rnn: nn.RNNBase) -> None:
    rnn.batch_first = True
    model = Net(rnn).double()
    with undisturbed(model):
        network = network_of(model, torch.randn(6, 5, 2).double())
        network.means = network.hidden_means()
        for key in network.parts:
            assert sorted(removal_order(network, key).tolist()) == list(range(rnn.hidden_size))


def test_only_the_given_runs_are_used() -> None:
    model, x = readers([0, 1], [1.0, 1.0])
    quiet = x * torch.tensor([1.0, 0.1]).double()
    assert order_of(model, quiet, quiet.flip(2), indices=[0])[0] == 0
    assert order_of(model, quiet, quiet.flip(2), indices=[1])[0] == 1


# By the score


def test_the_score_is_judged_by_its_own_direction() -> None:
    model, x = readers([0, 1, 2], [1.0, 2.0, 3.0])
    with torch.no_grad():
        truth = model(x) * torch.tensor([1.0, 1.0, 1.0, 1.0])[:, None]
    for sign, better in ((1, "lower"), (-1, "higher"), (1, None), (-1, None)):
        with undisturbed(model):
            network = network_of(model, x, score=lambda out, sign=sign: sign * (out - truth).square().flatten())
            assert removal_order(network, first(network), by="score", better=better).tolist() == [2, 1, 0]


def test_a_harmful_cell_goes_first_by_score_and_last_by_output() -> None:
    model, x = readers([0, 1, 2], [3.0, 1.0, 2.0])
    with undisturbed(model):
        truth = without_first(model)(x)
        network = network_of(model, x, score=lambda out: (out - truth).square().flatten())
        assert removal_order(network, first(network), by="score", better="lower").tolist() == [2, 1, 0]
        assert removal_order(network, first(network), by="output").tolist() == [0, 2, 1]


def without_first(model: Net) -> Net:
    model = copy.deepcopy(model)
    with torch.no_grad():
        model.head.weight[0, 0] = 0
    return model


def test_by_score_too_cells_that_replace_each_other_do_not_both_go_first() -> None:
    model, x = readers([0, 0, 1], [1.0, 1.0, 1.5])
    with undisturbed(model):
        truth = model(x)
        network = network_of(model, x, score=lambda out: 7 * (out - truth).square().flatten())
        assert removal_order(network, first(network), by="score", better="lower", blocks=1)[1] == 2


def test_a_score_without_outputs_is_used_by_itself_and_may_be_one_number() -> None:
    model, x = readers([0, 1, 2], [1.0, 2.0, 3.0])
    with undisturbed(model):
        truth = model(x)
        network = network_of(model, x, score=lambda out: float((out - truth).square().mean()), watched=False)
        assert removal_order(network, first(network)).tolist() == [2, 1, 0]
        with pytest.raises(ValueError, match="by='output': the runs have no output; give by='score'"):
            removal_order(network, first(network), by="output")


def test_cells_without_which_the_score_is_nan_go_last() -> None:
    model, x = readers([0, 1, 2], [1.0, 2.0, 3.0])
    with undisturbed(model):
        truth = model(x)
        gone = truth - 1e-3 * x[:, -1, :1]  # without cell 0

        def score(out: Tensor) -> Tensor:
            broken = (out - gone).abs().max() < 1e-8
            return (out - truth).square().flatten() * (math.nan if broken else 1.0)

        network = network_of(model, x, score=score)
        order = removal_order(network, first(network), by="score", better="lower", blocks=1)
    assert order.tolist() == [0, 2, 1]


@pytest.mark.parametrize(("options", "message"), [({"blocks": 0}, "blocks=0"), ({"by": "loss"}, "by='loss'")])
def test_values_that_are_not_allowed(options: dict[str, Any], message: str) -> None:
    model, x = readers([0, 1], [1.0, 1.0])
    with pytest.raises(ValueError, match=message):
        order_of(model, x, **options)


# Time and size


def test_after_the_first_block_only_cells_of_little_harm_are_measured() -> None:
    model = Net(nn.LSTM(2, 40, batch_first=True))
    with undisturbed(model):
        network = network_of(model, torch.randn(6, 5, 2))
        bench = removal_greedy._bench(network, first(network), None, None, None)
        known = removal_greedy._blank(bench)
        everything = removal_greedy._candidates(known, torch.arange(40), 2)
        assert everything.tolist() == list(range(40))
        gone = removal_greedy._next(bench, known, torch.empty(0, dtype=torch.long), 2, math.inf)
        left = torch.tensor([cell for cell in range(40) if cell not in gone])
        expected = known.expected()
        chosen = removal_greedy._candidates(known, left, 2)
    assert len(chosen) == removal_greedy.CANDIDATES
    dropped = [cell for cell in left.tolist() if cell not in chosen]
    assert expected[chosen].max() <= expected[dropped].min()


def test_without_time_the_cells_that_went_are_still_allowed_for() -> None:
    model, x = readers([0, 0, 1, 2], [1.0, 1.0, 1.5, 9.0])
    with undisturbed(model):
        network = network_of(model, x)
        bench = removal_greedy._bench(network, first(network), None, None, None)
        known, none = removal_greedy._blank(bench), torch.empty(0, dtype=torch.long)
        gone = removal_greedy._next(bench, known, none, 1, math.inf)
        assert removal_greedy._next(bench, known, gone, 1, deadline=0.0).tolist() == [2]


def test_without_time_left_it_still_gives_an_order() -> None:
    model = Net(nn.LSTM(2, 30, batch_first=True))
    order = order_of(model, torch.randn(4, 5, 2), torch.randn(4, 5, 2), deadline=time.perf_counter() - 1)
    assert sorted(order) == list(range(30))


def test_when_the_time_ends_what_was_measured_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = readers([0, 1, 2], [2.0, 1.0, 3.0])
    now = iter([0.0, 0.0, 0.0, 0.0, 0.0, *[2.0] * 99])  # the clock of: two for the runs, the block, two cells
    monkeypatch.setattr(removal_greedy, "time", SimpleNamespace(perf_counter=lambda: next(now)))
    assert order_of(model, x, deadline=1.0) == [2, 0, 1]  # the third was never measured


def test_fewer_runs_are_used_where_all_take_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = readers([0, 1], [1.0, 1.0])
    with undisturbed(model):
        network = network_of(model, *[x] * 10)
        bench = removal_greedy._bench(network, first(network), None, None, None)
        now = iter([0.0, 1.0])
        monkeypatch.setattr(removal_greedy, "time", SimpleNamespace(perf_counter=lambda: next(now)))
        few = removal_greedy._within(bench, 1.0 + 4 * removal_greedy.SWEEPS * 2)  # of two cells, a second each
    assert few.runs == (0, 1, 2, 3)


def test_long_changes_are_shortened_and_keep_their_products() -> None:
    rows = torch.randn(3, 100_001)
    rows[1] += rows[0]
    short = torch.stack([removal_greedy._sketch(row) for row in rows])
    assert short.shape == (3, removal_greedy.SKETCH)
    torch.testing.assert_close(short @ short.T / 100_001, rows @ rows.T / 100_001, rtol=0.03, atol=0.03)


def test_a_long_output_gives_nearly_the_same_order(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = Net(nn.LSTM(2, 6, batch_first=True), 40).double(), torch.randn(50, 6, 2).double()
    plain = order_of(model, x)
    monkeypatch.setattr(removal_greedy, "SKETCH", 1000)
    removal_greedy._signs.cache_clear()
    assert order_of(model, x) == plain
    removal_greedy._signs.cache_clear()


def test_random_states_and_weights_are_as_before() -> None:
    model, x = Net(nn.LSTM(2, 6, batch_first=True)), torch.randn(8, 5, 2)
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    assert order_of(model, x) == order_of(model, x)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
