"""What a check simulates of all layers at once, against respond() and measure() of each layer by itself."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import lstm_monitor as lm
from lstm_monitor.characterization import examine
from lstm_monitor.core.records import Probe
from lstm_monitor.core.weights import LayerWeights
from lstm_monitor.engines.lone_cells import cells_of, joined_cells
from lstm_monitor.responses.probe_design import design_probe
from lstm_monitor.responses.probing import Case, simulate, simulate_alone, together
from lstm_monitor.responses.rest import settle, settle_cells
from lstm_monitor.responses.simulation import BATCH

THRESHOLDS = lm.Thresholds()
KINDS = {
    "lstm": lambda **k: nn.LSTM(3, 9, batch_first=True, **k),
    "gru": lambda **k: nn.GRU(3, 9, batch_first=True, **k),
    "rnn_tanh": lambda **k: nn.RNN(3, 9, batch_first=True, **k),
    "rnn_relu": lambda **k: nn.RNN(3, 9, batch_first=True, nonlinearity="relu", **k),
}


def snapshots(kind: str, dtype: torch.dtype = torch.float64, **options: object) -> tuple[lm.Snapshot, ...]:
    torch.manual_seed(3)
    module = KINDS[kind](dtype=dtype, **options)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(1.5)  # so that cells differ
    return lm.snapshot(module, torch.randn(5, 40, 3, dtype=dtype))


def probe_of(snap: lm.Snapshot, horizon: int, more: int = 0) -> Probe:
    """The default stimuli, and so many steps and sines more."""
    probe = design_probe(snap, THRESHOLDS, horizon)
    direction, steps = probe.steps[0].direction, len(probe.sines[0].signal)
    return replace(
        probe,
        steps=(*probe.steps, *(lm.step(direction, steps=horizon, amplitude=0.1 * k, name=f"{k}") for k in range(more))),
        sines=(*probe.sines, *(lm.sinusoid(direction, 0.01 * (k + 2), steps=steps) for k in range(more))),
    )


def agree(mine: lm.Metric, plain: lm.Metric) -> None:
    assert torch.equal(mine.reasons, plain.reasons), mine.path
    assert mine.labels == plain.labels
    if mine.name != "peak_time":  # on a plateau rounding decides which sample is the first of the largest
        torch.testing.assert_close(mine.values, plain.values, rtol=1e-7, atol=1e-9, equal_nan=True)
        torch.testing.assert_close(mine.cells, plain.cells, rtol=1e-7, atol=1e-9, equal_nan=True)


@pytest.mark.sweep
@pytest.mark.parametrize(("horizon", "more"), [(64, 0), (128, 0), (64, 20), (128, 20)])
@pytest.mark.parametrize("kind", KINDS)
def test_a_check_finds_what_respond_and_measure_find(kind: str, horizon: int, more: int) -> None:
    (snap,) = snapshots(kind)
    probe = probe_of(snap, horizon, more)
    ((report, used),) = examine([snap], {snap.key: probe}, "step/settling_time", THRESHOLDS)
    assert used is probe
    for mode in ("coupled", "alone"):
        steps, sines = (lm.respond(snap, stimuli, mode) for stimuli in (probe.steps, probe.sines))
        for item in lm.measure(steps, sines).items:
            agree(report.metrics[item.path], item)
    steps = lm.respond(snap, probe.steps)
    settled = (report.metrics["step/settling_time"].reasons == 0).sum(1)
    traced = probe.steps[int(settled.argmax())]
    assert report.trace.label == traced.name
    assert steps.baseline is not None
    torch.testing.assert_close(report.trace.change, lm.respond(snap, traced).hidden[0] - steps.baseline[:, None])
    assert torch.equal(report.settled, steps.settled)


def test_the_picture_of_a_step_of_an_earlier_batch() -> None:
    """The first step is the one that most cells settle after, and many that move nothing come after it."""
    (snap,) = snapshots("lstm")
    probe = probe_of(snap, 64)
    still = tuple(lm.step(probe.steps[0].direction, steps=64, amplitude=0.0, name=f"{k}") for k in range(2 * BATCH))
    case = Case(snap, replace(probe, steps=(*probe.steps, *still)))
    traced = simulate(case, "coupled", THRESHOLDS).traced
    expected = simulate(Case(snap, probe), "coupled", THRESHOLDS).traced
    assert traced is not None
    assert expected is not None
    assert int(traced.number) == int(expected.number)
    torch.testing.assert_close(traced.change, expected.change)


def test_layers_are_simulated_together_and_found_as_apart() -> None:
    """Two kinds, two directions, two widths: alike ones are simulated in one batch; a layer's numbers stay its own."""
    snaps = (*snapshots("lstm", torch.float32, num_layers=2, bidirectional=True), *snapshots("gru", torch.float32))
    snaps = tuple(replace(snap, key=lm.LayerKey(f"{k}")) for k, snap in enumerate(snaps))
    probes = {snap.key: design_probe(snap, THRESHOLDS, 64) for snap in snaps}
    cases = [Case(snap, probes[snap.key]) for snap in snaps]
    assert together(cases) == [[0, 1], [2, 3], [4]]  # the second layer reads 18 features: it is stepped in 5 directions
    reports = examine(snaps, probes, "std_x_outgoing", THRESHOLDS)
    for snap, (report, _) in zip(snaps, reports, strict=True):
        ((apart, _),) = examine([snap], probes, "std_x_outgoing", THRESHOLDS)
        assert report.metrics.paths() == apart.metrics.paths()
        assert report.trace.label == apart.trace.label
        assert torch.equal(report.ranking.order, apart.ranking.order)
        for item in report.metrics.items:
            own = apart.metrics[item.path]
            assert torch.equal(item.reasons, own.reasons), item.path
            if item.name == "peak_time":
                continue  # on a plateau rounding decides which sample is the first of the largest
            torch.testing.assert_close(item.values, own.values, rtol=1e-5, atol=1e-4, equal_nan=True)
            torch.testing.assert_close(item.cells, own.cells, rtol=1e-5, atol=1e-4, equal_nan=True)


