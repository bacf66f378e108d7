"""Watch the cells of an AWD-LSTM while it learns how CO2 on Mauna Loa moves, with fastai.

The weekly record comes with statsmodels. Its changes are cut into 16 sizes, which the language model reads as words, to
foretell the next one; the last fifth is held out. The only lines about the monitor are those with ``monitor`` and
``check``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import statsmodels.api as sm
import torch
from fastai.text.all import (
    AWD_LSTM,
    CrossEntropyLossFlat,
    Datasets,
    LMDataLoader,
    LMLearner,
    ModelResetter,
    RNNRegularizer,
    TensorText,
    awd_lstm_lm_config,
    get_language_model,
    noop,
)

import lstm_monitor as lm
from lstm_monitor.integrations import FastaiLSTMMonitor

WORDS, WEEKS = 16, 60


def load_texts() -> list[Any]:
    """Texts of 60 weeks each, as tensors of word numbers ``(60,)``, in order of time."""
    ppm = sm.datasets.co2.load_pandas().data["co2"].interpolate().to_numpy()
    changes = np.diff(ppm)
    words = np.digitize(changes, np.quantile(changes, np.linspace(0, 1, WORDS + 1)[1:-1]))
    return [TensorText(text) for text in torch.tensor(words[: len(words) // WEEKS * WEEKS]).reshape(-1, WEEKS)]


def main() -> None:
    """Train, and say what the cells do."""
    torch.manual_seed(1)
    torch.set_num_threads(1)
    texts = load_texts()
    split = 4 * len(texts) // 5
    data = Datasets(texts, [[noop]], splits=[list(range(split)), list(range(split, len(texts)))])
    loaders = data.dataloaders(bs=4, seq_len=30, dl_type=LMDataLoader, num_workers=0)
    network = get_language_model(AWD_LSTM, WORDS, awd_lstm_lm_config | {"emb_sz": 16, "n_hid": 24, "n_layers": 2})

    check = lm.AblationCheck(score=lambda model: float(learner.validate()[0]), better="lower", seconds=10)
    # budget=None: a training of seconds has no time to spare for checks, which by default take 1% of it at most.
    monitor = FastaiLSTMMonitor(held_out=torch.stack(texts[split:]), ablation=check, budget=None)
    callbacks = [ModelResetter(), RNNRegularizer(alpha=2, beta=1), monitor]
    learner = LMLearner(loaders, network, loss_func=CrossEntropyLossFlat(), cbs=callbacks)
    with learner.no_bar():
        learner.fit_one_cycle(6, 0.02)

        loss = learner.validate()[0]
    print(f"\nOf {WORDS} sizes the model foretells the next to {np.exp(loss):.1f} (held-out perplexity)\n")
    if monitor.report is not None:  # None with LSTM_MONITOR=off in the environment
        print(monitor.report.in_words())


if __name__ == "__main__":
    main()
