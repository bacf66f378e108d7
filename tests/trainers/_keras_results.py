"""A Keras training with dropout in and beside the layers, masks, stacks, both directions and a model in the model."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from common import Ablation, Results, checks_in, count, digits, layers_in, quick_check, scalars_in, twice

from lstm_monitor.integrations import KerasLSTMMonitor, TensorBoardSink

X, Y = (tensor.numpy() for tensor in digits())
L = keras.layers


def build() -> keras.Model:
    """Rows of digits (N, 8, 8) to log-odds (N, 10), through every kind of recurrent layer."""
    rows = keras.Input((8, 8))
    inner = keras.Sequential([keras.Input((8, 8)), L.GRU(8, name="gru")], name="inner")
    both = L.Bidirectional(L.LSTM(6, return_sequences=True, dropout=0.2, recurrent_dropout=0.2), name="both")
    stack = L.RNN([L.LSTMCell(6, dropout=0.1), L.LSTMCell(6)], return_sequences=True, name="stack")
    last = L.SimpleRNN(8, name="simple")(stack(both(L.BatchNormalization()(L.Masking()(rows)))))
    read = L.Dropout(0.2)(L.Concatenate()([last, inner(rows)]))
    model = keras.Model(rows, L.Dense(10, name="head")(read))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss)
    return model


def error(model: keras.Model) -> float:
    """The library's own validation loss."""
    return float(model.evaluate(X[320:], Y[320:], verbose=0))


def train(monitored: bool) -> tuple[keras.Model, KerasLSTMMonitor, float]:
    """Two epochs; the model, the monitor, and the last validation loss."""
    keras.utils.clear_session()
    keras.utils.set_random_seed(0)
    check = quick_check(score=error, better="lower", seconds=15.0)
    sinks = [TensorBoardSink("runs")]
    monitor = KerasLSTMMonitor(
        held_out=X[320:], sinks=sinks, every_n_steps=10, ablation=check, budget=None, on_error="raise"
    )
    model = build()
    history = model.fit(
        X[:320],
        Y[:320],
        epochs=2,
        batch_size=32,
        validation_data=(X[320:], Y[320:]),
        verbose=0,
        callbacks=[monitor] if monitored else [],
    )
    return model, monitor, float(history.history["val_loss"][-1])


def arrays(trained: Any) -> list[np.ndarray]:
    """Every variable of the model and of its optimizer, seeds included."""
    model = trained[0]
    return [np.array(keras.ops.convert_to_numpy(part)) for part in (*model.variables, *model.optimizer.variables)]


def results() -> Results:
    """Train without and with the monitor, and read back what it wrote."""
    _, (_, monitor, own), untouched = twice(train, arrays)
    assert monitor.report is not None
    assert monitor.report.study is not None
    assert {layer.point_source for layer in monitor.report.layers} == {"held_out"}
    arrived = scalars_in("runs")
    layers = layers_in(arrived)
    expected = ("both.l0", "both.l0_reverse", "inner.gru.l0", "simple.l0", "stack.l0", "stack.l1")
    assert layers == expected, layers
    return Results(
        library="keras",
        version=keras.__version__,
        model=f"functional model on {keras.backend.backend()}: GRU, Bidirectional LSTM, stacked LSTMCells, SimpleRNN",
        layers=layers,
        checks=checks_in(arrived),
        values=count(arrived),
        where="TensorBoard",
        untouched=untouched,
        ablation=Ablation(monitor.report.study.intact, own),
        notes=(f"ranking: {monitor.report.layers[0].ranking.name}",),
    )
