"""Small environments, one for each list of requirements, over one that holds torch."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / ".venv-trainers"
PINS = Path(__file__).with_name("constraints.txt")
ALWAYS = ("statsmodels", "scikit-learn")
EXTRAS = ("tensorboard", "plots")
INSTALL_SECONDS = 1800
_OWN = re.compile(r"lstm-monitor\[(.+)\]")


class CannotInstallError(Exception):
    """pip failed; the message holds its last lines."""


def environment(requires: Sequence[str], *, fresh: bool = False, newest: bool = False) -> Path:
    """The Python of an environment with torch, the project as it is in this tree, and `requires`; made where it is not.

    The releases are those of ``constraints.txt`` beside this file, or the ``newest``, in an environment made anew.

    Raises:
        CannotInstallError: something cannot be installed beside the pinned torch.
    """
    torch = _made("torch", [_torch_pin()], _torch_pin(), fresh=False)
    name, pins = name_of(requires), _torch_pin() if newest else f"{_torch_pin()}\n{PINS.read_text(encoding='utf-8')}"
    return _made(f"{name}_newest" if newest else name, _wanted(requires), pins, over=torch, fresh=fresh or newest)


def name_of(requires: Sequence[str]) -> str:
    """The folder of an environment: ``darts`` for ``["darts>=0.36"]``, ``plain`` for nothing."""
    words = (re.sub(r"[^a-z0-9]+", "-", re.split("[<>=!~;]", item.lower())[0]).strip("-") for item in requires)
    return "_".join(words) or "plain"


def _wanted(requires: Sequence[str]) -> list[str]:
    """What pip is given: extras of the project, written as ``lstm-monitor[keras]``, go into the project's own line."""
    own = [match[1] for item in requires if (match := _OWN.fullmatch(item))]
    others = [item for item in requires if not _OWN.fullmatch(item)]
    return ["--editable", f"{ROOT}[{','.join([*EXTRAS, *own])}]", *ALWAYS, *others]


def _metadata() -> str:
    """What the project itself requires: an environment is made anew where that has changed."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return str((project["dependencies"], project["optional-dependencies"]))


def _torch_pin() -> str:
    """The line of constraints.txt: the other pins there are not for these environments."""
    return next(line for line in (ROOT / "constraints.txt").read_text().splitlines() if line.startswith("torch=="))


def _made(name: str, wanted: list[str], pins: str, *, over: Path | None = None, fresh: bool) -> Path:
    folder = FOLDER / name
    ready, content = folder / "ready", "\n".join([*wanted, pins, "" if over is None else _metadata()])
    with _alone(name):
        if fresh or not ready.exists() or ready.read_text() != content:
            _make(folder, wanted, pins, over)
            ready.write_text(content)
    return folder / "bin" / "python"


def _make(folder: Path, wanted: list[str], pins: str, over: Path | None) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    _call([sys.executable, "-m", "venv", str(folder)])
    if over is not None:
        (_packages(folder) / "below.pth").write_text(f"{_packages(over.parents[1])}\n")
    kept = folder / "pins.txt"
    kept.write_text(pins + "\n")
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--constraint", str(kept)]
    _call([*pip, *wanted])


@contextmanager
def _alone(name: str) -> Iterator[None]:
    """Only one process makes an environment; others wait for it."""
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / ".gitignore").write_text("*\n")
    with (FOLDER / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _packages(folder: Path) -> Path:
    return next((folder / "lib").glob("python*/site-packages"))


def _call(command: list[str]) -> None:
    settings = os.environ | {"PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=settings, timeout=INSTALL_SECONDS, check=False)
    if done.returncode != 0:
        raise CannotInstallError("\n".join((done.stdout + done.stderr).strip().splitlines()[-12:]))
