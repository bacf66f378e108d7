"""What `make test` leaves to `make test-all`: tests marked ``thorough``, which are long and seldom tell anything new.

Of a test marked ``sweep``, which crosses several parameters, these are the cases beyond those in which each two values
meet. A plugin of pytest that `conftest.py` loads. ``--thorough`` runs all, and property tests draw more examples.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Sequence
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
    if config.getoption("--thorough"):
        return
    for cases in _sweeps(items):
        for item in _beyond_pairs(cases):
            item.add_marker("thorough")
    left_out = [item for item in items if item.get_closest_marker("thorough")]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not item.get_closest_marker("thorough")]
    config.stash[LEFT_OUT] = len(left_out)


def _sweeps(items: Sequence[pytest.Item]) -> Iterable[list[pytest.Item]]:
    """The cases of each test that is a sweep."""
    found: dict[str, list[pytest.Item]] = {}
    for item in items:
        if item.get_closest_marker("sweep"):
            found.setdefault(item.nodeid.partition("[")[0], []).append(item)
    return found.values()


def _beyond_pairs(cases: Sequence[Any]) -> list[Any]:
    """The cases without which each two values of different parameters meet still; always the same ones.

    Greedy: those are kept in which most pairs meet that did not before.
    """
    pairs = {case: _pairs(case) for case in cases}
    missing = set().union(*pairs.values())
    left = list(cases)
    while missing:
        best = max(left, key=lambda case: len(missing & pairs[case]))
        missing -= pairs[best]
        left.remove(best)
    return left


def _pairs(case: Any) -> set[frozenset[tuple[str, str]]]:
    values = [(name, str(value)) for name, value in case.callspec.params.items()]
    return {frozenset(pair) for pair in itertools.combinations_with_replacement(values, 2)}


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
