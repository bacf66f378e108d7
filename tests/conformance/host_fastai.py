"""A Learner of fastai, where it is installed: `make test-trainers` runs these cases in an environment that has it."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from tests.conformance.hosts import BATCH, Host, Task, data, held_out


class Fastai(Host):
    name = "fastai"

    def make(self, **options: Any) -> Any:
        from lstm_monitor.integrations import FastaiLSTMMonitor

        return FastaiLSTMMonitor(**options)

    def fit(self, task: Task, ours: Any | None) -> None:
        from fastai.basics import Callback, DataLoaders, Learner

        class Users(Callback):  # type: ignore[misc]
            """The user's own callback."""

            def before_batch(self) -> None:
                if self.training:
                    task.step()

        x = held_out(task.steps)
        loaders = DataLoaders(
            DataLoader(TensorDataset(*data(task.steps, task.batches)), batch_size=BATCH, shuffle=True),
            DataLoader(TensorDataset(x, x.mean((1, 2))[:, None]), batch_size=BATCH),
        )
        callbacks = [Users(), *([] if ours is None else [ours])]
        learner = Learner(loaders, task.model, loss_func=F.mse_loss, opt_func=_adam, lr=0.01, cbs=callbacks)
        with learner.no_logging():
            learner.fit(task.epochs)

    resumes = False  # fastai's checkpoints hold the model and its optimizer alone


def _adam(parameters: Any, **options: Any) -> Any:
    from fastai.optimizer import OptimWrapper

    return OptimWrapper(parameters, torch.optim.Adam, **options)


ADAPTERS = {"FastaiLSTMMonitor"}
PARTS = [Fastai()] if find_spec("fastai") else []
