"""Real W&B runs, offline, read back with W&B's own reader."""

from __future__ import annotations

import copy
import io
import pickle
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import wandb
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

import lstm_monitor as lm
from lstm_monitor.core.records import Alarm
from lstm_monitor.integrations import WandbSink
from lstm_monitor.integrations.wandb_sink import run as wandb_sink_run
from lstm_monitor.report.keys import key, run_key
from lstm_monitor.report.report import Report
from tests.helpers import trainings, wandb_runs
from tests.helpers.wandb_runs import Written

# wandb leaves the temporary folders of its table artifacts to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore:Implicitly cleaning up <TemporaryDirectory:ResourceWarning")

AXIS = run_key("step")
KINDS = ("LSTM", "GRU", "RNN")
THOROUGH = pytest.mark.thorough


@pytest.fixture(autouse=True)
def _no_run_left() -> Iterator[None]:
    yield
    wandb.finish()


def network(kind: str) -> nn.Module:
    """The same weights whatever was made before."""
    options = {"bidirectional": True} if kind == "LSTM" else {}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return getattr(nn, kind)(3, 6, **options)


def watch(run: wandb.Run, model: nn.Module, ablation: bool = False, steps: int = 5, **options: Any) -> list[Report]:
    """Checks at every other step and at the last of a loop that logs its loss; the reports."""
    memory, data = lm.MemorySink(), torch.randn(20, 4, 3, generator=torch.Generator().manual_seed(0))
    check = lm.AblationCheck(
        score=lambda model: model(data)[0].square().mean((0, 2)), rankings=["auto"], random_orders=1, points=3
    )
    sinks = [WandbSink(run, **{"pictures_every": 0} | options), memory]
    last = check if ablation else None
    settings: dict[str, Any] = {"every_n_steps": 2, "horizon": 16, "budget": None, "on_error": "raise"}
    monitor = lm.LSTMMonitor(model, data, sinks=sinks, ablation=last, **settings)
    monitor.on_train_begin()
    for step in range(steps):
        with torch.no_grad():
            [weight.mul_(1.1) for weight in model.parameters()]
        run.log({"loss": 1 / (step + 1)})
        monitor.on_train_batch_end(step)
    monitor.on_train_end()
    return memory.reports


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Written, list[Report]]]:
    """A run for each kind of layer, with pictures and an ablation check."""
    folder, reports = tmp_path_factory.mktemp("kinds"), {}
    for kind in KINDS:
        (folder / kind).mkdir()
        with wandb_runs.start(folder / kind) as run:
            reports[kind] = watch(run, network(kind), ablation=True, pictures_every=1)
    return {kind: (wandb_runs.read_run(folder / kind), reports[kind]) for kind in KINDS}


@pytest.fixture
def small() -> Report:
    return lm.characterize(nn.GRU(3, 4), horizon=16)


def at_steps(written: Written, name: str) -> dict[int, Any]:
    return {row[AXIS]: row[name] for row in written.rows if name in row}


def scalars_of(reports: list[Report]) -> dict[str, dict[int, float]]:
    """The values of each scalar by step."""
    found: dict[str, dict[int, float]] = {}
    for report in reports:
        for name, value in report.scalars().items():
            found.setdefault(name, {})[report.step] = value
    return found


# What is written


@pytest.mark.parametrize("kind", KINDS)
def test_scalars_are_those_of_the_reports_exactly(runs, kind):
    written, reports = runs[kind]
    expected = scalars_of(reports)
    assert {name: at_steps(written, name) for name in expected} == expected
    logged = {name for row in written.rows for name, value in row.items() if not isinstance(value, dict)}
    assert {name for name in logged if name.startswith("lstm_monitor/")} == expected.keys() | {AXIS}


@pytest.mark.parametrize("kind", KINDS)
def test_histograms_count_every_cell_where_it_lies(runs, kind):
    written, reports = runs[kind]
    for name in {name for report in reports for name in report.histograms()}:
        expected = {r.step: r.histograms()[name] for r in reports if name in r.histograms()}
        found = at_steps(written, name)
        assert found.keys() == expected.keys()
        for step, histogram in found.items():
            counts, edges = np.array(histogram["values"]), np.array(histogram["bins"])
            assert len(counts) == 64
            assert (counts == np.histogram(expected[step], edges)[0]).all()
            assert counts.sum() == len(expected[step])


