"""A plug-in for pytest: what came of each test, as rows of the page; and a new process where CUDA is lost."""

from __future__ import annotations

import os

import pytest

from gpu.parts import POISONED, done_before, is_lost
from gpu.telling import begun, row, table, verdict

NOT_RUN = "not run"
"""The property in which a test says why it did nothing here."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests that were begun in an earlier process are not run again."""
    done = done_before()
    config.hook.pytest_deselected(items=[item for item in items if item.nodeid in done])
    items[:] = [item for item in items if item.nodeid not in done]
    table("Found in this run.", "what", "came out", "seconds", "figures")


def pytest_runtest_logstart(nodeid: str) -> None:
    """From now on the process may die in this test."""
    begun(nodeid)


@pytest.hookimpl(trylast=True)
def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """A row for the test, or for what failed around it."""
    if report.when == "call" or not report.passed:
        figures, is_run = dict(report.user_properties), NOT_RUN not in dict(report.user_properties)
        said = [str(figures.pop(NOT_RUN, "")), *(f"{name} {value}" for name, value in figures.items()), _reason(report)]
        outcome = (report.outcome if is_run else NOT_RUN) if report.passed else f"**{report.outcome}**"
        row(_name(report.nodeid), outcome, f"{report.duration:.1f}", ", ".join(part for part in said if part))
        verdict(report.nodeid, passed=report.passed if is_run or report.failed else None)
    if report.failed and is_lost():
        row(_name(report.nodeid), "CUDA is lost in this process", "", "the rest runs in a new one")
        os._exit(POISONED)


def _name(nodeid: str) -> str:
    return nodeid.partition("::")[2].removeprefix("test_").replace("_", " ")


def _reason(report: pytest.TestReport) -> str:
    """The last lines of what pytest has to say, and what was logged; nothing where the test passed."""
    if report.passed:
        return ""
    lines = [line.strip() for line in report.longreprtext.splitlines() if line.strip()]
    told = [line.removeprefix("E").strip() for line in lines if line.startswith("E ")]
    logged = [line for line in report.caplog.splitlines() if line.strip()][-2:]
    return " / ".join([*(told[:4] or lines[-3:]), *lines[-1:], *logged])[:900]
