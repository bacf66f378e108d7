"""The core needs torch, numpy and scipy: shown in new interpreters in which everything else cannot be imported."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import lstm_monitor as lm

ROOT = Path(__file__).parents[1]
OTHERS = (
    "lightning", "pytorch_lightning", "lightning_fabric", "lightning_utilities", "torchmetrics", "tensorboard",
    "tensorboardX", "tensorflow", "wandb", "keras", "jax", "h5py", "matplotlib", "pandas", "pyarrow", "fsspec",
    "safetensors", "xarray", "transformers", "accelerate", "skorch", "ignite", "fastai", "stable_baselines3",
    "sb3_contrib", "gymnasium", "ncps", "opacus", "statsmodels", "sklearn", "arch", "PIL", "jsonargparse", "yaml",
    "rich", "hypothesis", "pytest", "numba", "llvmlite", "triton",
)  # fmt: skip
"""Everything that is installed for a trainer, a logger, pictures, tables or tests, and more of the kind."""

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
monitor = lm.LSTMMonitor(model, sinks=[lm.MemorySink()], on_error="raise", budget=None)
with monitor:
    monitor.on_epoch_end(0)
    monitor.on_train_batch_end(0)
assert monitor.report.checks == 3
"""
IMPORTS = ("lstm_monitor", "torch", "lstm_monitor.integrations")
ONE_BY_ONE = f"""
import importlib, sys
for name in {IMPORTS!r}:
    importlib.import_module(name)
    print(*sorted(sys.modules))
"""
HISTORY = """
import lstm_monitor as lm
for name in ("pyarrow", "fsspec", "safetensors"):
    assert name not in sys.modules
    sys.modules[name] = None
    try:
        lm.HistorySink("runs/a")
    except ImportError as error:
        print(error)
    del sys.modules[name]
"""


def python(script: str) -> str:
    """Run a script in a new interpreter; its output."""
    command = [sys.executable, "-W", "error", "-c", script]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_block_blocks() -> None:
    with pytest.raises(AssertionError, match="import of pandas halted"):
        python(BLOCKED + "import pandas")


MISSING = {
    "adapters.FastaiLSTMMonitor()": "fastai",
    "adapters.HuggingFaceLSTMMonitor()": "huggingface",
    "adapters.IgniteLSTMMonitor()": "ignite",
    "adapters.KerasLSTMMonitor()": "keras",
    "adapters.LSTMMonitorCallback()": "lightning",
    "adapters.SB3LSTMMonitor()": "sb3",
    "adapters.SkorchLSTMMonitor()": "skorch",
    "adapters.TensorBoardSink('runs/a')": "tensorboard",
    "adapters.WandbSink(print)": "wandb",
    "lm.HistorySink('runs/a')": "history",
    "lm.load_history('tests')": "history",
    "lm.compare_runs(['tests', 'docs'])": "history",
    "lm.LSTMMonitor(history='runs/a')": "history",
    "lm.LSTMMonitor(history=True)": "history",
    "report.to_pandas()": "plots",
    "report.plot()": "plots",
    "study().to_pandas()": "plots",
    "study().plot()": "plots",
}
"""Everything public that needs an extra."""


def test_it_works_with_torch_numpy_and_scipy_alone_and_what_is_missing_says_how_to_install_it() -> None:
    python(
        BLOCKED
        + USE
        + f"""
import lstm_monitor.integrations as adapters
from tests.helpers.studies import study

report = lm.characterize(torch.nn.GRU(2, 3), horizon=16)
missing = {MISSING!r}
for call, extra in missing.items():
    try:
        eval(call)
    except ImportError as error:
        assert f'pip install "lstm-monitor[{{extra}}]"' in str(error), (call, error)
    else:
        raise AssertionError(call)
assert {{call.split("(")[0] for call in missing}} >= {{f"adapters.{{name}}" for name in adapters.__all__}}
"""
    )


def test_every_extra_that_the_errors_name_exists() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert set(MISSING.values()) == project["optional-dependencies"].keys() - {"all", "dev", "fast"}


@pytest.fixture(scope="module")
def printed() -> list[str]:
    """What a new interpreter prints that imports one after the other, and then wants a history."""
    return python(ONE_BY_ONE + HISTORY).splitlines()


@pytest.fixture(scope="module")
def loaded(printed: list[str]) -> dict[str, set[str]]:
    """What is loaded after each of the imports."""
    return dict(zip(IMPORTS, (set(line.split()) for line in printed), strict=False))


@pytest.mark.parametrize(("place", "name"), [(0, "pyarrow"), (1, "fsspec"), (2, "safetensors")])
def test_a_history_needs_all_of_its_extra(printed: list[str], place: int, name: str) -> None:
    errors = printed[len(IMPORTS) :]
    assert len(errors) == 3
    assert name in errors[place]
    assert 'pip install "lstm-monitor[history]"' in errors[place]


@pytest.mark.parametrize("what", ["lstm_monitor", "lstm_monitor.integrations"])
def test_importing_it_imports_nothing_else(loaded: dict[str, set[str]], what: str) -> None:
    slow = {"scipy.stats", "torch.utils.tensorboard", "torch._dynamo", "numpy.testing"}
    allowed = set() if what == "lstm_monitor" else loaded["torch"]
    assert what in loaded[what]
    assert not [name for name in loaded[what] if name.partition(".")[0] in OTHERS]
    assert loaded[what].isdisjoint(slow - allowed)


def test_type_checkers_and_python_see_the_same_public_names() -> None:
    tree = ast.parse((ROOT / "lstm_monitor" / "__init__.pyi").read_text(encoding="utf-8"))
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    seen = {alias.asname: node.module for node in imports for alias in node.names if alias.asname == alias.name}
    assert seen == lm._WHERE
    assert all(getattr(lm, name) is not None for name in lm.__all__)
    assert dir(lm) == sorted(seen)
    with pytest.raises(AttributeError, match="no attribute 'LSTMmonitor'"):
        lm.LSTMmonitor  # noqa: B018  # that is the test


def test_it_is_there_before_torch_is(loaded: dict[str, set[str]]) -> None:
    assert "torch" not in loaded["lstm_monitor"]


def test_every_folder_is_in_the_wheel() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    top, linked = ROOT / "lstm_monitor", ROOT / "integrations"
    folders = {
        path.parent.relative_to(ROOT) for path in top.rglob("*.py") if not path.is_relative_to(top / "integrations")
    }
    inside = {path.parent.relative_to(ROOT) for path in linked.rglob("*.py")}
    assert settings["package-dir"] == {f"lstm_monitor.{'.'.join(path.parts)}": path.as_posix() for path in inside}
    assert sorted(settings["packages"]) == sorted(
        [".".join(path.parts) for path in folders] + [*settings["package-dir"]]
    )
