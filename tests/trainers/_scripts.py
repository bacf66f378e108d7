"""The scripts beside this file: what they say of themselves, and what came of running one."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
MARK = "RESULTS "
SAID = ("REQUIRES", "MINUTES", "FAST", "ENVIRONMENT")
QUIET = {"WANDB_MODE": "offline", "HF_HUB_OFFLINE": "1", "MPLBACKEND": "Agg", "OMP_NUM_THREADS": "1"}


@dataclass(frozen=True)
class Script:
    """A script by its name, such as ``darts_rnn``, with what its docstring and its plain assignments say."""

    name: str
    title: str
    requires: Sequence[str]
    minutes: float
    fast: bool
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def path(self) -> Path:
        """Its file."""
        return HERE / f"with_{self.name}.py"


@dataclass(frozen=True)
class Outcome:
    """What came of a script: its results, or the last lines of what went wrong; in how many seconds."""

    script: Script
    results: Mapping[str, Any] | None
    error: str
    seconds: float


def scripts() -> list[Script]:
    """All scripts, by name."""
    return [read(path) for path in sorted(HERE.glob("with_*.py"))]


def read(path: Path) -> Script:
    """What a script says of itself, without running it.

    Raises:
        ValueError: it lacks its docstring, ``REQUIRES``, ``MINUTES`` or ``FAST``.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"))
    said = dict(_assigned(tree))
    lacking = [name for name in SAID[:3] if name not in said]
    title = (ast.get_docstring(tree) or "").partition("\n")[0]
    if lacking or not title:
        raise ValueError(f"{path.name} lacks {', '.join(lacking) or 'its docstring'}; see the docstring of common.py")
    known = {name.lower(): ast.literal_eval(said[name]) for name in SAID if name in said}
    return Script(path.stem.removeprefix("with_"), title, **known)


def _assigned(tree: ast.Module) -> Iterator[tuple[str, ast.expr]]:
    for node in tree.body:
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            yield ast.unparse(target), node.value


def run(script: Script, python: Path, *, keep: bool = False) -> Outcome:
    """Run a script in an empty folder, for three times as long as it says at most."""
    place, began = tempfile.mkdtemp(prefix=f"{script.name}-"), time.monotonic()
    command, limit = [str(python), str(script.path)], 180 * script.minutes
    settings = {**os.environ, **QUIET, **script.environment}
    try:
        done = subprocess.run(command, cwd=place, env=settings, capture_output=True, text=True, timeout=limit)
        found, error = _results(done)
    except subprocess.TimeoutExpired:
        found, error = None, f"stopped after {limit:.0f} s"
    finally:
        print(f"  {place}") if keep else shutil.rmtree(place, ignore_errors=True)
    return Outcome(script, found, error, time.monotonic() - began)


def _results(done: subprocess.CompletedProcess[str]) -> tuple[dict[str, Any] | None, str]:
    """What `finish` printed, or else the last lines."""
    lines = done.stdout.splitlines()
    marked = [line.removeprefix(MARK) for line in lines if line.startswith(MARK)]
    if done.returncode == 0 and marked:
        return json.loads(marked[-1]), ""
    last = done.stderr.strip().splitlines()[-15:] or lines[-5:] or ["it printed no results: end with finish(main())"]
    return None, "\n".join(last)
