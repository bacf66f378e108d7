"""Ablation studies: every number recomputed by hand on a trained network, and every odd `evaluate` dealt with."""

from __future__ import annotations

import copy
import math
import random
import time
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

import lstm_monitor as lm
from lstm_monitor.characterization import characterize
from lstm_monitor.core.terms import LayerKey
from lstm_monitor.core.undisturbed import undisturbed
from lstm_monitor.importance.ranking import ranked
from lstm_monitor.importance.removal.curves import counts_to_try, order_gap, random_orders
from lstm_monitor.importance.removal.greedy import removal_order
from lstm_monitor.importance.removal.network import Network
from lstm_monitor.importance.removal.single_cells import Singles
from lstm_monitor.layers.finding import find_layers
from lstm_monitor.report.ablation.result import Study
from lstm_monitor.snapshots.runs import Run
from lstm_monitor.studies.ablation.bench import Bench, StudyOptions
from lstm_monitor.studies.ablation.effects import _values
from lstm_monitor.studies.ablation.study import ablation_study
from lstm_monitor.studies.pruning.pruning import prune
from tests.helpers.clocks import QuietClock
from tests.helpers.masked import masked, rewritten

H, KEY = 12, LayerKey("rnn", 0)
QUICK: dict[str, Any] = {"rankings": ["measured"], "random_orders": 2, "points": 4}


class Net(nn.Module):
    def __init__(self, hidden: int = H, layers: int = 1, features: int = 8, outputs: int = 10) -> None:
        super().__init__()
        self.rnn = nn.LSTM(features, hidden, layers, batch_first=True)
        self.drop, self.norm = nn.Dropout(0.5), nn.BatchNorm1d(hidden)
        self.head = nn.Linear(hidden, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.drop(self.rnn(x)[0][:, -1])))


@cache
def digits() -> tuple[Tensor, Tensor]:
    """The rows of small pictures as steps ``(N, 8, 8)``, and their labels, in a random order."""
    x, y = load_digits(return_X_y=True)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    return torch.as_tensor(x.reshape(-1, 8, 8) / 8 - 1)[order], torch.as_tensor(y).long()[order]


@cache
def _trained(layers: int) -> Net:
    (x, y), torch_state = digits(), torch.get_rng_state()
    torch.manual_seed(0)
    model = Net(layers=layers).double()
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    for step in range(120):
        rows = slice(64 * (step % 16), 64 * (step % 16 + 1))
        optimizer.zero_grad()
        with torch.enable_grad():
            F.cross_entropy(model(x[rows]), y[rows]).backward()
        optimizer.step()
    optimizer.zero_grad()
    torch.set_rng_state(torch_state)
    return model.eval()


def trained(layers: int = 1) -> Net:
    """A copy of a network that reads digits."""
    return copy.deepcopy(_trained(layers))


X, Y = (part[-120:] for part in digits())


def losses(model: nn.Module) -> Tensor:
    return F.cross_entropy(model(X), Y, reduction="none")


def loss(model: nn.Module) -> float:
    return float(losses(model).mean())


def accuracy(model: nn.Module) -> float:
    return float((model(X).argmax(1) == Y).double().mean())


def without(model: nn.Module, cells: Any, name: str = "rnn.l0") -> nn.Module:
    return rewritten(model, {name: [int(cell) for cell in cells]})


def state(model: nn.Module) -> list[Any]:
    """Everything that a study must leave: values, hooks, modes, attributes, random states."""
    tensors = {name: value.tolist() for name, value in model.state_dict().items()}
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks), "forward" in vars(m)) for m in model.modules()]
    global_hooks = [len(getattr(nn.modules.module, f"_global_forward{name}_hooks")) for name in ("", "_pre")]
    randoms = [torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()]  # type: ignore[index]
    needs = [(p.requires_grad, p.grad is None, p.data_ptr()) for p in model.parameters()]
    return [tensors, hooks, global_hooks, randoms, [m.training for m in model.modules()], needs]


# --- every number by hand -------------------------------------------------------------------------------------

NAMES = ("auto", "measured", "greedy", "std_x_outgoing", "sine/amplitude")


@cache
def full() -> Study:
    with torch.no_grad():
        return ablation_study(trained(), losses, held_out=X, rankings=NAMES, points=6, random_orders=4, seed=5)


@torch.no_grad()
def test_the_effect_of_every_cell() -> None:
    model, effects = trained(), full()["rnn.l0"].effects
    for cell in range(H):
        other = without(model, [cell])
        output = (other(X) - model(X)).square().mean(1)
        score = losses(other) - losses(model)
        assert float(effects.output[cell]) == pytest.approx(float(output.mean()), rel=1e-9)
        assert float(effects.output_error[cell]) == pytest.approx(float(output.std()) / math.sqrt(120), rel=1e-9)
        assert float(effects.score[cell]) == pytest.approx(float(score.mean()), rel=1e-7, abs=1e-12)
        assert float(effects.score_error[cell]) == pytest.approx(float(score.std()) / math.sqrt(120), rel=1e-9)
    assert bool(effects.exact.all())


