"""Full disks, killed processes, half-written and foreign files: what was reported is not lost."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import fsspec
import pyarrow
import pyarrow.parquet
import pytest

import lstm_monitor as lm
from lstm_monitor.history import sink as writing
from lstm_monitor.history.loading import load_history
from lstm_monitor.history.sink import HistorySink
from tests.helpers.histories import Net, check_at, differences, kept, sequences, study_at, train


@contextmanager
def full_disk() -> Iterator[None]:
    """Every write beyond 1,000 bytes of a file fails, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_what_a_full_disk_refuses_is_written_later(tmp_path: Path) -> None:
    sink = HistorySink(tmp_path)
    sink.write(check_at(0))
    with full_disk():
        for step in (10, 20):
            with pytest.raises(OSError, match=r"cannot be written to .* reports? \(.* MB\) in memory"):
                sink.write(check_at(step))
        with pytest.raises(OSError, match="2 reports"):
            sink.close()
    assert load_history(tmp_path).steps == (0,)
    assert not list(tmp_path.glob(".*"))
    sink.close()
    history = load_history(tmp_path)
    assert history.steps == (0, 10, 20)
    assert history.notes == ()


def test_a_training_on_a_full_disk_gets_one_warning_and_keeps_all(tmp_path: Path) -> None:
    sink = HistorySink(tmp_path)
    with full_disk(), pytest.warns(lm.MonitorWarning) as told:
        train(Net(), [sink], sequences(), on_error="warn")
    assert len(told) == 1
    sink.close()
    assert load_history(tmp_path).steps == (0, 2, 3, 4, 6)


def test_a_bounded_amount_waits_and_the_oldest_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(writing, "MOST_WAITING", 100_000)
    sink = HistorySink(tmp_path)
    with full_disk():
        for step in range(6):
            with pytest.raises(OSError, match="cannot be written to"):
                sink.write(check_at(step))
    assert "the report at step 5 is lost" in caplog.text
    sink.write(check_at(6))
    history = load_history(tmp_path)
    assert history.steps[:2] == (0, 1)
    assert history.steps[-1] == 6
    assert any("are not there" in note for note in history.notes)


def test_a_folder_that_vanishes_is_made_again_with_all_that_was_in_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sink = HistorySink(tmp_path / "a")
    sink.write(check_at(0))
    sink.write(check_at(10))
    shutil.rmtree(tmp_path / "a")
    sink.write(check_at(20))
    assert load_history(tmp_path).steps == (0, 10, 20)
    assert "was deleted; its latest reports are written again" in caplog.text
    for file in (tmp_path / "a").iterdir():
        file.unlink()
    sink.close()
    history = load_history(tmp_path)
    assert history.steps == (0, 10, 20)
    assert history.notes == ()
    assert differences(history.report(0), check_at(0)) == []


def test_a_bounded_amount_is_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "MOST_KNOWN", 100_000)
    sink = HistorySink(tmp_path / "a")
    for step in range(20):
        sink.write(check_at(step))
    shutil.rmtree(tmp_path / "a")
    sink.write(check_at(20))
    steps = load_history(tmp_path).steps
    assert 2 < len(steps) < 20
    assert steps == tuple(range(21 - len(steps), 21))


def test_one_deleted_file_stays_deleted(tmp_path: Path) -> None:
    sink = HistorySink(tmp_path)
    for step in (0, 10, 20):
        sink.write(check_at(step))
    next(tmp_path.glob("check-0000000020-*")).unlink()
    sink.write(check_at(30))
    assert load_history(tmp_path).steps == (0, 10, 30)


