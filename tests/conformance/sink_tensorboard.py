"""TensorBoard's event files, read back by its own accumulator."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

from lstm_monitor.integrations import TensorBoardSink
from tests.conformance.sinks import SinkSetup, Written


class TensorBoard(SinkSetup):
    name = "tensorboard"
    sink = "TensorBoardSink"
    exact = False

    def make(self, folder: Path) -> Any:
        return TensorBoardSink(folder / "tb", pictures_every=0)

    def read(self, folder: Path) -> Written:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        events = EventAccumulator(str(folder / "tb"), size_guidance={"scalars": 0})
        events.Reload()
        rows: dict[int, dict[str, float]] = defaultdict(dict)
        for tag in events.Tags()["scalars"]:
            for event in events.Scalars(tag):
                rows[event.step][tag] = event.value
        return sorted(rows.items())


PARTS = [TensorBoard()]
