"""Which cells of a Keras network respond, and which does it need? Handwritten digits, read row by row.

Runs on the torch backend; ``KERAS_BACKEND=jax`` in the environment takes jax. The digits come with scikit-learn. A
bidirectional LSTM learns them in ``model.fit`` while the monitor watches; EarlyStopping ends the training where its
cells no longer settle, and then cells are removed to see which ranking foretold the damage.
"""

from __future__ import annotations

import argparse
import os

os.environ.setdefault("KERAS_BACKEND", "torch")

import keras
import numpy as np
from sklearn.datasets import load_digits

import lstm_monitor as lm
from lstm_monitor.integrations import KerasLSTMMonitor, TensorBoardSink

MOVED = "lstm_monitor/rows.l0/drift/std/previous"


def load() -> tuple[np.ndarray, np.ndarray]:
    """Images as sequences of rows ``(N, 8, 8)``, and their digits ``(N,)``."""
    digits = load_digits()
    mixed = np.random.default_rng(0).permutation(len(digits.target))
    return (digits.images[mixed] / 16).astype("float32"), digits.target[mixed]


def build(cells: int) -> keras.Model:
    """A bidirectional LSTM over the rows, and a Dense layer on its last states."""
    keras.utils.set_random_seed(0)
    rows = keras.layers.Bidirectional(keras.layers.LSTM(cells, dropout=0.1), name="rows")
    model = keras.Sequential([keras.Input((8, 8)), rows, keras.layers.Dense(10, name="digit")])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(5e-3), loss, metrics=["accuracy"])
    return model


def main() -> None:
    """Train, watch, and hold the rankings against the effect of removing cells."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--cells", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=6.0, help="how long the ablation check may take")
    parser.add_argument("--runs", default="runs/keras", help="folder for TensorBoard")
    options = parser.parse_args()

    x, y = load()
    validation = x[1400:], y[1400:]

    def error(model: keras.Model) -> float:
        """Share of the validation images that are read wrong."""
        return 1.0 - float(model.evaluate(*validation, verbose=0, batch_size=512)[1])

    check = lm.AblationCheck(score=error, better="lower", seconds=options.seconds, random_orders=4)
    # budget=None: a training of seconds has no time to spare for checks, which by default take 1% of it at most.
    monitor = KerasLSTMMonitor(
        held_out=x[1400:1528],
        sinks=[TensorBoardSink(options.runs)],
        ablation=check,
        logs="rows.l0/activity/std/p50",
        budget=None,
    )
    model = build(options.cells)
    model.fit(
        x[:1400],
        y[:1400],
        batch_size=64,
        epochs=options.epochs,
        validation_data=validation,
        verbose=2,
        callbacks=[monitor, keras.callbacks.EarlyStopping(MOVED, mode="min", patience=5)],
    )
    report = monitor.report
    if report is None:
        return  # switched off by LSTM_MONITOR=off
    print(report.in_words())
    print(f"\ntensorboard --logdir {options.runs} --samples_per_plugin images=200")


if __name__ == "__main__":
    main()