def test_a_path_where_no_folder_can_be(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a file")
    sink = HistorySink(tmp_path / "a")
    with pytest.raises(OSError, match="cannot be written to"):
        sink.write(check_at(0))
    (tmp_path / "a").unlink()
    sink.close()
    assert load_history(tmp_path / "a").steps == (0,)


def test_a_file_cut_off_anywhere_is_ignored_and_named(tmp_path: Path) -> None:
    kept(tmp_path, check_at(0), check_at(10))
    file = next(tmp_path.glob("check-0000000010-*"))
    whole = file.read_bytes()
    for length in [*range(0, 64, 7), *range(64, len(whole) - 64, 997), *range(len(whole) - 64, len(whole), 3)]:
        file.write_bytes(whole[:length])
        history = load_history(tmp_path)
        assert history.steps == (0,)
        assert any(file.name in note and "half-written or damaged" in note for note in history.notes)
    file.write_bytes(whole)
    assert load_history(tmp_path).steps == (0, 10)


def test_damage_in_the_middle_is_found_when_values_are_read(tmp_path: Path) -> None:
    kept(tmp_path, check_at(0), check_at(10))
    file = next(tmp_path.glob("check-0000000010-*"))
    damaged = bytearray(file.read_bytes())
    damaged[200:260] = bytes(60)
    file.write_bytes(damaged)
    history = load_history(tmp_path)
    with pytest.raises(ValueError, match=f"{file.name} is damaged"):
        history.report(10)
    assert [report.step for report in history.reports()] == [0]
    assert history.to_pandas()["step"].unique().tolist() == [0]
    assert sum("is damaged" in note for note in history.notes) == 1


def test_foreign_files_are_named_and_ignored(tmp_path: Path) -> None:
    kept(tmp_path, check_at(0))
    (tmp_path / "README.txt").write_text("hello")
    (tmp_path / "check-0000000001-x.parquet").write_bytes(b"PAR1PAR1")
    pyarrow.parquet.write_table(pyarrow.table({"a": [1]}), tmp_path / "other.parquet")
    (tmp_path / ".check-0000000005-20260101T000000000000-00.parquet.part").write_bytes(b"PAR")
    (tmp_path / "folder").mkdir()
    history = load_history(tmp_path)
    assert history.steps == (0,)
    assert len(history.notes) == 4
    assert any("other.parquet: a Parquet file that is no file of a history" in note for note in history.notes)
    assert any("left by a write that was cut off" in note for note in history.notes)


def test_a_folder_of_damaged_files_only_is_an_empty_history(tmp_path: Path) -> None:
    kept(tmp_path, check_at(0))
    file = next(tmp_path.iterdir())
    file.write_bytes(file.read_bytes()[:500])
    history = load_history(tmp_path)
    assert len(history) == 0
    assert len(history.to_pandas()) == len(history.scalars()) == 0
    assert dict(history.to_xarray().sizes)["step"] == 0
    assert history.study is None
    with pytest.raises(KeyError, match="Steps with a check: none"):
        _ = history.last


def test_where_no_history_is(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="is no folder"):
        load_history(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match="holds no history"):
        load_history(tmp_path)
    kept(tmp_path / "runs" / "a" / "lstm_monitor_history", check_at(0))
    assert load_history(tmp_path / "runs").steps == (0,)
    kept(tmp_path / "runs" / "b", check_at(1))
    with pytest.raises(ValueError, match="holds 2 histories; give one of .*lstm_monitor_history, .*b"):
        load_history(tmp_path / "runs")
    for number in range(5):
        kept(tmp_path / "runs" / f"more{number}", check_at(1))
    with pytest.raises(ValueError, match=r"holds 7 histories; give one of .*more3, \.\.\.$"):
        load_history(tmp_path / "runs")


def test_any_filesystem_of_fsspec() -> None:
    url = "memory://runs/of/test_history"
    kept(url, check_at(0), check_at(10), study_at(10))
    history = load_history(url)
    assert history.steps == (0, 10)
    assert differences(history.report(0), check_at(0)) == []
    assert history.study is not None
    assert load_history("memory://runs").path.startswith("memory://")
    fsspec.filesystem("memory").rm("/runs", recursive=True)


WRITE_UNTIL_KILLED = """
import os, signal, sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from tests.helpers.histories import check_at
from lstm_monitor.history.sink import HistorySink
HistorySink(sys.argv[2] + "_before").write(check_at(0))  # all imports are done
for attempt in range(int(sys.argv[3])):
    folder = Path(sys.argv[2], str(attempt))
    child = os.fork()
    if child == 0:
        sink = HistorySink(folder)
        for step in range(10**6):
            sink.write(check_at(step))
    while not list(folder.glob("check*")):
        time.sleep(0.001)
    time.sleep(0.003 * attempt)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
"""


TORCH = {"LSTM_MONITOR_ENGINE": "torch"}  # importing numba takes longer than all the rest


@pytest.mark.parametrize("attempts", [4, pytest.param(12, marks=pytest.mark.thorough)])
def test_processes_killed_in_the_middle_of_writing_leave_whole_checks(attempts: int, tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", WRITE_UNTIL_KILLED, str(root), str(tmp_path / "runs"), str(attempts)]
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1", **TORCH}, timeout=120)
    for attempt in range(attempts):
        history = load_history(tmp_path / "runs" / str(attempt))
        assert history.steps == tuple(range(len(history)))
        assert len(list(history.reports())) == len(history) > 0
        assert all("left by a write that was cut off" in note for note in history.notes)


@pytest.fixture
def _heeds_ctrl_c() -> Iterator[None]:
    """Lightning, and a shell that started the test run in the background, leave it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_heeds_ctrl_c")
def test_ctrl_c_in_the_middle_of_a_write_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sink, sync = HistorySink(tmp_path), os.fsync

    def interrupted(handle: int) -> None:
        monkeypatch.setattr(os, "fsync", sync)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        sink.write(check_at(0))
    assert list(tmp_path.iterdir()) == []
    sink.close()
    assert load_history(tmp_path).steps == (0,)
