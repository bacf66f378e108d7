"""The report's keys and values, and the documentation's table of keys."""

import importlib.util
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import lstm_monitor as lm
from lstm_monitor.report.keys import documented_keys

ROOT = Path(__file__).parents[2]
MODULES = {
    "lstm": lambda: nn.LSTM(3, 10, num_layers=2, bidirectional=True, batch_first=True),
    "gru": lambda: nn.GRU(3, 10, batch_first=True),
    "rnn": lambda: nn.RNN(3, 10, batch_first=True),
}


def two_checks(module: nn.Module) -> lm.Report:
    """The report of a second check: with stability, drift and history."""
    monitor = lm.LSTMMonitor(module, torch.randn(6, 30, 3), budget=None, on_error="raise")
    monitor.on_train_begin()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(1.1)
    monitor.on_train_batch_end(0)
    monitor.on_epoch_end(0)
    assert monitor.report is not None
    return monitor.report


@pytest.fixture(params=MODULES)
def report(request: pytest.FixtureRequest) -> lm.Report:
    torch.manual_seed(0)
    return two_checks(MODULES[request.param]())


def keys_of(report: lm.Report) -> set[str]:
    return {*report.scalars(), *report.histograms(), *report.pictures()}


def test_every_key_is_documented(report: lm.Report) -> None:
    layers = [str(layer.key) for layer in report.layers]
    documented = {key.replace("<layer>", layer) for key, _, _ in documented_keys() for layer in layers}
    assert keys_of(report) <= documented


def test_every_documented_key_is_logged_for_some_layer() -> None:
    torch.manual_seed(0)
    cards = {key for key, _, words in documented_keys() if words.endswith(" only")}  # sinks write them
    at_the_end = {key for key, _, _ in documented_keys() if "/ablation" in key}  # see test_ablation_check.py
    logged: set[str] = cards | at_the_end
    for make in MODULES.values():
        for key in keys_of(two_checks(make())):
            logged.add(re.sub(r"^lstm_monitor/(?!_run)[^/]+", "lstm_monitor/<layer>", key))
    assert logged == {key for key, _, _ in documented_keys()}


def test_the_table_in_the_documentation_is_up_to_date() -> None:
    spec = importlib.util.spec_from_file_location("make_keys", ROOT / "docs" / "make_keys.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert (ROOT / "docs" / "keys.md").read_text(encoding="utf-8") == module.table()


def test_under_a_hundred_keys_a_layer(report: lm.Report) -> None:
    for layer in report.layers:
        assert sum(key.startswith(f"lstm_monitor/{layer.key}/") for key in keys_of(report)) < 100


def test_scalars_are_the_quantiles_of_the_finite_cells(report: lm.Report) -> None:
    layer, scalars = report.layers[0], report.scalars()
    cells = layer.metrics["step/settling_time"].cells.double().numpy()
    for statistic, share in (("p10", 0.1), ("p50", 0.5), ("p90", 0.9)):
        expected = np.quantile(cells[np.isfinite(cells)], share)
        assert scalars[f"lstm_monitor/{layer.key}/step/settling_time/{statistic}"] == pytest.approx(expected)
    assert all(math.isfinite(value) for value in scalars.values())


def test_histograms_are_finite_and_times_are_logarithms(report: lm.Report) -> None:
    layer, histograms = report.layers[0], report.histograms()
    assert all(np.isfinite(values).all() and len(values) for values in histograms.values())
    times = layer.metrics["step/settling_time"].cells
    expected = np.sort(np.log10(times[torch.isfinite(times)].double().clamp(min=1).numpy()))
    np.testing.assert_allclose(histograms[f"lstm_monitor/{layer.key}/step/settling_time/cells_log10"], expected)


def test_the_second_check_knows_the_first(report: lm.Report) -> None:
    layer = report.layers[0]
    assert layer.previous is not None
    assert layer.previous == layer.first
    assert {drift.metric for drift in layer.drift} == set(layer.metrics.paths())
    assert layer.rank_history is not None
    assert layer.rank_history.ranks.shape == (2, 10)
    assert report.checks == 2


def test_drift_between_reports(report: lm.Report) -> None:
    assert all(d.distance == 0 or math.isnan(d.distance) for ds in report.drift_from(report).values() for d in ds)


def test_unknown_metrics_and_layers_have_the_nearest_match(report: lm.Report) -> None:
    metrics = report.layers[0].metrics
    with pytest.raises(KeyError, match="no metric 'step/setling_time' of l0. Did you mean 'step/settling_time'"):
        metrics["step/setling_time"]
    with pytest.raises(KeyError, match="no layer 'l9'. Did you mean 'l"):
        report["l9"]


def test_gates_of_another_kind_of_layer() -> None:
    metrics = lm.characterize(nn.GRU(2, 3), horizon=16)["l0"].metrics
    with pytest.raises(KeyError, match="This kind of layer has no such gate; it has gates/reset_saturation"):
        metrics["gates/forget_saturation"]
    snap = lm.snapshot(nn.GRU(2, 3))[0]
    few = lm.measure(lm.respond(snap, lm.step(torch.ones(2), steps=16)))
    with pytest.raises(KeyError, match="Allowed|Did you mean"):
        few["gates/forget_saturation"]


def test_records_are_shown_in_a_line() -> None:
    torch.manual_seed(0)
    report = lm.characterize(nn.LSTM(2, 3), torch.randn(30, 4, 2), horizon=16)
    snap = lm.snapshot(nn.LSTM(2, 3), torch.randn(30, 4, 2))[0]
    stimulus = lm.step(torch.ones(2), steps=16)
    response = lm.respond(snap, stimulus)
    metrics = report["l0"].metrics
    shown = [metrics, metrics["step/overshoot"], report["l0"].ranking, snap, snap.weights, snap.held_out, stimulus]
    for record in (*shown, response):
        assert "\n" not in repr(record)
        assert "tensor" not in repr(record)
        assert len(repr(record)) < 250
    assert repr(stimulus) == "Stimulus(name='step', kind='step', signal=(16,), direction=(2,))"
    assert repr(metrics) == f"Metrics(key=l0, items=<{len(metrics.items)}>)"
    assert "weights=<LayerWeights>" in repr(snap)
    assert "hidden=(1, 3, 16), stimuli=<1>, baseline=(3,)" in repr(response)
