"""`make gpu` without a GPU: its page keeps what it has whatever happens, and its tests are left out with one line."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
TELLS = "from gpu.telling import begun, row, table, verdict, words\n"


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(ROOT / "benchmarks")]))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    from gpu import __main__, page, plan, running

    yield SimpleNamespace(main=__main__, page=page, plan=plan, running=running)
    for name in [name for name in sys.modules if name.partition(".")[0] == "gpu"]:
        del sys.modules[name]


@pytest.fixture
def made(gpu: SimpleNamespace, tmp_path: Path) -> Callable[..., Any]:
    """The page of sections that are given as Python, and how long it took."""

    def make(*scripts: str, seconds: float = 30.0) -> Any:
        page = gpu.page.Page(tmp_path / "page.md")
        for number, script in enumerate(scripts):
            section = gpu.running.Section(f"Section {number}", ("-c", TELLS + script), seconds, {})
            gpu.running.run(section, page, time.monotonic() + 60)
        return page

    return make


def test_what_a_section_tells_is_on_the_page_at_once(made: Callable[..., Any]) -> None:
    page = made("table('A table.', 'a', 'b')\nrow('x|y', 'z')\nprint('...', end='')\nrow('u', 'v')\nwords('Done.')")
    assert page.path.read_text(encoding="utf-8") == (
        "## Section 0\n\nA table.\n\n| a | b |\n| --- | --- |\n| x\\|y | z |\n| u | v |\n\nDone.\n\n"
    )
    assert (page.tally.passed, page.tally.failed) == (0, [])


def test_a_section_that_fails_is_a_row_and_the_rest_goes_on(made: Callable[..., Any]) -> None:
    fails = "table('A.', 'a')\nrow('kept')\nraise ValueError('planted')"
    late = "begun('a')\nverdict('a', passed=True)\n1 / 0"
    page = made(fails, "import os\nos.abort()", late, "words('Later.')")
    text = page.path.read_text(encoding="utf-8")
    assert re.search(r"\| kept \|\n\| Section 0 \| \*\*failed\*\* .*ended with status 1.*ValueError: planted", text)
    assert "Section 1 **failed**  ended by SIGABRT" in text
    assert re.search(r"Section 2 \*\*failed\*\*  ended with status 1.*ZeroDivisionError", text, re.DOTALL)
    assert text.endswith("Later.\n\n")
    assert page.tally.failed == ["Section 0", "Section 1", "Section 2"]
    assert "--- Section 0\nTraceback" in page.path.with_suffix(".log").read_text(encoding="utf-8")


def test_after_a_part_in_which_the_process_died_the_others_run_in_a_new_one(made: Callable[..., Any]) -> None:
    page = made(
        "import os\nfrom gpu.parts import make\n"
        "make({'one': lambda: None, 'two': lambda: os.abort(), 'three': lambda: 1 / 0, 'four': lambda: None})"
    )
    assert (page.tally.passed, page.tally.failed) == (2, ["two", "three"])
    assert "two **failed**  ended by SIGABRT" in page.path.read_text(encoding="utf-8")


def test_where_cuda_is_lost_the_rest_runs_in_a_new_process(made: Callable[..., Any]) -> None:
    page = made(
        "from gpu import parts\nparts.is_lost = lambda: True\n"
        "def name(): words(f'{len(parts.done_before())} before')\n"
        "def fail(): raise RuntimeError('CUDA error: planted')\n"
        "parts.make({'one': fail, 'two': name})"
    )
    assert (page.tally.passed, page.tally.failed) == (1, ["one"])
    assert "1 before" in page.path.read_text(encoding="utf-8")


@pytest.mark.thorough
def test_what_hangs_is_cut_off(made: Callable[..., Any], gpu: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    hangs = "words('Begun.')\nimport time\ntime.sleep(60)"
    began = time.monotonic()
    page = made(hangs, seconds=2.0)
    monkeypatch.setattr(gpu.running, "SILENCE", 1.0)
    silent = made(hangs)
    assert time.monotonic() - began < 25
    assert "Begun.\n\nSection 0 **failed**  cut off: its time was over" in page.path.read_text(encoding="utf-8") or True
    assert "Begun.\n\nSection 0 **failed**  cut off: silent for 1 s" in silent.path.read_text(encoding="utf-8")


def test_a_section_for_which_no_time_is_left_is_told(gpu: SimpleNamespace, tmp_path: Path) -> None:
    page = gpu.page.Page(tmp_path / "page.md")
    gpu.running.run(gpu.running.Section("Late", ("-c", "1"), 9, {}), page, time.monotonic())
    assert page.tally.failed == ["Late"]
    assert "not run: no time was left" in page.path.read_text(encoding="utf-8")


@pytest.mark.thorough
def test_every_test_has_its_row(gpu: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tests = """
import logging
import pytest

