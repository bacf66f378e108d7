"""Sinks that are lost in a real training: one warning, the training as without us, and all checks in the history."""

from __future__ import annotations

import re
import resource
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
import wandb
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.utils.tensorboard import SummaryWriter

import lstm_monitor as lm
from lstm_monitor.integrations import TensorBoardSink, WandbSink
from lstm_monitor.report.keys import run_key
from tests.helpers import trainings, wandb_runs
from tests.helpers.histories import differences as same
from tests.helpers.trainings import PACKAGES, differences, loader, modules, random_states, seed_all, sequences

pytestmark = pytest.mark.filterwarnings(
    # wandb leaves the temporary folders of its table artifacts to the garbage collector.
    "ignore:Implicitly cleaning up <TemporaryDirectory:ResourceWarning"
)

CHECKS = 5
"""Two epochs of four batches, and a check before them and after every second."""
Act = Callable[[], Any]


class Recorded(lm.MemorySink):
    """Comes behind the sink that is lost."""


class Failing(Recorded):
    """Raises in one method."""

    def __init__(self, method: str) -> None:
        super().__init__()
        self.method = method

    def write(self, report: lm.Report) -> None:
        if self.method == "write":
            raise RuntimeError("the server is down")
        super().write(report)

    def close(self) -> None:
        if self.method == "close":
            raise RuntimeError("the server is down")


@dataclass
class Fault:
    """The sinks that are lost, what the warning says, what happens after some batches.

    ``there``: the numbers of the checks that are in TensorBoard at the end; ``keeps``: whether the history can be
    written to all the time.
    """

    sinks: list[Any]
    words: str
    at: Mapping[int, Act] = field(default_factory=dict)
    there: tuple[int, ...] | None = None
    keeps: bool = True


