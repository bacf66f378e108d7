"""The runner of `make test-trainers` can read every script; the scripts themselves are not run here."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent / "trainers"


def test_every_library_is_pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    pins = (FOLDER / "constraints.txt").read_text(encoding="utf-8")
    required = [item for script in import_module("_scripts").scripts() for item in script.requires]
    for name in {re.split(r"[\[<>=]", item)[0] for item in required} - {"lstm-monitor"}:
        assert re.search(rf"^{name}==\d", pins, re.MULTILINE), name


def test_every_script_says_what_it_needs() -> None:
    command = [sys.executable, str(FOLDER / "run.py"), "no_such_script"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert "no script no_such_script; there are " in done.stderr
    for path in FOLDER.glob("with_*.py"):
        assert path.stem.removeprefix("with_") in done.stderr
