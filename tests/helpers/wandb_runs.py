"""Offline W&B runs for tests, and what they wrote, read back by W&B's own reader."""

from __future__ import annotations

import gc
import json
import subprocess
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import wandb
from wandb.util import get_core_path

QUIET = {"silent": True, "console": "off", "x_disable_stats": True, "x_disable_meta": True, "disable_git": True,
         "save_code": False}  # fmt: skip


def start(folder: Path, **options: Any) -> wandb.Run:
    """An offline run below `folder` that watches nothing of the machine."""
    settings = wandb.Settings(**QUIET)
    return wandb.init(**{"mode": "offline", "project": "tests", "dir": str(folder), "settings": settings} | options)


@dataclass(frozen=True)
class Written:
    """What a run wrote: ``rows`` of its history in order, each with its ``_step``, and the last value of the rest.

    Values that are media are dicts with their ``_type``; ``files`` is where their paths start. ``metrics`` are the
    defined ones by name, ``alerts`` in order, ``config`` with ``.`` between the parts of nested names.
    """

    rows: list[dict[str, Any]]
    summary: dict[str, Any]
    metrics: dict[str, dict[str, Any]]
    alerts: list[dict[str, Any]]
    config: dict[str, Any]
    files: Path

    def values(self, name: str) -> list[Any]:
        """A metric in all rows that have it."""
        return [row[name] for row in self.rows if name in row]

    def table(self, name: str, at: int = -1) -> tuple[list[str], list[list[Any]]]:
        """Columns and rows of a table that was logged, by default the last one."""
        content = json.loads((self.files / self.values(name)[at]["path"]).read_text(encoding="utf-8"))
        return content["columns"], content["data"]


def finish_all() -> None:
    """Finish every run and wait until its file is complete, which is later than ``run.finish()`` returns."""
    wandb.teardown()
    with warnings.catch_warnings():  # wandb leaves the temporary folders of its tables to the garbage collector
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


def read_run(folder: Path | str, *, finished: bool = False) -> Written:
    """Everything in the newest run at or below `folder`: that of the run, of several, or the one given to `start`.

    All runs are finished first, unless they are `finished`.
    """
    if not finished:
        finish_all()
    path = max(Path(folder).rglob("run-*.wandb"), key=lambda found: found.stat().st_mtime_ns)
    reader = [get_core_path(), "leet", "inspect", "--no-observability", "--json"]  # what ``wandb leet inspect`` starts
    command = [*reader, "--run-file", str(path), str(path.parents[1])]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    return _written([json.loads(line) for line in lines], path.parent / "files")


def _written(records: list[dict[str, Any]], files: Path) -> Written:
    def of(kind: str) -> list[dict[str, Any]]:
        return [record[kind] for record in records if record["type"] == kind]

    metrics = {metric.get("name") or metric["glob_name"]: metric for metric in of("metric")}
    return Written(
        [_nested(item["item"]) for item in of("history")],
        _nested(_merged(item.get("update", {}) for item in of("summary"))),
        metrics,
        of("alert"),
        _merged(item.get("update", {}) for item in of("config")),
        files,
    )


def _merged(parts: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    return {name: value for part in parts for name, value in part.items()}


def _nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Media values as dicts again: the reader writes ``name._type``, ``name.path`` and so on."""
    media = [name.removesuffix("._type") for name in flat if name.endswith("._type")]
    found: dict[str, Any] = {name: {} for name in media}
    for name, value in flat.items():
        owner = next((owner for owner in media if name.startswith(f"{owner}.")), None)
        if owner is None:
            found[name] = value
        else:
            found[owner][name[len(owner) + 1 :]] = value
    return found
