"""Tiny modules, loaders and trainers of both Lightning packages; a training takes a fraction of a second."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from tests.helpers.traces import differences as differences
from tests.helpers.traces import random_states as random_states
from tests.helpers.traces import seed_all as seed_all

PACKAGES = ("lightning.pytorch", "pytorch_lightning")
FEATURES, STEPS, CELLS, SEQUENCES = 3, 12, 6, 32
QUIET = {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu", "log_every_n_steps": 1}
HORIZON = 32
for _package in PACKAGES:
    import_module(_package)  # draws from Python's generator, so before any seed


def callback(package: str, **options: Any) -> Any:
    """The callback of one package, unless told otherwise one that raises its errors, takes short step responses, and
    checks whenever one is due: these trainings are too short for a budget.
    """
    name = "of_lightning" if package.startswith("lightning") else "of_pytorch_lightning"
    kind = import_module(f"lstm_monitor.integrations.lightning_callback.{name}").LSTMMonitorCallback
    return kind(**{"on_error": "raise", "horizon": HORIZON, "pictures_every": 0, "budget": None} | options)


def trainer(package: str, folder: Path, *callbacks: Any, **options: Any) -> Any:
    """A quiet Trainer that by default runs 2 epochs, logs nowhere and writes no checkpoint."""
    defaults = {"max_epochs": 2, "logger": False, "enable_checkpointing": False, "default_root_dir": folder}
    return import_module(package).Trainer(callbacks=list(callbacks), **QUIET | defaults | options)


def sequences(seed: int = 0, count: int = SEQUENCES) -> Tensor:
    """Smooth random sequences ``(count, STEPS, FEATURES)``, with a generator of their own."""
    return torch.randn(count, STEPS, FEATURES, generator=torch.Generator().manual_seed(seed)).cumsum(1) / 3


def loader(seed: int = 0, count: int = SEQUENCES, batch_size: int = 8, **options: Any) -> DataLoader[Any]:
    """Sequences with their last value as the target; by default 4 batches of 8."""
    data = sequences(seed, count)
    return DataLoader(TensorDataset(data, data[:, -1:, 0]), batch_size=batch_size, **options)


class Endless(IterableDataset[Any]):
    """Batches without an end."""

    def __iter__(self):  # type: ignore[no-untyped-def]
        while True:
            data = sequences(count=8)
            yield data, data[:, -1:, 0]


class Network(nn.Module):
    """A recurrent layer between optional dropout and batch norm, and a linear one that reads it."""

    def __init__(self, kind: str = "LSTM", *, noisy: bool = False) -> None:
        super().__init__()
        self.before = nn.Dropout(0.3) if noisy else nn.Identity()
        self.rnn = getattr(nn, kind)(FEATURES, CELLS, num_layers=1 + noisy, batch_first=True, dropout=0.3 * noisy)
        self.norm = nn.BatchNorm1d(CELLS) if noisy else nn.Identity()
        self.head = nn.Linear(CELLS, 1)

    def forward(self, x: Tensor) -> Tensor:
        out, _ = self.rnn(self.before(x))
        return self.head(self.norm(out[:, -1]))


class _Plain:
    """One Adam over a Network; what a LightningModule of either package does here."""

    automatic_optimization: bool

    def __init__(self, kind: str = "LSTM", noisy: bool = False) -> None:
        super().__init__()
        self.net: Any = Network(kind, noisy=noisy)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def loss(self, batch: Any) -> Tensor:
        return nn.functional.mse_loss(self.forward(batch[0]), batch[1])

    def training_step(self: Any, batch: Any, batch_idx: int) -> Tensor | None:
        loss = self.loss(batch)
        self.log("loss", loss, on_step=True, on_epoch=True)
        return loss

    def validation_step(self: Any, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.loss(batch))

    def configure_optimizers(self: Any) -> Any:
        return torch.optim.Adam(self.parameters(), lr=0.01)


class _Two(_Plain):
    """Two optimizers by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self: Any, batch: Any, batch_idx: int) -> None:
        for optimizer in self.optimizers():
            optimizer.zero_grad()
            self.manual_backward(self.loss(batch))
            optimizer.step()

    def configure_optimizers(self) -> Any:
        first = torch.optim.SGD(self.net.rnn.parameters(), lr=0.01, momentum=0.9)
        return [first, torch.optim.Adam(self.net.head.parameters(), lr=0.01)], []


class _Late(_Plain):
    """The network is made in `configure_model`."""

    def __init__(self) -> None:
        super().__init__()
        self.net = None

    def configure_model(self) -> None:
        if self.net is None:
            self.net = Network()


class _Linear(_Plain):
    """Nothing recurrent."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(FEATURES * STEPS, 1))


@cache
def modules(package: str) -> SimpleNamespace:
    """The LightningModules of one package: Plain, Two (manual, two optimizers), Late (configure_model), Linear."""
    base = import_module(package).LightningModule
    kinds = (_Plain, _Two, _Late, _Linear)
    return SimpleNamespace(**{kind.__name__[1:]: type(kind.__name__[1:], (kind, base), {}) for kind in kinds})


def trace(runner: Any, module: nn.Module) -> dict[str, Any]:
    """All that a training leaves behind: weights, buffers, optimizers, generators, modes, hooks, counts."""
    return {
        "weights": module.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in runner.optimizers],
        "random": random_states(),
        "modes": [part.training for part in module.modules()],
        "hooks": [len(part._forward_hooks) + len(part._forward_pre_hooks) for part in module.modules()],
        "trainable": [parameter.requires_grad for parameter in module.parameters()],
        "counts": [runner.global_step, runner.current_epoch],
        "val_loss": runner.callback_metrics.get("val_loss"),
    }
