"""Checks of layers that are not on the host: what comes from there and what is remembered here are brought together."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import lstm_monitor as lm
from lstm_monitor.characterization import examine
from lstm_monitor.core.definitions import Thresholds
from lstm_monitor.core.records import Snapshot
from lstm_monitor.core.terms import Mode
from lstm_monitor.engines import choice, run
from lstm_monitor.engines.loop_engine import run_loop
from lstm_monitor.responses.linear import frequency_response
from tests.helpers.elsewhere import Elsewhere, There, moved, sent


@pytest.fixture(autouse=True)
def _played_by_torch(monkeypatch: pytest.MonkeyPatch) -> None:
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
def test_stimuli_of_the_host_are_played_elsewhere(
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
    check = lm.AblationCheck(rankings=["auto", "std_x_outgoing"], random_orders=1, points=3, seconds=None)
    with Elsewhere(monkeypatch):
        model, options = moved(Net()), {"budget": None, "horizon": 16, "on_error": "raise", "ablation": check}
        with lm.LSTMMonitor(model, torch.randn(6, 12, 3), **options) as monitor:
            monitor.on_train_batch_end(0)
            monitor.on_epoch_end(0)
    assert monitor.report is not None
    assert monitor.report.checks == 2
    assert monitor.report.layers[0].ranking.name == "output_sensitivity"
    assert monitor.report.study is not None
    assert not monitor.report.study.notes
