"""The sections, the most important first, and how long each may take."""

from __future__ import annotations

from collections.abc import Sequence

from gpu.running import Section

TESTS: tuple[tuple[str, tuple[str, ...], float], ...] = (
    ("Right: the engines against float64", ("kernels", "coupled"), 120),
    ("Right: checks and ablation against those of the CPU", ("reports", "studies", "precision"), 100),
    ("Untouched: loops and Lightning", ("loops", "lightning"), 100),
    ("Untouched: waiting, memory, CUDA graphs and compiled steps", ("quiet", "graphs"), 120),
)
"""Title, files of `tests/cuda/`, and seconds."""
FIGURES: tuple[tuple[str, str, float], ...] = (
    ("Fast: cells alone, and the layer as trained", "launches", 75),
    ("Fast: a check beside a training", "checks", 90),
    ("Fast: ablation", "removals", 75),
)
"""Title, module of this folder, and seconds."""
PATIENCE = 4
"""How many times as long a dry run may take, beside whatever else a small machine does."""
MISSING = ("wandb", "keras", "importlinter", "xarray", "skorch", "ignite", "stable_baselines3", "statsmodels")
"""What the machine with the GPU does not have; a dry run is made without it too."""
ALWAYS = {"PYTHONUNBUFFERED": "1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
DETERMINISTIC = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
"""cuBLAS reads it when it is first used."""
DRY = {
    "LSTM_MONITOR_DRY": "1",
    "LSTM_MONITOR_WITHOUT": " ".join(MISSING),
    "LSTM_MONITOR_ENGINE": "torch",
    "CUDA_VISIBLE_DEVICES": "",
    "TRITON_INTERPRET": "1",
    "OMP_NUM_THREADS": "1",
}


def sections(*, dry: bool) -> list[Section]:
    """All of them, to be run one after the other."""
    around, times = {**ALWAYS, **(DRY if dry else {})}, PATIENCE if dry else 1
    tests = [Section(title, _pytest(names), times * most, around | DETERMINISTIC) for title, names, most in TESTS]
    figures = [Section(title, ("-m", f"gpu.{name}"), times * most, around) for title, name, most in FIGURES]
    return [Section("The machine", ("-m", "gpu.machine"), 120, around), *tests, *figures]


def _pytest(names: Sequence[str]) -> tuple[str, ...]:
    """Without plug-ins but our own, which tells what came of each test."""
    plain = ("-W", "default", "-p", "no:cacheprovider", "--capture=sys", "-q", "--tb=short", "--no-header")
    hangs = ("-o", "faulthandler_timeout=45")  # where it hangs is then in the log
    return ("-m", "pytest", *(f"tests/cuda/test_{name}.py" for name in names), "-p", "gpu.rows", *plain, *hangs)
