"""How much a network's output needs each cell: named, explained, and no failure unless asked for by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lstm_monitor.characterization import characterize
from lstm_monitor.importance.scoring import assess, greedy_scores
from lstm_monitor.importance.sensitivity.scores import output_sensitivity
from lstm_monitor.layers.finding import find_layers
from lstm_monitor.snapshots.runs import runs_of
from lstm_monitor.snapshots.taking import snapshot
from tests.helpers.masked import rewritten

H = 6


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.LSTM(2, H, batch_first=True), nn.Linear(H, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0][:, -1])


class Detached(Net):
    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


class Words(Net):
    """Reads whole numbers, so no random bank fits it."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 2)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.embedding(x))


class Labels(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).argmax(-1)


class TimeFirst(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.GRU(2, H), nn.Linear(H, 3)

    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[0] > x.shape[1]  # the steps of the bank are more than its sequences
        return self.head(self.rnn(x)[0])


X = torch.randn(20, 8, 2)


def ranking_of(model: nn.Module, x: Any = None, by: str = "auto", **options: Any) -> Any:
    (layer,) = characterize(model, x, rank_by=by, horizon=16, **options).layers
    return layer.ranking


def test_auto_is_the_output_sensitivity() -> None:
    model = Net()
    found = ranking_of(model, X)
    assert found.name == "output_sensitivity"
    assert found.words == "centred output sensitivity on held-out data"
    expected = output_sensitivity(model, X, max_steps=4096)["rnn.l0"]
    torch.testing.assert_close(found.scores, expected.to(found.scores))
    assert found.order.tolist() == expected.argsort(descending=True).tolist()


@pytest.mark.parametrize("by", ["output_sensitivity", "uncentred_sensitivity"])
def test_by_its_name(by: str) -> None:
    model = Net()
    found = ranking_of(model, X, by)
    expected = output_sensitivity(model, X, centred=by == "output_sensitivity", max_steps=4096)["rnn.l0"]
    assert found.name == by
    torch.testing.assert_close(found.scores, expected.to(found.scores))


def test_measured_is_the_effect_of_removing_the_cell() -> None:
    model = Net()
    found = ranking_of(model, X, "measured")
    with torch.no_grad():
        expected = [(rewritten(model, {"rnn.l0": [cell]})(X) - model(X)).square().mean() for cell in range(H)]
    assert found.name == "measured"
    torch.testing.assert_close(found.scores.double(), torch.stack(expected).double(), rtol=1e-4, atol=1e-10)


def test_greedy_is_an_order_of_all_cells() -> None:
    found = ranking_of(Net(), X, "greedy")
    assert found.name == "greedy"
    assert sorted(found.scores.tolist()) == list(range(1, H + 1))
    assert sorted(found.order.tolist()) == list(range(H))


def test_places_as_scores() -> None:
    assert greedy_scores(torch.tensor([2, 0, 1])).tolist() == [2, 1, 3]


def test_without_data_it_is_that_on_random_sequences() -> None:
    model = Net()
    found = ranking_of(model)
    assert found.name == "random_output_sensitivity"
    assert found.words == "centred output sensitivity on random sequences"
    assert bool((found.scores > 0).all())
    assert ranking_of(TimeFirst()).name == "random_output_sensitivity"


FALLBACKS: list[tuple[Callable[[], nn.Module], Any, dict[str, Any], str, str]] = [
    (Words, None, {}, "random_std_x_outgoing", "since the network could not be run (give held_out=, or forward="),
    (Detached, X, {}, "std_x_outgoing", "since the output's sensitivity could not be taken ("),
    (Labels, X, {}, "std_x_outgoing", "no tensor of floating point was found"),
    (Net, X, {"output": lambda out: out["logits"]}, "std_x_outgoing", "since the output's sensitivity could not"),
    (Net, X, {"output": lambda out: out.logits}, "std_x_outgoing", "no attribute 'logits'"),
    (Net, X, {"output": lambda out: None}, "std_x_outgoing", "output= returned NoneType"),
]


@pytest.mark.parametrize(("make", "x", "options", "name", "words"), FALLBACKS)
def test_auto_falls_back_and_says_why(
    make: Callable[[], nn.Module], x: Any, options: dict[str, Any], name: str, words: str
) -> None:
    found = ranking_of(make(), x, **options)
    assert found.name == name
    assert words in found.words
    assert found.words.startswith("held-out std x outgoing" if x is not None else "std on random sequences x outgoing")
    assert bool(torch.isfinite(found.scores).all())


@pytest.mark.parametrize("by", ["output_sensitivity", "uncentred_sensitivity", "measured", "greedy"])
def test_a_ranking_asked_for_by_its_name_fails_clearly(by: str) -> None:
    with pytest.raises(ValueError, match="no tensor of floating point was found; give output=lambda"):
        ranking_of(Labels(), X, by)


@pytest.mark.parametrize("by", ["output_sensitivity", "uncentred_sensitivity"])
def test_no_derivative_is_an_error_for_a_name(by: str) -> None:
    with pytest.raises(ValueError, match="output"):
        ranking_of(Detached(), X, by)


def test_what_no_network_is_needed_for_is_left_alone() -> None:
    model = Net()
    layers = find_layers(model)
    snaps = snapshot(model, X)
    assert assess(snaps, model, layers, runs_of(model, layers, X), "std_x_outgoing") == snaps
    assert all(snap.importance is None for snap in snaps)


def test_a_key_is_pressed() -> None:
    def interrupted(model: nn.Module, x: Tensor) -> Tensor:
        raise KeyboardInterrupt

    model = Net().train()
    layers = find_layers(model)
    with pytest.raises(KeyboardInterrupt):
        assess(snapshot(model, X), model, layers, runs_of(model, layers, X, forward=interrupted))
    assert model.training
    assert all("forward" not in vars(module) for module in model.modules())


def test_each_layer_of_a_stack_gets_its_own() -> None:
    model = Net()
    model.rnn = nn.LSTM(2, H, 2, bidirectional=True, batch_first=True)
    model.head = nn.Linear(2 * H, 3)
    report = characterize(model, X, horizon=16)
    expected = output_sensitivity(model, X, max_steps=4096)
    for layer in report.layers:
        torch.testing.assert_close(layer.ranking.scores, expected[str(layer.key)].to(layer.ranking.scores))
