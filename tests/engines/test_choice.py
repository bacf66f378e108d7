"""Which engine runs, what happens where it cannot, and that all of them give the same numbers."""

import logging
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lstm_monitor as lm
from lstm_monitor.engines import choice
from lstm_monitor.engines.choice import Guarded, engine_for
from lstm_monitor.engines.facts import Signals
from lstm_monitor.engines.lone_cells import LoneCells, cells_of

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
BROKEN = {
    "import": "raise ImportError('Numba needs NumPy 1.0 or less')",
    "system": "raise SystemError('initialization of _internal failed')",
    "compiler": "import llvmlite_that_is_not_there",
    "first call": """
import importlib, sys
sys.path.pop(0)
del sys.modules["numba"]
numba = importlib.import_module("numba")

def njit(*given, **options):
    def refuse(*args, **kwargs):
        raise RuntimeError("cannot compile here")
    return refuse if given and callable(given[0]) else lambda function: refuse

numba.njit = njit
""",
}
"""What stands in the place of numba; the last one is the real one with a compiler that refuses."""


@pytest.fixture(autouse=True)
def _as_new(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was given up in this test is not in the next."""
    monkeypatch.delenv(choice.VARIABLE, raising=False)
    monkeypatch.setattr(choice, "_given_up", set())
    choice._found.cache_clear()


@pytest.mark.parametrize(
    ("device", "dtype", "name"),
    [
        (CPU, torch.float32, "numba"),
        (CPU, torch.float64, "torch"),
        (CUDA, torch.float32, "triton"),
        (CUDA, torch.float64, "torch"),
        (torch.device("mps"), torch.float32, "torch"),
    ],
)
def test_the_best_engine_is_chosen(device: torch.device, dtype: torch.dtype, name: str) -> None:
    assert engine_for(device, dtype).name == name


@pytest.mark.parametrize("name", ["numba", "torch", "loop"])
def test_the_environment_forces_one(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(choice.VARIABLE, name)
    assert engine_for(CPU, torch.float32).name == name


def test_a_forced_engine_that_is_unknown_or_impossible_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(choice.VARIABLE, "nunba")
    with pytest.raises(ValueError, match="LSTM_MONITOR_ENGINE='nunba' is not known. Did you mean 'numba'"):
        engine_for(CPU, torch.float32)
    with pytest.raises(ValueError, match="Did you mean 'numba'"):
        lm.characterize(nn.GRU(2, 3))
    monkeypatch.setenv(choice.VARIABLE, "numba")
    with pytest.raises(ValueError, match=r"cannot run cells of torch.float64 on cpu.*allowed here: torch, loop"):
        engine_for(CPU, torch.float64)
    with pytest.raises(ValueError, match=r"torch.float32 on cuda.*allowed here: triton, torch, loop"):
        engine_for(CUDA, torch.float32)


def test_an_engine_that_is_not_installed_is_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "numba", None)
    with caplog.at_level(logging.INFO, "lstm_monitor"):
        assert [engine_for(CPU, torch.float32).name for _ in range(3)] == ["torch"] * 3
    (record,) = caplog.records
    assert record.levelname == "INFO"
    assert 'pip install "lstm-monitor[fast]"' in record.message
    choice._found.cache_clear()
    monkeypatch.setenv(choice.VARIABLE, "numba")
    caplog.clear()
    assert engine_for(CPU, torch.float32).name == "torch"
    assert [record.levelname for record in caplog.records] == ["WARNING"]


@pytest.mark.thorough
def test_a_broken_engine_gives_way_with_one_message_and_the_same_numbers(tmp_path: Path) -> None:
    for fault, content in BROKEN.items():
        (tmp_path / fault / "numba").mkdir(parents=True)
        (tmp_path / fault / "numba" / "__init__.py").write_text(content)
    code = f"""
import logging, os, sys
logging.basicConfig(format="%(levelname)s %(message)s", level="INFO", stream=sys.stdout)
import torch, lstm_monitor as lm
from lstm_monitor.engines import choice
net, x = torch.nn.LSTM(3, 8, batch_first=True), torch.ones(2, 9, 3)
os.environ[choice.VARIABLE] = "torch"
expected = lm.characterize(net, x, horizon=16).to_pandas()
del os.environ[choice.VARIABLE]
path = list(sys.path)
for fault in {list(BROKEN)!r}:
    sys.path[:] = [{str(tmp_path)!r} + "/" + fault, *path]
    for name in [name for name in sys.modules if name.startswith(("numba", "lstm_monitor.engines.numba"))]:
        del sys.modules[name]
    choice._given_up.clear()
    for _ in range(2):
        assert lm.characterize(net, x, horizon=16).to_pandas().equals(expected), fault
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if "lstm_monitor" in line]
    for fault in ("NumPy 1.0", "_internal", "llvmlite_that", "cannot compile here"):
        assert sum(fault in line for line in lines) == 1, lines
    said = "WARNING lstm_monitor computes with torch alone from now on: numba failed: "
    assert [line.startswith(said) for line in lines] == [True] * len(BROKEN)


