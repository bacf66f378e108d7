import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from lstm_monitor.core import distributed
from lstm_monitor.core.distributed import from_each, from_first, shared, shares, together
from lstm_monitor.monitor.distributed import Sharing

TESTS = Path(__file__).parents[1]


def environment() -> dict[str, str]:
    quick = {"OMP_NUM_THREADS": "1", "LSTM_MONITOR_ENGINE": "torch"}  # importing numba takes longer than all the rest
    return {**os.environ, **quick, "PYTHONPATH": str(TESTS.parent)}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """What two processes found together, each by its name."""
    folder = tmp_path_factory.mktemp("processes")
    script, store, out = str(TESTS / "helpers" / "sharing_processes.py"), str(folder / "store"), str(folder / "out")
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "env": environment()}
    running = [subprocess.Popen([sys.executable, script, str(rank), store, out], **pipes) for rank in (0, 1)]
    said = [process.communicate(timeout=400)[0] for process in running]
    assert [process.returncode for process in running] == [0, 0], said
    parts = [torch.load(f"{out}.found.{rank}", weights_only=False) for rank in (0, 1)]
    lost = torch.load(f"{out}.0", weights_only=False)
    return SimpleNamespace(lost=lost, **{name: [part[name] for part in parts] for name in parts[0]})


def differences(a, b, path="", tolerance=0.0):  # noqa: PLR0912
    """Where two records are not the same; times and costs left out."""
    if isinstance(a, torch.Tensor):
        if a.shape != b.shape or not torch.allclose(a, b, rtol=tolerance, atol=tolerance, equal_nan=True):
            yield path
    elif dataclasses.is_dataclass(a):
        for field in dataclasses.fields(a):
            if field.name not in ("seconds", "cost"):
                yield from differences(
                    getattr(a, field.name), getattr(b, field.name), f"{path}.{field.name}", tolerance
                )
    elif isinstance(a, tuple | list):
        if len(a) != len(b):
            yield f"{path} has another length"
        for number, pair in enumerate(zip(a, b, strict=False)):
            yield from differences(*pair, f"{path}[{number}]", tolerance)
    elif a != b and not (a != a and b != b):
        yield f"{path}: {a!r}, {b!r}"


def test_alone_everything_is_done_here() -> None:
    with together():
        assert shared([lambda: 1, lambda: 2], [3.0, 1.0]) == [1, 2]
        assert (from_first(lambda: 5), from_each(lambda: 6), distributed.processes()) == (5, [6], 1)
        with pytest.raises(KeyError, match="x"):
            shared([lambda: {}["x"]])


def test_each_gets_about_as_much_to_do() -> None:
    assert shares([1, 1, 1, 1, 9], 2) == [[4], [0, 1, 2, 3]]
    assert shares([2.0] * 5, 2) == [[0, 2, 4], [1, 3]]
    assert shares([1.0], 3) == [[0], [], []]
    costs = torch.rand(100, generator=torch.Generator().manual_seed(0)).tolist()
    given = shares(costs, 7)
    assert sorted(number for numbers in given for number in numbers) == list(range(100))
    loads = [sum(costs[number] for number in numbers) for numbers in given]
    assert max(loads) < 1.05 * sum(costs) / 7


@pytest.mark.thorough
def test_results_come_in_order_as_they_were_made(found: SimpleNamespace) -> None:
    for one in found.meetings:
        base = torch.arange(1000.0)
        assert [(rank, k) for rank, k, *_ in one["jobs"]] == [(1, 0), (1, 1), (1, 2), (1, 3), (0, 4)]
        for _, k, part, flag, nothing in one["jobs"]:
            assert torch.equal(part, base[k : k + 2])
            assert flag.dtype == torch.bool
            assert flag.item() == (k > 1)
            assert nothing.shape == (0, 3)
        assert (one["first"], one["each"], one["after"]) == (0, [0, 1], [0, 1])
        assert one["inside a job"] == [1, [1, 1]]  # what a job shares it does by itself


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("when", "words"),
    [
        ("a job fails", ["ValueError: no such thing (in process 1)"] * 2),
        ("before a meeting", ["RuntimeError: KeyError: 'lost' (in process 1)", "KeyError: 'lost'"]),
        ("before the end", ["RuntimeError: OSError: full (in process 1)", "OSError: full"]),
        ("interrupted", ["RuntimeError: KeyboardInterrupt:  (in process 1)", "KeyboardInterrupt: "]),
        ("another thing", ["RuntimeError: the processes do different things, so they cannot share them"] * 2),
    ],
)
def test_an_error_in_one_is_an_error_in_all(found: SimpleNamespace, when: str, words: list[str]) -> None:
    assert [one[when] for one in found.meetings] == words


@pytest.mark.thorough
def test_nobody_waits_for_ever(found: SimpleNamespace) -> None:
    assert found.lost["late"].startswith("RuntimeError: the processes have lost touch")
    assert 0.9 < found.lost["waited"] < 3.0
    assert found.lost["again"] == found.lost["late"]
    assert "lost touch" in found.lost["gone"]