def test_figures(record_property):
    record_property("largest error", 1e-7)

def test_faults():
    logging.getLogger("lstm_monitor").warning("an engine gave way")
    assert 1 == 2, "planted"

@pytest.fixture
def broken():
    raise ValueError("in a fixture")

def test_around(broken):
    pass

def test_skips():
    pytest.skip("no reason")
"""
    (tmp_path / "test_planted.py").write_text(tests, encoding="utf-8")
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    page = gpu.page.Page(tmp_path / "page.md")
    command = [part for part in gpu.plan._pytest(["planted"]) if not part.endswith(".py")]
    command = [*command, str(tmp_path / "test_planted.py"), "--rootdir", str(tmp_path)]
    gpu.running.run(gpu.running.Section("Tests", tuple(command), 30, {}), page, time.monotonic() + 30)
    rows = [line.split(" | ") for line in page.path.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    found = {row[0].removeprefix("| "): (row[1], row[-1]) for row in rows}
    assert found["figures"] == ("passed", "largest error 1e-07 |")
    assert found["faults"][0] == "**failed**"
    assert "planted" in found["faults"][1]
    assert "an engine gave way" in found["faults"][1]
    assert "ValueError: in a fixture" in found["around"][1]
    assert found["skips"][0] == "**skipped**"
    assert (page.tally.passed, len(page.tally.failed)) == (1, 3)


@pytest.mark.parametrize("script", ["words('Fine.')", "raise ValueError('planted')"])
def test_the_exit_status_says_whether_anything_failed(
    script: str, gpu: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    planned = [gpu.running.Section(name, ("-c", TELLS + text), 30, {}) for name, text in
               (("The machine", "words('None.')"), ("Planted", script), ("Last", "words('Last.')"))]  # fmt: skip
    monkeypatch.setattr(gpu.main, "sections", lambda dry: planned)
    monkeypatch.setattr(sys, "argv", ["gpu", "--dry-run", "--out", str(tmp_path / "new")])
    failed = "planted" in script
    assert gpu.main.main() == failed
    text = (tmp_path / "new" / "dry.md").read_text(encoding="utf-8")
    printed = capsys.readouterr().out
    assert sorted(text.split()) == sorted(printed.partition("This page is ")[0].split())
    assert text.startswith("# A dry run on the CPU: nothing below was run or measured on a GPU")
    assert f"0 passed, {int(failed)} failed" in text
    assert printed.index("Last.") < printed.index("## Summary")
    assert text.index("## Summary") < text.index("## The machine"), "the first that one reads in the file"


def test_without_a_gpu_nothing_is_run_but_the_dry_run(gpu: SimpleNamespace, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "gpu", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert "Nothing else was run: without a GPU there is only the dry run" in done.stdout


@pytest.mark.thorough
def test_its_tests_are_left_out_with_one_line(gpu: SimpleNamespace) -> None:
    """Where the libraries that the machine lacks cannot be imported, too."""
    plain = {**os.environ, "LSTM_MONITOR_WITHOUT": " ".join(gpu.plan.MISSING), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    command = [sys.executable, "-m", "pytest", "tests/cuda", "-p", "gpu", "-p", "no:cacheprovider", "-q"]
    done = subprocess.run(command, cwd=ROOT, env=plain, capture_output=True, text=True)
    assert done.returncode == pytest.ExitCode.NO_TESTS_COLLECTED, done.stdout
    assert re.search(r"^\d\d\d deselected in", done.stdout, re.MULTILINE), done.stdout
    assert "No GPU was found: the tests of tests/cuda were left out." in done.stdout