@torch.no_grad()
def test_what_the_study_says_of_itself() -> None:
    study = full()
    layer = study["rnn.l0"]
    assert (study.score, study.better, study.mode, study.sequences, study.notes) == ("losses", "lower", "zero", 120, ())
    assert study.intact == pytest.approx(loss(trained()), abs=1e-12)
    assert layer.intact == pytest.approx(loss(trained()), abs=1e-12)
    assert layer.emptied == pytest.approx(loss(without(trained(), range(H))))
    assert layer.judged == "score"
    assert layer.variance == pytest.approx(float(trained()(X).var(0, correction=0).mean()))
    assert layer.noise.repeat < 1e-12
    assert 0.5 < layer.noise.halves_output <= 1


def naive_curve(order: Any, counts: Any) -> list[float]:
    model = trained()
    values = [loss(without(model, order[: int(count)])) for count in counts]
    return [1 - (value - values[0]) / (values[-1] - values[0]) for value in values]


@torch.no_grad()
@pytest.mark.parametrize("place", range(len(NAMES)))
def test_rho_auc_and_gap_of_a_ranking(place: int) -> None:
    layer = full()["rnn.l0"]
    trial = layer.trials[place]
    assert layer.counts.tolist() == counts_to_try(H, 6).tolist()
    order = trial.ranking.order.tolist()
    for found, area, removal in (
        (trial.most_first, trial.auc_most, order),
        (trial.least_first, trial.auc_least, order[::-1]),
    ):
        expected = naive_curve(removal, layer.counts)
        np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-9)
        assert area == pytest.approx(np.trapezoid(expected, layer.counts.numpy() / H))
    assert trial.gap == pytest.approx(trial.auc_least - trial.auc_most)
    effects = layer.effects
    for found_rho, effect in ((trial.output, effects.output), (trial.score, effects.score)):
        expected_rho = spearmanr(trial.ranking.scores.numpy(), effect.numpy()).statistic
        assert found_rho.rho == pytest.approx(expected_rho, abs=1e-12)
        assert found_rho.low <= found_rho.rho <= found_rho.high


def test_the_rankings_are_those_of_their_names() -> None:
    trials = {trial.ranking.name: trial for trial in full()["rnn.l0"].trials}
    assert list(trials) == ["output_sensitivity", "measured", "greedy", "std_x_outgoing", "sine/amplitude"]
    effects = full()["rnn.l0"].effects
    assert torch.equal(trials["measured"].ranking.scores, effects.output)
    model = trained()
    for name in ("output_sensitivity", "std_x_outgoing"):
        (expected,) = characterize(model, X, rank_by=name, horizon=16, held_out_steps=4096).layers
        assert spearmanr(trials[name].ranking.scores, expected.ranking.scores).statistic > 0.98
    with undisturbed(model):
        network = Network(model, find_layers(model), [Run(lambda: model(X))])
        assert trials["greedy"].ranking.order.tolist() == removal_order(network, KEY).tolist()
    assert trials["greedy"].auc_least > 0.5


@torch.no_grad()
def test_random_orders_are_drawn_at_the_same_points() -> None:
    layer = full()["rnn.l0"]
    expected = [naive_curve(order.tolist(), layer.counts) for order in random_orders(H, 4, 5)]
    np.testing.assert_allclose(layer.random.numpy(), expected, rtol=0, atol=1e-9)
    areas = [float(np.trapezoid(row, layer.counts.numpy() / H)) for row in expected]
    assert layer.noise.order_gap == pytest.approx(order_gap(areas))


@torch.no_grad()
def test_cells_at_their_mean() -> None:
    model = trained()
    study = ablation_study(model, losses, held_out=X, mode="mean", **QUICK)
    hidden = model.rnn(X)[0].mean((0, 1))
    effects = study["rnn.l0"].effects
    for cell in (0, 5, H - 1):
        other = masked(model, {"rnn.l0": [cell]}, {"rnn.l0": hidden})
        assert float(effects.score[cell]) == pytest.approx(loss(other) - loss(model), abs=1e-10)
    assert study.mode == "mean"


@torch.no_grad()
def test_the_means_are_those_of_the_held_out_sequences() -> None:
    model, other = trained(), digits()[0][:50] * 0.2

    def evaluate(model: nn.Module) -> float:
        return float(model(other).square().mean())  # on other sequences, which are not held out

    study = ablation_study(model, evaluate, held_out=X, mode="mean", better="lower", **QUICK)
    unrolled = masked(model, {"rnn.l0": [3]}, {"rnn.l0": model.rnn(X)[0].mean((0, 1))})
    assert float(study["rnn.l0"].effects.score[3]) == pytest.approx(evaluate(unrolled) - evaluate(model), abs=1e-10)


