"""Both Lightning packages."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import Any, ClassVar

import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from tests.conformance.hosts import BATCH, CELLS, Host, Network, Task, data, held_out

for _package in ("lightning.pytorch", "pytorch_lightning"):
    import_module(_package)  # draws from Python's generator, so before any seed


@cache
def _module(package: str) -> Any:
    base = import_module(package).LightningModule

    class Module(base):  # type: ignore[misc, valid-type]
        """A network that learns; `task` is set by the host."""

        def __init__(self, kind: str, cells: int) -> None:
            super().__init__()
            self.network = Network(kind, cells)
            self.task: Any = None

        def forward(self, x: Any) -> Any:
            return self.network(x)

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.task.step()
            return F.mse_loss(self(batch[0]), batch[1])

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("val_loss", F.mse_loss(self(batch[0]), batch[1]))

        def configure_optimizers(self) -> Any:
            return torch.optim.Adam(self.parameters(), lr=0.01)

    return Module


class Lightning(Host):
    """A Trainer with the callback."""

    package: ClassVar[str] = "lightning.pytorch"
    name = "lightning"

    def model(self, kind: str, cells: int = CELLS) -> Any:
        return _module(self.package)(kind, cells)

    def make(self, **options: Any) -> Any:
        name = "of_lightning" if self.package.startswith("lightning") else "of_pytorch_lightning"
        return import_module(f"lstm_monitor.integrations.lightning_callback.{name}").LSTMMonitorCallback(**options)

    def fit(self, task: Task, ours: Any | None) -> None:
        task.model.task = task
        trainer = import_module(self.package).Trainer(
            max_epochs=task.epochs,
            callbacks=[] if ours is None else [ours],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            accelerator="cpu",
            default_root_dir=task.folder,
        )
        loader = DataLoader(TensorDataset(*data(task.steps, task.batches)), batch_size=BATCH, shuffle=True)
        x = held_out(task.steps)
        other = DataLoader(TensorDataset(x, x.mean((1, 2))[:, None]), batch_size=BATCH)
        validation = other if task.validation else None
        path = task.folder / "trainer.ckpt"
        trainer.fit(task.model, loader, validation, ckpt_path=path if task.resumed else None)
        if task.save:
            trainer.save_checkpoint(path)


class PyTorchLightning(Lightning):
    """The other package."""

    package = "pytorch_lightning"
    name = "pytorch_lightning"


ADAPTERS = {"LSTMMonitorCallback"}
PARTS = [Lightning(), PyTorchLightning()]
