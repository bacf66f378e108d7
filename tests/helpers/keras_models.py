"""Small Keras models and data; importing this chooses torch as Keras's backend where none is chosen."""

import os

os.environ.setdefault("KERAS_BACKEND", "torch")

import keras
import numpy as np

from lstm_monitor import MemorySink
from lstm_monitor.integrations.keras_callback.callback import KerasLSTMMonitor

L = keras.layers
STEPS, FEATURES = 6, 3


def data(count: int = 48, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    x = np.random.default_rng(seed).normal(size=(count, STEPS, FEATURES)).astype("float32")
    return x, x.sum((1, 2))[:, None].astype("float32")


def network(*layers: keras.Layer, loss: str = "mse") -> keras.Model:
    """The layers between an input of 6 steps with 3 features and a Dense layer, compiled."""
    model = keras.Sequential([keras.Input((STEPS, FEATURES)), *layers, L.Dense(1)])
    model.compile("adam", loss)
    return model


def shuffled(model: keras.Model, seed: int = 1) -> keras.Model:
    """Every weight random, the biases too."""
    random = np.random.default_rng(seed)
    for variable in model.trainable_variables:
        variable.assign(random.normal(size=variable.shape).astype("float32") / 2)
    return model


def monitor(**options: object) -> tuple[KerasLSTMMonitor, MemorySink]:
    sink = MemorySink()
    options = {"held_out": data(20, seed=5)[0], "on_error": "raise", "horizon": 16, "budget": None} | options
    return KerasLSTMMonitor(sinks=[sink], **options), sink


def arrays(values: object) -> list[np.ndarray]:
    return [np.array(keras.ops.convert_to_numpy(value)) for value in keras.tree.flatten(values)]
