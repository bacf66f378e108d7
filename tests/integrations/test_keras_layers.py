"""Recurrent layers of Keras: found by readable names, refused with reasons, and computed as Keras computes them."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from lstm_monitor.integrations.keras_callback.layers import find_keras_layers
from lstm_monitor.integrations.keras_callback.mirror import KerasMirror
from lstm_monitor.layers.finding import find_layers
from tests.helpers.keras_models import FEATURES, STEPS, L, arrays, data, keras, network, shuffled

# Keras 3.15 reads torch tensors in a way that numpy 2.4 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword")

Make = Callable[..., keras.Layer]

KINDS: dict[str, Make] = {
    "LSTM": lambda **o: L.LSTM(4, **o),
    "GRU": lambda **o: L.GRU(4, **o),
    "SimpleRNN": lambda **o: L.SimpleRNN(4, **o),
    "SimpleRNN of relu": lambda **o: L.SimpleRNN(4, activation="relu", **o),
    "RNN": lambda **o: L.RNN(L.LSTMCell(4), **o),
    "a stack of equal cells": lambda **o: L.RNN([L.LSTMCell(4), L.LSTMCell(4)], **o),
    "a stack of unequal cells": lambda **o: L.RNN([L.GRUCell(5), L.LSTMCell(4), L.SimpleRNNCell(3)], **o),
    "zero where masked": lambda **o: L.GRU(4, zero_output_for_mask=True, **o),
    "no bias": lambda **o: L.LSTM(4, use_bias=False, **o),
    "no bias in a GRU": lambda **o: L.GRU(4, use_bias=False, **o),
    "no unit_forget_bias": lambda **o: L.LSTM(4, unit_forget_bias=False, **o),
    "dropout": lambda **o: L.LSTM(4, dropout=0.3, recurrent_dropout=0.3, **o),
    "implementation 1": lambda **o: L.GRU(4, implementation=1, **o),
}
PAIRS: dict[str, Make] = {
    "concat": lambda **o: L.Bidirectional(L.LSTM(4, **o)),
    "sum": lambda **o: L.Bidirectional(L.GRU(4, **o), merge_mode="sum"),
    "mul": lambda **o: L.Bidirectional(L.SimpleRNN(4, **o), merge_mode="mul"),
    "ave": lambda **o: L.Bidirectional(L.LSTM(4, **o), merge_mode="ave"),
    "apart": lambda **o: L.Bidirectional(L.LSTM(4, **o), merge_mode=None),
    "unequal": lambda **o: L.Bidirectional(L.LSTM(4, **o), backward_layer=L.LSTM(5, go_backwards=True, **o)),
    "turned": lambda **o: L.Bidirectional(L.LSTM(4, go_backwards=True, **o), backward_layer=L.LSTM(4, **o)),
}
OPTIONS: list[dict[str, bool]] = [{}, {"return_sequences": True, "return_state": True}]


def masks(count: int) -> np.ndarray:
    """Random ones, and: no step, all steps, padding at the end, padding at the start."""
    mask = np.random.default_rng(0).random((count, STEPS)) > 0.4
    steps = np.arange(STEPS)
    mask[:4] = [steps < 0, steps >= 0, steps < 4, steps > 2]
    return mask


def assert_same_as_keras(layer: keras.Layer, masked: bool) -> None:
    x, mask = data(7)[0], masks(7)
    inputs, marks = keras.Input((STEPS, FEATURES)), keras.Input((STEPS,), dtype="bool")
    model = shuffled(keras.Model([inputs, marks], layer(inputs, mask=marks) if masked else layer(inputs)))
    expected = arrays(model([x, mask], training=False))
    found = KerasMirror(model, list)(torch.from_numpy(x), torch.from_numpy(mask))
    for ours, theirs in zip(arrays(found), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
    for now, then in zip(arrays(model([x, mask], training=False)), expected, strict=True):
        np.testing.assert_array_equal(now, then)


@pytest.mark.sweep
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_outputs_are_those_of_keras(kind: str, backwards: bool, masked: bool) -> None:
    for options in OPTIONS:
        assert_same_as_keras(KINDS[kind](go_backwards=backwards, **options), masked)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("kind", PAIRS)
def test_outputs_of_bidirectional_layers_are_those_of_keras(kind: str, masked: bool) -> None:
    for options in OPTIONS:
        assert_same_as_keras(PAIRS[kind](**options), masked)


def test_given_states_are_used_and_states_are_returned() -> None:
    inputs = keras.Input((STEPS, FEATURES))
    _, *state = L.Bidirectional(L.LSTM(4, return_state=True))(inputs)
    decoded = L.Bidirectional(L.LSTM(4))(inputs, initial_state=state)
    other, final = L.GRU(8, return_state=True)(inputs, initial_state=decoded)
    model = shuffled(keras.Model(inputs, [other, final]))
    x = data(5)[0]
    found = KerasMirror(model, lambda tensors: tensors[0])(torch.from_numpy(x))
    for ours, theirs in zip(arrays(found), arrays(model(x)), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_a_mask_of_an_embedding_reaches_the_layers() -> None:
    model = keras.Sequential([keras.Input((STEPS,)), L.Embedding(9, 3, mask_zero=True), L.LSTM(4), L.Dense(2)])
    words = np.array([[1, 2, 3, 0, 0, 0], [4, 5, 6, 7, 8, 1], [0, 0, 0, 0, 0, 0]])
    ours = KerasMirror(shuffled(model), lambda tensors: tensors[0])(torch.from_numpy(words))
    np.testing.assert_allclose(ours.detach().numpy(), *arrays(model(words)), atol=1e-5)


@pytest.mark.parametrize(("dtype", "kept"), [("float64", torch.float64), ("bfloat16", torch.float32)])
def test_doubles_are_kept_and_halves_are_singles(dtype: str, kept: torch.dtype) -> None:
    layer = L.LSTM(4, dtype=dtype, recurrent_initializer="glorot_uniform", name="rnn")  # torch has no QR of halves
    model = keras.Sequential([keras.Input((STEPS, FEATURES)), layer])
    mirror = KerasMirror(model, lambda tensors: tensors[0])
    assert mirror.get_parameter("rnn.weight_ih_l0").dtype == kept
    x = data(4)[0]
    ours, (theirs,) = mirror(torch.from_numpy(x)), arrays(keras.ops.cast(model(x), "float32"))
    np.testing.assert_allclose(ours.float().detach().numpy(), theirs, atol=0.02 if dtype == "bfloat16" else 1e-5)


# Names


def test_names_are_keras_names_with_torchs_endings() -> None:
    inner = keras.Sequential(
        [keras.Input((STEPS, FEATURES)), L.LSTM(4, return_sequences=True, name="deep")], name="inner"
    )
    model = network(
        inner,
        L.Bidirectional(L.GRU(4, return_sequences=True), name="both"),
        L.RNN([L.LSTMCell(4), L.LSTMCell(4)], return_sequences=True, name="equal"),
        L.RNN([L.LSTMCell(4), L.GRUCell(3)], return_sequences=True, name="unequal"),
        L.TimeDistributed(L.Dense(3)),
        L.SimpleRNN(3, name="last"),
    )
    found = find_layers(KerasMirror(model, list))
    assert [str(layer.key) for layer in found] == [
        "inner.deep.l0",
        "both.l0",
        "both.l0_reverse",
        "equal.l0",
        "equal.l1",
        "unequal.cell_0.l0",
        "unequal.cell_1.l0",
        "last.l0",
    ]


@pytest.mark.filterwarnings("ignore:.*it looks like it has unbuilt state")  # which is what this test is about
def test_layers_of_subclassed_models_are_found_once() -> None:
    class Reader(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = L.LSTM(4, name="rnn")
            self.again = self.rnn
            self.parts = [L.Dense(2), L.GRU(3, name="unused")]

        def call(self, x: object) -> object:
            return self.parts[0](self.rnn(x))

    model = Reader()
    model(data(2)[0])
    found = find_keras_layers(model)
    assert [site.path for site in found.sites] == ["rnn"]
    assert [str(item) for item in found.skipped] == ["unused (GRU): it is not built yet: the model has never called it"]


# Refusals


@keras.saving.register_keras_serializable()
class OwnCell(L.LSTMCell):
    def call(self, *args: object, **options: object) -> object:
        return super().call(*args, **options)


class OwnLSTM(L.LSTM):
    def call(
        self, sequences: object, initial_state: object = None, mask: object = None, training: bool = False
    ) -> object:
        return super().call(sequences, initial_state, mask, training)


class Handmade(keras.Layer):
    """Its name says LSTM and it holds none."""


class HandmadeLSTM(Handmade):
    def call(self, x: object) -> object:
        return x


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (L.LSTM(4, recurrent_activation="hard_sigmoid"), "recurrent_activation='hard_sigmoid'; only 'sigmoid' is"),
        (L.LSTM(4, activation="relu"), "activation='relu'; only 'tanh' is supported"),
        (L.GRU(4, activation=None), "activation='linear'; only 'tanh' is supported"),
        (L.SimpleRNN(4, activation="gelu"), "activation='gelu'; only 'tanh' and 'relu' is supported"),
        (L.SimpleRNN(4, activation=np.tanh), "activation='.tanh'; only"),
        (L.GRU(4, reset_after=False), "reset_after=False; only reset_after=True, Keras's default, is supported"),
        (L.RNN(OwnCell(4)), "the call of its cell OwnCell is overridden"),
        (L.RNN(L.StackedRNNCells([L.StackedRNNCells([L.LSTMCell(4)])])), "its cell StackedRNNCells is none of"),
        (OwnLSTM(4), "its call is overridden, so its cells may compute something else"),
        (L.Bidirectional(L.LSTM(4, activation="relu")), "activation='relu'; only 'tanh' is supported"),
        (HandmadeLSTM(), "a custom layer; it is no keras.layers.LSTM, GRU, SimpleRNN or RNN and holds none"),
    ],
)
def test_what_is_not_supported_is_refused_with_its_name(layer: keras.Layer, reason: str) -> None:
    inputs = keras.Input((STEPS, FEATURES))
    model = keras.Model(inputs, L.Concatenate()([L.Flatten()(layer(inputs)), L.LSTM(3, name="fine")(inputs)]))
    (skipped,) = find_keras_layers(model).skipped
    assert skipped.type_name == type(layer).__name__
    assert reason in skipped.reason or reason.replace("'.", "'numpy.") in skipped.reason
    with pytest.raises(ValueError, match="no recurrent layer that can be characterized") as caught:
        find_keras_layers(keras.Model(inputs, layer(inputs)))
    assert skipped.reason in str(caught.value)
    assert "keras.layers.LSTM, GRU, SimpleRNN, or RNN" in str(caught.value)


def test_a_cell_that_is_called_by_hand_is_refused() -> None:
    class Loop(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.cell = L.LSTMCell(4, name="cell")
            self.rnn = L.LSTM(4)

        def call(self, x: object) -> object:
            hidden, _ = self.cell(x[:, 0], self.cell.get_initial_state(len(x)))
            return hidden + self.rnn(x)

    model = Loop()
    model(data(2)[0])
    (skipped,) = find_keras_layers(model).skipped
    assert "keras.layers.RNN(cell)" in skipped.reason
