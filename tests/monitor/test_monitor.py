"""LSTMMonitor in plain loops: when it checks, what it remembers, how it ends."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lstm_monitor as lm
from lstm_monitor.monitor import check
from lstm_monitor.responses import probe_design

HORIZON = 32


class Model(nn.Module):
    """One recurrent layer and its reader."""

    def __init__(self, features: int = 3, cells: int = 5, kind: type[nn.RNNBase] = nn.LSTM) -> None:
        super().__init__()
        self.rnn = kind(features, cells, batch_first=True)  # type: ignore[arg-type]
        self.head = nn.Linear(cells, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0][:, -1])


class Closing(lm.MemorySink):
    """Counts how often it is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.closed = 0

    def close(self) -> None:
        self.closed += 1


def data(features: int = 3, seed: int = 0) -> Tensor:
    return torch.randn(8, 12, features, generator=torch.Generator().manual_seed(seed))


def model(*args: Any, **kwargs: Any) -> Model:
    torch.manual_seed(0)
    return Model(*args, **kwargs)


def watch(module: nn.Module | None, **options: Any) -> tuple[lm.LSTMMonitor, Closing]:
    """A monitor that raises, and its sink."""
    sink = Closing()
    defaults = {"held_out": data(), "horizon": HORIZON, "on_error": "raise", "budget": None, "sinks": [sink]}
    return lm.LSTMMonitor(module, **defaults | options), sink


def train(
    module: nn.Module, after_batch: Callable[[int], Any], after_epoch: Callable[[int], Any], epochs: int = 2
) -> None:
    """Four steps an epoch."""
    optimizer = torch.optim.Adam(module.parameters(), lr=0.05)
    for epoch in range(epochs):
        for batch in range(4):
            optimizer.zero_grad()
            module(data(seed=batch)).square().mean().backward()
            optimizer.step()
            after_batch(batch)
        after_epoch(epoch)


def run(monitor: lm.LSTMMonitor, epochs: int = 2) -> lm.Report | None:
    """A training with every Keras-style hook; the last report."""
    assert monitor.model is not None
    monitor.set_params({"epochs": epochs})
    monitor.on_train_begin()
    train(monitor.model, monitor.on_train_batch_end, lambda epoch: monitor.on_epoch_end(epoch, {"loss": 0.0}), epochs)
    return monitor.on_train_end()


def moments(sink: Closing) -> list[tuple[int | None, int | None]]:
    return [(report.step, report.epoch) for report in sink.reports]


# When


@pytest.mark.parametrize(
    ("options", "epochs", "expected"),
    [
        ({}, 2, [(0, 0), (4, 1), (8, 2)]),
        ({"every_n_epochs": 2}, 3, [(0, 0), (8, 2), (12, 3)]),
        ({"every_n_steps": 3}, 2, [(0, 0), (3, 0), (6, 1), (8, 2)]),
        ({"every_n_steps": 4, "every_n_epochs": 1}, 2, [(0, 0), (4, 0), (8, 1)]),
        ({"every_n_steps": lm.every(4, start=2, stop=5)}, 2, [(0, 0), (2, 0), (8, 2)]),
        ({"every_n_epochs": lambda epoch: epoch == 1}, 3, [(0, 0), (4, 1), (12, 3)]),
        ({"every_n_steps": 1, "budget": 1e-9}, 2, [(0, 0), (8, 2)]),
    ],
)
def test_when_it_checks(options: dict[str, Any], epochs: int, expected: list[tuple[int, int]]) -> None:
    monitor, sink = watch(model(), **options)
    assert run(monitor, epochs) is sink.reports[-1]
    assert moments(sink) == expected
    assert [report.checks for report in sink.reports] == list(range(1, len(expected) + 1))
    assert sink.closed == 1


def test_a_loop_that_only_counts_epochs() -> None:
    monitor, sink = watch(model(), every_n_epochs=2)
    with monitor:
        train(monitor.model, lambda batch: None, monitor.on_epoch_end, epochs=3)  # type: ignore[arg-type]
    assert moments(sink) == [(0, 0), (2, 2), (3, 3)], "a log has one axis, and each check a place of its own on it"


def test_a_loop_that_only_counts_steps() -> None:
    monitor, sink = watch(model(), every_n_steps=4)
    with monitor:
        train(monitor.model, monitor.on_train_batch_end, lambda epoch: None)  # type: ignore[arg-type]
    assert moments(sink) == [(0, 0), (4, 0), (8, 0)]


def test_budget_is_spent_where_there_is_enough_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monitor, sink = watch(model(), every_n_steps=1, budget=0.5)
    monitor.on_train_begin()
    monkeypatch.setattr(type(monitor.clock), "elapsed", lambda clock: 1e6)
    monitor.on_train_batch_end(0)
    assert moments(sink) == [(0, 0), (1, 0)]


def test_the_model_may_come_later() -> None:
    monitor, sink = watch(None)
    monitor.set_model(model())
    run(monitor)
    assert len(sink.reports) == 3


def test_switched_off_nothing_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LSTM_MONITOR", "off")
    monitor, sink = watch(model())
    assert run(monitor) is None
    assert sink.reports == []


