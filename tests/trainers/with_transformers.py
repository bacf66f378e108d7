"""Hugging Face Trainer.

A `PreTrainedModel` with an LSTM reads handwritten digits; the monitor is one of the Trainer's callbacks, and the
ablation's score is the Trainer's own evaluation loss.
"""

from __future__ import annotations

from typing import Any

import torch
import transformers
from common import Ablation, Results, checks_in, count, digits, finish, layers_in, quick_check, scalars_in, twice
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel, Trainer, TrainingArguments
from transformers.modeling_outputs import SequenceClassifierOutput

from lstm_monitor.integrations import HuggingFaceLSTMMonitor, TensorBoardSink

REQUIRES = ["lstm-monitor[huggingface]"]
MINUTES = 4
FAST = True

X, Y = digits()
ROWS: Any = [{"inputs": x, "labels": int(y)} for x, y in zip(X, Y, strict=True)]
TRAIN, HELD_OUT = ROWS[:320], ROWS[320:]


class Reader(PreTrainedModel):
    """An LSTM over the rows of an image, and a linear layer on its last hidden state."""

    config_class = PretrainedConfig

    def __init__(self, config: PretrainedConfig) -> None:
        """Twelve cells."""
        super().__init__(config)
        self.rnn = nn.LSTM(8, 12, batch_first=True)
        self.drop = nn.Dropout(0.2)
        self.head = nn.Linear(12, 10)
        self.post_init()

    def forward(self, inputs: Tensor, labels: Tensor | None = None) -> SequenceClassifierOutput:
        """Log-odds of the digits (N, 10), and the loss where there are labels."""
        odds = self.head(self.drop(self.rnn(inputs)[0][:, -1]))
        return SequenceClassifierOutput(None if labels is None else nn.functional.cross_entropy(odds, labels), odds)


def train(monitored: bool) -> tuple[nn.Module, HuggingFaceLSTMMonitor, float]:
    """Three epochs; the network, the monitor, and the Trainer's evaluation loss."""
    arguments = TrainingArguments(
        "out", num_train_epochs=3, per_device_train_batch_size=16, per_device_eval_batch_size=80, use_cpu=True,
        learning_rate=0.01, save_strategy="epoch", report_to="none", disable_tqdm=True, gradient_accumulation_steps=2,
    )  # fmt: skip
    trainer = Trainer(Reader(PretrainedConfig()), arguments, train_dataset=TRAIN, eval_dataset=HELD_OUT)
    monitor = HuggingFaceLSTMMonitor(
        held_out={"inputs": X[320:]},
        sinks=[TensorBoardSink("runs")],
        every_n_steps=10,
        ablation=quick_check(score=lambda _: trainer.evaluate()["eval_loss"], better="lower"),
        budget=None,
        on_error="raise",
    )
    if monitored:
        trainer.add_callback(monitor)
    trainer.train()
    return trainer.model, monitor, trainer.evaluate()["eval_loss"]


def main() -> Results:
    """Train without and with the monitor, and read back what it wrote."""
    _, (_, monitor, own), untouched = twice(train, lambda trained: trained[0])
    assert monitor.report is not None
    assert monitor.report.study is not None
    arrived = scalars_in("runs")
    return Results(
        library="transformers",
        version=transformers.__version__,
        model="PreTrainedModel with nn.LSTM",
        layers=layers_in(arrived),
        checks=checks_in(arrived),
        values=count(arrived),
        where="TensorBoard",
        untouched=untouched,
        ablation=Ablation(monitor.report.study.intact, own),
        notes=("give held_out= yourself: the Trainer shows callbacks no evaluation batch",),
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    finish(main())
