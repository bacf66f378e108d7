"""A library that owns its loop: its optimizer is watched."""

from __future__ import annotations

import copy
from typing import Any

import lstm_monitor as lm
from lstm_monitor.monitor.watching import watch_optimizer
from tests.conformance.host_plain import Loop
from tests.conformance.hosts import Task


class Options:
    """What a user keeps until the library trains."""

    def __init__(self, **options: Any) -> None:
        self.options = options
        self.report: lm.Report | None = None


class Watched(Loop):
    """It cannot be resumed: the state of the optimizer's hooks is in no checkpoint."""

    name = "watched optimizer"
    resumes = False

    def make(self, **options: Any) -> Any:
        return Options(**options)

    def fit(self, task: Task, ours: Any | None) -> None:
        if ours is None:
            super().fit(task, None)
            return
        with watch_optimizer(task.model, every_n_steps=1, **ours.options) as monitor:
            try:
                super().fit(copy.copy(task), None)
            finally:
                ours.report = monitor.report
        ours.report = monitor.report


PARTS = [Watched()]
ADAPTERS: set[str] = set()
