"""What every adapter promises, with every sink and every kind of layer, in every situation that real trainers make.

Adapters, sinks and kinds are discovered. `make test` runs cases in which each of them occurs, `make test-all` cases in
which each two of them meet; with ``--conformance=all`` every case is run.
"""

from __future__ import annotations

import copy
import gc
import itertools
import pickle
import random
import signal
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import lstm_monitor as lm
import lstm_monitor.integrations as integrations
from lstm_monitor.layers.torch_modules import SUPPORTED
from tests.conformance.cases import few, modules, pairwise, parts
from tests.conformance.hosts import KINDS, Host, Task, held_out, registered_own_cell
from tests.conformance.sinks import SinkSetup, Written

HOSTS: dict[str, Host] = parts("host")
SINKS: dict[str, SinkSetup] = parts("sink")
# torch's own, once, where a projection first runs in the user's network.
pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
Situation = Callable[["Bench"], None]
SITUATIONS: dict[str, Situation] = {}


@dataclass
class Bench:
    """One case: the host, the sink's setup, the kind of layer, a folder, and pytest's own means."""

    host: Host
    setup: SinkSetup
    kind: str
    folder: Path
    monkeypatch: pytest.MonkeyPatch

    def make(self, steps: int = 7, **options: Any) -> Any:
        """Our object with the sink; it raises its errors, unless told otherwise."""
        usual = {"held_out": held_out(steps), "sinks": [self.setup.make(self.folder)], "horizon": 16, "budget": None}
        return self.host.make(**usual | {"on_error": "raise"} | options)

    def task(self, seed: int = 0, **options: Any) -> Task:
        """A training from fixed seeds."""
        torch.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)
        return Task(self.host.model(self.kind), self.folder, **options)

    def fit(self, ours: Any | None, **options: Any) -> dict[str, Any]:
        """Train; what is left: weights and random states."""
        task = self.task(**options)
        self.host.fit(task, ours)
        return self.state(task)

    def state(self, task: Task) -> dict[str, Any]:
        return {"weights": self.host.weights(task), "torch": torch.get_rng_state(), "numpy": np.random.get_state()[1],
                "python": random.getstate()}  # fmt: skip

    def written(self) -> Written:
        self.setup.end()
        return self.setup.read(self.folder)

    def check_written(self, report: lm.Report, at_least: int = 2) -> None:
        """The values arrived: one row a check in the order of steps, the last one that of the last report."""
        rows = self.written()
        steps = [step for step, _ in rows]
        assert len(rows) >= at_least, rows
        assert steps == sorted(set(steps)), "no doubles, none out of order"
        assert steps[-1] == report.step
        last, expected = rows[-1][1], {key: value for key, value in report.scalars().items() if "/ablation/" not in key}
        assert last.keys() >= expected.keys()
        tolerance = {"rel": 0, "abs": 0} if self.setup.exact else {"rel": 1e-6}
        assert {key: last[key] for key in expected} == pytest.approx(expected, **tolerance)


def situation(act: Situation) -> Situation:
    SITUATIONS[act.__name__] = act
    return act


def assert_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert len(one["weights"]) == len(other["weights"]) > 0
    assert all(torch.equal(a, b) for a, b in zip(one["weights"], other["weights"], strict=True))
    assert torch.equal(one["torch"], other["torch"])
    assert np.array_equal(one["numpy"], other["numpy"])
    assert one["python"] == other["python"]


def report_of(bench: Bench, ours: Any) -> lm.Report:
    report = bench.host.report(ours)
    assert isinstance(report, lm.Report)
    assert report.layers
    return report


@situation
def untouched(bench: Bench) -> None:
    """The same bits with and without us, and the values arrive."""
    without = bench.fit(None)
    ours = bench.make()
    assert_same(without, bench.fit(ours))
    bench.check_written(report_of(bench, ours))


