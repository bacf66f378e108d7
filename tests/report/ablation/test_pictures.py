"""Pictures of studies: what they show, in every corner case, with every word in its place."""

import subprocess
import sys
from dataclasses import replace

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_hex

from lstm_monitor.core.records import Ranking
from lstm_monitor.core.terms import LayerKey
from lstm_monitor.report.ablation import pictures as study_figures
from lstm_monitor.report.ablation.pictures import (
    CURVES,
    draw_agreement,
    draw_curves,
    draw_effects,
    study_overview,
    study_pictures,
)
from lstm_monitor.report.ablation.records import Correlation, Effects, LayerStudy, Trial
from lstm_monitor.report.canvas import CARD, as_pixels, canvas, frame
from tests.helpers.studies import NAN, NOWHERE, QUIET, correlation, doubles, layer, study, trial

NAMES = (
    "measured", "output_sensitivity", "std_x_outgoing", "step/settling_time", "sine/amplitude", "greedy",
    "random_std_x_outgoing", "step_alone/settling_time",
)  # fmt: skip


def made(cells: int, rankings: int = 4, path: str = "rnn", score: bool = True) -> LayerStudy:
    """A layer of any size with effects over many powers of ten."""
    generator = torch.Generator().manual_seed(cells)
    output = torch.exp(2 * torch.randn(cells, generator=generator, dtype=torch.float64) - 5)
    worse = output / 2 if score else torch.full_like(output, NAN)
    effects = Effects(output, output / 10, worse, worse / 10, output > output.median())
    counts = torch.linspace(0, cells, min(cells, 16) + 1).round().long().unique()
    curves = [_curve(output, torch.randperm(cells, generator=generator), counts) for _ in range(20)]
    trials = tuple(_trial(name, k, output, counts, generator) for k, name in enumerate(NAMES[:rankings]))
    judged = "score" if score else "output"
    found = layer(*trials, path=path, effects=effects, counts=counts, random=torch.stack(curves), judged=judged)
    return found if score else replace(found, intact=0.0, emptied=0.5)


def _curve(output: torch.Tensor, removal: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    lost = torch.cat([output.new_zeros(1), output[removal].cumsum(0)]) / output.sum()
    return 1 - lost[counts]


def _trial(name: str, noise: int, output: torch.Tensor, counts: torch.Tensor, generator: torch.Generator) -> Trial:
    scores = output * torch.exp(noise * torch.randn(len(output), generator=generator, dtype=torch.float64))
    order = (-scores).argsort(stable=True)
    most, least = _curve(output, order, counts), _curve(output, order.flip(0), counts)
    areas = [float(torch.trapezoid(curve, counts / counts[-1])) for curve in (most, least)]
    rho = correlation(0.9 - 0.2 * noise, 0.1)
    return Trial(Ranking(LayerKey("rnn"), name, name, scores, order), rho, rho, most, least, *areas)


def drawn(draw, found: LayerStudy) -> Axes:
    axes = frame(canvas(*CARD), (0.3, 0.2, 0.5, 0.6))
    draw(axes, found)
    return axes


def lines(axes: Axes, colour: str) -> list:
    """The curves of one colour in data coordinates, least important first before most important first."""
    return [
        line for line in axes.lines if to_hex(line.get_color()) == colour and line.get_transform() == axes.transData
    ]


def words(axes: Axes) -> list[str]:
    return [text.get_text() for text in axes.texts if text.get_text()]


CASES = {
    "usual": made(64),
    "four cells": made(4, 1),
    "one cell": made(1, 2),
    "two cells": made(2, 1),
    "many": made(512, 8),
    "no score": made(24, 5, score=False),
    "long name": made(24, 8, path="a.very.long.path.to_a.module.of_an.encoder.rnn"),
    "odd name": made(24, 8, path="costs_$5_or_$6\\b{c}^d"),
    "no ranking": made(24, 0),
    "no curves": layer(trial(least=[NAN] * 5, most=[NAN] * 5), random=torch.full((3, 5), NAN), emptied=1.0),
    "no random orders": layer(trial(rho=correlation(0.9)), random=torch.zeros(0, 5)),
    "nothing measured": layer(trial(), effects=Effects(*[doubles([NAN] * 4)] * 4, torch.zeros(4, dtype=torch.bool))),
    "no effect at all": layer(trial(), effects=Effects(*[doubles([0] * 4)] * 4, torch.ones(4, dtype=torch.bool))),
    "beyond": layer(trial(rho=Correlation(-0.8, -0.9, -0.7), least=[1, 1.4, 3, 1, 0], most=[1, -0.3, -4, 0, 0])),
}


@pytest.mark.parametrize("case", CASES)
def test_every_word_lies_on_the_card_and_covers_no_other(case):
    figure = study_pictures(CASES[case], 123456)["ablation"]
    assert_words_fit(figure, 420, 330)


OFTEN = ("usual", "one cell", "many", "no score", "long name", "nothing measured")


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=() if case in OFTEN else pytest.mark.thorough) for case in CASES]
)
def test_every_word_lies_on_the_overview_and_covers_no_other(case):
    assert_words_fit(study_overview(study(CASES[case])), 1320, 350)


