"""The command: what it prints, its exit codes, and a page that needs nothing else."""

import io
import os
import pty
import re
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import lstm_monitor as lm
from lstm_monitor.cli.main import main
from lstm_monitor.cli.terminal import ASCII_BLOCKS, _metric_lines, report_lines, spark
from lstm_monitor.core.records import Alarm
from lstm_monitor.history.comparison.comparing import compare_runs
from lstm_monitor.history.comparison.trajectory import course_of
from lstm_monitor.history.comparison.words import comparison_lines
from lstm_monitor.history.sink import HistorySink
from tests.history.comparison.test_comparing import training

ALARM = Alarm("rnn.l1", "dead", "7 of 8 cells are dead <b>", "lower the learning rate")


def kept(folder: Path, reports: Sequence[lm.Report]) -> Path:
    """The folder of a run with these reports in its history."""
    sink = HistorySink(str(folder / "lstm_monitor_history"))
    for report in reports:
        sink.write(report)
    sink.close()
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs, ``a`` with an ablation check and an alarm, ``b`` without."""
    folder = tmp_path_factory.mktemp("runs")
    with_alarm = [
        replace(r, alarms=(ALARM,), skipped=("x (Odd): odd",)) if r.step == 4 or (r.step == 6 and r.layers) else r
        for r in training(study=True)
    ]
    kept(folder / "a", with_alarm)
    kept(folder / "b", training(nn.GRU, 12))
    return folder


def test_report_shows_how_a_run_went(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(runs / "a")]) == 0
    shown = capsys.readouterr().out
    lines = shown.splitlines()
    assert max(map(len, lines)) <= 80
    assert f"{runs / 'a'}: 4 checks" in shown.replace("\n  ", " ")
    assert "rnn.l0: lstm, 2 features -> 8 cells" in lines
    last = training(study=True)[-1].step
    assert f"step {last}: rnn.l1: 7 of 8 cells are dead" in shown
    assert "alarms (2)" in lines
    assert "the ranking's agreement (tau)" in shown
    assert "not supported: x (Odd): odd" in shown
    assert "ablation of 2 layers" in shown
    assert shown.count("  ablation: ") == 2
    assert "\x1b" not in shown
    (line,) = [line for line in lines if "step/settling_time" in line][:1]
    first, final = (
        f"{np.nanmedian(r['rnn.l0'].metrics['step/settling_time'].cells):.3g}" for r in training(study=True)[:4:3]
    )
    assert line.split()[2:4] == [first, final]
    assert re.search("[▁▂▃▄▅▆▇█]{4}", line)


def test_report_at_a_step(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(runs / "a"), "--step", "2"]) == 0
    shown = capsys.readouterr().out
    assert "2 checks, steps 0 to 2" in shown
    assert "ablation" not in shown
    assert main(["report", str(runs / "a"), "--step", "3"]) == 1
    assert capsys.readouterr().err == "lstm-monitor: there is no check at --step 3; the nearest are 2, 4, 0\n"


def test_compare_prints_the_table_of_compare_runs(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [str(runs / "a"), str(runs / "b")]
    assert main(["compare", *folders]) == 0
    assert capsys.readouterr().out.splitlines() == list(comparison_lines(compare_runs(folders), 80))


def test_characterize_prints_the_layers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = nn.ModuleDict({"rnn": nn.RNN(3, 12), "head": nn.Linear(12, 2)})
    path = tmp_path / "model.ckpt"
    torch.save(model.state_dict(), path)
    assert main(["characterize", str(path)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("lstm-monitor: rnn.l0: one row a cell")
    assert error.count("\n") == 1
    assert main(["characterize", str(path), "--kind", "rnn_tanh", "--rank-by", "settling_time"]) == 0
    shown = capsys.readouterr().out
    assert "rnn.l0: rnn tanh, 3 features -> 12 cells" in shown
    assert "most responsive" in shown
    assert max(map(len, shown.splitlines())) <= 80
    assert main(["characterize", str(path), "--kind", "rnn_tanh", "--html", str(tmp_path / "a.html")]) == 0
    assert "wrote" in capsys.readouterr().out
    assert "over the training" not in (tmp_path / "a.html").read_text().lower()


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--help"], 0),
        (["--version"], 0),
        (["report", "--help"], 0),
        ([], 2),
        (["nothing"], 2),
        (["report"], 2),
        (["compare", "a"], 2),
        (["report", "a", "--step", "x"], 2),
        (["characterize", "a", "--kind", "transformer"], 2),
        (["report", "no/such/run"], 1),
        (["compare", "no/such", "run/here"], 1),
        (["characterize", "no/such.ckpt"], 1),
    ],
)
def test_exit_codes(
    arguments: list[str], code: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main(arguments) == code
    shown = capsys.readouterr()
    assert "Traceback" not in shown.err
    if code == 1:
        assert shown.out == ""
        assert shown.err.startswith("lstm-monitor: ")
        assert shown.err.count("\n") == 1
    assert all(len(line) <= 80 for line in shown.out.splitlines())


def test_an_empty_or_damaged_history_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = kept(tmp_path / "a", training()[:1])
    (file,) = (folder / "lstm_monitor_history").glob("*.parquet")
    file.write_bytes(file.read_bytes()[:-9])
    assert main(["report", str(folder)]) == 1
    error = capsys.readouterr().err
    assert "has no checks" in error
    assert file.name in error


def test_a_bug_is_one_line_too(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("of no\nuse")

    monkeypatch.setattr("lstm_monitor.history.loading.load_history", broken)
    assert main(["report", "a"]) == 1
    assert capsys.readouterr().err == "lstm-monitor: ZeroDivisionError: of no use\n"


class _Page(HTMLParser):
    """What a page refers to, and whether its elements are closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.pictures: list[dict[str, str | None]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.ids += [str(found["id"])] if "id" in found else []
        self.links += [str(found[name]) for name in ("href", "src") if name in found]
        self.pictures += [found] if tag == "img" else []
        assert tag not in ("script", "link", "iframe")
        if tag not in ("meta", "img", "wbr"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_needs_nothing_else(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "a.html"
    assert main(["report", str(runs / "a"), "--html", str(file)]) == 0
    text = file.read_text(encoding="utf-8")
    page = _Page()
    page.feed(text)
    assert page.open == []
    assert all(link.startswith(("#", "data:image/png;base64,")) for link in page.links)
    assert "http" not in text
    assert "url(" not in text
    assert "@import" not in text
    assert {link[1:] for link in page.links if link.startswith("#")} <= set(page.ids)
    assert len(set(page.ids)) == len(page.ids)
    assert {"layer-rnn.l0", "layer-rnn.l1", "alarms", "layers", "reading"} <= set(page.ids)
    assert len(page.pictures) == 2 * 5  # over the training, step responses, gain, ranking, ablation
    assert all(str(picture["alt"]).startswith("rnn.l") for picture in page.pictures)
    assert "cells are dead &lt;b&gt;" in text
    assert "prefers-color-scheme: dark" in text


def test_the_page_cannot_be_written(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(runs / "b"), "--html", str(tmp_path / "no" / "a.html")]) == 1
    assert "No such file or directory" in capsys.readouterr().err


@pytest.mark.browser
@pytest.mark.parametrize("width", [500, pytest.param(1300, marks=pytest.mark.thorough)])
def test_the_page_fits_wide_and_narrow_screens(runs: Path, tmp_path: Path, chromium: str, width: int) -> None:
    file = tmp_path / "a.html"
    main(["report", str(runs / "a"), "--html", str(file)])
    seen = "innerWidth, document.documentElement.scrollWidth, [...document.images].every(i => i.decode)"
    probe = f"<script>document.title = [{seen}]</script>"
    file.write_text(file.read_text().replace("</body>", f"{probe}</body>"))
    quiet = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
             "--disable-component-update", "--disable-sync"]  # fmt: skip
    asked = [
        chromium,
        *quiet,
        f"--user-data-dir={tmp_path / 'profile'}",
        f"--window-size={width},900",
        "--dump-dom",
    ]
    dom = subprocess.run([*asked, file.as_uri()], capture_output=True, text=True, timeout=120, check=True).stdout
    found = re.search(r"<title>(\d+),(\d+),true</title>", dom)
    assert found is not None
    assert int(found[2]) <= int(found[1])


def test_the_module_is_the_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "lstm_monitor", "--version"], capture_output=True, text=True, check=True
    )
    assert re.fullmatch(r"lstm-monitor \S.*\n", done.stdout)


