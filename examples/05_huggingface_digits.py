"""Watch the cells of a GRU that reads handwritten digits row by row, with the Trainer of Hugging Face.

The digits come with scikit-learn: 1,797 images of 8 x 8 pixels, which the network reads as 8 steps of 8 numbers. The
last fifth is held out. The only lines about the monitor are those with HuggingFaceLSTMMonitor and with ``monitor``. To
have it all in TensorBoard, give it ``sinks=[TensorBoardSink("runs/digits")]``; with ``report_to="wandb"`` it goes to
that run.
"""

from __future__ import annotations

import argparse
import tempfile
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments, set_seed
from transformers.trainer_utils import EvalPrediction

from lstm_monitor.integrations import HuggingFaceLSTMMonitor


class Reader(nn.Module):
    """A GRU over the rows of an image, and a linear layer on its last hidden state."""

    def __init__(self, cells: int = 24) -> None:
        super().__init__()
        self.gru = nn.GRU(input_size=8, hidden_size=cells, batch_first=True)
        self.head = nn.Linear(cells, 10)

    def forward(self, images: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        """Log-odds of the ten digits ``(N, 10)`` for ``images (N, 8, 8)``, and the loss where there are labels."""
        hidden, _ = self.gru(images)
        odds = self.head(hidden[:, -1])
        loss = {} if labels is None else {"loss": nn.functional.cross_entropy(odds, labels)}
        return {**loss, "logits": odds}


def load_rows() -> tuple[Any, Any]:
    """Rows for training and held-out ones, as the Trainer takes them: dicts of what `Reader.forward` takes."""
    pixels, digits = load_digits(return_X_y=True)
    images = torch.tensor(pixels / 16, dtype=torch.float32).reshape(-1, 8, 8)
    rows = [{"images": image, "labels": int(digit)} for image, digit in zip(images, digits, strict=True)]
    return rows[: 4 * len(rows) // 5], rows[4 * len(rows) // 5 :]


def accuracy(prediction: EvalPrediction) -> dict[str, float]:
    """The share of digits that are read correctly."""
    odds: Any = prediction.predictions
    return {"accuracy": float((odds.argmax(-1) == prediction.label_ids).mean())}


def main() -> None:
    """Train, and say what the cells do."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--epochs", type=int, default=8)
    epochs = parser.parse_args().epochs
    set_seed(1)
    torch.set_num_threads(1)
    train, held_out = load_rows()
    # budget=None: a training of seconds has no time to spare for checks, which by default take 1% of it at most.
    images = torch.stack([row["images"] for row in held_out[:128]])
    monitor = HuggingFaceLSTMMonitor(held_out={"images": images}, every_n_steps=50, ablation=True, budget=None)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            num_train_epochs=epochs,
            learning_rate=0.01,
            per_device_train_batch_size=64,
            save_strategy="no",
            report_to="none",
            use_cpu=True,
            dataloader_pin_memory=False,
        )
        trainer = Trainer(
            Reader(),
            arguments,
            train_dataset=train,
            eval_dataset=held_out,
            compute_metrics=accuracy,
            callbacks=[monitor],
        )
        trainer.train()
        print(f"\nDigits read correctly: {trainer.evaluate()['eval_accuracy']:.1%}\n")
    if monitor.report is not None:  # None with LSTM_MONITOR=off in the environment
        print(monitor.report.in_words())


if __name__ == "__main__":
    main()