@pytest.mark.parametrize("kind", KINDS)
def test_the_table_grows_by_a_row_a_cell_at_each_check(runs, kind):
    written, reports = runs[kind]
    checks = [report for report in reports if report.layers]
    increments = written.values(run_key("cells"))
    assert [item["increment_num"] for item in increments] == list(range(len(checks)))
    assert [len(item["previous_increments_paths"]) for item in increments] == list(range(len(checks)))
    for number, report in enumerate(checks):
        columns, rows = written.table(run_key("cells"), number)
        frame = report.to_pandas().assign(step=report.step)
        assert set(columns) >= set(frame)
        known = frame.astype(object).where(frame.notna(), None)
        assert [[row[columns.index(name)] for name in frame] for row in rows] == known.to_numpy().tolist()
        absent = [at for at, name in enumerate(columns) if name not in frame]
        assert all(row[at] is None for row in rows for at in absent)


@pytest.mark.parametrize("kind", KINDS)
def test_every_metric_is_defined_by_its_exact_name_over_our_step(runs, kind):
    written, _ = runs[kind]
    logged = {name for row in written.rows for name in row if name.startswith("lstm_monitor/")}
    assert logged == {name for name in written.metrics if name.startswith("lstm_monitor/")}
    assert {written.metrics[name].get("step_metric") for name in logged - {AXIS}} == {AXIS}


@pytest.mark.parametrize("kind", KINDS)
def test_there_are_less_than_a_hundred_names_a_layer(runs, kind):
    written, reports = runs[kind]
    for layer in reports[0].layers:
        assert 20 < sum(name.startswith(f"lstm_monitor/{layer.key}/") for name in written.metrics) < 100


def kind_of(value: Any) -> str:
    kinds = {
        "histogram": "histogram",
        "image-file": "picture",
        "table-file": "table",
        "incremental-table-file": "table",
    }
    return kinds[value["_type"]] if isinstance(value, dict) else "scalar"


def logged_keys(written: Written) -> set[tuple[str, str]]:
    """(key with ``<layer>`` for the layer's name, kind) of everything of ours; a chart is a picture."""
    found = {(name, kind_of(value)) for row in written.rows for name, value in row.items()}
    texts = {(name, "text") for name, value in written.summary.items() if isinstance(value, str)}
    charts = {(name.removesuffix("_table"), "picture") for name, _ in found if name.endswith("/ablation_table")}
    ours = {(name, "axis" if name == AXIS else kind) for name, kind in found if not name.endswith("/ablation_table")}
    return {(re.sub(r"^lstm_monitor/(?!_run/)[^/]+", "lstm_monitor/<layer>", name), kind)
            for name, kind in ours | texts | charts if name.startswith("lstm_monitor/")}  # fmt: skip


def test_the_runs_hold_the_documented_keys_and_no_other(runs, small, tmp_path):
    with wandb_runs.start(tmp_path) as run:
        WandbSink(run).write(replace(small, alarms=(Alarm("l0", "dead", "all are", "do"),)))
    table = (Path(__file__).parents[2] / "docs" / "keys.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([^`]+)` \| (\w+) \| (.+) \|$", table, re.MULTILINE)
    documented = {(name, kind) for name, kind, words in rows if not words.endswith("in TensorBoard only")}
    written = [wandb_runs.read_run(tmp_path), *(written for written, _ in runs.values())]
    assert set().union(*map(logged_keys, written)) == documented


@pytest.mark.parametrize("kind", KINDS)
def test_pictures_are_written_at_every_check(runs, kind):
    written, reports = runs[kind]
    for layer in reports[0].layers:
        for name, steps in {"step_responses": [0, 2, 4, 5], "bode": [0, 2, 4, 5], "ranking": [2, 4, 5]}.items():
            found = at_steps(written, key(str(layer.key), "pictures", name))
            assert list(found) == steps
            shown = Image.open(io.BytesIO((written.files / found[5]["path"]).read_bytes()))
            assert shown.size == (420, 330)
            assert len(shown.getcolors(1_000_000)) > 60


