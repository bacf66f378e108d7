"""The history: what was written is what is read, value by value."""

from __future__ import annotations

import copy
import pickle
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as some

import lstm_monitor as lm
from lstm_monitor.core.codec import from_plain, to_plain
from lstm_monitor.core.records import Alarm, Drift
from lstm_monitor.history.loading import load_history
from lstm_monitor.history.sink import HistorySink
from lstm_monitor.history.tables import to_bytes, to_report
from lstm_monitor.report.canvas import as_pixels
from lstm_monitor.report.sinks import MemorySink, Sink
from tests.helpers.histories import Net, a_report, check_at, differences, kept, sequences, study_at, train

KINDS: dict[str, dict[str, Any]] = {
    "LSTM": {"kind": "LSTM"},
    "GRU": {"kind": "GRU"},
    "RNN": {"kind": "RNN", "nonlinearity": "relu"},
    "both ways": {"kind": "LSTM", "bidirectional": True, "num_layers": 2},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("with_data", [True, pytest.param(False, marks=pytest.mark.thorough)])
def test_every_report_is_read_as_it_was_written(kind: str, with_data: bool, tmp_path: Path) -> None:
    memory = MemorySink()
    train(Net(**KINDS[kind]), [memory, HistorySink(tmp_path)], sequences() if with_data else None)
    history = load_history(tmp_path)
    assert history.steps == (0, 2, 3, 4, 6)
    assert history.epochs == (0, 0, 1, 1, 1)
    assert history.notes == ()
    for report, again in zip(memory.reports, history.reports(), strict=True):
        assert differences(report, again) == []
        assert report.scalars() == again.scalars()
        assert repr(report) == repr(again)


def test_pictures_of_a_report_read_back_are_the_same(tmp_path: Path) -> None:
    memory = MemorySink()
    train(Net(), [memory, HistorySink(tmp_path)], sequences())
    now, again = memory.reports[-1].pictures(), load_history(tmp_path).last.pictures()
    assert list(now) == list(again)
    for name, figure in now.items():
        assert np.array_equal(as_pixels(figure), as_pixels(again[name]))


def test_the_study_of_the_end_is_kept_with_its_check(tmp_path: Path) -> None:
    monitor = train(Net(), [HistorySink(tmp_path)], sequences(), ablation=True)
    history = load_history(tmp_path)
    assert monitor.report is not None
    assert len(history) == 5
    assert differences(monitor.report, history.last) == []
    assert differences(monitor.report.study, history.study) == []
    assert monitor.report.scalars() == history.last.scalars()
    assert [report.study is None for report in history.reports()] == [True] * 4 + [False]


def test_a_report_with_its_study_written_at_once(tmp_path: Path) -> None:
    report = replace(check_at(6), study=study_at(6).study)
    kept(tmp_path, report)
    history = load_history(tmp_path)
    assert differences(history.last, report) == []
    assert history.study is not None


def test_an_attempt_says_by_what_it_was_made(tmp_path: Path) -> None:
    kept(tmp_path, check_at(0))
    (attempt,) = load_history(tmp_path).attempts
    assert {"torch", "lstm_monitor", "python", "numpy", "pyarrow"} <= set(attempt.versions)


def test_a_history_without_a_study(tmp_path: Path) -> None:
    kept(tmp_path, check_at(0))
    assert load_history(tmp_path).study is None


def test_a_study_without_a_check(tmp_path: Path) -> None:
    kept(tmp_path, study_at(6))
    history = load_history(tmp_path)
    assert history.steps == (6,)
    assert history.last.layers == ()
    assert history.study is not None
    assert len(history.to_pandas()) == 0


def test_float64_and_layers_of_several_kinds(tmp_path: Path) -> None:
    model = torch.nn.ModuleDict({"wide": torch.nn.LSTM(3, 9).double(), "narrow": torch.nn.GRU(2, 4)})
    report = replace(lm.characterize(model, horizon=32), step=1)
    kept(tmp_path, report)
    assert differences(report, load_history(tmp_path).last) == []


def test_alarms_versions_skipped_and_what_is_not_finite() -> None:
    drift = Drift("step/rise_time", float("nan"), (1.0, float("inf"), 2.0), (float("-inf"), 0.0, -0.0))
    layers = tuple(replace(layer, drift=(drift,)) for layer in a_report().layers)
    alarms = (Alarm("rnn.l0", "dead", "50% of ü", 'say "no"'),)
    report = replace(
        a_report(), layers=layers, alarms=alarms, cost=float("nan"), skipped=("a (B): c",), versions={"torch": "2"}
    )
    assert differences(report, to_report(to_bytes(report, {}))) == []


ODD = some.floats(width=32) | some.sampled_from([float("nan"), float("inf"), float("-inf"), -0.0, 1e-45])


@settings(max_examples=25, deadline=None)
@given(data=some.data())
def test_any_values_come_back(data: some.DataObject) -> None:
    layer = a_report().layers[0]
    size, stimuli, time = layer.hidden_size, data.draw(some.integers(0, 4)), data.draw(some.integers(0, 5))

    def tensor(*shape: int) -> torch.Tensor:
        count = int(np.prod(shape))
        values = data.draw(some.lists(ODD, min_size=count, max_size=count))
        return torch.tensor(values, dtype=torch.float32).reshape(shape)

    reasons = torch.randint(0, 12, (stimuli, size), dtype=torch.uint8)
    labels = tuple(data.draw(some.lists(some.text(), min_size=stimuli, max_size=stimuli)))
    metric = lm.Metric("a", data.draw(some.text(min_size=1)), tensor(stimuli, size), reasons, labels, tensor(size))
    changed = replace(
        layer,
        metrics=replace(layer.metrics, items=(metric,)),
        trace=replace(layer.trace, change=tensor(size, time)),
        ranking=replace(layer.ranking, scores=tensor(size), order=torch.randperm(size)),
    )
    report = replace(a_report(), layers=(changed,))
    assert differences(report, to_report(to_bytes(report, {}))) == []


@settings(max_examples=50, deadline=None)
@given(values=some.lists(some.floats()), cost=some.none() | some.floats(), epoch=some.none() | some.integers())
def test_plain_values_are_json_and_come_back(values: list[float], cost: float | None, epoch: int | None) -> None:
    report = replace(study_at(3), cost=cost, epoch=epoch)
    study = report.study
    assert study is not None
    emptied = replace(study.layers[0], random=torch.tensor(values, dtype=torch.float64).reshape(1, -1))
    report = replace(report, study=replace(study, layers=(emptied,)))
    assert differences(report, to_report(to_bytes(report, {}))) == []


def test_files_of_a_newer_version_with_more_fields_stay_readable() -> None:
    plain = to_plain(a_report().layers[0].thresholds)
    assert from_plain(lm.Thresholds, plain | {"of_tomorrow": 3}) == lm.Thresholds()
    assert from_plain(lm.Thresholds, {"band": 0.2}) == lm.Thresholds(band=0.2)


def test_tables(tmp_path: Path) -> None:
    train(Net(num_layers=2), [HistorySink(tmp_path)], sequences(), ablation=True)
    history = load_history(tmp_path)
    frame = history.to_pandas()
    assert list(frame.columns[:6]) == ["step", "epoch", "layer", "cell", "rank", "score"]
    assert len(frame) == 5 * 2 * 6
    last, table = history.last, frame[frame["step"] == 6].drop(columns=["step", "epoch"])
    expected = last.to_pandas()
    pd.testing.assert_frame_equal(table.reset_index(drop=True), expected, check_dtype=False, check_exact=True)
    scalars = history.scalars()
    assert scalars.index.tolist() == [0, 2, 3, 4, 6]
    assert scalars.loc[6].dropna().to_dict() == last.scalars()


def test_a_file_is_a_plain_table_for_other_tools(tmp_path: Path) -> None:
    kept(tmp_path, check_at(0), study_at(0))
    frame = pd.read_parquet(next(tmp_path.glob("check-*.parquet")))
    layer = a_report().layers[0]
    assert frame["layer"].tolist() == ["rnn.l0"] * 6
    assert frame["rank"].tolist() == layer.ranking.order.argsort().tolist()
    assert np.array_equal(np.stack(frame["trace"]), layer.trace.change.numpy())
    assert "output_effect" in pd.read_parquet(next(tmp_path.glob("study-*.parquet")))


def test_arrays_of_layers_of_unequal_size(tmp_path: Path) -> None:
    model = torch.nn.ModuleDict({"wide": torch.nn.LSTM(3, 9), "narrow": torch.nn.GRU(3, 4)})
    report = lm.characterize(model, horizon=32)
    kept(tmp_path, *(replace(report, step=step, epoch=1) for step in (5, 7)))
    history = load_history(tmp_path)
    whole, narrow = history.to_xarray(), history.to_xarray("narrow.l0")
    assert dict(whole.sizes) == {"step": 2, "layer": 2, "cell": 9}
    assert dict(narrow.sizes) == {"step": 2, "cell": 4}
    assert whole["step/peak_response"].attrs["long_name"].startswith("size of the largest change")
    peak = report["narrow.l0"].metrics["step/peak_response"].cells.tolist()
    assert narrow["step/peak_response"].sel(step=7).values.tolist() == peak
    assert whole["step/peak_response"].sel(layer="narrow.l0", step=5).values[:4].tolist() == peak
    assert bool(whole["step/peak_response"].sel(layer="narrow.l0").isel(cell=slice(4, None)).isnull().all())
    with pytest.raises(KeyError, match="Did you mean 'wide.l0'"):
        history.to_xarray("wide.l1")


def test_arrays_of_a_layer_that_appears_late(tmp_path: Path) -> None:
    wide, narrow = (lm.characterize(torch.nn.ModuleDict({n: m}), horizon=16)
                    for n, m in {"wide": torch.nn.LSTM(3, 5), "narrow": torch.nn.GRU(3, 2)}.items())  # fmt: skip
    kept(tmp_path, *(replace(report, step=step) for step, report in enumerate((wide, narrow, narrow))))
    late = load_history(tmp_path).to_xarray("narrow.l0")
    assert dict(late.sizes) == {"step": 3, "cell": 2}
    assert late["rank"].isnull().all("cell").values.tolist() == [True, False, False]
    late.rename({name: name.replace("/", ".") for name in late}).to_netcdf(tmp_path / "late.nc")


def test_a_step_that_is_not_there_is_told(tmp_path: Path) -> None:
    kept(tmp_path, check_at(0), check_at(20))
    history = load_history(tmp_path)
    with pytest.raises(KeyError, match="no check at step=10 .* Steps with a check: 0, 20"):
        history.report(10)
    assert history.report(20).step == 20
    assert history.report(epoch=0).step == 20


def test_loops_that_count_epochs_only_lose_nothing(tmp_path: Path) -> None:
    kept(tmp_path, *(check_at(0, epoch) for epoch in range(4)))
    history = load_history(tmp_path)
    assert history.epochs == (0, 1, 2, 3)
    assert history.report(0, epoch=2).epoch == 2
    assert dict(history.to_xarray().sizes)["step"] == 4


def test_reports_made_in_a_notebook_have_no_step(tmp_path: Path) -> None:
    kept(tmp_path, check_at(None, None), check_at(None, None))
    history = load_history(tmp_path)
    assert history.steps == (None, None)
    assert differences(history.last, check_at(None, None)) == []
    assert len(history.scalars()) == 2


def test_it_is_a_sink_that_can_be_copied_and_pickled_and_opens_nothing(tmp_path: Path) -> None:
    sink = HistorySink(tmp_path / "deep" / "a")
    assert isinstance(sink, Sink)
    copies = [copy.deepcopy(sink), pickle.loads(pickle.dumps(sink))]
    sink.close()
    assert not (tmp_path / "deep").exists()
    for again in copies:
        again.write(check_at(0))
    copies[1].write(check_at(1))
    history = load_history(tmp_path)
    assert history.steps == (0, 1)
    assert len(history.attempts) == 2


def test_a_relative_path_stays_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    sink = HistorySink("runs/a")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    sink.write(check_at(0))
    assert load_history(tmp_path / "runs" / "a").steps == (0,)


def test_no_random_number_is_drawn(tmp_path: Path) -> None:
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    kept(tmp_path, check_at(0), study_at(0))
    load_history(tmp_path).to_pandas()
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == random.getstate()
    assert np.array_equal(before[2], np.random.get_state()[1])


def test_it_says_what_it_holds(tmp_path: Path) -> None:
    kept(tmp_path, check_at(0), check_at(20), study_at(20))
    (tmp_path / "notes.txt").write_text("mine")
    words = repr(load_history(tmp_path))
    assert "2 checks, steps 0 to 20, with an ablation study; layers: rnn.l0" in words
    assert "note: notes.txt: no file of a history; ignored" in words


def test_a_missing_extra_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
    with pytest.raises(ImportError, match=r'pip install "lstm-monitor\[history\]"'):
        HistorySink(tmp_path)
    with pytest.raises(ImportError, match=r'pip install "lstm-monitor\[history\]"'):
        load_history(tmp_path)
