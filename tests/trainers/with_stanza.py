"""stanza: CharacterLanguageModel, trained by stanza.models.charlm.

Its `main` makes the network, the optimizer and the loop, and calls ``model.forward`` directly; `watch_optimizer` finds
the network by the optimizer's parameters and the layers' inputs where the LSTM is called.
"""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from common import Ablation, Results, checks_in, count, finish, layers_in, quick_check, scalars_in, twice
from sklearn.datasets import load_breast_cancer, load_digits, load_wine
from stanza.models import charlm
from stanza.models.common.char_model import CharacterLanguageModel

import lstm_monitor as lm
from lstm_monitor.integrations import TensorBoardSink

REQUIRES = ["stanza>=1.10"]
MINUTES = 3
FAST = False

ARGUMENTS = [
    *("--train_file", "train.txt", "--eval_file", "dev.txt", "--shorthand", "en_test", "--epochs", "2"),
    *("--char_emb_dim", "8", "--char_hidden_dim", "16", "--batch_size", "8", "--bptt_size", "20", "--lr0", "2"),
    *("--eval_steps", "-1", "--cutoff", "1", "--cpu", "--no_checkpoint"),
]


def perplexity(folder: str, model: Any) -> float:
    """The library's own evaluation on the development text: the mean loss of a character."""
    args = charlm.parse_args([*ARGUMENTS, "--save_dir", folder])
    data = charlm.load_file("dev.txt", model.vocab, "forward")
    return float(charlm.evaluate_epoch(args, model.vocab, data, model, torch.nn.CrossEntropyLoss()))


def train(monitored: bool) -> tuple[Any, lm.Report | None]:
    """The network that was saved, and the monitor's last report."""
    folder = "watched" if monitored else "plain"
    arguments = [*ARGUMENTS, "--save_dir", folder]
    report = None
    if monitored:
        watch = lm.watch_optimizer(
            sinks=[TensorBoardSink("runs")],
            every_n_steps=20,
            budget=None,
            ablation=quick_check(score=lambda model: perplexity(folder, model), better="lower"),
            on_error="raise",
        )
        with watch as monitor:
            charlm.main(arguments)
        report = monitor.report
    else:
        charlm.main(arguments)
    return CharacterLanguageModel.load(f"{folder}/en_test_forward_charlm.pt", finetune=True), report


def main() -> Results:
    """Train without and with the monitor, and read back what it wrote."""
    texts = [load().DESCR for load in (load_digits, load_wine, load_breast_cancer)]
    Path("train.txt").write_text("".join(texts[1:]))
    Path("dev.txt").write_text(texts[0])
    _, (model, report), untouched = twice(train, lambda trained: trained[0])
    assert report is not None
    assert report.study is not None
    arrived = scalars_in("runs")
    assert layers_in(arrived) == ("charlstm.lstm.l0",)
    return Results(
        library="stanza",
        version=version("stanza"),
        model="CharacterLanguageModel",
        layers=layers_in(arrived),
        checks=checks_in(arrived),
        values=count(arrived),
        where="TensorBoard",
        untouched=untouched,
        ablation=Ablation(report.study.intact, perplexity("watched", model)),
        notes=("on inputs of the training, from the second step on",),
    )


if __name__ == "__main__":
    finish(main())
