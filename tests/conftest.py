"""Every test starts from the same random states, whatever ran before it."""

import gc
import random
import time
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from lstm_monitor.engines import choice
from lstm_monitor.layers.registered import registry
from tests.helpers.clocks import QuietClock


def pytest_collection_finish() -> None:
    """All that was imported stays: no collection of garbage, of which trainers ask for many, has to walk through it."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish() -> None:
    """Libraries that count what is left at the end find it gone."""
    gc.unfreeze()


@pytest.fixture(autouse=True)
def _same_random_states() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture
def quiet_clock(monkeypatch: pytest.MonkeyPatch) -> QuietClock:
    """Everything that is timed goes by this clock."""
    clock = QuietClock()
    monkeypatch.setattr(time, "perf_counter", clock.perf_counter)
    return clock


@pytest.fixture(autouse=True)
def _no_engine_gives_way() -> Iterator[None]:
    """One that fails gives way to torch's with the same numbers, and every later test would run that one unnoticed."""
    yield
    given_up = set(choice._given_up)
    choice._given_up.clear()
    assert not given_up


@pytest.fixture(autouse=True)
def _no_registered_cell_stays() -> Iterator[None]:
    """A test that registers one for good, as the README's blocks do, leaves it to no other."""
    before = dict(registry._REGISTERED)
    yield
    registry._REGISTERED.clear()
    registry._REGISTERED.update(before)
