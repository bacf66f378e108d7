"""Runs side by side: what is compared with what, the numbers, the words and the picture."""

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

import lstm_monitor as lm
from lstm_monitor.core.records import Alarm
from lstm_monitor.core.terms import LayerKey
from lstm_monitor.history.comparison.comparing import by_chance, compare_runs, telling_apart
from lstm_monitor.history.comparison.result import RunComparison
from lstm_monitor.history.comparison.trajectory import course_of
from lstm_monitor.history.comparison.words import comparison_lines
from lstm_monitor.history.sink import HistorySink
from lstm_monitor.report.tables import HEADLINES
from lstm_monitor.report.text import shown


class Net(nn.Module):
    def __init__(self, cell: type[nn.RNNBase], size: int) -> None:
        super().__init__()
        self.rnn = cell(2, size, 2, batch_first=True)
        self.head = nn.Linear(size, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.rnn(x)[0][:, -1])


@cache
def training(
    cell: type[nn.RNNBase] = nn.LSTM, size: int = 8, seed: int = 0, *, study: bool = False, data: bool = True
) -> Sequence[lm.Report]:
    """The reports of a tiny training of three epochs of two steps."""
    torch.manual_seed(seed)
    model, x = Net(cell, size), torch.randn(12, 10, 2).cumsum(1) / 3
    optimizer, sink = torch.optim.Adam(model.parameters(), 0.03), lm.MemorySink()
    monitor = lm.LSTMMonitor(
        model, held_out=x if data else None, sinks=[sink], every_n_epochs=1, budget=None, on_error="raise", horizon=16
    )
    monitor.on_train_begin()
    for epoch in range(3):
        for batch in range(2):
            optimizer.zero_grad()
            (model(x[batch::2]) - x[batch::2, :1, 0]).square().mean().backward()
            optimizer.step()
            monitor.on_train_batch_end(batch)
        monitor.on_epoch_end(epoch)
    if study:
        rankings = ["auto", "activity/std"]
        monitor.add_study(
            lambda: lm.ablation_study(model, lambda net: net(x)[:, 0].detach() ** 2, held_out=x, rankings=rankings)
        )
    monitor.on_train_end()
    return tuple(sink.reports)


@pytest.fixture(scope="module")
def pair() -> RunComparison:
    return compare_runs([training(study=True), training(nn.GRU, 12)], names=["a", "b"])


def test_a_course_has_the_statistics_of_every_check() -> None:
    reports = training()
    course = course_of(reports)
    assert course.steps == tuple(report.step for report in reports)
    assert course.last is reports[-1]
    for layer in course.layers:
        for place, report in enumerate(reports):
            for path in HEADLINES:
                cells = report[layer.name].metrics[path].cells.double().numpy()
                expected = np.nanpercentile(cells, [10, 50, 90])
                np.testing.assert_allclose(layer.quantiles[path][place], expected, rtol=1e-12)
        assert np.isnan(layer.taus[0]).all()
        previous, first = reports[-1][layer.name].previous, reports[-1][layer.name].first
        assert previous is not None
        assert first is not None
        assert layer.taus[-1].tolist() == [previous.tau, first.tau]
        assert layer.counts["dead"].tolist() == [int(r[layer.name].dead().sum()) for r in reports]  # type: ignore[union-attr]  # there are data


def test_distances_are_those_of_scipy(pair: RunComparison) -> None:
    for layer in pair.layers:
        for item in layer.metrics:
            both = [run.last[layer.name].metrics[item.metric].cells.double().numpy() for run in pair.runs]
            a, b = (values[np.isfinite(values)] for values in both)
            low, high = np.percentile(np.concatenate([a, b]), [10, 90])
            distance = stats.wasserstein_distance(a, b)
            expected = distance / (high - low) if high > low else math.nan if distance else 0
            np.testing.assert_allclose(item.distances[1], expected, rtol=1e-9)
            assert math.isnan(item.distances[0])


def test_chance_is_that_of_random_splits() -> None:
    draw = np.random.default_rng(1)
    one, other = np.sort(draw.normal(size=30)), np.sort(draw.normal(size=20))
    found = [compare_values(np.sort(draw.normal(size=30)), np.sort(draw.normal(size=20))) for _ in range(400)]
    assert by_chance(one, other) == pytest.approx(np.quantile(found, 0.95), rel=0.35)
    assert math.isnan(by_chance(one[:1], other))


