"""Keras on torch."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor

os.environ.setdefault("KERAS_BACKEND", "torch")

import keras
from keras import layers

from lstm_monitor.integrations import KerasLSTMMonitor
from tests.conformance.hosts import BATCH, CELLS, FEATURES, Host, Task, data, held_out

KINDS: dict[str, Any] = {
    "LSTM": lambda h: [layers.LSTM(h, name="body")],
    "GRU": lambda h: [layers.GRU(h, name="body")],
    "RNN": lambda h: [layers.SimpleRNN(h, name="body")],
    "LSTMCell": lambda h: [layers.RNN(layers.LSTMCell(h), name="body")],
    "GRUCell": lambda h: [layers.RNN(layers.GRUCell(h), name="body")],
    "RNNCell": lambda h: [layers.RNN(layers.SimpleRNNCell(h), name="body")],
    "two layers, dropout": lambda h: [
        layers.LSTM(h, return_sequences=True, dropout=0.2, recurrent_dropout=0.1, name="body"),
        layers.LSTM(h, name="second"),
    ],
    "bidirectional": lambda h: [layers.Bidirectional(layers.GRU(h // 2), name="body")],
}


class Users(keras.callbacks.Callback):  # type: ignore[misc]
    """The user's own callback."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.task = task

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        self.task.step()


class Keras(Host):
    """``model.fit``."""

    name = "keras"
    kinds = tuple(KINDS)

    def model(self, kind: str, cells: int = CELLS) -> Any:
        keras.utils.set_random_seed(0)
        body = KINDS[kind](cells)
        model = keras.Sequential([keras.Input((None, FEATURES)), layers.Dropout(0.2), *body, layers.Dense(1)])
        model.compile(keras.optimizers.Adam(0.01), "mse")
        return model

    def rebuilt(self, model: Any, kind: str) -> Any:
        return self.model(kind, 2 * CELLS)

    def make(self, **options: Any) -> Any:
        return KerasLSTMMonitor(**options)

    def fit(self, task: Task, ours: Any | None) -> None:
        path = task.folder / "keras.weights.h5"
        if task.resumed:
            task.model.optimizer.build(task.model.trainable_variables)
            task.model.load_weights(path)
            if ours is not None:
                ours.load_state_dict(torch.load(task.folder / "monitor.pt", weights_only=True))
        x, y = (part.numpy() for part in data(task.steps, task.batches))
        other = held_out(task.steps).numpy()
        task.model.fit(
            x,
            y,
            batch_size=BATCH,
            epochs=task.epochs,
            initial_epoch=1 if task.resumed else 0,
            validation_data=(other, other.mean((1, 2))[:, None]) if task.validation else None,
            callbacks=[Users(task), *([] if ours is None else [ours])],
            verbose=0,
        )
        if task.save:
            task.model.save_weights(path)
            if ours is not None:
                torch.save(ours.state_dict(), task.folder / "monitor.pt")

    def weights(self, task: Task) -> list[Tensor]:
        variables = [*task.model.variables, *task.model.optimizer.variables]
        return [torch.as_tensor(keras.ops.convert_to_numpy(variable)) for variable in variables]


ADAPTERS = {"KerasLSTMMonitor"}
PARTS = [Keras()]
