"""RecurrentPPO of sb3-contrib: an epoch is a rollout, held-out data are the rollout's own."""

from __future__ import annotations

from typing import Any

import torch
from sb3_contrib import RecurrentPPO
from stable_baselines3.common.callbacks import BaseCallback
from torch import Tensor

from lstm_monitor.integrations import SB3LSTMMonitor
from tests.conformance.hosts import CELLS, Host, Task

STEPS = 24


class Users(BaseCallback):
    """The user's own callback; a batch is a step of the environment."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.task, self.rollouts = task, 0

    def _on_rollout_start(self) -> None:
        if self.rollouts:
            self.task.step()
            self.task.step()
        self.rollouts += 1

    def _on_step(self) -> bool:
        return True


class SB3(Host):
    name = "stable-baselines3"
    kinds = ("LSTM",)

    def model(self, kind: str, cells: int = CELLS) -> Any:
        return RecurrentPPO(
            "MlpLstmPolicy",
            "CartPole-v1",
            n_steps=STEPS,
            batch_size=STEPS,
            n_epochs=1,
            policy_kwargs={"lstm_hidden_size": cells, "net_arch": []},
            seed=0,
            device="cpu",
        )

    def rebuilt(self, model: Any, kind: str) -> Any:
        return self.model(kind, 2 * CELLS)

    def make(self, **options: Any) -> Any:
        options.pop("held_out", None)
        return SB3LSTMMonitor(**options)

    def fit(self, task: Task, ours: Any | None) -> None:
        path = task.folder / "sb3.zip"
        if task.resumed:
            task.model = RecurrentPPO.load(path, env=task.model.env)
            if ours is not None:
                ours.load_state_dict(torch.load(task.folder / "monitor.pt", weights_only=True))
        epochs = task.epochs - 1 if task.resumed else task.epochs
        callbacks = [Users(task), *([] if ours is None else [ours])]
        task.model.learn(epochs * STEPS, callback=callbacks, reset_num_timesteps=not task.resumed)
        if task.save:
            task.model.save(path)
            if ours is not None:
                torch.save(ours.monitor.state_dict(), task.folder / "monitor.pt")

    def weights(self, task: Task) -> list[Tensor]:
        return [value.detach().clone() for value in task.model.policy.state_dict().values()]


ADAPTERS = {"SB3LSTMMonitor"}
PARTS = [SB3()]
