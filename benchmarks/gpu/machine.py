"""What the page begins with: card, driver, versions, what torch's switches are set to, date and commit."""

from __future__ import annotations

import datetime
import platform
import shutil
import subprocess
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

import lstm_monitor
from gpu.telling import DRY, row, table, verdict


def said(*command: str) -> str:
    """What a program prints, in one line; "unknown" if it is not there or fails."""
    if shutil.which(command[0]) is None:
        return "unknown"
    done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    return " ".join(done.stdout.split()) or "unknown" if done.returncode == 0 else "unknown"


def installed(name: str) -> str:
    """The version of a package."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "none"


def card() -> str:
    """Its name, processors and memory; the first use of CUDA in this process."""
    if DRY:
        return "none: a dry run"
    its = torch.cuda.get_device_properties(0)
    memory = f"{its.total_memory / 2**30:.0f} GiB, L2 {getattr(its, 'L2_cache_size', 0) / 2**20:.0f} MiB"
    return f"{its.name}, {its.multi_processor_count} multiprocessors, {memory}, capability {its.major}.{its.minor}"


def driver() -> str:
    """The driver, and what else runs on the card."""
    if DRY:
        return "none: a dry run"
    asked = "driver_version,clocks.sm,clocks.max.sm,memory.used,persistence_mode"
    return said("nvidia-smi", f"--query-gpu={asked}", "--format=csv,noheader")


def switches() -> str:
    """What float32 products are computed with, before anybody set anything."""
    backends: Any = torch.backends
    older = f"cudnn.allow_tf32={backends.cudnn.allow_tf32}, matmul precision {torch.get_float32_matmul_precision()}"
    if not hasattr(backends.cudnn, "rnn"):
        return older
    newer = {
        "all": backends.fp32_precision,
        "cudnn.rnn": backends.cudnn.rnn.fp32_precision,
        "cuda.matmul": backends.cuda.matmul.fp32_precision,
    }
    return f"{older}; fp32_precision of {', '.join(f'{name}: {value}' for name, value in newer.items())}"


PARTS: dict[str, Callable[[], str]] = {
    "card": card,
    "driver, clock now and at most, memory used, persistence": driver,
    "torch": lambda: f"{torch.__version__}, CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}",
    "triton, numba, lightning": lambda: ", ".join(map(installed, ("triton", "numba", "lightning"))),
    "float32 products": switches,
    "Python, processor": lambda: (
        f"{platform.python_version()}, {platform.machine()}, {torch.get_num_threads()} threads"
    ),
    "C compiler": lambda: next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), "none"),
    "lstm_monitor": lambda: str(lstm_monitor.__file__),
    "commit": lambda: said("git", "log", "-1", "--format=%h %cs %s"),
    "date": lambda: datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
}


def main() -> None:
    """Each part by itself: what one cannot tell keeps no other from telling."""
    table("What all this ran on.", "what", "which")
    for name, tell in PARTS.items():
        try:
            found = tell()
        except Exception as error:
            found = f"unknown: {type(error).__name__}: {error}"
        row(name, found)
    if not DRY:
        verdict("torch finds a GPU (torch.cuda.is_available())", passed=torch.cuda.is_available())


if __name__ == "__main__":
    main()
