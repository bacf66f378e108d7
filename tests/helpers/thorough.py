"""What `make test` leaves to `make test-all`: tests marked ``thorough``, which are long and seldom tell anything new.

A plugin of pytest that `conftest.py` loads. ``--thorough`` runs them as well, and property tests draw more examples.
"""

from __future__ import annotations

import os
from typing import Any

import pytest

VARIABLE = "LSTM_MONITOR_THOROUGH_TESTS"
LEFT_OUT = pytest.StashKey[int]()


def examples(few: int, many: int) -> int:
    """How many examples a property test draws."""
    return many if os.environ.get(VARIABLE) == "1" else few


def pytest_addoption(parser: pytest.Parser) -> None:
    """The switch."""
    parser.addoption("--thorough", action="store_true", help="run the tests marked `thorough`, too")


def pytest_configure(config: pytest.Config) -> None:
    """Tell it to the modules that ask for `examples`, here and in the workers of pytest-xdist."""
    config.stash[LEFT_OUT] = 0
    if config.getoption("--thorough"):
        os.environ[VARIABLE] = "1"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave them out."""
    left_out = [] if config.getoption("--thorough") else [i for i in items if i.get_closest_marker("thorough")]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not item.get_closest_marker("thorough")]
    config.stash[LEFT_OUT] = len(left_out)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A worker of pytest-xdist tells the process that writes the summary."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["left_out"] = session.config.stash[LEFT_OUT]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Each worker has collected all tests, so each left out as many."""
    node.config.stash[LEFT_OUT] = getattr(node, "workeroutput", {}).get("left_out", 0)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say how many were left out, and what runs them."""
    if count := config.stash[LEFT_OUT]:
        terminalreporter.write_line(
            f"{count} thorough tests were left out, and property tests drew fewer examples: "
            "`make test-all`, or pytest with --thorough, runs them."
        )
