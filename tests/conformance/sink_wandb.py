"""An offline W&B run, read back by W&B's own reader."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lstm_monitor.integrations import WandbSink
from lstm_monitor.report.keys import run_key
from tests.conformance.sinks import SinkSetup, Written
from tests.helpers.wandb_runs import read_run, start


class Wandb(SinkSetup):
    """The user's run, one for each session."""

    name = "wandb"
    sink = "WandbSink"

    def make(self, folder: Path) -> Any:
        self.run = start(folder, reinit="finish_previous")
        return WandbSink(self.run, pictures_every=0)

    def end(self) -> None:
        self.run.finish()

    def read(self, folder: Path) -> Written:
        runs = [read_run(path) for path in sorted((folder / "wandb").glob("offline-run-*"), key=_age)]
        rows = [row for run in runs for row in run.rows if run_key("checks") in row]
        return [(int(row[run_key("step")]), _numbers(row)) for row in rows]


def _numbers(row: dict[str, Any]) -> dict[str, float]:
    return {key: value for key, value in row.items() if isinstance(value, float | int)}


def _age(path: Path) -> int:
    return path.stat().st_mtime_ns


PARTS = [Wandb()]
