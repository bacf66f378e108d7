"""The runner of `make test-trainers` can read every script; the scripts themselves are not run here."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parent / "trainers"


def test_every_script_says_what_it_needs() -> None:
    command = [sys.executable, str(FOLDER / "run.py"), "no_such_script"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert "no script no_such_script; there are " in done.stderr
    for path in FOLDER.glob("with_*.py"):
        assert path.stem.removeprefix("with_") in done.stderr
