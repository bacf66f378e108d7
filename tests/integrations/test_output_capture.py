"""The rankings of a check need the network's output: its call is kept from the Trainer's own validation."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import lstm_monitor as lm
from lstm_monitor.core.guard import Guard
from lstm_monitor.integrations.lightning_callback import network_call
from lstm_monitor.integrations.lightning_callback.network_call import CallRecorder
from tests.helpers import trainings
from tests.helpers.trainings import (
    CELLS,
    FEATURES,
    PACKAGES,
    callback,
    differences,
    loader,
    modules,
    seed_all,
    sequences,
    trace,
)

LIGHTNING = PACKAGES[0]
both_packages = pytest.mark.parametrize("package", PACKAGES)


class Calls:
    """Calls itself, as most modules do."""

    def loss(self: Any, batch: Any) -> Tensor:
        return nn.functional.mse_loss(self(batch[0]), batch[1])


class Keywords(nn.Module):
    """Takes its input by keyword, with something that is no tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.net = trainings.Network()

    def forward(self, *, inputs: dict[str, Any], scale: float) -> dict[str, Tensor]:
        found = self.net(inputs["x"]) * scale
        return {"logits": found, "three times": 3 * found}


class Named:
    """Its network takes keywords and gives a dict."""

    def __init__(self: Any) -> None:
        super().__init__()
        self.wrapped = Keywords()
        self.net = None

    def loss(self: Any, batch: Any) -> Tensor:
        found = self.wrapped(inputs={"x": batch[0], "name": "a batch"}, scale=2.0)
        return nn.functional.mse_loss(found["logits"], batch[1])