def assert_words_fit(figure, width: int, height: int) -> None:
    assert as_pixels(figure).shape == (height, width, 3)
    found = [text.get_window_extent() for axes in figure.axes for text in axes.texts if text.get_text()]
    for box in found:
        assert box.x0 >= 0
        assert box.y0 >= 0
        assert box.x1 <= width
        assert box.y1 <= height
    assert [
        (a, b) for i, a in enumerate(found) for b in found[:i] if a.shrunk(0.9, 0.7).overlaps(b.shrunk(0.9, 0.7))
    ] == []


def test_the_curves_are_the_records():
    axes = drawn(draw_curves, layer(trial(least=[1, 0.9, 0.8, 0.6, 0], most=[1, 0.4, 0.2, 0.1, 0])))
    least, most = lines(axes, CURVES[0])
    np.testing.assert_allclose(least.get_xydata().T, [[0, 0.25, 0.5, 0.75, 1], [1, 0.9, 0.8, 0.6, 0]])
    np.testing.assert_allclose(most.get_ydata(), [1, 0.4, 0.2, 0.1, 0])
    assert not least.is_dashed()
    assert most.is_dashed()
    median = lines(axes, study_figures.MUTED)[0]
    np.testing.assert_allclose(median.get_ydata(), [1, 0.8, 0.5, 0.2, 0])
    assert {"gap 0.40", "gap to 0.14", "random orders", "share of 4 cells removed"} <= set(words(axes))


def test_five_rankings_are_drawn_from_the_best_to_the_worst():
    trials = [trial(f"r{k}", auc_least=0.5 + 0.05 * k, auc_most=0.5) for k in range(8)]
    axes = drawn(draw_curves, layer(*trials))
    assert [name for name in words(axes) if name[0] == "r" and name[1].isdigit()] == ["r7", "r5", "r3", "r2", "r0"]
    assert [len(lines(axes, colour)) for colour in CURVES] == [2] * 5


def test_a_ranking_keeps_its_colour_whatever_its_place():
    best, worse = trial("best"), trial("worse", auc_least=0.4)
    for trials in ((best, worse), (replace(best, auc_least=0.1), worse)):
        axes = drawn(draw_curves, layer(*trials))
        colours = {text.get_text(): text.get_color() for text in axes.texts}
        assert (colours["best"], colours["worse"]) == CURVES[:2]


def test_undefined_curves_say_so():
    axes = drawn(draw_curves, CASES["no curves"])
    assert "no curves: nothing changes" in words(axes)
    assert "no curves: nothing changes" not in words(drawn(draw_curves, CASES["usual"]))


