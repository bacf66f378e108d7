"""Makes the pictures in docs/images again: two trainings of the CO2 example, and TensorBoard in a headless Chromium.

    .venv/bin/python docs/make_images.py

It takes about a minute, and needs Chromium on the path.
"""

# ruff: noqa: TID253  # it runs the trainer and the logger

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import quote

import lightning as L
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from tensorboard import program
from torch.utils.data import DataLoader

from lstm_monitor import Report, ablation_study, capacity_study
from lstm_monitor.cli.main import main as command_line
from lstm_monitor.integrations import LSTMMonitorCallback
from lstm_monitor.report.canvas import as_png

ROOT = Path(__file__).parents[1]
IMAGES = ROOT / "docs" / "images"
RATES = {"fast": 1e-3, "slow": 3e-4}
SWITCHES = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars",
            "--disable-background-networking", "--disable-component-update", "--disable-sync",
            "--virtual-time-budget=15000")  # fmt: skip
ONE_RUN = "&regexInput=" + quote("fast$")
SHOTS = {
    "dashboard": ("custom_scalars", (1500, 1150), (357, 64, 1425, 1070)),
    "images": ("images" + ONE_RUN, (1500, 720), (330, 120, 1465, 560)),
    "distributions": ("distributions" + ONE_RUN + "&tagFilter=" + quote("(settling_time|peak_response|/std)/cells"),
                      (1500, 620), (330, 120, 1465, 420)),
    "page": ("", (1100, 1250), (0, 0, 1085, 1250)),
}  # fmt: skip
"""By file: the page's address, the size of the window, and what is cut out of it (left, top, right, bottom)."""


def main() -> None:
    """Train, look, save."""
    IMAGES.mkdir(exist_ok=True)
    digits()
    with tempfile.TemporaryDirectory() as folder:
        reports = [train(name, rate, Path(folder) / "runs") for name, rate in RATES.items()]
        (IMAGES / "report.png").write_bytes(as_png(reports[0].plot()))
        address = serve(Path(folder) / "runs")
        for name in SHOTS.keys() - {"page"}:
            shoot(address, name, Path(folder))
        page_of_a_run(Path(folder))


def page_of_a_run(folder: Path) -> None:
    """The page that the command makes of a run with the default pictures."""
    os.chdir(folder)
    train("co2", next(iter(RATES.values())), Path("runs"), pictures_every=None)
    command_line(["report", "runs/co2", "--html", "page.html"])
    shoot(Path("page.html").resolve().as_uri(), "page", folder)


def digits() -> None:
    """The reader of digits: its ablation study, and how many cells it needs."""
    reader = example("02_ablation_and_pruning.py")
    torch.manual_seed(0)
    torch.set_num_threads(1)
    training, choosing, _ = reader.load()
    model = reader.Reader(64)
    reader.train(model, training, 30, 3e-3)
    study = ablation_study(model, lambda network: reader.right(network, choosing), held_out=choosing.tensors[0])
    (IMAGES / "ablation.png").write_bytes(as_png(study.plot()))
    sizes = capacity_study(
        reader.Reader,
        lambda network: reader.train(network, training, 30, 3e-3),
        held_out=choosing.tensors[0],
        evaluate=lambda network: reader.right(network, choosing).mean(),
        seeds=3,
    )
    (IMAGES / "capacity.png").write_bytes(as_png(sizes.plot()))
    print(study, sizes, sep="\n\n")


def example(name: str = "01_lightning_co2.py") -> ModuleType:
    """The module of an example."""
    spec = importlib.util.spec_from_file_location("example", ROOT / "examples" / name)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def train(name: str, rate: float, runs: Path, pictures_every: int | None = 1) -> Report:
    """The example at a learning rate of its own, as the run `name`; its last report."""
    co2 = example()
    L.seed_everything(1, verbose=False)
    torch.set_num_threads(1)
    model: Any = co2.Forecaster(32)
    model.configure_optimizers = lambda: torch.optim.Adam(model.parameters(), rate)
    training, held_out = co2.load_windows()
    monitor = LSTMMonitorCallback(pictures_every=pictures_every, budget=None, on_error="raise")
    logger = TensorBoardLogger(runs, name=name, version="")
    trainer = L.Trainer(max_epochs=20, logger=logger, callbacks=[monitor], enable_checkpointing=False)
    trainer.fit(model, DataLoader(training, 32, shuffle=True), DataLoader(held_out, 256))
    assert monitor.report is not None
    return monitor.report


def serve(runs: Path) -> str:
    """The address of a TensorBoard that has read the runs; it ends with this process."""
    board = program.TensorBoard()
    board.configure(argv=["", "--logdir", str(runs), "--port", "0", "--samples_per_plugin", "images=200"])
    address: str = board.launch()
    time.sleep(8)
    return address


def shoot(address: str, name: str, folder: Path) -> None:
    """Save the part of a page that is worth showing."""
    page, (width, height), box = SHOTS[name]
    shot = IMAGES / f"{name}.png"
    browser = shutil.which("chromium") or shutil.which("google-chrome") or "chromium"
    command = [browser, *SWITCHES, f"--user-data-dir={folder / name}", f"--window-size={width},{height}"]
    subprocess.run([*command, f"--screenshot={shot}", f"{address}#{page}"], check=True, capture_output=True)
    with Image.open(shot) as picture:
        part = picture.convert("RGB").crop(box)
        if name != "images":  # heat maps need more than 256 colours
            part = part.quantize(256, dither=Image.Dither.NONE)
        part.save(shot, optimize=True)


if __name__ == "__main__":
    main()