@pytest.mark.thorough
def test_a_shared_check_is_that_of_one_process(found: SimpleNamespace) -> None:
    first, second = found.trainings
    _, alone = first["alone"]
    for one in (first, second):
        _, report, told = one["shared"]
        assert told == []
        assert report.study is not None
        assert list(differences(alone, report, tolerance=1e-6)) == []
        assert [layer.ranking.order.tolist() for layer in report.layers] == [
            layer.ranking.order.tolist() for layer in alone.layers
        ]
    assert list(differences(first["shared"][1], second["shared"][1])) == []
    assert first["shared"][1].cost == second["shared"][1].cost
    assert [one["written"]["shared"] for one in (first, second)] == [first["written"]["alone"], 0]


@pytest.mark.thorough
def test_the_training_is_the_same(found: SimpleNamespace) -> None:
    for one in found.trainings:
        for other in (one["alone"][0], one["shared"][0], one["off in one"][2]):
            assert all(torch.equal(a, b) for a, b in zip(one["without"], other, strict=True))


@pytest.mark.thorough
def test_the_first_ones_clock_decides_for_all(found: SimpleNamespace) -> None:
    assert found.trainings[0]["governed"] == found.trainings[1]["governed"] < 9


@pytest.mark.thorough
def test_they_rest_together(found: SimpleNamespace) -> None:
    first, second = (one["rests"] for one in found.trainings)
    assert first[0] == second[0] == 2
    assert first[1].endswith("RuntimeError: Something failed: ValueError: gone (in process 1)")
    assert second[1] == "Something failed: ValueError: gone"
    assert len(first[2]) == 1  # one warning in all
    assert second[2] == []


@pytest.mark.thorough
def test_switched_off_in_one_is_off_in_all(found: SimpleNamespace) -> None:
    (checks, told, _), (others, nothing, _) = (one["off in one"] for one in found.trainings)
    assert checks == others == 0
    assert len(told) == 1
    assert "LSTM_MONITOR is off (in process 1)" in told[0]
    assert nothing == []
    assert [one["off"] for one in found.trainings] == [(0, [])] * 2


@pytest.mark.thorough
@pytest.mark.parametrize("kind", ["all", "top"])
def test_a_shared_study_is_that_of_one_process(found: SimpleNamespace, kind: str) -> None:
    (alone, first), (_, second) = (one[kind] for one in found.studies)
    assert list(differences(first, second)) == []
    assert list(differences(alone, first, tolerance=1e-6)) == []
    for a, b in zip(alone.layers, first.layers, strict=True):
        orders = [[trial.ranking.order.tolist() for trial in layer.trials] for layer in (a, b)]
        assert orders[0] == orders[1]
    assert all(one["untouched"] for one in found.studies)


@pytest.mark.thorough
def test_processes_agree_on_what_there_is_time_for(found: SimpleNamespace) -> None:
    (_, first), (_, second) = (one["in time"] for one in found.studies)
    assert list(differences(first, second)) == []


@pytest.mark.thorough
def test_what_cannot_be_shared_is_refused(found: SimpleNamespace) -> None:
    for one in found.studies:
        assert "talks to the other processes (c10d::allreduce_)" in one["talks"]
        assert "the whole network gives other values in process 1" in one["other data"]


@pytest.mark.thorough
def test_lightning_shares_under_ddp(tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    command = [sys.executable, "-W", "ignore", str(TESTS / "helpers" / "sharing_lightning.py"), out]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=400, env=environment())
    assert ended.returncode == 0, ended.stderr
    first, second = (torch.load(f"{out}.{rank}", weights_only=False) for rank in (0, 1))
    assert list(differences(first["report"], second["report"])) == []
    assert first["seen"] == second["seen"] != []
    assert (first["written"], second["written"]) == (4, 0)  # before, two epochs, and the study
    alone, study = first["alone"].layers[0], first["report"].study.layers[0]
    for name in ("output", "score"):
        assert torch.allclose(getattr(alone.effects, name), getattr(study.effects, name), rtol=1e-5, atol=1e-6)
    for one, other in zip(alone.trials, study.trials, strict=True):
        assert one.ranking.name == other.ranking.name
    assert first["report"].study.intact == pytest.approx(first["alone"].intact, rel=1e-6)
    assert not any("other processes" in note for note in first["report"].study.notes)


def test_they_ask_more_seldom_where_checks_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    guard = SimpleNamespace(idle=False, quiet=False)
    sharing = Sharing(guard, asked=True)  # type: ignore[arg-type]
    monkeypatch.setattr(Sharing, "on", True)
    asked: list[int] = []

    def agreed(make):
        return make()

    monkeypatch.setattr(sharing, "agreed", agreed)
    made = []
    for count in range(1, 1001):
        last = made[-1] if made else 0
        if sharing.decided(lambda count=count, last=last: (asked.append(count), count - last >= 100)[1]):
            made.append(count)
    assert len(made) >= 8  # of 10
    assert len(asked) < 60
