"""Every picture draws for every kind of layer and in every corner case, without warnings and without global state."""

import os
import subprocess
import sys
from dataclasses import replace

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib import pyplot as plt
from torch import nn

import lstm_monitor as lm
from lstm_monitor.core.definitions import Reason
from lstm_monitor.core.records import Metric, Metrics
from lstm_monitor.report import canvas, pictures
from lstm_monitor.report.layer_report import LayerReport, RankHistory

KINDS = {
    "lstm": nn.LSTM(3, 12),
    "gru": nn.GRU(3, 12),
    "rnn_tanh": nn.RNN(3, 12),
    "rnn_relu": nn.RNN(3, 12, nonlinearity="relu"),
    "lstm_cell": nn.LSTMCell(3, 12),
    "projected": nn.LSTM(3, 12, proj_size=4),
}


def watched(model: nn.Module, held_out: object = None, horizon: int = 32) -> LayerReport:
    """The report of a layer's third check, with changed weights, so that there is something to compare."""
    sink = lm.MemorySink()
    monitor = lm.LSTMMonitor(model, held_out=held_out, sinks=[sink], horizon=horizon, on_error="raise")
    for step in range(3):
        monitor.check(step=10 * step)
        with torch.no_grad():
            [weight.mul_(1.2) for weight in model.parameters()]
    return sink.reports[-1].layers[0]


@pytest.fixture(scope="module")
def layer() -> LayerReport:
    torch.manual_seed(0)
    return watched(nn.LSTM(3, 12), torch.randn(20, 4, 3))


def edited(layer: LayerReport, path: str, values: torch.Tensor, reason: Reason = Reason.DEFINED) -> LayerReport:
    """The layer with other values of one metric."""
    old = layer.metrics[path]
    labels = old.labels[: len(values)]
    new = Metric(
        old.group, old.name, values, torch.full_like(values, int(reason), dtype=torch.uint8), labels, values[0]
    )
    items = tuple(new if item.path == path else item for item in layer.metrics.items)
    return replace(layer, metrics=Metrics(layer.metrics.key, items))


def all_pictures(layer: LayerReport) -> dict[str, np.ndarray]:
    drawn = pictures.pictures(layer, 20) | {"overview": pictures.overview([layer])}
    return {name: canvas.as_pixels(figure) for name, figure in drawn.items()}


def colours(pixels: np.ndarray) -> int:
    return len(np.unique(pixels.astype(np.int32) @ [1 << 16, 1 << 8, 1]))  # a number a colour: sorted far sooner


def assert_drawn(layer: LayerReport, least: int = 100) -> None:
    for name, pixels in all_pictures(layer).items():
        assert colours(pixels) > least, name


RARE = ("rnn_relu", "lstm_cell")


@pytest.mark.parametrize("kind", [pytest.param(k, marks=pytest.mark.thorough if k in RARE else ()) for k in KINDS])
def test_every_kind_of_layer(kind):
    assert_drawn(watched(KINDS[kind]))


@pytest.mark.parametrize("cells", [1, 2, 9, 11, 60, pytest.param(1000, marks=pytest.mark.thorough)])
def test_any_number_of_cells(cells):
    assert_drawn(watched(nn.GRU(2, cells), horizon=16))


def test_with_held_out_data(layer):
    assert set(pictures.pictures(layer)) == set(pictures.PICTURES)
    assert_drawn(layer)


def test_no_cell_settles(layer):
    values = torch.full_like(layer.metrics["step/settling_time"].values, torch.nan)
    never = edited(layer, "step/settling_time", values, Reason.DRIFTING)
    assert_drawn(never)
    assert "12 of 12 not settled in 32 steps" in texts(pictures.pictures(never)["step_responses"])


def test_some_cells_settle(layer):
    values = torch.arange(12.0).repeat(len(layer.metrics["step/settling_time"].values), 1)
    values[:, 9:] = torch.nan
    some = edited(layer, "step/settling_time", values)
    assert_drawn(some)
    assert "line: settled; median 4 steps; 3 of 12 not settled in 32 steps" in texts(
        pictures.pictures(some)["step_responses"]
    )


def test_a_layer_that_nothing_moves():
    model = nn.LSTM(2, 5)
    with torch.no_grad():
        [weight.zero_() for weight in model.parameters()]
    silent = watched(model)
    assert_drawn(silent, 60)
    assert "5 of 5 hardly move" in texts(pictures.pictures(silent)["step_responses"])


def test_no_gain_is_defined(layer):
    amplitude = torch.full_like(layer.metrics["sine/amplitude"].values, torch.nan)
    assert_drawn(replace(edited(layer, "sine/amplitude", amplitude), first_gain=amplitude))


def test_one_frequency(layer):
    one = edited(layer, "sine/amplitude", layer.metrics["sine/amplitude"].values[:1])
    assert_drawn(replace(one, periods=one.periods[:1], first_gain=layer.first_gain[:1]))


def test_the_first_check_has_no_ranking_over_training(layer):
    history = layer.rank_history
    first = replace(layer, rank_history=RankHistory(history.steps[:1], history.ranks[:1]), first_gain=None)
    assert set(pictures.pictures(first)) == {"step_responses", "bode"}
    assert_drawn(first)


