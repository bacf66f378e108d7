"""Our rows between a user's, whatever their logging style: theirs are the same, to the number, with and without us."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import lstm_monitor as lm
from lstm_monitor.integrations import WandbSink
from lstm_monitor.report.keys import run_key
from lstm_monitor.report.report import Report
from tests.helpers import wandb_runs
from tests.helpers.wandb_runs import Written

# wandb leaves the temporary folders of its table artifacts to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore:Implicitly cleaning up <TemporaryDirectory:ResourceWarning")

Log = Callable[..., None]
Style = Callable[[Log], Iterator[None]]
AXIS, CHECKS = run_key("step"), 8


# How users log; a check is made at each yield


def without_steps(log: Log) -> Iterator[None]:
    yield
    for batch in range(CHECKS - 1):
        log({"loss": batch})
        yield


def an_epoch_after_its_check(log: Log) -> Iterator[None]:
    yield
    for epoch in range(CHECKS - 1):
        yield
        log({"val": epoch}, step=epoch)


def an_epoch_before_its_check(log: Log) -> Iterator[None]:
    yield
    for epoch in range(CHECKS - 1):
        log({"val": epoch}, step=epoch)
        yield


def halves_of_an_explicit_row(log: Log) -> Iterator[None]:
    for step in range(0, 10 * CHECKS, 10):
        log({"loss": step}, step=step)
        yield
        log({"val": -step}, step=step)


def rows_left_open(log: Log) -> Iterator[None]:
    for batch in range(CHECKS // 2):
        yield
        log({"epoch": batch}, commit=False)
        yield
        log({"loss": batch})


def seldom_with_steps(log: Log) -> Iterator[None]:
    for epoch in range(2):
        for _ in range(CHECKS // 2):
            yield
        log({"val": epoch}, step=epoch)


def seldom_without_steps(log: Log) -> Iterator[None]:
    for epoch in range(2):
        for _ in range(CHECKS // 2):
            yield
        log({"val": epoch})


def only_at_the_end(log: Log) -> Iterator[None]:
    for _ in range(CHECKS):
        yield
    log({"test": 1.0}, step=0)


def at_the_end_with_the_last_step(log: Log) -> Iterator[None]:
    for epoch in range(CHECKS):
        log({"loss": epoch})
        yield
    log({"test": 1.0}, step=CHECKS)


def never(log: Log) -> Iterator[None]:
    for _ in range(CHECKS):
        yield


STYLES: dict[str, Style] = {
    style.__name__: style
    for style in (
        without_steps, an_epoch_after_its_check, an_epoch_before_its_check, halves_of_an_explicit_row, rows_left_open,
        seldom_with_steps, seldom_without_steps, only_at_the_end, at_the_end_with_the_last_step, never,
    )
}  # fmt: skip


def reports() -> list[Report]:
    """Checks of a network that changes, and an ablation check at the last step."""
    memory, data = lm.MemorySink(), torch.randn(20, 4, 3, generator=torch.Generator().manual_seed(0))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.GRU(3, 4)
    score = lm.AblationCheck(score=lambda model: model(data)[0].square().mean((0, 2)), rankings=["auto"])
    settings: dict[str, Any] = {"every_n_steps": 1, "horizon": 16, "budget": None, "on_error": "raise"}
    monitor = lm.LSTMMonitor(model, data, sinks=[memory], ablation=score, **settings)
    monitor.on_train_begin()
    for step in range(CHECKS - 1):
        with torch.no_grad():
            [weight.mul_(1.1) for weight in model.parameters()]
        monitor.on_train_batch_end(step)
    monitor.on_train_end()
    return memory.reports


def record(folder: Path, style: Style, made: list[Report], own_rows: bool = False) -> None:
    """A run in some style, with a check at each yield; without checks where none were made."""
    with wandb_runs.start(folder) as run:
        sink = WandbSink(run, pictures_every=0, own_rows=own_rows)
        checks = iter(made)
        training = style(run.log)
        for _ in training:
            for report in [next(checks)] if made else []:
                sink.write(report)
            if made and len(made) - 1 == CHECKS and report is made[-2]:
                sink.write(made[-1])
                sink.close()


@pytest.fixture(scope="module")
def made() -> list[Report]:
    return reports()


@pytest.fixture(scope="module")
def runs(made: list[Report], tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Written, Written]]:
    """Every style with and without us."""
    folder = tmp_path_factory.mktemp("runs")
    for name, style in STYLES.items():
        for with_us, checks in (("with", made), ("without", [])):
            (folder / name / with_us).mkdir(parents=True)
            record(folder / name / with_us, style, checks)
    wandb_runs.finish_all()
    parts = ("with", "without")
    return {name: tuple(wandb_runs.read_run(folder / name / part, finished=True) for part in parts) for name in STYLES}


def theirs(written: Written) -> list[dict[str, Any]]:
    """The user's part of each row that has one, with its number."""
    rows = [{k: v for k, v in row.items() if not k.startswith(("lstm_monitor/", "_r", "_t"))} for row in written.rows]
    return [row for row in rows if len(row) > 1]


@pytest.mark.parametrize("style", STYLES)
def test_the_users_rows_are_the_same_with_us_to_their_numbers(runs, style):
    with_us, without = runs[style]
    assert theirs(with_us) == theirs(without)


@pytest.mark.parametrize("style", STYLES)
def test_every_check_is_there_once_and_in_order(runs, made, style):
    rows = [row for row in runs[style][0].rows if AXIS in row]
    assert [row[AXIS] for row in rows] == [report.step for report in made[:-1]]
    for row, report in zip(rows, made[:-1], strict=True):
        scalars = report.scalars() | (made[-1].scalars() if report is made[-2] else {})
        logged = {k: v for k, v in row.items() if k.startswith("lstm_monitor/") and not isinstance(v, dict)}
        assert logged == scalars | {AXIS: report.step}
        assert all(math.isfinite(value) for value in logged.values())


def test_rows_of_our_own_are_written_at_once(made, tmp_path):
    record(tmp_path, never, made, own_rows=True)
    rows = wandb_runs.read_run(tmp_path).rows
    assert [(row["_step"], row[AXIS]) for row in rows] == [(step, step) for step in range(CHECKS)]


def test_many_waiting_checks_are_told_once(made, tmp_path, caplog):
    with wandb_runs.start(tmp_path) as run:
        sink = WandbSink(run, pictures_every=0)
        for report in made[:-1] * 2:
            sink.write(report)
    told = [record.message for record in caplog.records if record.name == "lstm_monitor"]
    assert len(told) == 1
    assert told[0].startswith("10 checks wait for rows of the W&B run")
    assert [row[AXIS] for row in wandb_runs.read_run(tmp_path).rows] == 2 * list(range(CHECKS))


def test_a_star_in_a_layers_name_loses_nothing(tmp_path: Path) -> None:
    report = lm.characterize(nn.ModuleDict({"a*b": nn.GRU(3, 4)}), horizon=16)
    with wandb_runs.start(tmp_path) as run:
        WandbSink(run, pictures_every=0).write(report)
    written = wandb_runs.read_run(tmp_path)
    assert report.scalars().items() <= written.rows[0].items()
    assert AXIS in written.metrics