@pytest.mark.parametrize(
    ("every", "steps"),
    [pytest.param(0, [], marks=THOROUGH), (2, [0, 4, 5]), pytest.param(None, [0, 2, 4, 5], marks=THOROUGH)],
)
def test_pictures_every_nth_check_and_at_the_last(tmp_path, every, steps):
    with wandb_runs.start(tmp_path) as run:
        watch(run, network("GRU"), pictures_every=every)
    assert list(at_steps(wandb_runs.read_run(tmp_path), "lstm_monitor/l0/pictures/bode")) == steps


@pytest.mark.parametrize("kind", KINDS)
def test_the_ablation_check_is_a_chart_and_tables_in_the_row_of_the_last_check(runs, kind):
    written, reports = runs[kind]
    study, last = reports[-1].study, written.rows[-1]
    assert last[AXIS] == 5
    assert last[run_key("checks")] == len(reports) - 1
    for layer in study.layers:
        name = key(str(layer.key), "pictures", "ablation")
        assert written.config[f"_wandb.visualize.{name}"]["panel_config"]["panelDefId"] == "wandb/lineseries/v0"
        columns, rows = written.table(f"{name}_table")
        assert columns == ["step", "lineKey", "lineVal"]
        trial = layer.trials[0]
        line = [value for _, label, value in rows if label == f"{trial.ranking.name}, least important first"]
        assert line == pytest.approx(trial.least_first.tolist())
        assert last[key(str(layer.key), "ablation", "gap", "used")] == pytest.approx(trial.gap)
    columns, rows = written.table(run_key("ablation_cells"))
    assert len(rows) == sum(layer.hidden_size for layer in study.layers)
    effects = torch.cat([layer.effects.output for layer in study.layers])
    assert [row[columns.index("output_effect")] for row in rows] == pytest.approx(effects.tolist())
    columns, rows = written.table(run_key("ablation_rankings"))
    assert columns[:3] == ["layer", "ranking", "rho with output change [95%]"]
    assert len(rows) == sum(len(layer.trials) + 1 for layer in study.layers)


@pytest.mark.parametrize("kind", KINDS)
def test_the_summary_compares_runs_by_their_last_values(runs, kind):
    written, reports = runs[kind]
    last = reports[-2].scalars() | reports[-1].scalars()
    assert {name: written.summary[name] for name in last} == last
    for layer in reports[-1].study.layers:
        assert f"{layer.key}: " in written.summary[run_key("ablation")]


def alarmed(report: Report, step: int, *names: str) -> Report:
    return replace(report, step=step, alarms=tuple(Alarm("rnn.l0", name, "90% are", "lower it") for name in names))


def test_an_alarm_is_told_when_it_comes_and_when_it_comes_again(small, tmp_path):
    with wandb_runs.start(tmp_path) as run:
        sink = WandbSink(run)
        for step, names in enumerate([(), ("dead",), ("dead", "saturated"), ("dead",), (), ("dead",)]):
            sink.write(alarmed(small, step, *names))
        sink.write(replace(alarmed(small, 6), layers=()))
    written = wandb_runs.read_run(tmp_path)
    assert [alert["title"] for alert in written.alerts] == ["rnn.l0: dead", "rnn.l0: saturated", "rnn.l0: dead"]
    assert written.alerts[0] == {"title": "rnn.l0: dead", "text": "step 1: 90% are; lower it", "level": "WARN",
                                 "wait_duration": "600000"}  # fmt: skip
    assert written.summary[run_key("alarms_told")] == "rnn.l0: dead, rnn.l0: saturated"


def test_a_longest_title_is_within_the_limit(small, tmp_path):
    with wandb_runs.start(tmp_path) as run:
        WandbSink(run).write(replace(small, alarms=(Alarm("encoder." * 20, "dead", "", ""),)))
    [alert] = wandb_runs.read_run(tmp_path).alerts
    assert len(alert["title"]) < 64


# The run