def test_effects_are_sorted_and_estimates_hollow():
    axes = drawn(draw_effects, layer(trial()))
    exact, estimated = axes.collections[-2:]
    np.testing.assert_allclose(10 ** exact.get_offsets()[:, 1], [0.5, 0.2, 0.01])
    np.testing.assert_allclose(estimated.get_offsets(), [[4, np.log10(0.0002)]])
    assert to_hex(estimated.get_facecolor()[0]) == "#ffffff"
    assert {"largest: 0, 1, 2; 1 of 4 under 0.001 (dashed)", "hollow: estimated", "bars: standard error"} <= set(
        words(axes)
    )


def test_effects_of_zero_lie_at_the_bottom():
    effects = replace(layer().effects, output=doubles([0.5, 0, 0.01, 0]), exact=torch.ones(4, dtype=torch.bool))
    axes = drawn(draw_effects, layer(trial(), effects=effects))
    assert "at the bottom: no change" in words(axes)
    assert "hollow: estimated" not in words(axes)


def test_rho_is_shown_with_its_interval_and_the_halves_where_it_is_1_by_construction():
    own = trial("measured", scores=(0.5, 0.2, 0.01, 0.0002), rho=Correlation(1, 1, 1), score=Correlation(0.5, 0.3, 0.7))
    axes = drawn(draw_agreement, layer(own, trial("weak", rho=Correlation(0.2, -0.1, 0.4))))
    shown = {
        (line.get_marker(), round(float(line.get_xdata()[0]), 2)) for line in axes.lines if len(line.get_xdata()) == 1
    }
    assert {("D", QUIET.halves_output), ("s", 0.5), ("o", 0.2)} <= shown
    assert ("o", 1.0) not in shown
    assert any(list(line.get_xdata()) == [-0.1, 0.4] for line in axes.lines)
    assert [name for name in words(axes) if name in ("measured", "weak")] == ["measured", "weak"]


def test_undefined_rho_comes_last():
    axes = drawn(draw_agreement, layer(trial("unknown", rho=NOWHERE), trial("known", rho=correlation(-0.5))))
    assert [name for name in words(axes) if name.endswith("known")] == ["known", "unknown"]


def test_marks_without_a_score():
    assert not any("score" in word for word in words(drawn(draw_agreement, made(24, score=False))))


def test_a_row_a_layer():
    one, three = (as_pixels(study_overview(study(*[made(24)] * count))) for count in (1, 3))
    assert three.shape == (3 * one.shape[0], one.shape[1], 3)
    assert study(made(24)).plot().get_size_inches().tolist() == [13.2, 3.5]


def test_settings_of_the_user_do_not_spoil_the_pictures():
    usual = as_pixels(study_overview(study(made(24))))
    theirs = {"text.usetex": True, "font.family": "no such font", "figure.autolayout": True, "axes.grid": True}
    with matplotlib.rc_context(theirs | {"lines.dashed_pattern": [1, 1], "axes.facecolor": "black"}):
        np.testing.assert_array_equal(as_pixels(study_overview(study(made(24)))), usual)


@pytest.mark.thorough
def test_matplotlib_is_imported_only_to_draw_and_what_is_missing_is_told():
    code = """
import sys
from tests.helpers.studies import layer, study, trial
found = study(layer(trial()))
repr(found), found.in_words(), found.keep(0.1)
assert "matplotlib" not in sys.modules and "pandas" not in sys.modules
sys.modules.update(matplotlib=None, pandas=None)
assert "<img" not in found._repr_html_()
for method in (found.plot, found.to_pandas):
    try:
        method()
    except ImportError as error:
        assert 'pip install "lstm-monitor[plots]"' in str(error)
    else:
        raise AssertionError(method)
del sys.modules["matplotlib"], sys.modules["pandas"]
found.plot()
assert "matplotlib" in sys.modules and "matplotlib.pyplot" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)