def test_the_loop_is_untouched() -> None:
    watched, alone = model(), model()
    state = torch.get_rng_state()
    monitor, _ = watch(watched, every_n_steps=1)
    run(monitor)
    assert torch.equal(torch.get_rng_state(), state)
    train(alone, lambda batch: None, lambda epoch: None)
    assert all(torch.equal(one, other) for one, other in zip(watched.parameters(), alone.parameters(), strict=True))


# What it remembers


def test_the_first_check_has_no_history_and_later_ones_do() -> None:
    monitor, sink = watch(model())
    run(monitor)
    first, second, third = (report["rnn.l0"] for report in sink.reports)
    assert (first.previous, first.first, first.drift) == (None, None, ())
    for layer in (second, third):
        assert layer.previous is not None
        assert layer.first is not None
        assert layer.drift
    assert third.rank_history is not None
    assert third.rank_history.steps.tolist() == [0, 4, 8]


def test_stability_and_drift_are_those_between_the_two_checks() -> None:
    monitor, sink = watch(model())
    run(monitor)
    before, last = sink.reports[-2:]
    layer, earlier = last["rnn.l0"], before["rnn.l0"]
    expected = {drift.metric: drift.distance for drift in lm.compare(layer.metrics, earlier.metrics)}
    found = {drift.metric: drift.distance for drift in layer.drift}
    assert found == pytest.approx(expected, nan_ok=True)
    from scipy.stats import kendalltau

    tau = kendalltau(layer.ranking.scores.numpy(), earlier.ranking.scores.numpy()).statistic
    assert layer.previous is not None
    assert layer.previous.tau == pytest.approx(tau)


def test_unchanged_weights_agree_fully_and_do_not_drift() -> None:
    monitor, _ = watch(model())
    monitor.check()
    report = monitor.check()
    assert report is not None
    layer = report["rnn.l0"]
    assert layer.previous is not None
    assert (layer.previous.tau, layer.previous.overlap) == pytest.approx((1.0, 1.0))
    assert {drift.distance for drift in layer.drift if drift.distance == drift.distance} == {0.0}


def saved_and_loaded(state: Any, folder: Path) -> Any:
    torch.save(state, folder / "state.pt")
    return torch.load(folder / "state.pt", weights_only=True)


def test_state_goes_through_a_file_and_the_run_goes_on_as_one(tmp_path: Path) -> None:
    whole, sink = watch(model())
    whole.on_train_begin()
    train(whole.model, whole.on_train_batch_end, whole.on_epoch_end, epochs=2)  # type: ignore[arg-type]
    resumed, again = watch(whole.model)
    resumed.load_state_dict(saved_and_loaded(whole.state_dict(), tmp_path))
    assert (resumed.steps, resumed.epochs, resumed.checks) == (8, 2, 3)
    for monitor in (whole, resumed):
        monitor.on_train_batch_end(0)
        monitor.on_epoch_end(0)
    one, other = sink.reports[-1], again.reports[-1]
    assert one.step == other.step == 9
    timeless = [{k: v for k, v in report.scalars().items() if not k.endswith("cost")} for report in (one, other)]
    assert timeless[0] == timeless[1]
    histories = [report["rnn.l0"].rank_history for report in (one, other)]
    assert histories[0].steps.tolist() == histories[1].steps.tolist() == [0, 4, 8, 9]  # type: ignore[union-attr]
    assert torch.equal(histories[0].ranks, histories[1].ranks)  # type: ignore[union-attr]


def test_a_resumed_run_keeps_its_stimuli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, _ = watch(model(), held_out=data(seed=1))
    first.check()
    state = saved_and_loaded(first.state_dict(), tmp_path)

    def designed(*args: Any) -> Any:
        raise AssertionError("a new probe was designed")

    monkeypatch.setattr(probe_design, "design_probe", designed)
    other, _ = watch(model(), held_out=data(seed=2) + 5.0)
    other.load_state_dict(state)
    report = other.check()
    assert report is not None
    probe = other.state_dict()["layers"]["rnn.l0"]["point"]["mean"]
    torch.testing.assert_close(probe, state["layers"]["rnn.l0"]["point"]["mean"], rtol=0, atol=0)


def test_state_before_a_check_is_passed_on(tmp_path: Path) -> None:
    first, _ = watch(model())
    first.check()
    state = saved_and_loaded(first.state_dict(), tmp_path)
    between, _ = watch(model())
    between.load_state_dict(state)
    assert set(saved_and_loaded(between.state_dict(), tmp_path)["layers"]) == {"rnn.l0"}


@pytest.mark.parametrize("changed", [{"features": 4}, {"cells": 7}])
@pytest.mark.parametrize("resumed", [False, True])
def test_a_model_of_another_size_is_a_fresh_start(changed: dict[str, int], resumed: bool) -> None:
    monitor, _ = watch(model())
    monitor.check()
    if resumed:
        state = monitor.state_dict()
        monitor, _ = watch(model())
        monitor.load_state_dict(state)
    monitor.set_model(model(**changed))
    monitor.held_out = data(changed.get("features", 3))
    monitor.steps = 5
    report = monitor.check()
    assert report is not None
    layer = report["rnn.l0"]
    assert (layer.previous, layer.first, layer.drift) == (None, None, ())
    assert layer.rank_history is not None
    assert layer.rank_history.steps.tolist() == [5]


