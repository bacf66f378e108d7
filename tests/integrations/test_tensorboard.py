"""Event files, read back with TensorBoard's own reader."""

from __future__ import annotations

import copy
import io
import math
import pickle
import re
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import DEFAULT_SIZE_GUIDANCE, EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from torch import nn
from torch.utils.tensorboard import SummaryWriter

import lstm_monitor as lm
from lstm_monitor.integrations import TensorBoardSink
from lstm_monitor.report.keys import documented_keys
from lstm_monitor.report.report import Report
from lstm_monitor.studies.ablation.check import AblationCheck
from tests.helpers import trainings

KEY = re.compile(r"lstm_monitor/(_run|[^/]+)/[a-z][a-z0-9_]*(/[a-z][a-z0-9_]*){0,2}")
CONFIG = "custom_scalars__config__"
GUIDE = "lstm_monitor/_run/guide/text_summary"


def networks() -> dict[str, nn.Module]:
    """The same weights whatever was imported before."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return {"lstm": nn.LSTM(3, 6, bidirectional=True), "gru": nn.GRU(3, 6), "rnn": nn.RNN(3, 6)}


KINDS = networks()


def events(folder: Path) -> EventAccumulator:
    """Everything in the event files of one run."""
    return EventAccumulator(str(folder), size_guidance=dict.fromkeys(DEFAULT_SIZE_GUIDANCE, 0)).Reload()


def watch(
    folder: Path, model: nn.Module, held_out: bool = True, ablation: bool = False, **options: Any
) -> list[Report]:
    """Checks at the steps 0, 2, 4 and 5 of a plain loop, into `folder` unless a writer is given; the reports."""
    memory = lm.MemorySink()
    place = {} if "writer" in options else {"log_dir": folder}
    sinks = [TensorBoardSink(**place, **{"pictures_every": 0} | options), memory]
    data = torch.randn(20, 4, 3, generator=torch.Generator().manual_seed(0)) if held_out else None
    check = AblationCheck(
        score=lambda model: model(data)[0].square().mean((0, 2)), rankings=["auto"], random_orders=1, points=3
    )
    settings = {"every_n_steps": 2, "horizon": 16, "budget": None, "on_error": "raise"}
    monitor = lm.LSTMMonitor(model, data, sinks=sinks, **settings | ({"ablation": check} if ablation else {}))
    monitor.on_train_begin()
    for step in range(5):
        with torch.no_grad():
            [weight.mul_(1.1) for weight in model.parameters()]
        monitor.on_train_batch_end(step)
    monitor.on_train_end()
    return memory.reports


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, list[Report]]]:
    """A run for each kind of layer with all there is to write, made when it is first asked for."""

    @cache
    def made(kind: str) -> tuple[Path, list[Report]]:
        folder = tmp_path_factory.mktemp(kind)
        return folder, watch(folder, copy.deepcopy(KINDS[kind]), ablation=True, pictures_every=1)

    return made


@pytest.fixture(params=KINDS)
def run(
    request: pytest.FixtureRequest, watched: Callable[[str], tuple[Path, list[Report]]]
) -> tuple[Path, list[Report]]:
    return watched(request.param)


def layout(folder: Path) -> layout_pb2.Layout:
    [event] = events(folder / "lstm_monitor").Tensors(CONFIG)
    return layout_pb2.Layout.FromString(event.tensor_proto.string_val[0])


def chart_tags(chart: layout_pb2.Chart) -> list[str]:
    return list(chart.multiline.tag) or [tag for s in chart.margin.series for tag in (s.value, s.lower, s.upper)]


# What is written


def test_scalars_are_those_of_the_reports(run):
    folder, reports = run
    read = events(folder)
    assert set(read.Tags()["scalars"]) == {name for report in reports for name in report.scalars()}
    for name in read.Tags()["scalars"]:
        expected = [(r.step, np.float32(r.scalars()[name])) for r in reports if name in r.scalars()]
        assert [(event.step, np.float32(event.value)) for event in read.Scalars(name)] == expected
        assert all(math.isfinite(event.value) for event in read.Scalars(name))


def test_histograms_are_those_of_the_reports(run):
    folder, reports = run
    read = events(folder)
    assert set(read.Tags()["histograms"]) == {name for report in reports for name in report.histograms()}
    for name in read.Tags()["histograms"]:
        expected = {report.step: report.histograms()[name] for report in reports if name in report.histograms()}
        assert [event.step for event in read.Histograms(name)] == list(expected)
        for event in read.Histograms(name):
            values, read_back = expected[event.step], event.histogram_value
            assert (read_back.min, read_back.max, read_back.num) == (values[0], values[-1], len(values))
            assert read_back.sum == pytest.approx(values.sum(), rel=1e-12)
            assert read_back.sum_squares == pytest.approx(np.square(values).sum(), rel=1e-12)


def logged_keys(folder: Path) -> set[tuple[str, str]]:
    """(key with ``<layer>`` for the layer's name, kind) of everything in a run's event files."""
    tags = events(folder).Tags()
    kinds = {"scalars": "scalar", "histograms": "histogram", "images": "picture", "tensors": "text"}
    found = {(tag.removesuffix("/text_summary"), kind) for name, kind in kinds.items() for tag in tags[name]}
    return {(re.sub(r"^lstm_monitor/(?!_run/)[^/]+", "lstm_monitor/<layer>", key), kind) for key, kind in found}


def test_the_event_files_hold_the_documented_keys_and_no_other(
    watched: Callable[[str], tuple[Path, list[Report]]],
) -> None:
    table = (Path(__file__).parents[2] / "docs" / "keys.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([^`]+)` \| (\w+) \| (.+) \|$", table, re.MULTILINE)
    documented = {(key, kind) for key, kind, words in rows if not words.endswith("in W&B only")}
    logged: set[tuple[str, str]] = set()
    for name in KINDS:
        logged |= logged_keys(watched(name)[0])
    assert logged == documented


def test_buckets_hold_every_value_where_it_lies(run):
    folder, reports = run
    read = events(folder)
    for name, values in reports[-1].histograms().items():
        buckets = read.Histograms(name)[-1].histogram_value
        limits, counts = np.array(buckets.bucket_limit), np.array(buckets.bucket)
        assert counts.sum() == len(values)
        assert (np.cumsum(counts) == [(values < limit).sum() for limit in limits]).all()


def test_pictures_are_written_at_every_check(run):
    folder, reports = run
    read = events(folder)
    assert len(read.Tags()["images"]) == 4 * len(reports[0].layers)
    steps_of = {"ranking": [2, 4, 5], "ablation": [5]}
    for name in read.Tags()["images"]:
        steps = steps_of.get(name.rsplit("/", 1)[1], [0, 2, 4, 5])
        assert [event.step for event in read.Images(name)] == steps
        shown = Image.open(io.BytesIO(read.Images(name)[-1].encoded_image_string))
        assert shown.size == (420, 330)
        assert len(shown.getcolors(1_000_000)) > 60


def test_keys_are_well_formed_and_few(run):
    folder, reports = run
    tags = events(folder).Tags()
    names = [*tags["scalars"], *tags["histograms"], *tags["images"]]
    assert sorted(tags["tensors"]) == ["lstm_monitor/_run/ablation/text_summary", GUIDE]
    assert all(KEY.fullmatch(name) for name in names)
    for layer in reports[0].layers:
        assert 20 < sum(name.startswith(f"lstm_monitor/{layer.key}/") for name in names) < 100


# The dashboard and the card


def test_charts_show_what_is_written(run):
    folder, reports = run
    layers = [str(layer.key) for layer in reports[0].layers]
    drifts = {key.replace("<layer>", layer) for key, *_ in documented_keys() for layer in layers if "/drift/" in key}
    written = set(events(folder).Tags()["scalars"]) | drifts  # a drift may be undefined at every check
    for category in layout(folder).category:
        for chart in category.chart:
            tags = chart_tags(chart)
            assert tags
            assert set(tags) <= written, chart.title
            assert len(chart.multiline.tag) <= 5


def test_the_dashboard_names_every_layer_and_keeps_kinds_of_charts_apart(run):
    folder, reports = run
    categories = layout(folder).category
    for layer in reports[0].layers:
        mine = [category for category in categories if category.title.startswith(f"{layer.key}:")]
        assert len(mine) == 2
        # TensorBoard 2.21 shows multiline charts first, and margin charts in reverse.
        assert [chart.WhichOneof("content") for chart in mine[0].chart] == ["margin"] * len(mine[0].chart)
        assert mine[0].chart[-1].title == "memory: settling time after a step (steps)"
        assert {chart.WhichOneof("content") for chart in mine[1].chart} == {"multiline"}
    assert ("all layers: medians" in {category.title for category in categories}) == (len(reports[0].layers) > 1)


def test_without_held_out_data_no_chart_waits_for_it(tmp_path):
    watch(tmp_path, nn.RNN(3, 4), held_out=False)
    shown = [chart.title for category in layout(tmp_path).category for chart in category.chart]
    assert "memory: settling time after a step (steps)" in shown
    assert not any("held-out" in title or "gate" in title for title in shown)


def test_more_than_five_layers_share_charts(tmp_path):
    watch(tmp_path, nn.RNN(3, 2, num_layers=6), held_out=False)
    glance = layout(tmp_path).category[0]
    assert glance.title == "all layers: medians"
    assert [len(chart.multiline.tag) for chart in glance.chart] == [5, 5, 1, 1]
    assert glance.chart[-1].title.endswith("layers 6 to 6")


def test_the_card_is_written_at_the_start_and_at_the_end(run):
    folder, reports = run
    first, last = events(folder).Tensors(GUIDE)
    assert (first.step, last.step) == (reports[0].step, reports[-1].step)
    text = last.tensor_proto.string_val[0].decode()
    assert "## The cells at step 5" in text
    assert "| step/settling_time | steps |" in text
    assert all(str(layer.key) in text for layer in reports[0].layers)


def test_the_layout_leaves_that_of_the_user_alone(tmp_path):
    with SummaryWriter(str(tmp_path)) as writer:
        writer.add_custom_scalars({"mine": {"loss": ["Multiline", ["loss"]]}})
        watch(tmp_path, nn.GRU(3, 4), writer=writer)
    [theirs] = events(tmp_path).Tensors(CONFIG)
    assert [c.title for c in layout_pb2.Layout.FromString(theirs.tensor_proto.string_val[0]).category] == ["mine"]
    assert layout(tmp_path).category[0].title.startswith("l0: its 4 cells")


# The writer


class CountingWriter(SummaryWriter):
    """Counts its flushes."""

    flushes = 0

    def flush(self) -> None:
        self.flushes += 1
        super().flush()


def test_one_flush_a_check_and_a_given_writer_stays_open(tmp_path):
    with CountingWriter(str(tmp_path)) as writer:
        reports = watch(tmp_path, nn.GRU(3, 4), writer=writer)
        assert writer.flushes == len(reports) + 1  # and one at the end
        writer.add_scalar("mine", 1.0, 9)
    assert {"mine", "lstm_monitor/_run/checks"} <= set(events(tmp_path).Tags()["scalars"])


def test_a_writer_may_be_a_function(tmp_path):
    with SummaryWriter(str(tmp_path)) as writer:
        watch(tmp_path, nn.GRU(3, 4), writer=lambda: writer, scalars=False)
    assert events(tmp_path).Tags()["scalars"] == []
    assert events(tmp_path).Tags()["histograms"]


def test_what_is_reported_is_on_disk_before_the_next_check(tmp_path):
    sink = TensorBoardSink(tmp_path, pictures_every=0)
    monitor = lm.LSTMMonitor(nn.GRU(3, 4), sinks=[sink], horizon=16, on_error="raise")
    report = monitor.check(7)
    assert set(events(tmp_path).Tags()["scalars"]) == set(report.scalars())
    monitor.close()


@pytest.mark.parametrize(("every", "steps"), [(0, []), (None, [0, 2, 4, 5]), (2, [0, 4, 5]), (3, [0, 5])])
def test_pictures_every_nth_check_and_at_the_last(tmp_path, every, steps):
    watch(tmp_path, nn.GRU(3, 4), pictures_every=every)
    read = events(tmp_path)
    drawn = [event.step for tag in read.Tags()["images"] if tag.endswith("bode") for event in read.Images(tag)]
    assert drawn == steps


def test_without_matplotlib_everything_else_is_written(tmp_path, monkeypatch):
    from lstm_monitor.integrations import _pictures

    monkeypatch.setattr(_pictures, "has_matplotlib", lambda: False)
    watch(tmp_path, nn.GRU(3, 4), pictures_every=1)
    tags = events(tmp_path).Tags()
    assert tags["images"] == []
    assert tags["scalars"]


def test_lightning_logs_every_kind_at_the_same_steps(tmp_path):
    logger = TensorBoardLogger(tmp_path, name="", version="")
    trainer = trainings.trainer("lightning.pytorch", tmp_path,
                                trainings.callback("lightning.pytorch", pictures_every=1),
                                logger=logger, accumulate_grad_batches=2)  # fmt: skip
    trainer.fit(trainings.modules("lightning.pytorch").Plain(), trainings.loader(), trainings.loader(1))
    read = events(tmp_path)
    steps = {event.step for event in read.Scalars("lstm_monitor/_run/checks")}
    assert steps == {0, 1, 3}  # 2 optimizer steps an epoch; loggers write the end of an epoch at its last step
    for name in read.Tags()["histograms"]:
        assert {event.step for event in read.Histograms(name)} <= steps
    for name in read.Tags()["images"]:
        assert {event.step for event in read.Images(name)} <= steps
    assert layout(tmp_path).category[0].title.startswith("net.rnn.l0")


# Arguments and copies


@pytest.mark.parametrize("options", [{}, {"log_dir": "runs", "writer": print}])
def test_needs_a_folder_or_a_writer(options):
    with pytest.raises(ValueError, match="give one of them, such as log_dir='runs/a'"):
        TensorBoardSink(**options)


def test_refuses_a_negative_interval():
    with pytest.raises(ValueError, match="pictures_every=-1 is negative"):
        TensorBoardSink("runs", pictures_every=-1)


def test_a_used_sink_can_be_pickled_and_used_again(tmp_path):
    sink = TensorBoardSink(tmp_path / "a", pictures_every=0)
    report = lm.characterize(nn.GRU(3, 4), horizon=16)
    sink.write(report)
    again = pickle.loads(pickle.dumps(sink))
    sink.close()
    again.log_dir = tmp_path / "b"
    again.write(report)
    again.close()
    names = [events(tmp_path / run).Tags()["scalars"] for run in "ab"]
    assert names[0] == names[1] != []


def test_a_deep_copy_shares_the_writer_that_was_given(tmp_path):
    with SummaryWriter(str(tmp_path)) as writer:
        assert copy.deepcopy(TensorBoardSink(writer=writer, scalars=False)).given is writer


def test_without_tensorboard_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(ImportError, match=re.escape('pip install "lstm-monitor[tensorboard]"')):
        TensorBoardSink("runs")