@situation
def planted_fault(bench: Bench) -> None:
    """One warning, and the training ends as without us."""
    without = bench.fit(None)

    def fail(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("planted")

    bench.monkeypatch.setattr("lstm_monitor.monitor.check.examine", fail)
    ours = bench.make(on_error="warn")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = bench.fit(ours)
    told = [str(warning.message) for warning in caught if issubclass(warning.category, lm.MonitorWarning)]
    assert len(told) == 1, told
    assert "planted" in told[0]
    assert_same(without, found)
    bench.setup.end()


@situation
def resume(bench: Bench) -> None:
    """A training of two epochs and one that was stopped after the first make the same checks, none twice."""
    if not bench.host.resumes:
        return
    bench.fit(bench.make(), epochs=1, save=True)
    bench.setup.end()
    ours = bench.make()
    bench.fit(ours, epochs=2, resumed=True)
    report = report_of(bench, ours)
    whole = lm.MemorySink()
    bench.fit(bench.make(sinks=[whole]), epochs=2)
    assert report.checks == whole.reports[-1].checks
    assert report.step == whole.reports[-1].step
    assert report.layers[0].first is not None, "it remembers the first ranking"
    steps = [step for step, _ in bench.written()]
    assert steps == sorted(set(steps))
    if bench.setup.survives_copies:
        assert steps == [report.step for report in whole.reports]


@situation
def copies(bench: Bench) -> None:
    """Deep-copied and pickled before the training; the copy does the work."""
    ours = bench.make()
    pickle.loads(pickle.dumps(ours))
    copied = copy.deepcopy(ours)
    bench.fit(copied)
    assert bench.host.report(ours) is None
    report = report_of(bench, copied)
    if bench.setup.survives_copies:
        bench.check_written(report)
    copy.deepcopy(copied)
    bench.setup.end()


@situation
def re_created_module(bench: Bench) -> None:
    """The same model gets a recurrent part of another size between two trainings with one object."""
    ours = bench.make()
    task = bench.task(epochs=1)
    bench.host.fit(task, ours)
    sizes = [layer.hidden_size for layer in report_of(bench, ours).layers]
    bench.host.fit(Task(bench.host.rebuilt(task.model, bench.kind), bench.folder, epochs=1), ours)
    report = report_of(bench, ours)
    assert [layer.hidden_size for layer in report.layers] == [2 * size for size in sizes]
    bench.setup.end()


@situation
def several_models(bench: Bench) -> None:
    """One object, two models one after the other: the second is not compared with the first."""
    ours = bench.make()
    bench.fit(ours, epochs=1)
    bench.fit(ours, epochs=1, seed=1)
    report = report_of(bench, ours)
    history = report.layers[0].rank_history
    assert history is not None
    assert len(history.steps) == report.checks
    bench.setup.end()


@situation
def one_batch_an_epoch(bench: Bench) -> None:
    ours = bench.make()
    bench.fit(ours, epochs=4, batches=1)
    bench.check_written(report_of(bench, ours), at_least=4)


@situation
def nothing_held_out(bench: Bench) -> None:
    """Neither validation nor held-out data: around zero, and said so."""
    ours = bench.make(held_out=None)
    bench.fit(ours, validation=False)
    report = report_of(bench, ours)
    assert {layer.point_source for layer in report.layers} <= {"default", "held_out"}
    bench.check_written(report)


@situation
def error_in_the_training(bench: Bench) -> None:
    """It reaches the user as it was, and what was measured before is there."""
    ours = bench.make()
    planted = ValueError("the user's own")
    task = bench.task(error=planted)
    if issubclass(ValueError, bench.host.swallows):
        bench.host.fit(task, ours)
    else:
        with pytest.raises(ValueError, match="the user's own"):
            bench.host.fit(task, ours)
    bench.check_written(report_of(bench, ours), at_least=1)
    planted.__traceback__ = None  # it holds the training


@situation
def ctrl_c(bench: Bench) -> None:
    ours = bench.make()
    task = bench.task(error=KeyboardInterrupt("planted"))
    if issubclass(KeyboardInterrupt, bench.host.swallows):
        bench.host.fit(task, ours)
    else:
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            bench.host.fit(task, ours)
    bench.check_written(report_of(bench, ours), at_least=1)


@situation
def one_step_sequences(bench: Bench) -> None:
    """T = 1, as in rollouts."""
    without = bench.fit(None, steps=1)
    ours = bench.make(steps=1)
    assert_same(without, bench.fit(ours, steps=1))
    bench.check_written(report_of(bench, ours))


def cases(which: str) -> list[tuple[str, ...]]:
    """Of every host only the kinds of layers that its library has."""
    columns = [list(HOSTS), list(SINKS), list(KINDS), list(SITUATIONS)]
    found = pairwise(columns) if which == "pairwise" else list(itertools.product(*columns))
    return [case for case in found if case[2] in HOSTS[case[0]].kinds]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" in metafunc.fixturenames:
        which = metafunc.config.getoption("--conformance")
        found = cases(which)
        quick = few(found) if which == "pairwise" else found
        metafunc.parametrize(
            "case",
            [pytest.param(case, marks=() if case in quick else pytest.mark.thorough) for case in found],
            ids=[", ".join(case) for case in found],
        )


@pytest.fixture(autouse=True, scope="module")
def _own_cell() -> Any:
    with registered_own_cell():
        yield


@pytest.fixture(autouse=True)
def _heeds_ctrl_c() -> Any:
    """Lightning ignores SIGINT from a Ctrl-C on."""
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)


def test_it_keeps_its_promises(case: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    host, sink, kind, name = case
    SITUATIONS[name](Bench(HOSTS[host], SINKS[sink], kind, tmp_path, monkeypatch))
    gc.collect()  # what is left open warns here, in its own test


def test_no_adapter_and_no_sink_is_left_out() -> None:
    names = {*lm.__all__, *integrations.__all__}
    sinks = {name for name in names if name.endswith("Sink")} - {"Sink"}
    assert {setup.sink for setup in SINKS.values()} == sinks
    assert set().union(*(module.ADAPTERS for module in modules("host"))) == set(integrations.__all__) - sinks


def test_no_kind_of_layer_is_left_out() -> None:
    assert {kind.__name__ for kind in SUPPORTED} <= set(KINDS)


def test_every_pair_meets() -> None:
    columns = ["abc", "de", "fghi"]
    found = pairwise(columns)
    for i, j in itertools.combinations(range(3), 2):
        assert {(case[i], case[j]) for case in found} == set(itertools.product(columns[i], columns[j]))
    assert len(found) < 24


def test_each_occurs_in_few_cases() -> None:
    found = cases("pairwise")
    chosen = few(found)
    assert set(chosen) <= set(found)
    for column in range(4):
        assert {case[column] for case in chosen} == {case[column] for case in found}
    assert {case[0] for case in found} == set(HOSTS)
    assert {case[2] for case in found} == set(KINDS)
    assert {case[3] for case in found} == set(SITUATIONS)
    assert len(chosen) < len(found) / 4
