"""The history, read back from its files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lstm_monitor as lm
from tests.conformance.sinks import SinkSetup, Written


class History(SinkSetup):
    """With the weights, so that the snapshots are kept as well."""

    name = "history"
    sink = "HistorySink"

    def make(self, folder: Path) -> Any:
        return lm.HistorySink(folder / "history", save_weights=True)

    def read(self, folder: Path) -> Written:
        history = lm.load_history(folder / "history")
        assert not [note for note in history.notes if "half" in note or "missing" in note], history.notes
        return [(report.step, report.scalars()) for report in history.reports()]


PARTS = [History()]
