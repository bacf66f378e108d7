"""A loop of one's own, with the hooks, with the context manager, and with the optimizer watched."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch.nn import functional as F

import lstm_monitor as lm
from tests.conformance.hosts import BATCH, Host, Task, data


class Loop(Host):
    """The Keras-style hooks."""

    name = "plain loop"

    def make(self, **options: Any) -> Any:
        return lm.LSTMMonitor(**options)

    def fit(self, task: Task, ours: Any | None) -> None:
        optimizer = torch.optim.Adam(task.model.parameters(), lr=0.01)
        begun = self._load(task, optimizer, ours)
        self._begin(task, ours)
        for epoch in range(begun, task.epochs):
            self._epoch(task, optimizer, ours)
            if ours is not None:
                ours.on_epoch_end(epoch)
        self._save(task, optimizer, ours)
        if ours is not None:
            ours.on_train_end()

    def _begin(self, task: Task, ours: Any | None) -> None:
        if ours is not None:
            ours.set_model(task.model)
            ours.on_train_begin()

    def _epoch(self, task: Task, optimizer: Any, ours: Any | None) -> None:
        x, y = data(task.steps, task.batches)
        for i in range(task.batches):
            task.step()
            some = torch.randperm(len(x))[:BATCH]
            optimizer.zero_grad()
            F.mse_loss(task.model(x[some]), y[some]).backward()
            optimizer.step()
            if ours is not None:
                ours.on_train_batch_end(i)

    def _load(self, task: Task, optimizer: Any, ours: Any | None) -> int:
        if not task.resumed:
            return 0
        saved = torch.load(task.folder / "loop.pt", weights_only=True)
        task.model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        if ours is not None:
            ours.load_state_dict(saved["monitor"])
        return int(saved["epochs"])

    def _save(self, task: Task, optimizer: Any, ours: Any | None) -> None:
        if task.save:
            state = {"model": task.model.state_dict(), "optimizer": optimizer.state_dict(), "epochs": task.epochs}
            torch.save(state | ({} if ours is None else {"monitor": ours.state_dict()}), task.folder / "loop.pt")


class With(Loop):
    """The context manager."""

    name = "with statement"

    def fit(self, task: Task, ours: Any | None) -> None:
        if ours is not None:
            ours.set_model(task.model)
        optimizer = torch.optim.Adam(task.model.parameters(), lr=0.01)
        begun = self._load(task, optimizer, ours)
        with nullcontext() if ours is None else ours:
            for epoch in range(begun, task.epochs):
                self._epoch(task, optimizer, ours)
                if ours is not None:
                    ours.on_epoch_end(epoch)
            self._save(task, optimizer, ours)


ADAPTERS: set[str] = set()
PARTS = [Loop(), With()]
