"""Reports in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lstm_monitor as lm
from tests.conformance.sinks import SinkSetup, Written


class Memory(SinkSetup):
    name = "memory"
    sink = "MemorySink"

    def make(self, folder: Path) -> Any:
        self.made = lm.MemorySink()
        return self.made

    def read(self, folder: Path) -> Written:
        return [(report.step, report.scalars()) for report in self.made.reports if report.layers]

    survives_copies = False


PARTS = [Memory()]