def test_bold_only_in_a_terminal(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    leader, follower = pty.openpty()
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    shown: list[bytes] = []
    reading = threading.Thread(target=lambda: shown.extend(iter(lambda: _read(leader), b"")))
    reading.start()  # a terminal holds few lines that nobody has read
    with open(follower, "w", encoding="utf-8") as terminal, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", terminal)
        assert main(["report", str(runs / "b")]) == 0
    reading.join(60)
    assert b"\x1b[1mrnn.l0: gru" in b"".join(shown)
    os.close(leader)


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:  # how Linux says that the other end is closed
        return b""


def test_a_plain_encoding_is_no_error(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", plain)
        assert main(["report", str(runs / "a")]) == 0
    plain.flush()
    assert re.search(r"[-_.:=+*#]{4}$", plain.buffer.getvalue().decode("ascii"), re.MULTILINE)


@pytest.mark.thorough
def test_a_closed_pipe_is_no_error(runs: Path) -> None:
    asked = [sys.executable, "-m", "lstm_monitor", "report", str(runs / "a")]
    with subprocess.Popen(asked, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == b""


def test_sparks() -> None:
    assert spark(np.array([1.0, 1.0]), 8) == "▁▁"
    assert spark(np.full(3, np.nan), 8) == "   "
    assert spark(np.arange(80.0), 8, ASCII_BLOCKS) == ASCII_BLOCKS
    assert spark(np.array([0.0, np.nan, 7.0]), 8) == "▁ █"


def test_one_check_without_data_or_step() -> None:
    report = lm.characterize(nn.GRU(1, 1))
    lines = list(report_lines(course_of([report], "alone")))
    assert lines[0] == "alone: 1 check"
    assert "l0: gru, 1 feature -> 1 cell" in lines
    assert not any("first" in line and "last" in line for line in lines[:6])


@pytest.mark.parametrize("width", [66, 80, 120])
def test_the_table_of_a_layer_fits_and_its_columns_stay_apart(width: int) -> None:
    reports = [replace(report, step=k) for k, report in enumerate([lm.characterize(nn.LSTM(1, 1))] * 30)]
    (layer,) = course_of(reports).layers
    small = {path: values * 0 + 0.00123 for path, values in layer.quantiles.items()}
    lines = list(report_lines(course_of(reports), width)) + list(
        _metric_lines(replace(layer, quantiles=small), width, "#")
    )
    assert max(map(len, lines)) <= width
    assert "0.001230.00123" not in "".join(lines)


def test_a_step_where_no_check_has_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = kept(tmp_path, [lm.characterize(nn.GRU(1, 2), horizon=16)])
    assert main(["report", str(folder), "--step", "0"]) == 1
    assert "no check here has a step" in capsys.readouterr().err