def compare_values(one: np.ndarray, other: np.ndarray) -> float:
    low, high = np.percentile(np.concatenate([one, other]), [10, 90])
    return float(stats.wasserstein_distance(one, other) / (high - low))


def test_the_same_run_does_not_differ_from_itself() -> None:
    same = compare_runs([training(), training()])
    assert same.names == ("run 1", "run 2")
    assert all(
        item.distances[1] == 0
        for layer in same.layers
        for item in layer.metrics
        if item.distances[1] == item.distances[1]
    )
    assert "run 2: no metric of its cells lies further from run 1 than chance" in same.in_words()


def test_the_table_has_a_row_a_layer_and_metric(pair: RunComparison) -> None:
    table = pair.to_pandas().set_index(["layer", "metric"])
    assert table.index.is_unique
    row = table.loc[("rnn.l1", "step/settling_time")]
    assert row["value:b"] == pair.layers[1].metrics[1].quantiles[1][1]
    assert row["distance:b"] == pair.layers[1].metrics[1].distances[1]
    assert table.loc[("rnn.l0", "cells"), ["value:a", "value:b"]].tolist() == [8, 12]
    assert table.loc[("rnn.l0", "last_step"), "value:a"] == 6
    study = pair.runs[0].study_of("rnn.l0")
    assert study is not None
    assert table.loc[("rnn.l0", "ablation/gap"), "value:a"] == study.trials[0].gap
    assert math.isnan(table.loc[("rnn.l0", "ablation/gap"), "value:b"])
    assert 0 <= table.loc[("rnn.l0", "ablation/harmless"), "value:a"] <= 1
    share = table.loc[("rnn.l0", "dead_share"), "value:b"]
    assert share == pair.runs[1].layers[0].counts["dead"][-1] / 12


def test_the_words_say_what_differs_most_and_what_is_lacking(pair: RunComparison) -> None:
    words = pair.in_words(1).splitlines()
    assert words[0] == "b differs from a most in:"
    assert "by chance up to" in words[1]
    assert words[-1] == "note: no ablation check in b"
    beyond = [item.distances[1] - item.chance[1] for layer in pair.layers for item in layer.metrics]
    largest = max(value for value in beyond if value == value)
    layer, metric = words[1].strip().removesuffix(":").split(":")[0].split()
    item = next(i for x in pair.layers for i in x.metrics if (x.name, i.metric) == (layer, metric))
    assert item.distances[1] - item.chance[1] == largest


@pytest.fixture(scope="module")
def several() -> RunComparison:
    runs = [training(), training(nn.GRU, 12), training(nn.RNN, 8), training(seed=3)]
    return compare_runs(runs, names=["a", "a/rather/long/name/of/a/run", "c", "d"])


@pytest.mark.parametrize("width", [60, 80, 120])
def test_lines_fit_the_width(several: RunComparison, width: int) -> None:
    lines = list(comparison_lines(several, width))
    assert max(map(len, lines)) <= width
    assert any("...e/of/a/run" in line for line in lines)
    for name in ("c", "d"):
        assert any(line.startswith("rnn.l0") and name in line.split() for line in lines)


def test_a_plain_rnn_has_no_forget_gate_to_compare() -> None:
    found = compare_runs([training(), training(nn.RNN, 8)])
    table = found.to_pandas().set_index(["layer", "metric"])
    assert math.isnan(table.loc[("rnn.l0", "gates/tau_f"), "distance:run 2"])
    assert "gates/tau_f" in repr(found)


def _renamed(reports: Sequence[lm.Report], path: str) -> list[lm.Report]:
    """The reports of a run whose module has another name."""
    return [
        replace(report, layers=tuple(replace(x, key=LayerKey(path, x.key.index, x.key.reverse)) for x in report.layers))
        for report in reports
    ]


def test_layers_of_other_names_are_compared_in_their_order() -> None:
    found = compare_runs([training(), _renamed(training(nn.GRU, 12), "encoder")], names=["a", "b"])
    assert [layer.names for layer in found.layers] == [("rnn.l0", "encoder.l0"), ("rnn.l1", "encoder.l1")]
    assert "note: no layer has the same name in a and b; compared in their order: encoder.l0\n  with" in repr(found)


