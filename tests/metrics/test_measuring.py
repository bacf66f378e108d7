"""All metrics of a layer in one call, against the naive oracles, for every kind of layer."""

import math

import numpy as np
import pytest
import torch
from torch import nn

import lstm_monitor as lm
from lstm_monitor import metrics
from lstm_monitor.core.terms import Mode
from lstm_monitor.engines.facts import ResponseFacts
from lstm_monitor.engines.torch_engine.engine import ENGINE
from lstm_monitor.metrics import activity
from lstm_monitor.metrics.catalog import CATALOG
from lstm_monitor.metrics.measuring import MeasuredCells, flagged, main_of, measure_facts
from tests.helpers import oracles

KINDS = {
    "lstm": lambda **k: nn.LSTM(3, 6, batch_first=True, **k),
    "gru": lambda **k: nn.GRU(3, 6, batch_first=True, **k),
    "rnn_tanh": lambda **k: nn.RNN(3, 6, batch_first=True, **k),
    "rnn_relu": lambda **k: nn.RNN(3, 6, batch_first=True, nonlinearity="relu", **k),
}


def sharpened(module: nn.Module) -> nn.Module:
    """Larger weights than at initialization, so that cells differ."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(2.0)
    return module


@pytest.fixture(params=KINDS)
def module(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(3)
    return sharpened(KINDS[request.param](dtype=torch.float64))


@pytest.fixture
def snap(module: nn.Module) -> lm.Snapshot:
    torch.manual_seed(4)
    return lm.snapshot(module, torch.randn(5, 40, 3, dtype=torch.float64))[0]


def same(ours: torch.Tensor, naive: list[float]) -> None:
    np.testing.assert_allclose(ours.numpy(), np.array(naive), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("mode", ["coupled", "alone"])
def test_step_metrics_equal_the_naive_ones(snap: lm.Snapshot, mode: Mode) -> None:
    steps = [s for s in lm.default_stimuli(snap, 100) if s.kind == "step"]
    response = lm.respond(snap, steps, mode)
    measured = lm.measure(response)
    group = "step" if mode == "coupled" else "step_alone"
    for row in range(len(steps)):
        naive = [
            oracles.step_metrics(response.hidden[row, cell].numpy(), float(response.baseline[cell]))
            for cell in range(snap.hidden_size)
        ]
        for item in measured.items:
            if item.group == group and item.name != "peak_time":
                same(item.values[row], [values[item.name] for values in naive])
        times = measured[f"{group}/peak_time"].values[row]  # a plateau has many first samples, to the last digit
        for cell, time in enumerate(times.tolist()):
            change = (response.hidden[row, cell] - response.baseline[cell]).abs()
            if not math.isnan(time):
                assert float(change[int(time)]) == pytest.approx(float(change.max()), abs=1e-13)
                assert (change[: int(time)] <= change.max()).all()


@pytest.mark.parametrize("mode", ["coupled", "alone"])
def test_sine_metrics_equal_the_naive_ones(snap: lm.Snapshot, mode: Mode) -> None:
    sines = [s for s in lm.default_stimuli(snap, 64) if s.kind == "sine"]
    response = lm.respond(snap, sines, mode)
    measured = lm.measure(response)
    group = "sine" if mode == "coupled" else "sine_alone"
    for row, sine in enumerate(sines):
        for cell in range(snap.hidden_size):
            naive = oracles.sine_metrics(response.hidden[row, cell].numpy(), sine.frequency, 64)
            for name in ("amplitude", "phase_lag", "harmonic_distortion", "correlation"):
                found = float(measured[f"{group}/{name}"].values[row, cell])
                assert found == pytest.approx(naive[name], rel=1e-7, abs=1e-9, nan_ok=True)


def test_activity_equals_the_naive_one_without_padding(snap: lm.Snapshot) -> None:
    torch.manual_seed(5)
    y, lengths = torch.randn(4, 3, 30, dtype=torch.float64).cumsum(-1), [30, 12, 7, 21]
    mask = torch.arange(30) < torch.tensor(lengths)[:, None]
    for cell in range(3):
        pieces = [y[n, cell, :length].numpy() for n, length in enumerate(lengths)]
        joined = np.concatenate(pieces)
        assert float(activity.std(y, mask)[cell]) == pytest.approx(joined.std(), rel=1e-12)
        assert float(activity.rms(y, mask)[cell]) == pytest.approx(math.sqrt((joined**2).mean()), rel=1e-12)
        time = float(activity.autocorrelation_time(y, mask)[cell])
        assert time == pytest.approx(oracles.autocorrelation_time(pieces), nan_ok=True)


def test_a_padding_value_never_reaches_a_statistic() -> None:
    y, mask = torch.randn(4, 3, 30), torch.arange(30) < torch.tensor([30, 12, 7, 21])[:, None]
    loud = torch.where(mask[:, None], y, 1e6)
    for function in (activity.mean, activity.std, activity.rms, activity.autocorrelation_time):
        assert torch.equal(function(y, mask), function(loud, mask))


def test_autocorrelation_time_of_a_known_process() -> None:
    pole, generator = 0.9, torch.Generator().manual_seed(0)
    y = torch.zeros(1, 1, 200_000, dtype=torch.float64)
    noise = torch.randn(200_000, generator=generator, dtype=torch.float64).numpy()
    values = np.empty(200_000)
    state = 0.0
    for t, drawn in enumerate(noise):
        state = pole * state + drawn
        values[t] = state
    y[0, 0] = torch.from_numpy(values)
    # 0.9 ** 9 > 1/e > 0.9 ** 10
    assert activity.autocorrelation_time(y, torch.ones(1, 200_000, dtype=torch.bool)).tolist() == [10.0]


def test_gates_are_saturated_where_they_are() -> None:
    gate, mask = torch.tensor([[[0.01, 0.5, 0.96, 0.99]]]), torch.tensor([[True, True, True, False]])
    assert metrics.saturation(gate, mask).tolist() == pytest.approx([2 / 3])
    assert metrics.saturation(2 * gate - 1, mask, candidate=True).tolist() == pytest.approx([1 / 3])
    forget = torch.full((1, 1, 4), math.exp(-1 / 7))
    assert metrics.tau_f(forget, mask).tolist() == pytest.approx([7.0], rel=1e-5)


def test_every_metric_is_there_for_every_kind_or_says_why_not(module: nn.Module, snap: lm.Snapshot) -> None:
    report = lm.characterize(module, torch.randn(5, 40, 3, dtype=torch.float64)).layers[0]
    for path, spec in CATALOG.items():
        if spec.group != "gates":
            assert path in report.metrics
    for item in report.metrics.items:
        for cell in torch.nonzero(torch.isnan(item.values).any(0))[:, 0].tolist():
            assert item.why_nan(cell) != ""
        assert not (torch.isnan(item.values) ^ (item.reasons != 0)).any(), item.path
    if snap.kind.startswith("rnn"):
        assert report.metrics["gates/tau_f"].why_nan(0) == "this kind of layer has no such gate"


def test_without_data_activity_and_gates_say_so(module: nn.Module) -> None:
    measured = lm.characterize(module).layers[0].metrics
    for path in ("activity/std", "gates/saturation"):
        assert torch.isnan(measured[path].cells).all()
        assert measured[path].why_nan(0) == "no held-out data was given"


def test_a_cell_is_summarized_over_the_stimuli_that_are_defined() -> None:
    key = lm.LayerKey("rnn")
    steps = tuple(lm.step(torch.ones(1), steps=200, amplitude=a, name=str(a)) for a in (1.0, -1.0, 2.0))
    t = torch.arange(200.0)
    rows = [1 - 0.9 ** (t + 1), -(1 - 0.8 ** (t + 1)), torch.sin(t)]  # the last never settles
    response = lm.Response(key, "lstm", "coupled", torch.stack(rows)[:, None], steps, baseline=torch.zeros(1))
    measured = lm.measure(response)
    assert measured["step/settling_time"].values[:, 0].isnan().tolist() == [False, False, True]
    assert measured["step/settling_time"].cells.tolist() == [(21 + 10) / 2]
    assert measured["step/delta_response"].cells.item() > 0.6  # opposite signs do not cancel
    assert flagged(measured["step/settling_time"].reasons).tolist() == [False]


def test_a_cell_that_most_of_its_steps_leave_unsettled_is_flagged_and_has_no_times() -> None:
    key = lm.LayerKey("rnn")
    t = torch.arange(200.0)
    settles, swings, silent = 1 - 0.9 ** (t + 1), torch.sin(t), torch.zeros(200)
    steps = tuple(lm.step(torch.ones(1), steps=200, name=str(k)) for k in range(4))
    hidden = torch.stack([
        torch.stack([settles, swings, swings, swings]),
        torch.stack([settles, silent, silent, silent]),
        torch.stack([swings, swings, settles, silent]),
        torch.stack([silent, silent, silent, silent]),
    ], dim=1)  # fmt: skip
    measured = lm.measure(lm.Response(key, "lstm", "coupled", hidden, steps, baseline=torch.zeros(4)))
    assert flagged(measured["step/settling_time"].reasons).tolist() == [True, False, True, False]
    for name in ("settling_time", "rise_time", "overshoot"):
        assert measured[f"step/{name}"].cells.isnan().tolist() == [True, False, True, True]


def test_a_gate_that_never_closes_has_no_time_constant_and_a_nearly_open_one_a_long_one() -> None:
    mask = torch.ones(1, 50, dtype=torch.bool)
    forget = torch.ones(1, 2, 50)
    forget[:, 1] = torch.nextafter(torch.tensor(1.0), torch.tensor(0.0))
    tau = metrics.tau_f(forget, mask)
    assert tau[0].isnan()
    assert tau[1].item() == pytest.approx(2**24, rel=1e-3)
    torch.manual_seed(0)
    net = nn.LSTM(3, 4, batch_first=True)
    with torch.no_grad():
        net.bias_hh_l0[4:8] = 50.0
    found = lm.characterize(net, torch.randn(4, 20, 3)).layers[0].metrics["gates/tau_f"]
    assert found.cells.isnan().all()
    assert found.why_nan(0) == "the gate never closes: it is 1 to the last digit"


def test_one_cells_nan_leaves_the_others_untouched(snap: lm.Snapshot) -> None:
    stimuli = lm.default_stimuli(snap, 128)
    response = lm.respond(snap, stimuli)
    clean = lm.measure(response)
    hidden = response.hidden.clone()
    hidden[:, 2] = torch.nan
    spoiled = lm.measure(lm.Response(**{**vars(response), "hidden": hidden}))
    others = [0, 1, 3, 4, 5]
    for item in clean.items:
        assert torch.equal(item.cells[others].nan_to_num(7), spoiled[item.path].cells[others].nan_to_num(7))
        if item.name != "initial_response":
            assert spoiled[item.path].cells[2].isnan()


def test_a_cutoff_needs_a_gain_to_fall_from() -> None:
    gains = torch.tensor([[0.0, 1.0], [0.0, 0.1]])
    assert metrics.cutoff_frequency(gains, [0.1, 0.2]).isnan().tolist() == [True, False]


def test_half_precision_is_measured_in_float32() -> None:
    y = torch.zeros(400, dtype=torch.bfloat16)
    y[300:] = 1.0
    assert metrics.settling_time(y).item() == 300
    assert metrics.dominant_frequency(y).dtype == torch.float32


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="transient=-5"):
        metrics.amplitude(torch.randn(64), 1 / 16, transient=-5)
    with pytest.raises(TypeError, match="floating-point"):
        metrics.settling_time(torch.arange(10))
    with pytest.raises(ValueError, match="one layer"):
        lm.measure()


def facts_of(response: lm.Response, sines: list[lm.Stimulus]) -> ResponseFacts:
    """The facts of a response whose last stimuli are the sines."""
    trace, count = response.hidden.permute(2, 0, 1), len(response.stimuli) - len(sines)
    frequencies = [float(sine.frequency) for sine in sines]
    return ResponseFacts(
        ENGINE.step_facts(trace[:, :count], response.baseline, lm.Thresholds()),
        ENGINE.sine_facts(trace[:, count:], frequencies, main_of(frequencies)),
    )


def test_layers_and_modes_in_one_pass_are_the_same_as_apart(snap: lm.Snapshot) -> None:
    other = lm.snapshot(sharpened(nn.GRU(3, 9, dtype=torch.float64)))[0]
    stimuli = lm.default_stimuli(snap, 128)
    sines = [stimulus for stimulus in stimuli if stimulus.kind == "sine"]
    names = [tuple(s.name for s in stimuli if s.kind == kind) for kind in ("step", "sine")]
    responses = [
        lm.respond(snap, stimuli),
        lm.respond(snap, stimuli, "alone"),
        lm.respond(other, lm.default_stimuli(other, 128)),
    ]
    parts = [MeasuredCells(r.hidden.shape[1], "_alone" if r.mode == "alone" else "", *names) for r in responses]
    together = measure_facts([facts_of(response, sines) for response in responses], parts, lm.Thresholds())
    for response, items in zip(responses, together, strict=True):
        apart = lm.measure(response)
        assert [item.path for item in items] == list(apart.paths())
        for item in items:
            expected = apart[item.path]
            torch.testing.assert_close(item.values, expected.values, equal_nan=True, rtol=1e-9, atol=1e-12)
            torch.testing.assert_close(item.cells, expected.cells, equal_nan=True, rtol=1e-9, atol=1e-12)
            assert torch.equal(item.reasons, expected.reasons)
            assert len(item.labels) == len(item.values)
