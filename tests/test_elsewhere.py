"""Checks of layers that are not on the host: what comes from there and what is remembered here are brought together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lstm_monitor as lm
from lstm_monitor.characterization import examine
from lstm_monitor.core.definitions import Thresholds
from lstm_monitor.core.records import Snapshot
from lstm_monitor.core.terms import Mode
from lstm_monitor.engines import batch_size, choice, run
from lstm_monitor.engines.loop_engine import run_loop
from lstm_monitor.monitor import check
from lstm_monitor.responses.linear import frequency_response
from tests.helpers.elsewhere import Elsewhere, There, moved, sent


@pytest.fixture(autouse=True)
def _simulated_by_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fused ops, which look for a real device, are left out."""
    monkeypatch.setenv(choice.VARIABLE, "torch")
    monkeypatch.setattr(run, "run_fused", lambda *given: run_loop(*given)[:2])


@pytest.fixture
def snaps() -> tuple[Snapshot, ...]:
    """Layers of every kind."""
    kinds = nn.LSTM(3, 6), nn.LSTM(3, 6), nn.GRU(3, 5), nn.RNN(3, 4)
    return tuple(snap for k, kind in enumerate(kinds) for snap in lm.snapshot(nn.ModuleDict({f"{k}": kind})))


def test_tensors_of_two_devices_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    with Elsewhere(monkeypatch):
        there = torch.ones(3, device="meta")
        assert isinstance(there + 1, There)
        assert type(there.cpu()) is Tensor
        with pytest.raises(AssertionError, match="tensors of the host"):
            there + torch.ones(3)