def test_no_random_number_is_drawn(small, tmp_path):
    with wandb_runs.start(tmp_path) as run:
        sink = WandbSink(run, pictures_every=1)
        before = trainings.random_states()
        for step in range(3):
            sink.write(alarmed(small, step, "dead"))
        sink.close()
        assert trainings.differences(before, trainings.random_states()) == []


def test_several_sinks_share_a_run(small, tmp_path):
    with wandb_runs.start(tmp_path) as run:
        for step in range(3):
            sink = WandbSink(run, pictures_every=0)
            sink.write(replace(small, step=step))
            sink.close()
            run.log({"loss": step})
    written = wandb_runs.read_run(tmp_path)
    assert [(row[AXIS], row["loss"]) for row in written.rows] == [(0, 0), (1, 1), (2, 2)]
    assert [item["increment_num"] for item in written.values(run_key("cells"))] == [0, 1, 2]


def test_a_run_that_is_resumed_goes_on(small, tmp_path):
    files = []
    for step, resume in ((0, None), (1, "must")):
        with wandb_runs.start(tmp_path, id="again", resume=resume) as run:
            sink = WandbSink(run, pictures_every=1)
            files.append(sink.directory)
            sink.write(replace(small, step=step))
            run.log({"loss": 0.5}, step=step)
            sink.close()
        written = wandb_runs.read_run(tmp_path)
        assert written.values(AXIS) == [step]
        assert [row["_step"] for row in written.rows if "loss" in row] == [step]
        _, rows = written.table(run_key("cells"))
        assert [row[:3] for row in rows] == [[step, "l0", cell] for cell in range(4)]
    assert files[0] == files[1]
    assert Path(files[0]).parent == tmp_path / "wandb"


def test_a_finished_run_is_told_with_the_fix_and_closing_is_quiet(small, tmp_path):
    with wandb_runs.start(tmp_path) as run:
        sink = WandbSink(run)
        sink.write(small)
    with pytest.raises(RuntimeError, match=r"is finished and takes no more checks: call run.finish\(\) after"):
        sink.write(small)
    sink.close()
    with pytest.raises(RuntimeError, match="is finished"):
        WandbSink(run)


def test_the_monitor_makes_one_warning_of_a_finished_run(tmp_path):
    with wandb_runs.start(tmp_path) as run:
        memory = lm.MemorySink()
        monitor = lm.LSTMMonitor(nn.GRU(3, 4), sinks=[WandbSink(run), memory], horizon=16, budget=None)
        monitor.on_train_begin()
    with pytest.warns(lm.MonitorWarning, match="is finished"):
        monitor.on_epoch_end(0)
    monitor.on_epoch_end(1)  # a second warning would be an error
    monitor.on_train_end()
    assert len(memory.reports) == 3


def test_what_waits_is_written_at_the_close_where_wandb_has_no_hooks(small, tmp_path, monkeypatch):
    monkeypatch.setattr(wandb_sink_run, "_at_end", lambda run, act: False)
    with wandb_runs.start(tmp_path) as run:
        sink = WandbSink(run, pictures_every=0)
        for step in range(3):
            sink.write(replace(small, step=step))
        sink.close()
    assert wandb_runs.read_run(tmp_path).values(AXIS) == [0, 1, 2]


def test_a_failure_of_ours_keeps_no_run_from_finishing(small, tmp_path, monkeypatch, caplog):
    run = wandb_runs.start(tmp_path)
    sink = WandbSink(run, pictures_every=0)
    for step in range(3):
        sink.write(replace(small, step=step))
    monkeypatch.setattr(wandb_sink_run.Rows, "_write", lambda *_: 1 / 0)
    run.finish()
    assert "the last checks are missing in W&B: ZeroDivisionError" in caplog.text


def test_a_disabled_run_costs_nothing(small, tmp_path):
    run = wandb.init(mode="disabled", dir=str(tmp_path))
    sink = WandbSink(run)
    sink.write(small)
    sink.close()
    assert sink.directory is None
    run.finish()