def test_checks_at_one_step_draw_a_ranking(layer):
    history = RankHistory(torch.zeros(3, dtype=torch.long), layer.rank_history.ranks)
    assert_drawn(replace(layer, rank_history=history))


def test_many_layers_are_rows_of_the_overview(layer):
    one, three = (canvas.as_pixels(pictures.overview([layer] * count)) for count in (1, 3))
    assert three.shape == (3 * one.shape[0], one.shape[1], 3)


@pytest.mark.parametrize(
    "path", ["rnn", "a.very.long.path.to_a.module.of_an.encoder.rnn", "costs_$5_or_$6", "a\\b{c}^d"]
)
def test_titles_name_the_layer_and_fit_the_card(layer, path):
    named = replace(layer, key=replace(layer.key, path=path))
    for figure in pictures.pictures(named, 123456).values():
        title = figure.axes[0].texts[-3]
        assert str(named.key)[-12:] in title.get_text()
        assert canvas.as_pixels(figure).shape == (330, 420, 3)
        step = figure.axes[0].texts[-1].get_window_extent()
        assert title.get_window_extent().x1 < step.x0
        assert step.x1 < 420


def test_every_text_lies_on_the_card(layer):
    for name, figure in pictures.pictures(layer, 20).items():
        canvas.as_pixels(figure)
        for text in figure.axes[0].texts:
            box = text.get_window_extent()
            assert box.x0 >= 0, (name, text)
            assert box.x1 <= 420, (name, text)
            assert box.y0 >= 0, (name, text)
            assert box.y1 <= 330, (name, text)


def test_axes_have_titles_with_units(layer):
    shown = {name: texts(figure) for name, figure in pictures.pictures(layer).items()}
    assert any("steps after the step" in text for text in shown["step_responses"])
    assert "period of the input (steps)" in shown["bode"]
    assert {"training step", "place in the ranking"} <= shown["ranking"]


def texts(figure) -> set[str]:
    return {text.get_text() for axes in figure.axes for text in axes.texts}


def test_png_is_the_picture(layer):
    from io import BytesIO

    from PIL import Image

    figure = pictures.pictures(layer)["bode"]
    np.testing.assert_array_equal(Image.open(BytesIO(canvas.as_png(figure))).convert("RGB"), canvas.as_pixels(figure))


def test_global_state_is_untouched(layer):
    settings, open_figures = dict(matplotlib.rcParams), plt.get_fignums()
    all_pictures(layer)
    assert dict(matplotlib.rcParams) == settings
    assert plt.get_fignums() == open_figures


def test_settings_of_the_user_do_not_spoil_the_pictures(layer):
    usual = all_pictures(layer)
    theirs = {"text.usetex": True, "font.family": "no such font", "figure.autolayout": True, "axes.grid": True}
    with plt.style.context("dark_background"), matplotlib.rc_context(theirs):
        for name, pixels in all_pictures(layer).items():
            np.testing.assert_array_equal(pixels, usual[name])


@pytest.mark.thorough
def test_matplotlib_is_imported_only_to_draw_and_pyplot_never():
    code = """
import sys, torch, lstm_monitor as lm
assert "matplotlib" not in sys.modules
report = lm.characterize(torch.nn.GRU(2, 3), horizon=16)
repr(report), report.scalars(), report.histograms()
assert "matplotlib" not in sys.modules
report.pictures(), report.plot()
assert "matplotlib" in sys.modules and "matplotlib.pyplot" not in sys.modules
"""
    quick = {**os.environ, "LSTM_MONITOR_ENGINE": "torch"}  # importing numba takes longer than all the rest
    subprocess.run([sys.executable, "-c", code], check=True, env=quick)


def overlaps(boxes) -> list[tuple[int, int]]:
    pairs = [(i, j) for i in range(len(boxes)) for j in range(i)]
    return [(i, j) for i, j in pairs if boxes[i].overlaps(boxes[j])]


@pytest.mark.parametrize("scale", [1.0, pytest.param(0.1, marks=pytest.mark.thorough), 0.01])
def test_no_text_covers_another(scale):
    torch.manual_seed(0)
    model = nn.LSTM(2, 24, num_layers=2, bidirectional=True)
    with torch.no_grad():
        [weight.mul_(scale) for name, weight in model.named_parameters() if "ih" in name]
    figure = pictures.overview(lm.characterize(model, horizon=32).layers)
    canvas.as_pixels(figure)
    assert overlaps([text.get_window_extent() for axes in figure.axes for text in axes.texts]) == []


def test_names_of_dots_in_one_place_lie_apart():
    figure = canvas.canvas(4, 3)
    axes = canvas.frame(figure, (0.1, 0.1, 0.8, 0.8))
    canvas.name_dots(axes, np.full(5, 0.5), np.full(5, 0.5), ["7", "12", "345", "1000", "2"])
    canvas.as_pixels(figure)
    assert overlaps([text.get_window_extent() for text in axes.texts]) == []