class Packs(nn.Module):
    """Reads packed sequences."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.LSTM(FEATURES, CELLS, batch_first=True), nn.Linear(CELLS, 1)

    def forward(self, packed: PackedSequence) -> Tensor:
        return self.head(self.rnn(packed)[1][0][-1])


class Packed:
    def __init__(self: Any) -> None:
        super().__init__()
        self.net = Packs()

    def loss(self: Any, batch: Any) -> Tensor:
        lengths = torch.arange(len(batch[0])) % 5 + 4
        packed = pack_padded_sequence(batch[0], lengths, batch_first=True, enforce_sorted=False)
        return nn.functional.mse_loss(self.net(packed), batch[1])


class Embedded:
    """A module before the network, a loss and an activation without weights after it."""

    def __init__(self: Any, **options: Any) -> None:
        super().__init__(**options)
        self.before, self.criterion, self.after = nn.Linear(FEATURES, FEATURES), nn.MSELoss(), nn.Tanh()

    def loss(self: Any, batch: Any) -> Tensor:
        return self.criterion(self.after(self.net(self.before(batch[0]))), batch[1])


class Alone:
    """The recurrent layer is called by itself."""

    def loss(self: Any, batch: Any) -> Tensor:
        return nn.functional.mse_loss(self.net.head(self.net.rnn(batch[0])[0][:, -1]), batch[1])


class Headed:
    """A head reads what the network gives."""

    def __init__(self: Any) -> None:
        super().__init__()
        self.last = nn.Linear(1, 1)

    def loss(self: Any, batch: Any) -> Tensor:
        return nn.functional.mse_loss(self.last(self.net(batch[0])), batch[1])


class Twice:
    """The network is called twice a batch."""

    def loss(self: Any, batch: Any) -> Tensor:
        return nn.functional.mse_loss(self.net(batch[0]) + self.net(-batch[0]), batch[1])


class Whole:
    """The whole module is called, and the network besides."""

    def loss(self: Any, batch: Any) -> Tensor:
        return nn.functional.mse_loss(self(batch[0]) + self.net(batch[0]), batch[1])


class Writes(nn.Module):
    """A network that changes its input in place."""

    def __init__(self) -> None:
        super().__init__()
        self.net = trainings.Network()

    def forward(self, x: Tensor) -> Tensor:
        x += 1
        return self.net(x)


class InPlace:
    def __init__(self: Any) -> None:
        super().__init__()
        self.net = Writes()

    def loss(self: Any, batch: Any) -> Tensor:
        return nn.functional.mse_loss(self.net(batch[0].clone()), batch[1])


def of_kind(kind: type, package: str = LIGHTNING) -> Any:
    return type(kind.__name__, (kind, modules(package).Plain), {})


def fit(folder: Path, model: Any, *ours: Any, package: str = LIGHTNING, **options: Any) -> Any:
    runner = trainings.trainer(package, folder, *ours, **options)
    runner.fit(model, loader(), loader(1, 16))
    return runner


# What it is used for


@both_packages
@pytest.mark.parametrize("kind", [Calls, Named, Packed, Embedded, InPlace])
def test_ordinary_modules_are_ranked_by_their_output(kind: type, package: str, tmp_path: Path) -> None:
    ours, memory = callback(package), lm.MemorySink()
    ours.sinks.append(memory)
    fit(tmp_path, of_kind(kind, package)(), ours, package=package)
    assert len(memory.reports) == 3
    for report in memory.reports:
        ranking = report.layers[0].ranking
        assert ranking.name == "output_sensitivity"
        assert bool((ranking.scores > 0).all())


@pytest.mark.parametrize("kind", [Calls, InPlace])
def test_the_ranking_is_that_of_characterize(kind: type, tmp_path: Path) -> None:
    ours = callback(LIGHTNING)
    model = of_kind(kind)()
    fit(tmp_path, model, ours)
    x = next(iter(loader(1, 16)))[0]
    report = lm.characterize(model, x, forward=lambda model, x: model.net(x + 0), horizon=trainings.HORIZON)
    torch.testing.assert_close(ours.report.layers[0].ranking.scores, report.layers[0].ranking.scores)


@pytest.mark.parametrize("by", ["output_sensitivity", "measured", "greedy", "uncentred_sensitivity"])
def test_every_ranking_of_the_network_is_there(by: str, tmp_path: Path) -> None:
    ours = callback(LIGHTNING, rank_by=by)
    fit(tmp_path, of_kind(Calls)(), ours)
    assert ours.report.layers[0].ranking.name == by


def test_an_output_can_be_selected(tmp_path: Path) -> None:
    ours = callback(LIGHTNING, output=lambda found: found["three times"])
    other = callback(LIGHTNING, name="b")
    fit(tmp_path, of_kind(Named)(), ours, other)
    scores = [item.report.layers[0].ranking.scores for item in (ours, other)]
    torch.testing.assert_close(scores[0], 3 * scores[1])


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (Alone, "calls a recurrent layer by itself, so its output is not the network's"),
        (Headed, "calls other modules on the output of the one that holds the recurrent layers"),
        (Twice, "calls modules with recurrent layers more than once a batch"),
        (Whole, "calls modules with recurrent layers more than once a batch"),
    ],
)
def test_where_the_output_is_not_the_networks_it_falls_back_and_says_why(
    kind: type, words: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ours = callback(LIGHTNING)
    with caplog.at_level(logging.INFO, "lstm_monitor"):
        fit(tmp_path, of_kind(kind)(), ours)
    ranking = ours.report.layers[0].ranking
    assert ranking.name == "std_x_outgoing"
    assert "since the network could not be run" in ranking.words
    assert sum(words in record.getMessage() for record in caplog.records) == 1


def test_too_much_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(network_call, "MOST_BYTES", 100)
    ours = callback(LIGHTNING)
    with caplog.at_level(logging.INFO, "lstm_monitor"):
        fit(tmp_path, of_kind(Calls)(), ours)
    assert ours.report.layers[0].ranking.name == "std_x_outgoing"
    assert any("a batch takes" in record.getMessage() for record in caplog.records)


def test_data_that_is_given_is_used_instead(tmp_path: Path) -> None:
    ours = callback(LIGHTNING, held_out=sequences(5, 8))
    model = of_kind(Calls)()
    fit(tmp_path, model, ours)
    report = lm.characterize(model, held_out=sequences(5, 8), horizon=trainings.HORIZON)
    torch.testing.assert_close(ours.report.layers[0].ranking.scores, report.layers[0].ranking.scores)


def test_a_compiled_network(tmp_path: Path) -> None:
    model = of_kind(Embedded)()
    model.net = torch.compile(model.net, backend="eager")
    ours = callback(LIGHTNING)
    fit(tmp_path, model, ours)
    assert ours.report.layers[0].ranking.name == "output_sensitivity"
    assert hooks_on(model) == 0


def test_a_network_that_is_compiled_in_place_is_left_alone(tmp_path: Path) -> None:
    model = of_kind(Embedded)()
    model.net.compile(backend="eager")
    ours = callback(LIGHTNING)
    fit(tmp_path, model, ours)
    assert ours.report.layers[0].ranking.name == "std_x_outgoing"
    assert hooks_on(model) == 0


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true"])
@pytest.mark.parametrize("kind", [Calls, Embedded])
def test_in_other_precisions(kind: type, precision: str, tmp_path: Path) -> None:
    ours = callback(LIGHTNING)
    fit(tmp_path, of_kind(kind)(), ours, precision=precision)
    assert ours.report.layers[0].ranking.name == "output_sensitivity"
    assert bool(torch.isfinite(ours.report.layers[0].ranking.scores).all())


# Nothing of it stays


def hooks_on(model: nn.Module) -> int:
    return sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in model.modules())


@pytest.mark.parametrize("options", [{}, {"precision": "bf16-mixed"}, {"precision": "bf16-true"}])
@pytest.mark.parametrize("kind", [Calls, Embedded, Alone])
def test_the_training_is_the_same_in_every_bit(kind: type, options: dict[str, Any], tmp_path: Path) -> None:
    def train(*ours: Any) -> dict[str, Any]:
        seed_all()
        model = of_kind(kind)(noisy=True)
        return trace(fit(tmp_path, model, *ours, **options), model)

    assert differences(train(), train(callback(LIGHTNING, every_n_steps=2))) == []


def test_hooks_live_for_one_batch(tmp_path: Path) -> None:
    counts: list[int] = []

    class Counting(of_kind(Calls)):  # type: ignore[misc]
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            counts.append(hooks_on(self))
            super().validation_step(batch, batch_idx)

    model = Counting()
    fit(tmp_path, model, callback(LIGHTNING), num_sanity_val_steps=1)
    parts = len(list(model.modules()))
    assert counts == [2 * parts + 1, 1, 1, 1, 1]  # the layers' inputs are recorded in every batch
    assert hooks_on(model) == 0


def test_nothing_is_held_after_the_fit(tmp_path: Path) -> None:
    ours = callback(LIGHTNING)
    fit(tmp_path, of_kind(Calls)(), ours)
    assert ours._call.runs == ()
    assert ours._recordings is None
    assert copy.deepcopy(ours).monitor is None


def test_what_is_kept_is_a_copy_outside_of_inference_mode() -> None:
    model = nn.Sequential(trainings.Network())
    recorder = CallRecorder(model, [model[0].rnn], Guard("raise"))
    x = sequences(0, 4)
    handles = recorder.attach()
    with torch.inference_mode():
        given = x.clone()
        expected = model(given)
        given.zero_()
    for handle in handles:
        handle.remove()
    [run] = recorder.runs()
    found = run.call()
    assert found.requires_grad
    torch.testing.assert_close(found.detach(), expected.clone())


def _fail(*_: Any) -> Any:
    raise RuntimeError("planted")


def test_a_fault_when_it_is_run_again_is_said_in_the_ranking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network_call, "_again", _fail)
    ours = callback(LIGHTNING)
    fit(tmp_path, of_kind(Calls)(), ours)
    ranking = ours.report.layers[0].ranking
    assert ranking.name == "std_x_outgoing"
    assert "planted" in ranking.words