# --- what is evaluated ----------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize(
    ("evaluate", "better"),
    [(loss, "lower"), (accuracy, "higher"), (lambda model: losses(model).mean(), "lower"), (losses, "lower")],
)
def test_better_is_what_emptied_layers_make_worse(evaluate: Callable[[nn.Module], Any], better: str) -> None:
    model = trained()
    study = ablation_study(model, evaluate, held_out=X, **QUICK)
    layer, sign = study["rnn.l0"], 1 if better == "lower" else -1
    assert study.better == better
    assert study.score == ("score" if evaluate.__name__ == "<lambda>" else evaluate.__name__)
    for cell in range(H):
        now, then = (
            float(losses(net).mean() if evaluate is losses else evaluate(net))
            for net in (without(model, [cell]), model)
        )
        assert float(layer.effects.score[cell]) == pytest.approx(sign * (now - then), abs=1e-10)
    assert bool(torch.isnan(layer.effects.score_error).all()) == (evaluate is not losses)
    given = ablation_study(model, evaluate, held_out=X, better="higher" if sign > 0 else "lower", **QUICK)
    torch.testing.assert_close(given["rnn.l0"].effects.score, -layer.effects.score)


@torch.no_grad()
@pytest.mark.parametrize("each", [True, False])
def test_a_loss_on_batches_of_any_size(each: bool) -> None:
    model, batches = trained(), [(X[:70], Y[:70]), (X[70:110], Y[70:110]), (X[110:], Y[110:])]

    def of_batch(net: nn.Module, batch: Any) -> Tensor:
        return F.cross_entropy(net(batch[0]), batch[1], reduction="none" if each else "mean")

    study = ablation_study(model, loss=of_batch, held_out=batches, **QUICK)
    layer = study["rnn.l0"]
    assert study.intact == pytest.approx(loss(model), abs=1e-10)
    assert layer.emptied == pytest.approx(loss(without(model, range(H))), abs=1e-10)
    for cell in range(H):
        other = without(model, [cell])
        assert float(layer.effects.score[cell]) == pytest.approx(loss(other) - loss(model), abs=1e-10)
        change = (other(X) - model(X)).square().mean()
        assert float(layer.effects.output[cell]) == pytest.approx(float(change), rel=1e-9)
    np.testing.assert_allclose(
        layer.trials[0].most_first, naive_curve(layer.trials[0].ranking.order, layer.counts), rtol=0, atol=1e-9
    )
    assert (study.score, study.sequences) == ("of_batch", 120)


@torch.no_grad()
def test_a_large_set_is_divided_and_gives_the_same() -> None:
    model, (x, y) = trained(), (part[:700] for part in digits())

    def of_batch(net: nn.Module, batch: Any) -> Tensor:
        return F.cross_entropy(net(batch[0]), batch[1], reduction="none")

    study = ablation_study(model, loss=of_batch, held_out=(x, y), **QUICK)
    other = without(model, [4])
    expected = (of_batch(other, (x, y)) - of_batch(model, (x, y))).mean()
    assert float(study["rnn.l0"].effects.score[4]) == pytest.approx(float(expected), abs=1e-10)
    assert study.sequences == 700


@torch.no_grad()
def test_an_evaluation_alone_shows_the_output_too() -> None:
    model, halves = trained(), (X[:90], X[90:])

    def evaluate(net: nn.Module) -> float:
        return float(torch.cat([net(x) for x in halves]).square().mean())

    study = ablation_study(model, evaluate, **QUICK | {"rankings": ["auto", "measured", "std_x_outgoing"]})
    layer = study["rnn.l0"]
    for cell in range(H):
        change = (without(model, [cell])(X) - model(X)).square().mean()
        assert float(layer.effects.output[cell]) == pytest.approx(float(change), rel=1e-9)
    assert [trial.ranking.name for trial in layer.trials] == ["output_sensitivity", "measured", "std_x_outgoing"]
    by_data = ablation_study(model, held_out=list(halves), **QUICK | {"rankings": ["auto"]})["rnn.l0"].trials[0]
    assert spearmanr(layer.trials[0].ranking.scores, by_data.ranking.scores).statistic > 0.98


@torch.no_grad()
def test_an_evaluation_without_gradients_says_what_was_not_possible() -> None:
    study = ablation_study(trained(), torch.no_grad()(loss), **QUICK | {"rankings": ["auto", "output_sensitivity"]})
    (trial,) = study["rnn.l0"].trials
    assert trial.ranking.name == "std_x_outgoing"
    assert "since the output's sensitivity could not be taken" in trial.ranking.words
    assert any("ranking 'output_sensitivity' could not be made" in note for note in study.notes)


class Labels(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).argmax(1)


@torch.no_grad()
def test_a_network_that_gives_labels_has_a_score_only() -> None:
    model = Labels().double()
    model.load_state_dict(trained().state_dict())
    study = ablation_study(
        model, lambda net: float((net(X) == Y).double().mean()), **QUICK | {"rankings": ["auto", "measured", "greedy"]}
    )
    layer = study["rnn.l0"]
    assert bool(torch.isnan(layer.effects.output).all())
    assert float(layer.effects.score.max()) > 0
    assert [trial.ranking.name for trial in layer.trials] == ["std_x_outgoing", "measured", "greedy"]
    assert repr(study)
    assert study.in_words()