def test_an_engine_that_found_no_memory_is_tried_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A training frees and takes memory; torch's engine may fit meanwhile."""

    def full(*given: Any) -> Any:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(choice, "_loaded", lambda name: SimpleNamespace(cell_trace=full))
    given, signals, state = cells()
    found, _ = engine_for(CPU, torch.float32).cell_trace(given, signals.steps, signals.step_way, state)
    expected, _ = choice.PLAIN["torch"].cell_trace(given, signals.steps, signals.step_way, state)
    torch.testing.assert_close(found, expected, atol=0, rtol=0)
    assert not choice._given_up
    assert not caplog.records


def cells() -> tuple[LoneCells, Signals, tuple[Tensor, ...]]:
    torch.manual_seed(0)
    (snap,) = lm.snapshot(nn.LSTM(3, 5))
    assert isinstance(snap.weights, lm.LayerWeights)
    lone = cells_of(snap.weights, snap.hidden_mean, snap.point.mean, torch.eye(3)[:, :2])
    sine = lm.sinusoid(torch.ones(3), 1 / 8, steps=32).signal[:, None]
    signals = Signals(torch.ones(20, 2), torch.tensor([0, 1]), sine, torch.tensor([0]), (1 / 8,), 0)
    return lone, signals, (torch.zeros(1, 5), torch.zeros(1, 5))


def test_a_kernel_that_cannot_run_here_gives_way(caplog: pytest.LogCaptureFixture) -> None:
    """What Triton says without a GPU stands for every failure to compile."""
    lone, signals, start = cells()
    given = (lone, signals, start, torch.zeros(5), lm.Thresholds())
    found, expected = Guarded("triton").cell_facts(*given), choice.PLAIN["torch"].cell_facts(*given)
    assert torch.equal(found.steps.outside, expected.steps.outside)
    Guarded("triton").cell_facts(*given)
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_an_argument_at_fault_is_not_blamed_on_the_engine(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises((RuntimeError, ValueError)):
        Guarded("numba").step_facts(torch.zeros(16, 5), torch.zeros(5), lm.Thresholds())
    assert not caplog.records
    assert engine_for(CPU, torch.float32).name == "numba"


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_every_engine_gives_the_same_report(kind: type[nn.RNNBase], monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    net = kind(3, 70, num_layers=2, batch_first=True)
    x = torch.randn(4, 30, 3)
    reports = {}
    for name in ("loop", "torch", "numba"):
        monkeypatch.setenv(choice.VARIABLE, name)
        reports[name] = lm.characterize(net, x, rank_by="std_x_outgoing", horizon=64)
    for name in ("torch", "numba"):
        for mine, plain in zip(reports[name].layers, reports["loop"].layers, strict=True):
            same(mine, plain)


def same(mine: lm.LayerReport, plain: lm.LayerReport) -> None:
    torch.testing.assert_close(mine.trace.change, plain.trace.change, rtol=0, atol=1e-5)
    for item in mine.metrics.items:
        other = plain.metrics[item.path]
        assert torch.equal(item.reasons, other.reasons), item.path
        if item.name != "peak_time":  # on a plateau rounding decides which sample is the first of the largest
            torch.testing.assert_close(item.values, other.values, rtol=1e-3, atol=1e-4, equal_nan=True)
