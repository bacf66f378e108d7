"""Rankings, their agreement, and the outgoing weights behind them."""

import math

import pytest
import torch
from torch import nn

import lstm_monitor as lm
from lstm_monitor.importance.ranking import agreement, outgoing_weights, ranked, ranking_names
from lstm_monitor.metrics.catalog import CATALOG
from tests.helpers import oracles


class Net(nn.Module):
    def __init__(self, **options: object) -> None:
        super().__init__()
        self.rnn = nn.LSTM(3, 8, num_layers=2, batch_first=True, **options)
        width = (self.rnn.proj_size or 8) * (2 if self.rnn.bidirectional else 1)
        self.head = nn.Linear(width, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.rnn(x)[0])


def examined(net: nn.Module, data: torch.Tensor | None) -> tuple[lm.Snapshot, lm.Metrics]:
    snap = lm.snapshot(net, data)[-1]
    return snap, next(layer.metrics for layer in lm.characterize(net, data).layers if layer.key == snap.key)


@pytest.fixture
def case() -> tuple[lm.Snapshot, lm.Metrics]:
    torch.manual_seed(0)
    return examined(Net(), torch.randn(6, 30, 3))


def test_auto_is_std_x_outgoing_weights_and_says_so(case: tuple[lm.Snapshot, lm.Metrics]) -> None:
    snap, metrics = case
    ranking = lm.rank(snap, metrics)
    assert ranking.name == "std_x_outgoing"
    assert ranking.words == "held-out std x outgoing weights (into head and its own recurrence)"
    rec = snap.weights.weight_hh.norm(dim=0)
    assert snap.outgoing is not None
    tot = snap.outgoing / snap.outgoing.mean() + rec / rec.mean()
    torch.testing.assert_close(ranking.scores, metrics["activity/std"].cells * tot)
    assert ranking.order.tolist() == sorted(range(8), key=lambda cell: -float(ranking.scores[cell]))


def test_outgoing_weights_are_the_columns_of_the_reader() -> None:
    net = Net(bidirectional=True)
    snaps = {str(snap.key): snap for snap in lm.snapshot(net)}
    torch.testing.assert_close(snaps["rnn.l1"].outgoing, net.head.weight[:, :8].norm(dim=0))
    torch.testing.assert_close(snaps["rnn.l1_reverse"].outgoing, net.head.weight[:, 8:].norm(dim=0))
    above = torch.cat([net.rnn.weight_ih_l1, net.rnn.weight_ih_l1_reverse])
    torch.testing.assert_close(snaps["rnn.l0_reverse"].outgoing, above[:, 8:].norm(dim=0))
    assert snaps["rnn.l0"].reader == "the layer above, l1"


def test_outgoing_weights_go_through_the_projection() -> None:
    net = Net(proj_size=5)
    snap = lm.snapshot(net)[1]
    torch.testing.assert_close(snap.outgoing, (net.head.weight @ net.rnn.weight_hr_l1).norm(dim=0))
    recurrence = (net.rnn.weight_hh_l1 @ net.rnn.weight_hr_l1).norm(dim=0)
    expected = snap.outgoing / snap.outgoing.mean() + recurrence / recurrence.mean()
    torch.testing.assert_close(outgoing_weights(snap), expected)


def test_without_a_reader_only_the_recurrence_counts() -> None:
    snap = lm.snapshot(nn.GRU(3, 8))[0]
    assert (snap.outgoing, snap.reader) == (None, None)
    recurrence = snap.weights.weight_hh.norm(dim=0)
    torch.testing.assert_close(outgoing_weights(snap), recurrence / recurrence.mean())


def test_without_data_the_std_is_that_on_random_sequences() -> None:
    snap, metrics = examined(Net(), None)
    state = torch.get_rng_state()
    ranking = lm.rank(snap, metrics)
    assert torch.equal(state, torch.get_rng_state())
    assert ranking.name == "random_std_x_outgoing"
    assert ranking.words.startswith("std on random sequences x outgoing weights")
    assert torch.isfinite(ranking.scores).all()
    assert torch.equal(ranking.order, lm.rank(snap, metrics).order)


@pytest.mark.parametrize("path", [path for path in CATALOG if "reset" not in path and "update" not in path])
def test_every_metric_ranks(case: tuple[lm.Snapshot, lm.Metrics], path: str) -> None:
    snap, metrics = case
    ranking = lm.rank(snap, metrics, path)
    assert ranking.name == path
    kept = [s for s in ranking.scores[ranking.order].tolist() if not math.isnan(s)]
    assert kept == sorted(kept, reverse=True)


def test_a_bare_name_is_the_coupled_metric(case: tuple[lm.Snapshot, lm.Metrics]) -> None:
    assert lm.rank(*case, "settling_time").name == "step/settling_time"


def test_undefined_cells_come_last_in_their_own_order(case: tuple[lm.Snapshot, lm.Metrics]) -> None:
    nan = float("nan")
    scores = torch.tensor([nan, 1.0, -math.inf, nan, 3.0])
    assert ranked(case[0], "x", "x", scores).order.tolist() == [4, 1, 2, 0, 3]


def test_unknown_and_unmeasured_names(case: tuple[lm.Snapshot, lm.Metrics]) -> None:
    with pytest.raises(ValueError, match=r"rank_by='setling_time' is not known. Did you mean 'settling_time'"):
        lm.rank(*case, "setling_time")
    with pytest.raises(ValueError, match="was not measured for rnn.l1, a lstm layer"):
        lm.rank(*case, "gates/reset_saturation")
    assert "auto" in ranking_names()


@pytest.mark.parametrize("seed", range(20))
def test_agreement_equals_the_naive_one(case: tuple[lm.Snapshot, lm.Metrics], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    a = torch.randint(0, 12, (30,), generator=generator).double()
    b = a + torch.randint(0, 9, (30,), generator=generator)
    one, other = ranked(case[0], "x", "x", a), ranked(case[0], "x", "x", b)
    found = agreement(one, other)
    assert found.tau == pytest.approx(oracles.kendall_tau_b(a.numpy(), b.numpy()))
    assert found.overlap == len(set(one.order[:3].tolist()) & set(other.order[:3].tolist())) / 3
    assert agreement(one, one) == lm.Agreement(pytest.approx(1.0), 1.0)


def test_agreement_is_of_the_cells_defined_in_both(case: tuple[lm.Snapshot, lm.Metrics]) -> None:
    nan = float("nan")
    one = ranked(case[0], "x", "x", torch.tensor([1.0, 2.0, 3.0, nan]))
    other = ranked(case[0], "x", "x", torch.tensor([nan, 2.0, 1.0, 9.0]))
    assert agreement(one, other).tau == pytest.approx(-1.0)
    assert math.isnan(agreement(one, ranked(case[0], "x", "x", torch.full((4,), nan))).tau)