def test_what_a_run_lacks_is_said() -> None:
    short = [replace(report, layers=report.layers[:1]) for report in training(seed=1)]
    found = compare_runs([training(), short], names=["a", "b"])
    assert [layer.name for layer in found.layers] == ["rnn.l0"]
    assert "rnn.l1 is not in b" in found.notes
    nothing = compare_runs([training(), _renamed(short, "other")], names=["a", "b"])
    assert nothing.layers == ()
    assert "the runs have no layer in common" in nothing.in_words()
    assert "other.l0 is not in a" in nothing.notes
    assert nothing._repr_html_().startswith("<div>")


def test_a_layer_of_later_runs_alone_is_compared_too() -> None:
    short = [replace(report, layers=report.layers[:1]) for report in training(seed=1)]
    found = compare_runs([short, training(), training(nn.GRU, 12)], names=["a", "b", "c"])
    assert found.layers[1].names == (None, "rnn.l1", "rnn.l1")
    assert math.isnan(found.layers[1].metrics[0].distances[1])
    assert found.layers[1].metrics[0].distances[2] > 0
    assert "rnn.l1" in found.in_words(99)
    assert found.plot().axes


def test_pictures_have_a_panel_a_metric(pair: RunComparison) -> None:
    assert len(pair.plot().axes) == 2 * 6
    assert "<img" in pair._repr_html_()
    without = compare_runs([training(data=False), training(data=False, seed=1)])
    assert len(without.plot().axes) == 2 * 3  # no activity, no gates
    assert "activity/std" not in repr(without)


def test_runs_are_read_from_their_folders(tmp_path: Path, pair: RunComparison) -> None:
    for name, reports in (("a", training(study=True)), ("b", training(nn.GRU, 12))):
        sink = HistorySink(str(tmp_path / "runs" / name / "version_0" / "lstm_monitor_history"))
        for report in reports:
            sink.write(report)
        sink.close()
    read = compare_runs([tmp_path / "runs" / "a", str(tmp_path / "runs" / "b")])
    assert read.names == ("a", "b")
    assert read.to_pandas().equals(pair.to_pandas())
    assert repr(read) == repr(pair)


def test_names_are_what_tells_the_folders_apart() -> None:
    assert telling_apart(["runs/a/lstm_monitor_history", "runs/b/lstm_monitor_history"]) == ["a", "b"]
    assert telling_apart(["/x/1/logs/v0", "/x/2/logs/v0"]) == ["1", "2"]
    assert telling_apart(["/x/1/logs/v0", "/x/2/logs/v1"]) == ["1/logs/v0", "2/logs/v1"]
    assert telling_apart(["s3://one/runs", "s3://two/runs"]) == ["one", "two"]
    assert telling_apart(["runs/a", "runs/a"]) == ["run 1", "run 2"]


def test_alarms_and_steps_that_are_none() -> None:
    alarm = Alarm("rnn.l0", "dead", "all dead", "lower the learning rate")
    course = course_of([replace(report, step=None, alarms=(alarm,)) for report in training()])
    assert course.layers[0].steps.tolist() == [0, 1, 2, 3]
    assert course.alarms[0] == (None, alarm)


def test_wrong_arguments_are_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="give a list of two or more runs"):
        compare_runs(["runs/a"])
    with pytest.raises(ValueError, match="give a list of two or more runs"):
        compare_runs("runs/a")
    with pytest.raises(ValueError, match=r"names=\['a', 'a'\]: give 2 different names"):
        compare_runs([training(), training()], names=["a", "a"])
    with pytest.raises(ValueError, match="the run b has no checks"):
        compare_runs([training(), []], names=["a", "b"])
    with pytest.raises(FileNotFoundError):
        compare_runs([tmp_path / "a", tmp_path / "b"])


@pytest.mark.parametrize(
    ("value", "unit", "words"), [(0.1234, "share", "12.3%"), (12.34, "", "12.3"), (math.nan, "", "-")]
)
def test_numbers_as_people_read_them(value: float, unit: str, words: str) -> None:
    assert shown(value, unit) == words