def slow(own: float) -> tuple[lm.Snapshot, LayerWeights]:
    rnn = nn.RNN(1, 2, nonlinearity="relu")
    with torch.no_grad():
        for value in rnn.parameters():
            value.fill_(0.2)
        rnn.weight_hh_l0.copy_(torch.diag(torch.tensor([0.0, own])))
    (snap,) = lm.snapshot(rnn)
    assert isinstance(snap.weights, LayerWeights)
    return snap, snap.weights


def test_layers_that_settle_together_stop_where_each_would_by_itself() -> None:
    """64, 192, 128 and 256 steps."""
    pairs = [slow(own) for own in (0.5, 0.95, 0.92, 0.98)]
    still = torch.zeros(1, 1)
    cells = [cells_of(weights, snap.hidden_mean, snap.point.mean, still) for snap, weights in pairs]
    rest = settle_cells(joined_cells(cells), [2] * 4, THRESHOLDS)
    for k, (snap, _) in enumerate(pairs):
        apart, own = settle(snap, "alone", THRESHOLDS), slice(2 * k, 2 * k + 2)
        assert torch.equal(rest.hidden[own], apart.hidden)
        assert torch.equal(rest.state[0][:, own], apart.state[0])
        assert torch.equal(rest.settled[own], apart.settled)


def test_what_was_found_holds_no_response() -> None:
    """Of a cell alone at most the window of one sine; so that many layers can be in memory."""
    (snap,) = snapshots("lstm", torch.float32)
    simulated = simulate_alone([Case(snap, design_probe(snap, THRESHOLDS, 512))], THRESHOLDS)
    tensors = [value for part in (simulated.facts.steps, simulated.facts.sines) for value in vars(part).values()]
    tensors = [t for value in tensors for t in (value if isinstance(value, tuple) else (value,))]
    bytes_held = {
        t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors if isinstance(t, Tensor)
    }
    whole = 512 * 11 * 9 * 4
    assert sum(bytes_held.values()) < whole / 4
