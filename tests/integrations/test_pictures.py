"""When a sink draws: at the reports whose turn it is, where the monitor has room for it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lstm_monitor.integrations._pictures import Pictures
from lstm_monitor.report.report import Report

REPORTS = [replace(Report(()), step=step) for step in range(7)]


@pytest.mark.parametrize(
    ("every", "room", "drawn"),
    [
        (None, "1111111", [0, 1, 2, 3, 4, 5, 6]),
        (None, "1000000", [0, 6]),
        (3, "1111111", [0, 3, 6]),
        (4, "1111111", [0, 4, 6]),
        (3, "1000010", [0, 5, 6]),
        (0, "1111111", []),
    ],
)
def test_which_reports_are_drawn(every: int | None, room: str, drawn: list[int]) -> None:
    pictures, steps = Pictures(every), []
    for report, has_room in zip(REPORTS, room, strict=True):
        pictures.offer(replace(report, may_draw=has_room == "1"), lambda report: steps.append(report.step))
    pictures.finish(lambda report: steps.append(report.step))
    assert steps == drawn
    assert (pictures.seconds > 0) == bool(drawn)
