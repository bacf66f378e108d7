"""The README's blocks and the examples run as they stand."""

import io
import os
import re
import runpy
import subprocess
import sys
import warnings
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

ROOT = Path(__file__).parents[1]
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)


class Network(nn.Module):
    """What `build` makes in the README's study of sizes."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.rnn = nn.LSTM(2, size, batch_first=True)
        self.head = nn.Linear(size, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.rnn(x)[0][:, -1])


def reader() -> dict[str, object]:
    """What a reader of the README has: a model, its data, an optimizer."""
    import lightning as L

    class Model(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.LSTM(2, 8, batch_first=True)
            self.head = nn.Linear(8, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.rnn(x)[0][:, -1])

        def training_step(self, batch: list[torch.Tensor], index: int) -> torch.Tensor:
            return nn.functional.mse_loss(self(batch[0]), batch[1])

        def validation_step(self, batch: list[torch.Tensor], index: int) -> None:
            self.log("val", nn.functional.mse_loss(self(batch[0]), batch[1]))

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam(self.parameters())

    data = TensorDataset(torch.randn(64, 20, 2), torch.randn(64, 1))
    model = Model()
    return {
        "torch": torch,
        "model": model,
        "x_val": data.tensors[0][:16],
        "train_loader": DataLoader(data, 16),
        "val_loader": DataLoader(data, 16),
        "optimizer": torch.optim.Adam(model.parameters()),
        "build": Network,
        "train": lambda network: float(network(data.tensors[0]).square().mean()),
    }


def test_the_readmes_blocks_run_one_after_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = reader()
    assert len(BLOCKS) >= 4
    for block in BLOCKS:
        exec(compile(block, "README.md", "exec"), names)
    assert list(tmp_path.rglob("events.out.tfevents*"))


def test_the_readmes_pictures_are_there() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", text)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


Example = Callable[..., str]


def in_this_process(folder: Path, name: str, *arguments: str, **environment: str) -> str:
    """Run an example where its libraries are imported already, and leave environment and folder; what it printed."""
    printed, before = io.StringIO(), dict(os.environ)
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(printed), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what libraries say of themselves fails nobody who runs it
        patch.chdir(folder)
        patch.setattr(sys, "argv", [name, *arguments])
        os.environ.update(environment)
        try:
            runpy.run_path(str(ROOT / "examples" / name), run_name="__main__")
        finally:
            os.environ.clear()
            os.environ.update(before)
    return printed.getvalue()


def in_its_own(folder: Path, name: str, *arguments: str, **environment: str) -> str:
    """Run an example as people do; what it printed."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / name), *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(params=["short", pytest.param("whole", marks=pytest.mark.thorough)])
def run_example(request: pytest.FixtureRequest, tmp_path: Path) -> Example:
    """Runs an example with the arguments of a short training in this process, or longer in a process of its own."""

    def run(name: str, short: str = "", whole: str = "", **environment: str) -> str:
        if request.param == "short":
            return in_this_process(tmp_path, name, *short.split(), **environment)
        return in_its_own(tmp_path, name, *whole.split(), **environment)

    return run


CO2 = {
    "name": "01_lightning_co2.py",
    "short": "--epochs 1 --runs runs/co2",
    "whole": "--epochs 2 --runs runs/co2",
}


def test_the_co2_example(run_example: Example, tmp_path: Path) -> None:
    printed = run_example(**CO2)
    assert printed.count("most responsive") == 3
    assert re.search(r"Monitoring took [\d.]+% of the training time", printed)
    assert "tensorboard --logdir runs/co2 --samples_per_plugin images=200" in printed
    assert list((tmp_path / "runs" / "co2").rglob("events.out.tfevents*"))


def test_the_co2_example_with_the_monitor_off(run_example: Example) -> None:
    assert "responsive" not in run_example(**CO2, LSTM_MONITOR="off")


def test_the_ablation_example(run_example: Example, tmp_path: Path) -> None:
    printed = run_example(
        "02_ablation_and_pruning.py",
        short="--cells 24 --epochs 4 --picture study.png",
        whole="--cells 24 --epochs 4 --picture study.png",
    )
    assert "trust" in printed
    accuracies = re.findall(r"(before|after pruning|two epochs later) +([\d.]+)%", printed)
    assert [name for name, _ in accuracies] == ["before", "after pruning", "two epochs later"]
    assert float(accuracies[-1][1]) > 50
    assert re.search(r"[\d.]+ times faster", printed)
    assert (tmp_path / "study.png").stat().st_size > 10_000


def test_the_example_of_a_loop_that_stops_and_goes_on(run_example: Example, tmp_path: Path) -> None:
    printed = run_example("03_loop_wandb.py", short="--epochs 3", whole="--epochs 3", WANDB_SILENT="true")
    assert "4 checks, steps 0 to 132" in printed
    assert "had the longest memory" in printed
    assert len(list((tmp_path / "runs" / "digits" / "wandb").glob("offline-run-*"))) == 2


def test_the_keras_example(run_example: Example, tmp_path: Path) -> None:
    printed = run_example(
        "04_keras_digits.py",
        short="--cells 4 --epochs 2 --seconds 0.5",
        whole="--cells 8 --epochs 3 --seconds 2",
    )
    assert "rows.l0_reverse" in printed
    assert "trust" in printed
    assert list((tmp_path / "runs" / "keras").rglob("events.out.tfevents*"))


TRAINERS = {
    "05_huggingface_digits.py": ("--epochs 1", ""),
    "06_skorch_digits.py": ("--epochs 1", ""),
    "07_ignite_co2.py": ("--epochs 1", ""),
    "08_sb3_cartpole.py": ("--rollouts 1", "--rollouts 2"),
}


@pytest.mark.parametrize("name", TRAINERS)
def test_an_example_of_another_trainer(name: str, run_example: Example) -> None:
    printed = run_example(name, *TRAINERS[name])
    assert "most responsive" in printed
    assert "least responsive" in printed