def test_another_ranking_is_a_fresh_start() -> None:
    monitor, _ = watch(model())
    monitor.check()
    monitor.rank_by = "settling_time"
    report = monitor.check()
    assert report is not None
    assert report["rnn.l0"].previous is None


def test_a_long_training_keeps_a_bounded_history() -> None:
    monitor, _ = watch(model(cells=2), held_out=None, horizon=8)
    for step in range(70):
        monitor.check(step=step)
    assert monitor.report is not None
    history = monitor.report["rnn.l0"].rank_history
    assert history is not None
    assert len(history.steps) == len(history.ranks) <= 64
    assert history.steps[0] == 0
    assert history.steps[-1] == 69


# How it ends


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_exception_inside_the_block_closes_the_sinks_and_is_passed_on(error: type[BaseException]) -> None:
    monitor, sink = watch(model())
    with pytest.raises(error), monitor:
        raise error
    assert sink.closed == 1
    assert moments(sink) == [(0, 0)]


def test_a_fault_is_one_warning_and_the_monitor_rests(monkeypatch: pytest.MonkeyPatch) -> None:
    monitor, sink = watch(model(), on_error="warn", every_n_steps=1)
    monkeypatch.setattr(check, "examine", lambda *args, **kwargs: 1 / 0)
    with pytest.warns(lm.MonitorWarning, match="rests from now on.*ZeroDivisionError") as caught:
        assert run(monitor) is None
    assert len(caught) == 1
    assert sink.reports == []
    assert sink.closed == 1
    assert monitor.check() is None


def test_the_report_of_the_last_good_check_is_kept() -> None:
    monitor, _ = watch(model(), on_error="warn")
    monitor.on_train_begin()
    with torch.no_grad():
        monitor.model.rnn.weight_hh_l0.fill_(float("nan"))  # type: ignore[union-attr, operator]
    with pytest.warns(lm.MonitorWarning, match="NaN or infinite"):
        monitor.on_epoch_end(0)
    report = monitor.on_train_end()
    assert report is not None
    assert report.step == 0


# Bad arguments


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"every_n_steps": 0}, "every_n_steps=0 must be an integer of at least 1"),
        ({"every_n_epochs": 1.5}, "every_n_epochs=1.5"),
        ({"every_n_epochs": True}, "every_n_epochs=True"),
        ({"budget": 2}, "budget=2 .*0 < budget <= 1"),
        ({"budget": 0}, "budget=0"),
        ({"rank_by": "setling_time"}, "rank_by='setling_time' is not known. Did you mean 'settling_time'"),
        ({"on_error": "rise"}, "on_error='rise' is not known. Did you mean 'raise'"),
        ({"horizon": 3}, "horizon=3"),
    ],
)
def test_a_bad_argument_is_named_at_once(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        watch(model(), **options)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"layers": "rn.l0"}, "layers='rn.l0' matches no layer. Did you mean 'rnn.l0'"),
        ({"layers": ["rnn.l0", "encoder.*"]}, r"layers='encoder\.\*' matches no layer"),
        ({"held_out": []}, r"held_out=\[\] is empty"),
        ({"held_out": torch.zeros(0, 5, 3)}, "held_out is empty"),
        ({"held_out": torch.full((2, 5, 3), float("nan"))}, "held_out holds 30 values that are NaN"),
        ({"held_out": data(4)}, "held_out: .*rnn.l0 reads 3"),
        ({"lengths": [1, 2], "mask": [[True]]}, "lengths= and mask="),
        ({"model": None}, r"model=None; give LSTMMonitor\(model=...\)"),
        ({"model": nn.Linear(2, 2)}, "has no recurrent layer.*1 Linear"),
        ({"model": "rnn"}, "model=str is no torch.nn.Module"),
    ],
)
def test_what_shows_in_the_first_check_is_named_there(options: dict[str, Any], words: str) -> None:
    monitor, _ = watch(options.pop("model", model()), **options)
    with pytest.raises((ValueError, TypeError), match=words):
        monitor.on_train_begin()


def test_a_data_parallel_model_is_checked_by_one_process_alone(tmp_path: Path) -> None:
    class Parallel(torch.nn.parallel.DistributedDataParallel):
        """To run it is a collective: buffers are broadcast."""

        def forward(self, *args: Any) -> Any:
            raise AssertionError("the other processes would have to take part")

    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        model = Parallel(nn.Sequential(nn.BatchNorm1d(6), nn.LSTM(3, 4, batch_first=True)))
        report = lm.LSTMMonitor(model, torch.randn(5, 6, 3), on_error="raise").check()
    finally:
        torch.distributed.destroy_process_group()
    assert report is not None
    assert str(report.layers[0].key) == "1.l0"
    assert report.layers[0].ranking.name == "output_sensitivity"