def test_a_run_may_be_a_function_that_knows_the_run_of_now(small, tmp_path):
    sink = WandbSink(lambda: wandb.run, pictures_every=0)
    for fold in range(2):
        with wandb_runs.start(tmp_path, id=f"fold{fold}"):
            sink.write(replace(small, step=fold))
        sink.close()
        assert wandb_runs.read_run(tmp_path).values(AXIS) == [fold]
    with pytest.raises(TypeError, match=r"run=None is no W&B run: give the one that wandb.init\(\) returns"):
        sink.write(small)


@pytest.mark.parametrize("run", [None, wandb, "run"])
def test_refuses_what_is_no_run(run):
    with pytest.raises(TypeError, match=r"is no W&B run: give the one that wandb.init\(\) returns"):
        WandbSink(run)


def test_refuses_a_negative_interval():
    with pytest.raises(ValueError, match="pictures_every=-1 is negative"):
        WandbSink(lambda: wandb.run, pictures_every=-1)


def current_run() -> Any:
    return wandb.run


def test_copies_share_the_run_and_pickles_leave_it(small, tmp_path):
    with wandb_runs.start(tmp_path) as run:
        sink = WandbSink(run, scalars=False, own_rows=True)
        sink.write(small)
        twin = copy.deepcopy(sink)
        assert (twin.given, twin.scalars, twin.own_rows) == (run, False, True)
        again = pickle.loads(pickle.dumps(sink))
        with pytest.raises(RuntimeError, match="this WandbSink was pickled.*set sink.given to the run"):
            again.write(small)
        again.close()
        again.given = run
        again.write(small)
        pickle.loads(pickle.dumps(WandbSink(current_run))).write(small)
    rows = wandb_runs.read_run(tmp_path).rows
    assert len(rows) == 3
    assert not any("settling_time/p50" in name for name in rows[0])


def test_without_wandb_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ImportError, match=re.escape('pip install "lstm-monitor[wandb]"')):
        WandbSink(print)


# In Lightning


def fit(package: str, folder: Path, *callbacks: Any, loggers: list[Any]) -> dict[str, Any]:
    """What a training leaves behind."""
    trainings.seed_all()
    module = trainings.modules(package).Plain()
    trainer = trainings.trainer(package, folder, *callbacks, logger=loggers)
    trainer.fit(module, trainings.loader(), trainings.loader(1))
    wandb.finish()
    return trainings.trace(trainer, module)


def logger(package: str, folder: Path) -> Any:
    folder.mkdir(exist_ok=True)
    kind = import_module(f"{package}.loggers").WandbLogger
    return kind(save_dir=folder, mode="offline", settings=wandb.Settings(**wandb_runs.QUIET))


@pytest.mark.parametrize(
    "package", [trainings.PACKAGES[0], pytest.param(trainings.PACKAGES[1], marks=pytest.mark.thorough)]
)
def test_a_logger_of_a_trainer_gets_everything_beside_another(package, tmp_path):
    memory, name = lm.MemorySink(), "lstm_monitor/net.rnn.l0/activity/std/p50"
    watcher = trainings.callback(package, sinks=[memory], pictures_every=1)
    stopping = import_module(f"{package}.callbacks").EarlyStopping(name, patience=9)
    board = import_module(f"{package}.loggers").TensorBoardLogger(tmp_path, name="", version="")
    with_us = fit(package, tmp_path, watcher, stopping, loggers=[logger(package, tmp_path), board])
    written = wandb_runs.read_run(tmp_path)
    for name, expected in scalars_of(memory.reports).items():
        assert at_steps(written, name) == expected
        assert written.metrics[name]["step_metric"] == AXIS
    assert written.metrics["*"]["step_metric"] == "trainer/global_step"
    assert list(at_steps(written, "lstm_monitor/net.rnn.l0/pictures/bode")) == [r.step for r in memory.reports]
    events = EventAccumulator(str(tmp_path)).Reload()
    assert {event.step for event in events.Scalars(run_key("checks"))} == set(at_steps(written, run_key("checks")))
    alone = fit(package, tmp_path / "alone", loggers=[logger(package, tmp_path / "alone")])
    assert trainings.differences(with_us, alone) == []
    theirs = wandb_runs.read_run(tmp_path / "alone")
    for name in ("loss_step", "loss_epoch", "val_loss", "trainer/global_step"):
        assert written.values(name) == theirs.values(name)
