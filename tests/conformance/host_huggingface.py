"""Hugging Face's Trainer."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Trainer, TrainerCallback, TrainingArguments

from lstm_monitor.integrations import HuggingFaceLSTMMonitor
from tests.conformance.hosts import BATCH, CELLS, Host, Network, Task, data, held_out


class Model(nn.Module):
    """Takes its inputs by name, and gives the loss where there are labels."""

    def __init__(self, kind: str, cells: int) -> None:
        super().__init__()
        self.network = Network(kind, cells)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        value = self.network(x)
        return {"logits": value} if labels is None else {"loss": F.mse_loss(value, labels), "logits": value}


class Users(TrainerCallback):
    """The user's own callback."""

    def __init__(self, task: Task) -> None:
        self.task = task

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self.task.step()


class HuggingFace(Host):
    name = "transformers"

    def model(self, kind: str, cells: int = CELLS) -> Any:
        return Model(kind, cells)

    def make(self, **options: Any) -> Any:
        x = options.pop("held_out", None)
        return HuggingFaceLSTMMonitor(held_out=None if x is None else {"x": x}, **options)

    def fit(self, task: Task, ours: Any | None) -> None:
        folder = str(task.folder / "trainer")
        arguments = TrainingArguments(
            folder,
            num_train_epochs=task.epochs,
            per_device_train_batch_size=BATCH,
            save_strategy="epoch" if task.save else "no",
            eval_strategy="epoch" if task.validation else "no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
            dataloader_pin_memory=False,
        )
        x = held_out(task.steps)
        trainer = Trainer(
            task.model,
            arguments,
            train_dataset=_rows(*data(task.steps, task.batches)),
            eval_dataset=_rows(x, x.mean((1, 2))[:, None]),
            callbacks=[Users(task), *([] if ours is None else [ours])],
        )
        trainer.train(resume_from_checkpoint=task.resumed or None)


def _rows(x: Tensor, y: Tensor) -> Any:
    return [{"x": one, "labels": other} for one, other in zip(x, y, strict=True)]


ADAPTERS = {"HuggingFaceLSTMMonitor"}
PARTS = [HuggingFace()]
