"""Races on planted effects, whose best cells are known, and on networks."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from lstm_monitor.core.undisturbed import undisturbed
from lstm_monitor.importance.removal import racing
from lstm_monitor.importance.removal.network import Network
from lstm_monitor.importance.removal.racing import Race, effective_sequences, race, race_on
from lstm_monitor.importance.removal.single_cells import singles
from lstm_monitor.importance.sensitivity.scores import output_changes
from lstm_monitor.layers.finding import find_layers
from lstm_monitor.snapshots.runs import Run, runs_of

BATCH = 16


def planted(seed: int, cells: int = 40, count: int = 800) -> Tensor:
    """Skewed effects ``(cells, count)``, cells with greater means spread more, and sequences shared by all."""
    generator = torch.Generator().manual_seed(seed)
    means = torch.rand(cells, generator=generator, dtype=torch.float64) ** 3
    shared = torch.randn(count, generator=generator, dtype=torch.float64).mul(0.5).exp()
    own = torch.randn(cells, count, generator=generator, dtype=torch.float64).square()
    return means[:, None] * (0.5 + shared * own)


def run_on(effects: Tensor, k: int, batch: int = BATCH, **options: Any) -> Race:
    sizes = [len(part) for part in torch.arange(effects.shape[1]).split(batch)]

    def measure(cells: Sequence[int], index: int) -> Tensor:
        return effects[cells, index * batch : index * batch + sizes[index]]

    return race_on(measure, sizes, len(effects), k, **options)


def best(effects: Tensor, k: int) -> list[int]:
    return effects.mean(1).argsort(descending=True)[:k].tolist()


@pytest.mark.thorough
@pytest.mark.parametrize("with_cheap", [False, True])
def test_at_most_one_race_in_twenty_is_wrong(with_cheap: bool) -> None:
    wrong, work = 0, 0.0
    for seed in range(200):
        effects = planted(seed)
        cheap = effects + 0.3 * planted(1000 + seed) if with_cheap else None
        found = run_on(effects, 5, cheap=cheap)
        assert found.decided
        wrong += set(found.top.tolist()) != set(best(effects, 5))
        work += found.work / 200
    assert wrong <= 10
    assert work < (0.4 if with_cheap else 0.7)


def test_clear_cells_are_found_with_little_work_and_close_ones_with_more() -> None:
    noise = torch.randn(128, 1024).double()
    clear = noise + 10 * (torch.arange(128) < 10)[:, None]
    close = noise + 0.2 * (torch.arange(128) < 10)[:, None]
    easy, hard = run_on(clear, 10), run_on(close, 10)
    assert sorted(easy.top.tolist()) == list(range(10))
    assert easy.work < 0.05
    assert hard.work > 0.3


def test_what_is_reported_is_what_was_measured() -> None:
    effects = planted(1)
    found = run_on(effects, 5)
    for cell, seen in enumerate(found.sequences.tolist()):
        assert float(found.mean[cell]) == pytest.approx(float(effects[cell, :seen].mean()))
    assert found.work == pytest.approx(int(found.sequences.sum()) / effects.numel())
    assert (found.mean[found.top].diff() <= 0).all()
    assert not found.corrected


def test_when_all_is_seen_the_means_decide_and_nothing_is_uncertain() -> None:
    effects = torch.randn(10, 50).double()  # no cell is better
    found = run_on(effects, 3)
    assert found.top.tolist() == best(effects, 3)
    assert found.decided
    assert found.work > 0.9
    assert (found.error[found.sequences == 50] == 0).all()


def test_equal_cells_end_with_the_data() -> None:
    found = run_on(torch.ones(4, 40).double(), 2)
    assert found.decided
    assert found.top.tolist() == [0, 1]
    assert found.work == 1


def test_when_the_time_is_over_it_says_what_is_undecided() -> None:
    effects = torch.randn(20, 400).double() + 50 * (torch.arange(20) == 7)[:, None]
    found = run_on(effects, 3, deadline=time.perf_counter() - 1)
    assert not found.decided
    assert found.settled.nonzero()[:, 0].tolist() == [7]
    assert found.top[0] == 7
    assert found.sequences.tolist() == [BATCH] * 20
    assert (found.error[~found.settled] > 0).all()


def test_single_sequences_and_empty_batches_can_be_raced() -> None:
    effects = torch.randn(6, 60).double() + torch.arange(6)[:, None] * 3
    found = race_on(lambda cells, index: effects[cells, index // 2][:, None], [1, 0] * 60, 6, 2)
    assert found.top.tolist() == [5, 4]
    assert found.work < 0.5


# The cheap score


def test_a_cheap_score_saves_work_whatever_its_scale() -> None:
    effects = torch.randn(60, 1600).double() + torch.arange(60)[:, None] * 0.02
    cheap = 3 * effects + torch.randn(60, 1600).double() * 0.3
    plain, helped = run_on(effects, 6), run_on(effects, 6, cheap=cheap)
    assert helped.corrected
    assert helped.work < 0.5 * plain.work
    assert sorted(helped.top.tolist()) == sorted(best(effects, 6))


def test_a_wrong_cheap_score_costs_little_and_misleads_nobody() -> None:
    effects = planted(3)
    wrong = torch.randn(40, 800).double() - torch.arange(40)[:, None] * 10
    plain, misled = run_on(effects, 5), run_on(effects, 5, cheap=wrong)
    assert sorted(misled.top.tolist()) == sorted(best(effects, 5))
    assert misled.work < 1.3 * plain.work + 0.05


def test_the_race_waits_for_rare_sequences_that_decide() -> None:
    quiet = 1e-3 * torch.randn(30, 640).double() + 0.01 * (torch.arange(30) < 3)[:, None]
    effects = quiet.clone()
    effects[:, 600:608] += 20.0 * torch.arange(30)[:, None]  # on few sequences the others matter more
    cheap = effects + 1e-4 * torch.randn(30, 640).double()
    assert run_on(effects, 3).top.sort().values.tolist() == [0, 1, 2]  # nothing warns of them
    found = run_on(effects, 3, cheap=cheap)
    assert found.top.sort().values.tolist() == [27, 28, 29]
    assert not found.corrected


def test_effective_sequences() -> None:
    alike = torch.tensor([[1.0, -1, 1, -1], [2, -2, 2, -2]])
    assert effective_sequences(alike) == pytest.approx(4)
    assert effective_sequences(torch.eye(1, 1000)) < 1.01
    assert effective_sequences(torch.ones(2, 5)) == 0


# Bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 0}, "k=0 must be from 1 to 39"),
        ({"k": 40}, "k=40 must be from 1 to 39"),
        ({"k": 3, "confidence": 1.0}, "confidence=1.0 must lie between 0 and 1"),
        ({"k": 3, "cheap": torch.ones(40, 7)}, r"cheap has shape \(40, 7\); give .* = \(40, 800\)"),
    ],
)
def test_values_that_are_not_allowed(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run_on(planted(0), **options)


def test_an_effect_that_is_nan_is_named() -> None:
    effects = planted(0)
    effects[4, 3] = math.nan
    with pytest.raises(ValueError, match=r"removing the cells \[4\] gave effects that are NaN"):
        run_on(effects, 3)


# Networks


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.LSTM(2, 30, batch_first=True), nn.Linear(30, 2)
        with torch.no_grad():
            self.head.weight.mul_(torch.linspace(0, 3, 30))

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(self.rnn(x)[0][:, -1])
        return result


@pytest.fixture
def network() -> Network:
    model, x = Net().double(), torch.randn(512, 10, 2).double()
    layers = find_layers(model)
    return Network(model, layers, runs_of(model, layers, list(x.split(16))))


def test_a_network_is_raced_by_its_output(network: Network) -> None:
    with undisturbed(network.model):
        (key,) = network.parts
        exact = singles(network, key).output_effects()
        cheap = output_changes(network.model, network.layers, network.runs)[key].T
        found, helped = race(network, key, 3), race(network, key, 3, cheap=cheap)
    expected = exact.argsort(descending=True)[:3].tolist()
    assert sorted(found.top.tolist()) == sorted(helped.top.tolist()) == sorted(expected)
    assert helped.work < found.work < 0.7


@pytest.mark.parametrize(("better", "sign"), [("lower", 1), ("higher", -1)])
def test_a_network_is_raced_by_its_score(network: Network, better: Any, sign: int) -> None:
    outputs = [run.call() for run in network.runs]
    runs = [
        Run(run.call, score=lambda out, truth=truth: sign * (out - truth).square().mean(1))
        for run, truth in zip(network.runs, outputs, strict=True)
    ]
    with undisturbed(network.model):
        scored = Network(network.model, network.layers, runs)
        (key,) = scored.parts
        found = race(scored, key, 3, by="score", better=better)
        assert sorted(found.top.tolist()) == sorted(race(network, key, 3).top.tolist())


def test_what_the_runs_do_not_have_cannot_be_raced(network: Network) -> None:
    with pytest.raises(ValueError, match="by='score': the runs have no score; give by='output'"):
        race(network, next(iter(network.parts)), 3, by="score")
    with pytest.raises(ValueError, match="by='loss' is not known"):
        race(network, next(iter(network.parts)), 3, by="loss")  # type: ignore[arg-type]


# The bounds


def test_noise_that_all_cells_share_does_not_matter() -> None:
    shared = 100 * torch.randn(1, 640).double()
    effects = shared + torch.randn(30, 640).double() + 5 * (torch.arange(30) < 4)[:, None]
    found = run_on(effects, 4)
    assert found.top.sort().values.tolist() == [0, 1, 2, 3]
    assert found.work < 0.15


def test_the_chances_of_all_looks_together_are_what_was_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    chances: list[float] = []
    monkeypatch.setattr(racing._Field, "settle", lambda self, chance: chances.append(chance))
    run_on(torch.randn(5, 2000).double(), 2, batch=1, confidence=0.9)
    assert len(chances) == 2000
    assert 0.0999 < sum(chances) < 0.1


def test_what_is_still_unseen_is_all_that_is_uncertain() -> None:
    rows = torch.randn(2, 100).double() + torch.tensor([[0.2], [0.0]])
    error = (rows[0] - rows[1]).std() / 10
    share = float(((rows[0] - rows[1]).mean() / error / stats.t.isf(0.01, 99)) ** 2)
    assert racing._beats(rows, 0.99 * share, 0.01, 1.0)[0, 1]
    assert not racing._beats(rows, 1.01 * share, 0.01, 1.0)[0, 1]
