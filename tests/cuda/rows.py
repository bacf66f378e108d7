"""A plug-in: what came of each test, as rows of the page of `make gpu`; and a new process where CUDA is lost."""

import os

import pytest
from gpu.parts import POISONED, done_before, is_lost
from gpu.telling import begun, row, table, verdict


def pytest_collection_modifyitems(config, items):
    """Tests that were begun in an earlier process are not run again."""
    done = done_before()
    config.hook.pytest_deselected(items=[item for item in items if item.nodeid in done])
    items[:] = [item for item in items if item.nodeid not in done]
    if not done:
        table("Found in this run.", "what", "came out", "seconds", "figures")


def pytest_runtest_logstart(nodeid):
    begun(nodeid)


@pytest.hookimpl(trylast=True)
def pytest_runtest_logreport(report):
    failed = report.outcome == "failed"
    if report.when == "call" or failed:
        figures = ", ".join(f"{name} {value}" for name, value in report.user_properties)
        said = "; ".join(part for part in (figures, _reason(report) if failed else "") if part)
        row(_name(report.nodeid), "**failed**" if failed else "passed", f"{report.duration:.1f}", said)
        verdict(report.nodeid, passed=not failed)
    elif report.outcome == "skipped":
        row(_name(report.nodeid), "**skipped**", "", str(report.longrepr))
        verdict(report.nodeid, passed=False)
    if failed and is_lost():
        row(_name(report.nodeid), "CUDA is lost in this process", "", "the rest runs in a new one")
        os._exit(POISONED)


def _name(nodeid):
    return nodeid.partition("::")[2].removeprefix("test_").replace("_", " ")


def _reason(report):
    """The last lines of what pytest has to say."""
    lines = [line.strip() for line in report.longreprtext.splitlines() if line.strip()]
    told = [line.removeprefix("E").strip() for line in lines if line.startswith("E ")]
    return " / ".join([*told[:4], lines[-1]] if told else lines[-3:])[:700]
