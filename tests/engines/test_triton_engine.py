"""The kernels for CUDA without a GPU: run by Triton's interpreter, and compiled for a GPU that need not be there."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lstm_monitor.core.definitions import Thresholds
from lstm_monitor.engines.facts import Signals
from lstm_monitor.engines.lone_cells import LoneCells
from lstm_monitor.engines.triton_engine.engine import BLOCK, ENGINE, WARPS

ROOT = Path(__file__).parents[2]
GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}
TYPES = {torch.float32: "*fp32", torch.int32: "*i32", torch.int64: "*i64", int: "i32", float: "fp32"}


@pytest.mark.thorough
def test_the_kernels_are_right_in_the_interpreter(request):
    """In a process of its own: whether Triton interprets is settled when it is imported."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "tests/helpers/triton_cases.py"]
    command += ["--thorough"] if request.config.getoption("--thorough") else []
    plain = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=plain, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^\d+ passed(, \d+ deselected)? in", done.stdout, re.MULTILINE), done.stdout


class _Launches:
    """Stands in a kernel's place, since there may be no GPU, and keeps what it would be launched with."""

    def __init__(self, kernel):
        self.kernel, self.given = kernel, None

    def __getitem__(self, grid):
        return self._keep

    def _keep(self, *given, num_warps, enable_fp_fusion):
        assert (num_warps, enable_fp_fusion) == (WARPS, False)
        self.given = dict(zip(self.kernel.arg_names, given, strict=True))

    def source(self):
        from triton.compiler import ASTSource

        kind = {name: getattr(value, "dtype", type(value)) for name, value in self.given.items()}
        fixed = {"kind": self.given["kind"], "block": self.given["block"]}
        types = {name: "constexpr" if name in fixed else TYPES[kind[name]] for name in kind}
        return ASTSource(self.kernel, types, constexprs=fixed)


@pytest.fixture
def launches(monkeypatch, tmp_path):
    from lstm_monitor.engines.triton_engine import lone_cells

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    kept = [_Launches(getattr(lone_cells, name)) for name in ("trace", "steps_alone", "sines_alone")]
    for launch in kept:
        monkeypatch.setattr(lone_cells, launch.kernel.__name__, launch)
    return kept


def _compile(kind, size=3, count=2):
    rows = GATES[kind]
    inner = torch.randn(size) if kind == "gru" else None
    cells = LoneCells(kind, torch.randn(rows, size), torch.randn(rows, size), inner, torch.randn(1, rows, size))
    state = (torch.zeros(1, size),) * (2 if kind == "lstm" else 1)
    signals, way = torch.randn(16, count), torch.zeros(count, dtype=torch.long)
    ENGINE.cell_trace(cells, signals, way, state)
    ENGINE.cell_facts(cells, Signals(signals, way, signals, way, (0.25,) * count, 0), state, state[0][0], Thresholds())


@pytest.mark.parametrize("kind", ["lstm", *(pytest.param(k, marks=pytest.mark.thorough) for k in GATES if k != "lstm")])
def test_the_kernels_compile_for_a_gpu(kind, launches):
    """As they are launched; all in registers, a thread a cell, and in single precision throughout."""
    import triton
    from triton.backends.compiler import GPUTarget

    assert BLOCK == 32 * WARPS  # a sum in memory is safe as long as one thread adds to it
    _compile(kind)
    for launch in launches:
        options = {"num_warps": WARPS, "enable_fp_fusion": False}
        compiled = triton.compile(launch.source(), target=GPUTarget("cuda", 90, 32), options=options)
        code = compiled.asm["ptx"]
        assert not re.findall(r"tanh|f16|sin\.approx|\.local", code)
        assert set(re.findall(r"\w+\.approx", code)) <= {"ex2.approx"}
        assert compiled.metadata.shared == 0
