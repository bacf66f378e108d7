"""A net of skorch."""

from __future__ import annotations

from typing import Any

import torch
from skorch import NeuralNetRegressor
from skorch.callbacks import Callback
from skorch.dataset import ValidSplit

from lstm_monitor.integrations import SkorchLSTMMonitor
from tests.conformance.hosts import BATCH, Host, Task, data


class Users(Callback):  # type: ignore[misc]
    """The user's own callback."""

    def __init__(self, task: Task) -> None:
        self.task = task

    def on_batch_begin(self, net: Any, batch: Any = None, training: bool = False, **kwargs: Any) -> None:
        if training:
            self.task.step()


class Skorch(Host):
    """A regressor; a run is resumed by pickling the whole net with its callbacks, which tests of its own show."""

    name = "skorch"
    resumes = False
    swallows = (KeyboardInterrupt,)

    def make(self, **options: Any) -> Any:
        return SkorchLSTMMonitor(**options)

    def fit(self, task: Task, ours: Any | None) -> None:
        NeuralNetRegressor(
            task.model,
            max_epochs=task.epochs,
            batch_size=BATCH,
            optimizer=torch.optim.Adam,
            iterator_train__shuffle=True,
            train_split=ValidSplit(3) if task.validation and task.batches > 1 else None,
            callbacks=[Users(task), *([] if ours is None else [ours])],
            verbose=0,
        ).fit(*data(task.steps, task.batches))


ADAPTERS = {"SkorchLSTMMonitor"}
PARTS = [Skorch()]