def fill_disk() -> None:
    """No file may grow beyond 1,000 bytes."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def free_disk() -> None:
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))


def board(folder: Path, **options: Any) -> TensorBoardSink:
    return TensorBoardSink(folder / "board", pictures_every=0, **options)


def a_sink_that_raises(folder: Path) -> Fault:
    return Fault([Failing("write")], r"^Failing failed: RuntimeError: the server is down\.")


def a_sink_that_raises_at_the_end(folder: Path) -> Fault:
    return Fault([Failing("close")], r"^Failing failed: RuntimeError: the server is down\.")


def two_sinks_that_raise(folder: Path) -> Fault:
    return Fault([Failing("write"), board(Path("/proc/self"))], r"^Failing failed: .*; TensorBoardSink failed: .*Error")


def a_folder_that_vanishes(folder: Path) -> Fault:
    words = r"TensorBoardSink failed: FileNotFoundError: .*board vanished .*; a new file goes on"
    return Fault([board(folder)], words, {3: lambda: shutil.rmtree(folder / "board")}, (2, 3, 4))


def a_folder_of_a_given_writer_that_vanishes(folder: Path) -> Fault:
    sink = TensorBoardSink(writer=SummaryWriter(str(folder / "board")), pictures_every=0)
    words = r"TensorBoardSink failed: FileNotFoundError: .*board vanished .*; a new file goes on"
    return Fault([sink], words, {3: lambda: shutil.rmtree(folder / "board")}, (2, 3, 4))


def a_place_that_cannot_be_written_to(folder: Path) -> Fault:
    return Fault([board(Path("/proc/self"))], r"TensorBoardSink failed: .*Error: .*/proc/self/board")


def a_disk_that_is_full_for_a_while(folder: Path) -> Fault:
    acts = {3: fill_disk, 5: free_disk}
    words = r"^HistorySink failed: .* cannot be written to .*; TensorBoardSink failed: OSError: .*File too large"
    return Fault([board(folder)], words, acts, (0, 1, 3, 4), keeps=False)


def a_disk_that_stays_full(folder: Path) -> Fault:
    words = r"^HistorySink failed: .* cannot be written to .*; TensorBoardSink failed: OSError: .*File too large"
    return Fault([board(folder)], words, {1: fill_disk}, (0,), keeps=False)


def a_finished_run(folder: Path) -> Fault:
    run = wandb_runs.start(folder)
    words = r"^WandbSink failed: RuntimeError: the W&B run '\w+' is finished and takes no more checks: call run.finish"
    return Fault([WandbSink(run, pictures_every=0)], words, {3: run.finish})


def a_run_that_was_finished_before(folder: Path) -> Fault:
    run = wandb_runs.start(folder)
    sink = WandbSink(run, pictures_every=0)
    run.finish()
    return Fault([sink], r"^WandbSink failed: RuntimeError: the W&B run '\w+' is finished")


def a_run_whose_folder_vanishes(folder: Path) -> Fault:
    run = wandb_runs.start(folder)
    words = r"WandbSink failed: FileNotFoundError: .*offline-run-.* vanished with all that was written there"
    return Fault([WandbSink(run, pictures_every=1)], words, {3: lambda: shutil.rmtree(Path(run.dir).parent)})


FAULTS = (
    a_sink_that_raises, a_sink_that_raises_at_the_end, two_sinks_that_raise, a_folder_that_vanishes,
    a_folder_of_a_given_writer_that_vanishes, a_place_that_cannot_be_written_to, a_disk_that_is_full_for_a_while,
    a_disk_that_stays_full, a_finished_run, a_run_that_was_finished_before, a_run_whose_folder_vanishes,
)  # fmt: skip


def in_lightning(folder: Path, sinks: list[Any] | None, at: Mapping[int, Act], **options: Any) -> dict[str, Any]:
    """A training with us and `sinks`, or without us (None); what it leaves behind."""
    seed_all()
    module = modules(PACKAGES[0]).Plain()
    ours = [] if sinks is None else [trainings.callback(PACKAGES[0], sinks=sinks, every_n_steps=2, **options)]
    runner = trainings.trainer(PACKAGES[0], folder, acting(at), *ours)
    runner.fit(module, loader(shuffle=True), loader(1))
    return trainings.trace(runner, module)


def acting(at: Mapping[int, Act]) -> Any:
    """A callback that does something after some batches."""

    class Acting(import_module(PACKAGES[0]).Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            at.get(trainer.global_step, bool)()

    return Acting()


def in_a_loop(folder: Path, sinks: list[Any] | None, at: Mapping[int, Act], **options: Any) -> dict[str, Any]:
    """The same in a loop of one's own."""
    seed_all()
    model = trainings.Network()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    monitor = None
    if sinks is not None:
        settings: dict[str, Any] = {
            "every_n_steps": 2,
            "horizon": trainings.HORIZON,
            "sinks": sinks,
            "budget": None,
        } | options
        monitor = lm.LSTMMonitor(model, sequences(1, 8), **settings)
        monitor.on_train_begin()
    for step, (x, y) in enumerate([*loader(shuffle=True), *loader(shuffle=True)]):
        optimizer.zero_grad()
        nn.functional.mse_loss(model(x), y).backward()
        optimizer.step()
        at.get(step + 1, bool)()
        if monitor is not None:
            monitor.on_train_batch_end(step)
    if monitor is not None:
        monitor.on_train_end()
    return {"weights": model.state_dict(), "optimizer": optimizer.state_dict(), "random": random_states()}


@contextmanager
def warned() -> Iterator[list[str]]:
    """The texts of our warnings inside; any other warning is an error."""
    texts: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", lm.MonitorWarning)
        yield texts
    texts += [str(warning.message) for warning in caught]


HOSTS = (in_lightning, in_a_loop)
USUAL = (a_finished_run, in_a_loop)
OF_WANDB = (a_finished_run, a_run_that_was_finished_before, a_run_whose_folder_vanishes)
PAIRS = [
    pytest.param(fault, host, marks=pytest.mark.thorough if fault in OF_WANDB and (fault, host) != USUAL else ())
    for fault in FAULTS
    for host in HOSTS
]


@pytest.fixture(autouse=True)
def _afterwards() -> Iterator[None]:
    yield
    free_disk()
    wandb.finish()


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> dict[Any, dict[str, Any]]:
    """What each training leaves behind without us."""
    return {host: host(tmp_path_factory.mktemp("without"), None, {}) for host in HOSTS}