@torch.no_grad()
def test_data_alone_judge_by_the_output() -> None:
    model = trained()
    study = ablation_study(model, held_out=X, **QUICK)
    layer = study["rnn.l0"]
    emptied = (without(model, range(H))(X) - model(X)).square().mean()
    assert (study.score, layer.judged, layer.intact) == (None, "output", 0.0)
    assert layer.emptied == pytest.approx(float(emptied))
    assert math.isnan(study.intact)
    assert bool(torch.isnan(layer.effects.score).all())
    assert bool(layer.effects.exact.all())


# --- bad input ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({}, ValueError, "nothing to measure; give evaluate="),
        ({"loss": lambda net, batch: 0.0}, ValueError, "loss= needs batches"),
        ({"evaluate": loss, "loss": loss, "held_out": X}, ValueError, "both given"),
        ({"evaluate": X}, TypeError, "evaluate=Tensor is no function; give one that returns a number, or data as"),
        ({"loss": 0.5, "held_out": X}, TypeError, "loss=float is no function"),
        ({"evaluate": lambda net: (net(X), None)[1]}, TypeError, "returned NoneType; it must return one number"),
        ({"evaluate": loss, "rankings": ["mesured"]}, ValueError, "Did you mean 'measured'"),
        ({"evaluate": loss, "mode": "mode"}, ValueError, "mode='mode' is not known"),
        ({"evaluate": loss, "better": "up"}, ValueError, "better='up' is not known"),
        ({"evaluate": loss, "layers": "rn.l0"}, ValueError, "matches no layer. Did you mean 'rnn.l0'"),
        ({"evaluate": loss, "seconds": 0}, ValueError, "seconds=0 must be over 0"),
        ({"evaluate": loss, "points": 1}, ValueError, "points=1 is too few"),
        ({"evaluate": loss, "random_orders": -1}, ValueError, "random_orders=-1 is too few"),
        ({"evaluate": loss, "top": 0}, ValueError, "top=0 is too few"),
        ({"evaluate": lambda net: math.nan * float(net(X).sum())}, ValueError, "returned NaN for the whole network"),
        ({"evaluate": lambda net: math.inf * float(net(X).shape[0])}, ValueError, "returned inf for the whole"),
        ({"held_out": X, "forward": lambda net, x: net(x).log()}, ValueError, "output holds NaN or infinite values"),
        ({"evaluate": lambda net: 1.0}, ValueError, "received nothing"),
        ({"evaluate": lambda net: float(trained()(X).sum())}, ValueError, "received nothing"),
    ],
)
def test_bad_input(arguments: dict[str, Any], error: type[Exception], words: str) -> None:
    model = trained()
    before = state(model)
    with torch.no_grad(), pytest.raises(error, match=words):
        ablation_study(model, **arguments)
    assert state(model) == before


def test_no_module_and_no_layers() -> None:
    with pytest.raises(TypeError, match="is no torch.nn.Module"):
        ablation_study(loss, held_out=X)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no recurrent layer"):
        ablation_study(nn.Linear(2, 2), held_out=X)


def test_a_lazy_module_is_not_initialized_by_us() -> None:
    model = nn.Sequential(trained(), nn.LazyLinear(2))
    with pytest.raises(ValueError, match="not initialized yet"):
        ablation_study(model, lambda net: float(net(X).sum()))
    assert nn.parameter.is_lazy(model[1].weight)


@torch.no_grad()
def test_nan_for_some_cells_is_their_effect() -> None:
    def evaluate(net: nn.Module) -> float:
        hidden = net.rnn(X)[0]  # type: ignore[operator,union-attr]
        gone = (hidden == 0).all(0).all(0)
        value = loss(net)
        return math.nan if gone[3] and not gone[0] else value

    study = ablation_study(trained(), evaluate, held_out=X, **QUICK)
    effects = study["rnn.l0"].effects
    assert torch.isnan(effects.score).nonzero()[:, 0].tolist() == [3]
    assert not bool(effects.exact[3])
    assert any(
        "cells without a measured effect: 1 (not reached in time, or the score was NaN)" in note for note in study.notes
    )
    assert repr(study)


@torch.no_grad()
def test_nan_without_any_cell_is_said() -> None:
    def evaluate(net: nn.Module) -> float:
        out = net.rnn(X)[0]  # type: ignore[operator,union-attr]
        return float("nan") if bool((out == 0).all()) else -accuracy(net)

    study = ablation_study(trained(), evaluate, held_out=X, **QUICK)
    assert any("removing all cells gives NaN; lower is taken for better" in note for note in study.notes)
    assert len(study.keep(0.1)["rnn.l0"]) == H