@pytest.mark.thorough
def test_every_check_is_that_of_the_host(snaps: tuple[Snapshot, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """The first designs its stimuli there; those of the later ones were remembered, here."""
    limits, names = Thresholds(), ("step/final_response", "sine_alone/amplitude", "linear/gain", "step_alone/overshoot")
    expected = examine(snaps, {}, "std_x_outgoing", limits, 16)
    with Elsewhere(monkeypatch):
        there, probes = sent(snaps), {}
        for _ in range(2):
            found = examine(there, probes, "std_x_outgoing", limits, 16)
            probes = {report.key: probe for report, probe in found}
            for (mine, _), (theirs, _) in zip(found, expected, strict=True):
                for name in names:
                    assert type(mine.metrics[name].values) is Tensor
                    torch.testing.assert_close(
                        mine.metrics[name].values, theirs.metrics[name].values, rtol=1e-3, atol=1e-4, equal_nan=True
                    )


@pytest.mark.parametrize("mode", ["coupled", "alone"])
def test_stimuli_of_the_host_are_simulated_elsewhere(
    snaps: tuple[Snapshot, ...], mode: Mode, monkeypatch: pytest.MonkeyPatch
) -> None:
    for snap in snaps:
        stimuli = lm.default_stimuli(snap, 128)
        expected = lm.respond(snap, stimuli, mode).hidden
        with Elsewhere(monkeypatch):
            response = lm.respond(sent(snap), stimuli, mode, record=("gates",))
            assert isinstance(response.hidden, There)
            torch.testing.assert_close(response.hidden.cpu(), expected)
            lm.measure(response)
            assert type(frequency_response(sent(snap), [0.1])) is Tensor


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.LSTM(3, 4, batch_first=True, bidirectional=True)
        self.b, self.head = nn.GRU(8, 3, batch_first=True), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        hidden: Tensor = self.b(self.a(x)[0])[0]
        return self.head(hidden[:, -1])  # type: ignore[no-any-return]


@pytest.mark.thorough
def test_checks_and_the_ablation_of_a_network_that_is_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    ablation = lm.AblationCheck(rankings=["auto", "std_x_outgoing"], random_orders=1, points=3, seconds=None)
    with Elsewhere(monkeypatch):
        model, options = moved(Net()), {"budget": None, "horizon": 16, "on_error": "raise", "ablation": ablation}
        with lm.LSTMMonitor(model, torch.randn(6, 12, 3), **options) as monitor:
            monitor.on_train_batch_end(0)
            monitor.on_epoch_end(0)
    assert monitor.report is not None
    assert monitor.report.checks == 2
    assert monitor.report.layers[0].ranking.name == "output_sensitivity"
    assert monitor.report.study is not None
    assert not monitor.report.study.notes


class _Later:
    """A job beside the training that is done when it is collected, so that what the hook itself does is seen alone."""

    seconds = 0.0

    def __init__(self, device: torch.device | None) -> None:
        self.job: Callable[[], Any] = lambda: None
        self.done = False

    def start(self, job: Callable[[], Any]) -> None:
        self.job = job

    def ready(self) -> bool:
        return self.done

    def collect(self) -> Any:
        self.done = True
        return self.job()


def _training(held_out: Tensor) -> tuple[lm.MemorySink, list[int]]:
    """Of a network that is elsewhere: its reports, and how often the host waited at each hook with a check."""
    torch.manual_seed(1)
    sink, waits, model = lm.MemorySink(), [], moved(nn.LSTM(1, 2, batch_first=True))
    settings: dict[str, Any] = {"budget": None, "horizon": 16, "on_error": "raise", "every_n_steps": 1}
    with lm.LSTMMonitor(model, There(held_out), sinks=[sink], **settings) as monitor:
        for _ in range(2):
            for parameter in model.parameters():
                parameter.data.mul_(1.01)
            monitor.settle()
            before = len(Elsewhere.waits)
            monitor.on_train_batch_end(0)
            waits.append(len(Elsewhere.waits) - before)
    return sink, waits


def test_periodic_checks_beside_a_training_round_nothing_and_hardly_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """With torch's default of TF32 in recurrent layers, which stays as it is."""
    held_out = torch.randn(4, 12, 1)
    with Elsewhere(monkeypatch):
        direct, often = _training(held_out)
        monkeypatch.setattr(check, "_cuda_device", lambda model: torch.device("cuda"))
        monkeypatch.setattr(check, "BackgroundCheck", _Later)
        monkeypatch.setattr("lstm_monitor.monitor.budget._synchronise", lambda device: None)
        late, rarely = _training(held_out)
    assert max(rarely) <= 8 < min(often), "for the held-out data, weights, mask, ranking; never for a response"
    assert [report.step for report in late.reports] == [0, 1, 2]
    for mine, theirs in zip(late.reports, direct.reports, strict=True):
        values, expected = mine.scalars(), theirs.scalars()
        assert values.keys() == expected.keys()
        for name in values.keys() - {"lstm_monitor/_run/cost"}:
            assert values[name] == pytest.approx(expected[name], rel=1e-3, abs=1e-4, nan_ok=True), name


@pytest.mark.parametrize(("rank_by", "has_data"), [("auto", True), ("greedy", True), ("auto", False)])
def test_where_there_is_no_float64_a_check_is_worked_out_on_the_host(
    rank_by: str, has_data: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As on Apple's GPUs; said once."""
    batch_size._tell.cache_clear()
    options: dict[str, Any] = {"budget": None, "horizon": 8, "on_error": "raise", "rank_by": rank_by}
    if has_data:
        ablation = lm.AblationCheck(rankings=["auto"], random_orders=1, points=2, seconds=None)
        options |= {"held_out": torch.randn(3, 6, 1), "ablation": ablation}
    with Elsewhere(monkeypatch, double=False):
        monitor = lm.LSTMMonitor(moved(nn.LSTM(1, 2, batch_first=True)), **options)
        monitor.on_train_begin()
        monitor.on_epoch_end(0)
        monitor.on_train_end()
    assert monitor.report is not None
    assert monitor.report.checks == 2
    assert monitor.report.study is None or not monitor.report.study.notes
    (said,) = [line for line in caplog.messages if "float64" in line]
    assert "has no float64; responses and metrics are worked out on the host" in said


def test_each_stage_can_be_used_where_there_is_no_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    (snap,) = lm.snapshot(nn.LSTM(2, 3, batch_first=True), torch.randn(3, 9, 2))
    expected = lm.measure(lm.respond(snap, lm.default_stimuli(snap, 128), "alone"))
    with Elsewhere(monkeypatch, double=False):
        there = sent(snap)
        found = lm.measure(lm.respond(there, lm.default_stimuli(there, 128), "alone"))
        gates = lm.measure(lm.respond(there, there.held_out, record=["gates"]))
        assert type(lm.frequency_response(there, [0.1])) is Tensor
        assert "gates/tau_f" in gates
        for name in ("step_alone/delta_response", "sine_alone/amplitude"):
            torch.testing.assert_close(found[name].values.cpu(), expected[name].values, rtol=1e-4, atol=1e-5)