def steps_on(folder: Path, name: str = run_key("checks")) -> list[int]:
    events = EventAccumulator(str(folder)).Reload()
    return [event.step for event in events.Scalars(name)]


@pytest.mark.parametrize(("fault", "host"), PAIRS)
def test_a_lost_sink_is_one_warning_and_the_history_keeps_all(
    fault: Callable[[Path], Fault], host: Callable[..., dict[str, Any]], tmp_path: Path, untouched: dict[Any, Any]
) -> None:
    planted, last = fault(tmp_path), Recorded()
    history = str(tmp_path / "history")
    sinks = [*planted.sinks, last]
    with warned() as told:
        left = host(tmp_path, sinks, planted.at, history=history, on_error="warn")
    free_disk()
    assert differences(untouched[host], left) == []
    assert len(told) == 1, told
    assert re.search(planted.words, told[0]), told[0]
    assert "The training goes on, and later checks try again." in told[0]
    assert (f'lm.load_history("{history}")' in told[0]) is planted.keeps
    steps = [report.step for report in last.reports]
    assert len(steps) == CHECKS
    if fault is not a_disk_that_stays_full:
        kept = lm.load_history(history)
        assert list(kept.steps) == steps
        for one, other in zip(kept.reports(), last.reports, strict=True):
            assert same(one, other) == []
        assert kept.notes == ()
    if planted.there is not None:
        assert steps_on(tmp_path / "board") == [steps[number] for number in planted.there]


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("fault", [a_sink_that_raises, a_sink_that_raises_at_the_end, a_folder_that_vanishes])
def test_the_error_is_raised_where_that_is_asked_for(
    fault: Callable[[Path], Fault], host: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    planted, last = fault(tmp_path), Recorded()
    with pytest.raises((RuntimeError, FileNotFoundError), match=r"the server is down|board vanished"):
        host(tmp_path, [*planted.sinks, last], planted.at, history=False, on_error="raise")
    assert last.reports


@pytest.mark.parametrize("host", HOSTS)
def test_a_folder_that_vanishes_with_the_history_in_it(host: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    planted, last = a_folder_that_vanishes(tmp_path), Recorded()
    with warned() as told:
        host(tmp_path, [*planted.sinks, last], planted.at, on_error="warn")
    kept = lm.load_history(tmp_path / "board")
    assert list(kept.steps) == [report.step for report in last.reports]
    assert kept.notes == ()
    assert len(told) == 1
    assert f'lm.load_history("{kept.path}")' in told[0]
    guides = EventAccumulator(str(tmp_path / "board")).Reload().Tensors(f"{run_key('guide')}/text_summary")
    assert [event.step for event in guides] == [kept.steps[2], kept.steps[-1]]
    assert list((tmp_path / "board" / "lstm_monitor").glob("events*"))  # the dashboard


def test_a_sink_that_cannot_tell_its_folder_gets_a_history_as_soon_as_it_can(tmp_path: Path) -> None:
    tries = iter([False, False])  # to know the folder, and to write

    def writer() -> SummaryWriter:
        if next(tries, True):
            return SummaryWriter(str(tmp_path))
        raise ConnectionError("not yet")

    with warned() as told:
        in_a_loop(tmp_path, [TensorBoardSink(writer=writer, pictures_every=0)], {}, on_error="warn")
    assert len(told) == 1
    assert told[0].startswith("TensorBoardSink failed: ConnectionError: not yet. The training goes on")
    assert steps_on(tmp_path) == list(lm.load_history(tmp_path).steps) == [2, 4, 6, 8]


# The loggers of a Trainer


def fit(
    folder: Path, logger: Any, at: Mapping[int, Act], *ours: Any, logs: bool = True, **options: Any
) -> dict[str, Any]:
    seed_all()
    module = modules(PACKAGES[0]).Plain()
    if not logs:
        module.log = lambda *_, **__: None
    settings: dict[str, Any] = {"logger": logger, "limit_val_batches": 0} | options
    runner = trainings.trainer(PACKAGES[0], folder, acting(at), *ours, **settings)
    runner.fit(module, loader(shuffle=True), loader(1))
    return trainings.trace(runner, module)


def board_logger(folder: Path) -> Any:
    return import_module(f"{PACKAGES[0]}.loggers").TensorBoardLogger(folder, name="", version="")


def monitor(last: lm.MemorySink, **options: Any) -> Any:
    return trainings.callback(PACKAGES[0], sinks=[last], every_n_steps=2, on_error="warn", **options)


def picky(folder: Path) -> Any:
    """A logger that takes the user's values and refuses ours."""

    class Picky(import_module(f"{PACKAGES[0]}.loggers").CSVLogger):
        def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
            if any(name.startswith("lstm_monitor/") for name in metrics):
                raise ValueError("no slashes, please")
            super().log_metrics(metrics, step)

    return Picky(folder, name="", version="")


def test_a_logger_that_raises(tmp_path: Path) -> None:
    without = fit(tmp_path / "without", picky(tmp_path / "without"), {})
    last = Recorded()
    with warned() as told:
        left = fit(tmp_path / "with", picky(tmp_path / "with"), {}, monitor(last))
    assert differences(without, left) == []
    assert len(told) == 1
    assert told[0].startswith("LoggerSink (Picky) failed: ValueError: no slashes, please. The training goes on")
    assert list(lm.load_history(tmp_path / "with").steps) == [report.step for report in last.reports]
    logged = [(tmp_path / part / "metrics.csv").read_text() for part in ("with", "without")]
    assert logged[0] == logged[1]


def test_the_users_writer_outlives_a_disk_that_is_full_at_a_check_only(tmp_path: Path) -> None:
    class Filling(Recorded):  # a history before the logger's sink, in the midst of the check
        kept_in = "here"

        def write(self, report: lm.Report) -> None:
            super().write(report)
            (fill_disk if len(self.reports) == 2 else free_disk)()

    class Freeing(import_module(PACKAGES[0]).Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            free_disk()

    last, folder = Filling(), tmp_path / "with"
    ours = monitor(last, history=False)
    with warned() as told:
        left = fit(folder, board_logger(folder), {}, ours, Freeing())
    without = fit(tmp_path / "without", board_logger(tmp_path / "without"), {})
    assert differences(without, left) == []
    assert len(told) == 1
    assert "TensorBoardSink failed: OSError: " in told[0]
    assert steps_on(folder, "loss_step") == steps_on(tmp_path / "without", "loss_step")
    steps = [report.step for report in last.reports]
    assert steps_on(folder) == [steps[0], *steps[2:]]


def test_a_loggers_folder_that_vanishes_before_a_check_is_mended_for_the_user_too(tmp_path: Path) -> None:
    last, folder = Recorded(), tmp_path / "board"
    with warned() as told:
        left = fit(folder, board_logger(folder), {2: lambda: shutil.rmtree(folder)}, monitor(last), log_every_n_steps=3)
    without = fit(tmp_path / "without", board_logger(tmp_path / "without"), {}, log_every_n_steps=3)
    assert differences(without, left) == []
    assert len(told) == 1
    assert f"{folder} vanished with all that was written there" in told[0]
    kept, steps = lm.load_history(folder), [report.step for report in last.reports]
    assert list(kept.steps) == steps
    assert steps_on(folder) == steps[1:]
    assert steps_on(folder, "loss_step") == [2, 5]


def test_a_loggers_run_that_the_user_finishes(tmp_path: Path) -> None:
    kind = import_module(f"{PACKAGES[0]}.loggers").WandbLogger
    logger = kind(save_dir=tmp_path, mode="offline", settings=wandb.Settings(**wandb_runs.QUIET))
    last = Recorded()
    with warned() as told:
        left = fit(tmp_path, logger, {3: lambda: wandb.finish()}, monitor(last), logs=False)
    without = fit(tmp_path / "without", False, {}, logs=False)
    assert differences(without, left) == []
    assert len(told) == 1
    assert "is finished and takes no more checks" in told[0]
    assert list(lm.load_history(tmp_path).steps) == [report.step for report in last.reports]