@torch.no_grad()
def test_a_random_evaluation_is_said() -> None:
    generator = np.random.default_rng(0)
    noisy = ablation_study(trained(), lambda net: loss(net) + generator.normal(0, 0.01), held_out=X, **QUICK)
    assert any("evaluate is random: two evaluations of the same network differ by" in note for note in noisy.notes)
    assert noisy["rnn.l0"].noise.repeat > 0
    drawn = ablation_study(trained(), lambda net: loss(net) + float(torch.rand(())), held_out=X, **QUICK)
    assert any("evaluate is random" in note for note in drawn.notes)
    shaky = ablation_study(trained(), held_out=X, forward=lambda net, x: net(x + torch.randn_like(x)), **QUICK)
    assert any("the network's output is random" in note for note in shaky.notes)


@pytest.mark.parametrize("first", [1, 2, 9, 25])
def test_an_evaluation_that_changes_the_weights(first: int) -> None:
    model, calls = trained().train(), 0
    before = state(model)

    def evaluate(net: nn.Module) -> float:
        nonlocal calls
        calls += 1
        if calls >= first:
            net.head.weight.data += 0.1  # type: ignore[union-attr,operator]
        return loss(net)

    with torch.no_grad(), pytest.raises(ValueError, match=r"evaluate changed the model's weights \(head.weight; they"):
        ablation_study(model, evaluate, held_out=X, **QUICK)
    assert calls >= first
    assert first > 1 or calls == 1  # what fails at once is said at once
    assert state(model) == before


def test_weights_that_are_nan_in_other_modules_are_no_change() -> None:
    model = trained()
    model.unused = nn.Linear(1, 1)  # type: ignore[assignment]
    model.unused.weight.data.fill_(math.nan)
    with torch.no_grad():
        assert ablation_study(model, loss, held_out=X, **QUICK).notes == ()


@torch.no_grad()
def test_averaged_weights_that_come_and_go_are_refused() -> None:
    model = trained()
    before = state(model)

    def evaluate(net: nn.Module) -> float:
        weight = net.rnn.weight_hh_l0.data  # type: ignore[union-attr]
        weight *= 2
        value = loss(net)
        weight /= 2
        return value

    with pytest.raises(ValueError, match="rnn.l0 runs with other weights than the model has outside of evaluate"):
        ablation_study(model, evaluate, **QUICK)
    assert state(model)[1:] == before[1:]


@torch.no_grad()
@pytest.mark.parametrize("mode", [True, False])
def test_an_evaluation_that_trains_a_little(mode: bool) -> None:
    model = trained().train(mode)
    before = state(model)

    def evaluate(net: nn.Module) -> float:
        net.train()
        net.extra = [1]  # type: ignore[assignment]
        return loss(net)

    study = ablation_study(model, evaluate, held_out=X, **QUICK)
    assert any("evaluate puts the model into train mode" in note for note in study.notes)
    assert any("evaluate is random" in note for note in study.notes)  # its dropout is on
    assert state(model) == before
    assert not hasattr(model, "extra")
    still = ablation_study(model, loss, held_out=X, **QUICK)
    torch.testing.assert_close(study["rnn.l0"].effects.output, still["rnn.l0"].effects.output)  # in eval mode


@torch.no_grad()
def test_buffers_that_an_evaluation_moves_are_put_back_each_time() -> None:
    model = trained()
    before = state(model)

    def evaluate(net: nn.Module) -> float:
        net.norm.running_mean += 0.1  # type: ignore[union-attr,operator]
        return loss(net)

    study = ablation_study(model, evaluate, held_out=X, **QUICK)
    assert study["rnn.l0"].noise.repeat == 0
    shifted = trained()
    shifted.norm.running_mean += 0.1  # type: ignore[operator]
    for cell in (0, 7):
        expected = loss(without(shifted, [cell])) - loss(shifted)
        assert float(study["rnn.l0"].effects.score[cell]) == pytest.approx(expected, abs=1e-10)
    assert state(model) == before


@pytest.mark.parametrize("at", [1, 2, 3, 12, 25])
@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_an_evaluation_that_raises(at: int, error: type[BaseException]) -> None:
    model, calls = trained().train(), 0
    before = state(model)

    def evaluate(net: nn.Module) -> float:
        nonlocal calls
        calls += 1
        torch.rand(3)
        value = loss(net)
        if calls == at:
            net.train()
            net.head.bias.data.zero_()  # type: ignore[union-attr,operator]
            raise error("stop")
        return value

    with torch.no_grad(), pytest.raises(error, match="stop"):
        ablation_study(model, evaluate, held_out=X, **QUICK | {"rankings": ["auto", "measured"]})
    assert state(model) == before


@torch.no_grad()
def test_the_model_is_as_before() -> None:
    model = trained(2).train()
    before, versions = state(model), [p._version for p in model.parameters()]
    ablation_study(model, losses, held_out=X, **QUICK | {"rankings": NAMES})
    ablation_study(model, held_out=X, mode="mean", top=3, **QUICK)
    assert state(model) == before
    assert [p._version for p in model.parameters()] == versions


# --- time and choices -----------------------------------------------------------------------------------------


