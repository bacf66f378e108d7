"""Whatever the training computes with, a check is exact; and the switches are as they were, however they were set."""

import contextlib

import pytest
import torch

import lstm_monitor as lm
from tests.cuda import models
from tests.cuda.place import DEVICE, MARKS, sized
from tests.cuda.reports import distance

pytestmark = MARKS


def _set(owner, name, value):
    def act():
        setattr(owner, name, value)

    return act


BACKENDS = torch.backends
SETTINGS = {
    "as torch has it": lambda: None,
    "cudnn.allow_tf32 off": _set(BACKENDS.cudnn, "allow_tf32", False),
    "cuda.matmul.allow_tf32 on": _set(BACKENDS.cuda.matmul, "allow_tf32", True),
    "matmul precision high": lambda: torch.set_float32_matmul_precision("high"),
    "matmul precision medium": lambda: torch.set_float32_matmul_precision("medium"),
}
NEWER = {
    "cuda.matmul tf32": lambda: setattr(BACKENDS.cuda.matmul, "fp32_precision", "tf32"),
    "cudnn.rnn ieee": lambda: setattr(BACKENDS.cudnn.rnn, "fp32_precision", "ieee"),
    "cudnn.rnn tf32": lambda: setattr(BACKENDS.cudnn.rnn, "fp32_precision", "tf32"),
    "all tf32": lambda: setattr(BACKENDS, "fp32_precision", "tf32"),
}
"""The switches of torch 2.9 and later."""
SETTINGS |= NEWER if hasattr(BACKENDS.cudnn, "rnn") else {}


def switches():
    """What every switch says, in both ways of asking; "refused" where torch will not say."""
    asked = {
        "cudnn.allow_tf32": lambda: BACKENDS.cudnn.allow_tf32,
        "cuda.matmul.allow_tf32": lambda: BACKENDS.cuda.matmul.allow_tf32,
        "matmul precision": torch.get_float32_matmul_precision,
        "all": lambda: BACKENDS.fp32_precision,
        "cudnn": lambda: BACKENDS.cudnn.fp32_precision,
        "cudnn.rnn": lambda: BACKENDS.cudnn.rnn.fp32_precision,
        "cudnn.conv": lambda: BACKENDS.cudnn.conv.fp32_precision,
        "cuda.matmul": lambda: BACKENDS.cuda.matmul.fp32_precision,
        "cudnn.enabled": lambda: BACKENDS.cudnn.enabled,
        "cudnn.benchmark": lambda: BACKENDS.cudnn.benchmark,
        "cudnn.deterministic": lambda: BACKENDS.cudnn.deterministic,
    }
    found = {}
    for name, ask in asked.items():
        try:
            found[name] = ask()
        except (RuntimeError, AttributeError):
            found[name] = "refused"
    return found


@pytest.fixture(autouse=True)
def _put_back():
    """First the older switches, then the newer ones, as they are set in a process that is new."""
    before = switches()
    yield
    if before["all"] != "refused":
        BACKENDS.fp32_precision, BACKENDS.cudnn.fp32_precision = before["all"], before["cudnn"]
    BACKENDS.cudnn.allow_tf32 = before["cudnn.allow_tf32"]
    torch.set_float32_matmul_precision(before["matmul precision"])
    if before["all"] != "refused":
        for name in ("cudnn.rnn", "cudnn.conv", "cuda.matmul"):
            group, part = name.split(".")
            getattr(getattr(BACKENDS, group), part).fp32_precision = before[name]
    assert switches() == before


def report(make="LSTM, two layers", **options):
    """The same network is made and characterized."""
    _, device = models.pair(make)
    return lm.characterize(device, models.sequences(), horizon=sized(64, 16), **options)


@pytest.mark.parametrize("make", ["LSTM, two layers", "GRU"])
@pytest.mark.parametrize("name", SETTINGS)
def test_a_check_is_exact_and_leaves_the_switches(name, make, tell):
    host, _ = models.pair(make)
    expected = lm.characterize(host, models.sequences(), horizon=sized(64, 16))
    SETTINGS[name]()
    before = switches()
    found = report(make)
    assert switches() == before
    distance(found, expected).tell(tell)
    assert distance(found, expected).largest <= 1e-5
    assert distance(found, expected).apart <= 0.005


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_around_a_check_changes_nothing(dtype, tell):
    plain = report()
    with torch.autocast(DEVICE.type, dtype):
        found = report()
        assert torch.is_autocast_enabled(DEVICE.type)
    distance(found, plain).tell(tell)
    assert distance(found, plain).largest <= 1e-6


def test_inference_mode_around_a_check_changes_nothing():
    plain = report()
    with torch.inference_mode():
        found = report()
    assert distance(found, plain).largest <= 1e-6


@contextlib.contextmanager
def switched_off():
    BACKENDS.cudnn.enabled = False
    try:
        yield
    finally:
        BACKENDS.cudnn.enabled = True


def test_without_cudnn(tell):
    plain = report()
    with switched_off():
        found = report()
    distance(found, plain).tell(tell)
    assert distance(found, plain).largest <= 1e-5


def test_cudnn_may_choose_by_trying(tell):
    """``torch.backends.cudnn.benchmark``, which many trainings switch on."""
    plain, before = report(), BACKENDS.cudnn.benchmark
    BACKENDS.cudnn.benchmark = True
    try:
        found = report()
    finally:
        BACKENDS.cudnn.benchmark = before
    distance(found, plain).tell(tell)
    assert distance(found, plain).largest <= 1e-5
