"""Held-out data are divided where that gives the same, and only there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from lstm_monitor.core.undisturbed import undisturbed
from lstm_monitor.layers.finding import find_layers
from lstm_monitor.snapshots.batching import in_batches, sequences_of


class Net(nn.Module):
    def __init__(self, batch_first: bool = True, scale: float = 1.0) -> None:
        super().__init__()
        self.rnn, self.head, self.scale = nn.GRU(2, 4, batch_first=batch_first), nn.Linear(4, 3), scale

    def forward(self, x: Tensor, hx: Tensor | None = None, lengths: Tensor | None = None) -> Tensor:
        return self.scale * self.head(self.rnn(x)[0])


class Pair(NamedTuple):
    x: Tensor
    hx: Tensor


def divided(model: nn.Module, held_out: Any, size: int = 10, **options: Any) -> Any:
    before = torch.get_rng_state()
    with undisturbed(model):
        found = in_batches(model, find_layers(model), held_out, size=size, **options)
    assert torch.equal(torch.get_rng_state(), before)
    return found


X = torch.randn(25, 7, 2)


def rows(value: Tensor) -> list[list[float]]:
    return sorted(value.flatten(1).tolist())


def test_each_sequence_is_there_once() -> None:
    batches = divided(Net(), X)
    assert [len(batch) for batch in batches] == [10, 10, 5]
    assert rows(torch.cat(batches)) == rows(X)


def test_sorted_data_are_mixed() -> None:
    x = torch.arange(100.0)[:, None, None].expand(100, 4, 2)
    first = divided(Net(), x)[0][:, 0, 0]
    assert float(first.max() - first.min()) > 50
    again, other = divided(Net(), x)[0][:, 0, 0], divided(Net(), x, seed=1)[0][:, 0, 0]
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("make", [lambda a, b: (a, b), Pair, lambda a, b: {"x": a, "hx": b}])
def test_parts_stay_together(make: Callable[[Tensor, Tensor], Any]) -> None:
    batches = divided(Net(), make(X, X[:, 0]))
    assert len(batches) == 3
    for batch in batches:
        x, other = batch.values() if isinstance(batch, dict) else batch
        assert torch.equal(x[:, 0], other)
        assert type(batch) is type(make(X, X))


def test_a_small_one_and_a_list_stay_as_they_are() -> None:
    small, listed = X[:10], [X, X]
    assert divided(Net(), small) is small
    assert divided(Net(), listed) is listed


def test_packed_sequences_stay_as_they_are() -> None:
    model = nn.GRU(2, 4)
    packed = pack_padded_sequence(X, torch.full((25,), 7), batch_first=True)
    assert divided(model, packed) is packed


@pytest.mark.parametrize("scale", [1.0, 1e-7])
def test_time_first_data_stay_whole(scale: float) -> None:
    model = Net(batch_first=False, scale=scale)
    model.head.bias.data.zero_()
    assert divided(model, X) is X  # 25 steps of 7 sequences


class AcrossSequences(Net):
    """What it says of a sequence depends on the others."""

    def forward(self, x: Tensor, hx: Tensor | None = None, lengths: Tensor | None = None) -> Tensor:
        out = super().forward(x)
        return out - out.mean(0)


class OneNumber(Net):
    def forward(self, x: Tensor, hx: Tensor | None = None, lengths: Tensor | None = None) -> Tensor:
        return super().forward(x).mean()


@pytest.mark.parametrize("model", [AcrossSequences(), OneNumber()])
def test_what_depends_on_all_sequences_stays_whole(model: nn.Module) -> None:
    assert divided(model, X) is X


def test_a_state_that_is_not_by_sequence_stays_whole() -> None:
    given = (X, torch.zeros(1, 25, 4))
    assert divided(Net(), given) is given


def test_the_loss_decides_where_it_is_what_runs() -> None:
    model, y = Net(), torch.randn(25)
    each = divided(model, (X, y), forward=lambda net, batch: (net(batch[0]).mean((1, 2)) - batch[1]).square())
    whole = divided(model, (X, y), forward=lambda net, batch: (net(batch[0]).mean((1, 2)) - batch[1]).square().mean())
    assert [len(batch[0]) for batch in each] == [10, 10, 5]
    assert isinstance(whole, tuple)


def test_a_model_that_cannot_be_run_is_left_to_who_runs_it() -> None:
    wrong = torch.randn(25, 7, 5)
    assert divided(Net(), wrong) is wrong
    assert divided(Net(), X, select=lambda out: None) is X


def test_how_many_sequences_there_are() -> None:
    assert sequences_of(X) == 25
    assert sequences_of((X, X[:, 0])) == 25
    assert sequences_of({"x": X, "y": torch.ones(25)}) == 25
    assert sequences_of((X, torch.ones(3))) is None
    assert sequences_of((X, "words")) is None
    assert sequences_of([X]) is None
    assert sequences_of(torch.ones(4)) is None