@torch.no_grad()
def test_a_tiny_budget_is_kept_and_said(quiet_clock: QuietClock) -> None:
    def slowly(model: nn.Module) -> Tensor:
        quiet_clock.wait(0.02)
        return losses(model)

    began = time.perf_counter()
    study = ablation_study(trained(), slowly, held_out=X, seconds=0.3)
    took = time.perf_counter() - began
    layer = study["rnn.l0"]
    # of a full study 12 cells, 20 curves of 11 points, the rest: over 5 s
    assert took < 2.5
    assert any("not reached in time" in note for note in study.notes)
    assert any("curves on" in note and "of 8 random orders, for the time allowed" in note for note in study.notes)
    unknown = torch.isnan(layer.effects.score)
    assert bool(unknown.any())
    assert not bool(layer.effects.exact[unknown].any())
    assert len(layer.counts) == 3  # none, some, all
    assert len(layer.random) == 0
    assert repr(study)


@torch.no_grad()
def test_enough_time_changes_nothing() -> None:
    free = ablation_study(trained(), losses, held_out=X, **QUICK)
    timed = ablation_study(trained(), losses, held_out=X, seconds=600, **QUICK)
    assert timed.notes == free.notes == ()
    assert torch.equal(timed["rnn.l0"].effects.score, free["rnn.l0"].effects.score)
    assert torch.equal(timed["rnn.l0"].random, free["rnn.l0"].random)


@torch.no_grad()
def test_part_of_the_batches_is_an_estimate(quiet_clock: QuietClock) -> None:
    model, batches = trained(), list(X.split(20))

    def waits(net: nn.Module, x: Tensor) -> Tensor:
        quiet_clock.wait(0.01)
        return net(x)

    study = ablation_study(model, held_out=batches, forward=waits, seconds=1.2, **QUICK)
    layer = study["rnn.l0"]
    assert any("single cells were removed on" in note and "of 6 batches" in note for note in study.notes)
    assert not bool(layer.effects.exact.any())
    truth = [float((without(model, [cell])(X) - model(X)).square().mean()) for cell in range(H)]
    found = layer.effects.output
    assert bool(((found - torch.tensor(truth)).abs() < 6 * layer.effects.output_error + 1e-6).all())


def bench_of(model: nn.Module, score: Callable[[Tensor, Tensor], Any], **options: Any) -> Bench:
    runs = [
        Run(lambda x=x, y=y: score(model(x), y), score=lambda value: value)
        for x, y in zip(X.split(30), Y.split(30), strict=True)
    ]  # type: ignore[misc]
    return Bench(Network(model, find_layers(model), runs), StudyOptions(**options), time.perf_counter(), [])


