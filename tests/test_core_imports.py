"""The core needs torch, numpy and scipy: shown in new interpreters in which everything else cannot be imported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OTHERS = (
    "lightning", "pytorch_lightning", "lightning_fabric", "lightning_utilities", "torchmetrics", "tensorboard",
    "tensorflow", "wandb", "keras", "matplotlib", "pandas", "pyarrow", "xarray", "statsmodels", "sklearn", "PIL",
    "jsonargparse", "yaml", "hypothesis", "pytest",
)  # fmt: skip

BLOCKED = f"""
import sys

sys.modules.update(dict.fromkeys({OTHERS!r}))  # to imports and to find_spec as if not installed
"""
USE = """
import torch
import lstm_monitor as lm

model = torch.nn.Sequential(torch.nn.LSTM(3, 6, num_layers=2, batch_first=True))
report = lm.characterize(model, held_out=torch.randn(4, 20, 3))
assert "0.l0" in repr(report), repr(report)
assert report.scalars() and report.histograms()
monitor = lm.LSTMMonitor(model, sinks=[lm.MemorySink()], on_error="raise")
with monitor:
    monitor.on_epoch_end(0)
    monitor.on_train_batch_end(0)
assert monitor.report.checks == 3
"""
PLAIN_IMPORT = """
import {what}
import sys
print(*sorted(sys.modules))
"""


def python(script: str) -> str:
    """Run a script in a new interpreter; its output."""
    command = [sys.executable, "-W", "error", "-c", script]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_works_with_torch_numpy_and_scipy_alone() -> None:
    python(BLOCKED + USE)


def test_the_block_blocks() -> None:
    with pytest.raises(AssertionError, match="import of pandas halted"):
        python(BLOCKED + "import pandas")


def test_what_is_missing_says_how_to_install_it() -> None:
    python(
        BLOCKED
        + """
import lstm_monitor.integrations as adapters

for name, extra in (("LSTMMonitorCallback", "lightning"), ("TensorBoardSink", "tensorboard")):
    try:
        made = getattr(adapters, name)
        made("folder")
    except ImportError as error:
        assert f'pip install "lstm-monitor[{extra}]"' in str(error), error
    else:
        raise AssertionError(name)
"""
    )


@pytest.mark.parametrize("what", ["lstm_monitor", "lstm_monitor.integrations"])
def test_importing_it_imports_nothing_else(what: str) -> None:
    loaded = set(python(PLAIN_IMPORT.format(what=what)).split())
    assert what in loaded
    assert not [name for name in loaded if name.partition(".")[0] in OTHERS]
    assert "scipy.stats" not in loaded
    assert "torch.utils.tensorboard" not in loaded
