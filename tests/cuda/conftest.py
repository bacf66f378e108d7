"""Errors of a kernel belong to the test that launched it, and what a test found is shown on the page of `make gpu`."""

import os

import pytest
import torch

from lstm_monitor.monitor import budget, check
from lstm_monitor.monitor.background import BackgroundCheck
from tests.cuda import interpreted, place

interpreted.mend()
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # before CUDA is used


@pytest.fixture(autouse=True)
def _all_done():
    yield
    place.wait()


@pytest.fixture(autouse=True)
def _beside_as_on_a_gpu(monkeypatch):
    """In a dry run periodic checks are worked out in a thread too, only without a stream of its own."""
    if place.DRY:
        monkeypatch.setattr(check, "_cuda_device", lambda model: torch.device("cuda"))
        monkeypatch.setattr(check, "BackgroundCheck", lambda device: BackgroundCheck())
        monkeypatch.setattr(budget, "_synchronise", lambda device: None)


@pytest.fixture
def tell(record_property):
    """``tell("largest error", 1e-7)``: a figure for the page."""

    def told(name, value):
        record_property(name, f"{value:.1e}" if isinstance(value, float) else str(value))

    return told


@pytest.fixture
def deterministic():
    """As far as torch and cuDNN can; afterwards as before."""
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    yield
    torch.use_deterministic_algorithms(before[0])
    torch.backends.cudnn.benchmark = before[1]