def single(network: Network, key: LayerKey, index: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Every cell removed by itself in one run."""
    cells = range(network.parts[key].weights.hidden_size)
    outputs, scores = zip(*(network.changes(index, {key: torch.tensor([cell])}) for cell in cells), strict=True)
    return torch.stack(outputs), torch.stack(scores)


def pilot_of(bench: Bench) -> Singles:
    """The first of four batches only."""
    output, score = single(bench.network, KEY, 0)
    return Singles(output, score, torch.ones(score.shape[1], dtype=torch.float64), 1)


def each_loss(out: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(out, y, reduction="none")


def test_a_cheap_score_corrects_where_it_goes_along() -> None:
    model = trained()
    with undisturbed(model):
        bench = bench_of(model, each_loss)
        output, score = _values(bench, KEY, pilot_of(bench), whole=False)
        (note,) = bench.notes
        assert output.used
        assert "a first-order score of all sequences corrects the output's effects (rho 0." in note
        truth = torch.stack(
            [torch.cat(parts) for parts in zip(*[single(bench.network, KEY, i)[0] for i in range(4)], strict=True)]
        )
        plain = pilot_of(bench).output_effects()
        wrong, less = (plain - truth.mean(1)).square().mean(), (output.values - truth.mean(1)).square().mean()
        assert float(less) < float(wrong)
        assert bool((output.errors <= truth[:, :30].std(1) / math.sqrt(30) + 1e-12).all())
        assert torch.isfinite(score.values).all()


@pytest.mark.parametrize("why", ["mean mode", "no derivative", "no time", "few sequences"])
def test_else_there_are_plain_means(why: str) -> None:
    model = trained()
    options: dict[str, Any] = {"mean mode": {"mode": "mean"}, "no time": {"seconds": 1e-6}}.get(why, {})
    with undisturbed(model):
        bench = bench_of(
            model, each_loss if why != "no derivative" else lambda out, y: float(out.detach().mean()), **options
        )
        found = pilot_of(bench)
        if why == "few sequences":
            found = Singles(found.output[:, :10], found.score[:, :10], found.weights[:10], 1)
        output, score = _values(bench, KEY, found, whole=False)
    if why != "no derivative":
        torch.testing.assert_close(output.values, found.output.mean(1))
        assert not output.used
    if why != "mean mode":
        torch.testing.assert_close(score.values, found.score.mean(1)) if why != "few sequences" else None
    assert not score.used or why == "mean mode"


@torch.no_grad()
def test_a_race_finds_the_first() -> None:
    model = trained()
    study = ablation_study(model, held_out=X, top=3, **QUICK)
    truth = torch.tensor([float((without(model, [cell])(X) - model(X)).square().mean()) for cell in range(H)])
    first = truth.argsort(descending=True)[:3].tolist()
    (note,) = study.notes
    assert f"first by their effect on the output: {', '.join(map(str, first))} (" in note
    exact = study["rnn.l0"].effects.exact
    torch.testing.assert_close(study["rnn.l0"].effects.output[exact], truth[exact].double())


@torch.no_grad()
def test_a_race_that_ends_early_is_not_exact() -> None:
    model = trained()
    batches = [X[:20], X[20:40], *X[40:].split(40)]
    study = ablation_study(model, held_out=batches, top=1, seconds=1e-6, **QUICK)
    assert not bool(study["rnn.l0"].effects.exact.any())


@torch.no_grad()
@pytest.mark.parametrize("top", [H, H + 5])
def test_as_many_as_there_are_need_no_race(top: int) -> None:
    study = ablation_study(trained(), losses, held_out=X, top=top, **QUICK)
    torch.testing.assert_close(study["rnn.l0"].effects.output, full()["rnn.l0"].effects.output)
    assert study.notes == ()


@torch.no_grad()
def test_an_evaluation_over_batches_can_race() -> None:
    def evaluate(net: nn.Module) -> float:
        return float(sum(net(x).square().sum() for x in X.split(25)))

    study = ablation_study(trained(), evaluate, top=2, **QUICK)
    truth = full()["rnn.l0"].effects.output
    first = truth.argsort(descending=True)[:2].tolist()
    assert any(f"on the output: {', '.join(map(str, first))} (" in note for note in study.notes)


@torch.no_grad()
def test_rankings_as_records_and_by_name() -> None:
    model = trained()
    given = ranked(KEY, "mine", "my own", torch.arange(H).double())
    elsewhere = ranked(LayerKey("other", 0), "theirs", "another layer's", torch.arange(H).double())
    study = ablation_study(
        model, losses, held_out=X, rankings=[given, elsewhere, "measured"], random_orders=0, points=3
    )
    first, second = study["rnn.l0"].trials
    assert (first.ranking, second.ranking.name) == (given, "measured")
    np.testing.assert_allclose(first.most_first, naive_curve(range(H)[::-1], study["rnn.l0"].counts), atol=1e-9)
    assert study.notes == ("ranking 'theirs' is of other.l0, which is not studied",)
    assert study["rnn.l0"].random.shape == (0, 4)
    assert math.isnan(study["rnn.l0"].noise.order_gap)
    alone = ablation_study(model, losses, held_out=X, rankings="measured", random_orders=0, points=3)
    assert [trial.ranking.name for trial in alone["rnn.l0"].trials] == ["measured"]
    none = ablation_study(model, losses, held_out=X, rankings=[], random_orders=2, points=3)
    assert none["rnn.l0"].trials == ()
    assert repr(none)


@torch.no_grad()
def test_a_ranking_of_another_network_is_refused() -> None:
    wrong = ranked(KEY, "mine", "my own", torch.arange(5).double())
    with pytest.raises(ValueError, match="'mine' orders 5 cells of rnn.l0, which has 12; give a ranking of this"):
        ablation_study(trained(), losses, held_out=X, rankings=[wrong])


class Mixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.RNN(8, 6, batch_first=True), nn.LSTM(6, 5, batch_first=True), nn.Linear(5, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.b(self.a(x)[0])[0][:, -1])


@torch.no_grad()
def test_a_metric_that_only_some_layers_have() -> None:
    study = ablation_study(
        Mixed().double(), held_out=X, rankings=["gates/forget_saturation", "measured"], random_orders=0, points=3
    )
    names = {str(layer.key): [trial.ranking.name for trial in layer.trials] for layer in study.layers}
    assert names == {"a.l0": ["measured"], "b.l0": ["gates/forget_saturation", "measured"]}
    (note,) = study.notes
    assert "was not measured for a.l0, a rnn_tanh layer" in note


@torch.no_grad()
def test_several_layers_and_a_choice_of_them() -> None:
    model = trained(2)
    study = ablation_study(model, losses, held_out=X, **QUICK)
    for name in ("rnn.l0", "rnn.l1"):
        change = losses(without(model, [2], name)) - losses(model)
        assert float(study[name].effects.score[2]) == pytest.approx(float(change.mean()), abs=1e-10)
    one = ablation_study(model, losses, held_out=X, layers="*.l1", **QUICK)
    assert [str(layer.key) for layer in one.layers] == ["rnn.l1"]
    assert torch.equal(one["rnn.l1"].effects.score, study["rnn.l1"].effects.score)


@torch.no_grad()
@pytest.mark.parametrize("options", [{}, {"top": 3}, {"seconds": 0.05}, {"rankings": []}])
def test_progress_goes_to_the_end(options: dict[str, Any]) -> None:
    told: list[tuple[float, str]] = []
    ablation_study(trained(2), losses, held_out=X, progress=lambda *news: told.append(news), **QUICK | options)
    shares = [share for share, _ in told]
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    assert all(0 < share <= 1 for share in shares)
    if not options:
        assert shares[-2] > 0.9
        assert {words for _, words in told} >= {"rnn.l0: single cells", "rnn.l1: curves"}


# --- odd networks ---------------------------------------------------------------------------------------------


@torch.no_grad()
def test_an_output_that_does_not_depend_on_a_layer() -> None:
    model = trained()
    model.side = nn.GRU(8, 3, batch_first=True).double()  # type: ignore[assignment]
    model.register_forward_pre_hook(lambda net, args: (args, net.side(args[0]))[0])  # type: ignore[operator]
    study = ablation_study(model, losses, held_out=X, **QUICK | {"rankings": ["auto", "measured", "greedy"]})
    layer = study["side.l0"]
    assert layer.effects.output.tolist() == [0, 0, 0]
    assert all(math.isnan(trial.gap) and math.isnan(trial.output.rho) for trial in layer.trials)
    torch.testing.assert_close(study["rnn.l0"].effects.score, full()["rnn.l0"].effects.score)
    assert repr(study)
    assert study.in_words()
    assert study.plot()
    assert set(study.keep(0.1)) == {"rnn.l0", "side.l0"}


@torch.no_grad()
def test_nothing_depends_on_any_layer() -> None:
    model = trained()
    model.head.weight.data.zero_()
    study = ablation_study(model, losses, held_out=X, **QUICK)
    assert any("removing all cells does not change the score; lower is taken" in note for note in study.notes)
    assert repr(study)


@torch.no_grad()
@pytest.mark.parametrize("hidden", [1, 2])
def test_very_small_layers(hidden: int) -> None:
    model = Net(hidden).double().eval()
    study = ablation_study(model, losses, held_out=X, rankings=NAMES, random_orders=2, top=1)
    layer = study["rnn.l0"]
    assert len(layer.counts) == hidden + 1
    assert len(layer.trials) == len(NAMES)
    assert all(math.isnan(trial.output.rho) for trial in layer.trials)
    assert repr(study)
    assert study.in_words()
    assert study.plot()
    assert 1 <= len(study.keep(10.0)["rnn.l0"]) <= hidden


@torch.no_grad()
def test_cells_that_are_all_alike() -> None:
    model = trained()
    for p in model.rnn.parameters():
        p.data = p.view(4, H, *p.shape[1:])[:, :1].expand(4, H, *p.shape[1:]).reshape(p.shape).clone()
    model.rnn.weight_hh_l0.data = model.rnn.weight_hh_l0[:, :1].expand(4 * H, H).clone()  # type: ignore[index]
    for name in ("running_mean", "running_var", "weight", "bias"):
        value = getattr(model.norm, name)
        value.data = value[:1].expand(H).clone()
    model.head.weight.data = model.head.weight[:, :1].expand(10, H).clone()
    study = ablation_study(model, losses, held_out=X, **QUICK)
    layer = study["rnn.l0"]
    torch.testing.assert_close(layer.effects.output, layer.effects.output[:1].expand(H))
    assert layer.trials[0].auc_least == pytest.approx(layer.trials[0].auc_most, abs=1e-9)
    assert repr(study)


# --- from a study to a smaller network ------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("allowed", [0.0, 0.05, 0.5])
def test_the_pruned_network_scores_what_the_study_said(layers: int, allowed: float) -> None:
    model = trained(layers)
    study = ablation_study(model, losses, held_out=X, rankings=["measured", "greedy"], random_orders=0, points=6)
    kept = study.keep(allowed)
    assert set(kept) == {str(layer.key) for layer in study.layers}
    for layer in study.layers:
        name = str(layer.key)
        alone = prune(model, {name: kept[name]})
        gone = [cell for cell in range(H) if cell not in kept[name]]
        curves = {
            (len(gone), tuple(sorted(trial.ranking.order.tolist()[len(kept[name]) :]))): trial.least_first
            for trial in layer.trials
        }
        point = curves[len(gone), tuple(gone)][layer.counts.tolist().index(len(gone))]
        said = layer.intact + (1 - float(point)) * (layer.emptied - layer.intact)
        assert loss(alone) == pytest.approx(said, abs=1e-6)
        assert loss(alone) - loss(model) <= allowed / layers + 1e-9
    if allowed == 0.5:
        assert sum(map(len, kept.values())) < H * layers
    assert loss(prune(model, kept)) == pytest.approx(
        loss(rewritten(model, {n: sorted(set(range(H)) - set(c)) for n, c in kept.items()})), abs=1e-6
    )


def test_the_public_name() -> None:
    assert lm.ablation_study is ablation_study
