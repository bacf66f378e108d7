"""An engine of PyTorch Ignite."""

from __future__ import annotations

from typing import Any

import torch
from ignite.engine import Engine, Events
from ignite.handlers import Checkpoint, DiskSaver
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lstm_monitor.integrations import IgniteLSTMMonitor
from tests.conformance.hosts import BATCH, Host, Task, data


class Ignite(Host):
    name = "ignite"

    def make(self, **options: Any) -> Any:
        return IgniteLSTMMonitor(**options)

    def fit(self, task: Task, ours: Any | None) -> None:
        optimizer = torch.optim.Adam(task.model.parameters(), lr=0.01)

        def step(engine: Engine, batch: Any) -> float:
            task.step()
            optimizer.zero_grad()
            loss = F.mse_loss(task.model(batch[0]), batch[1])
            loss.backward()
            optimizer.step()
            return loss.item()

        engine = Engine(step)
        if ours is not None:
            ours.attach(engine, task.model)
        parts = {"model": task.model, "optimizer": optimizer, "engine": engine}
        parts |= {} if ours is None else {"monitor": ours}
        if task.save:
            saver = Checkpoint(parts, DiskSaver(str(task.folder / "ignite")))
            engine.add_event_handler(Events.COMPLETED, saver)
        if task.resumed:
            (path,) = (task.folder / "ignite").iterdir()
            Checkpoint.load_objects(parts, torch.load(path, weights_only=True))
        loader = DataLoader(TensorDataset(*data(task.steps, task.batches)), batch_size=BATCH, shuffle=True)
        engine.run(loader, max_epochs=task.epochs)


ADAPTERS = {"IgniteLSTMMonitor"}
PARTS = [Ignite()]
