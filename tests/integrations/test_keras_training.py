"""KerasLSTMMonitor in ``model.fit``: it checks, leaves the training alone, and its values can be monitored."""

import copy
import pickle
import random
import re
import threading
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import lstm_monitor as lm
from lstm_monitor.core.guard import MonitorWarning
from lstm_monitor.integrations.keras_callback.callback import KerasLSTMMonitor
from lstm_monitor.integrations.tensorboard_sink.sink import TensorBoardSink
from tests.helpers.keras_models import FEATURES, STEPS, L, arrays, data, keras, monitor, network

# Keras 3.15 reads torch tensors in a way that numpy 2.4 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword")

SATURATION = "lstm_monitor/lstm.l0/gates/saturation/p50"


def lstm(**options: Any) -> keras.Model:
    keras.utils.set_random_seed(0)  # before there are layers: they draw seeds
    return network(L.LSTM(5, name="lstm", **options))


def fit(model: keras.Model, *callbacks: Any, **options: Any) -> Any:
    x, y = data()
    return model.fit(x, y, callbacks=list(callbacks), **({"epochs": 2, "verbose": 0, "batch_size": 16} | options))


# Checks


def test_a_check_at_the_start_and_after_each_epoch() -> None:
    watch, sink = monitor()
    fit(lstm(), watch)
    assert [(report.step, report.epoch) for report in sink.reports] == [(0, 0), (3, 1), (6, 2)]
    layer = watch.report["lstm.l0"]
    assert layer.point_source == "held_out"
    assert layer.ranking.name == "output_sensitivity"
    assert {"lstm_monitor/lstm.l0/activity/std/p50", SATURATION} <= watch.report.scalars().keys()


def test_checks_after_steps_and_by_schedules() -> None:
    watch, sink = monitor(every_n_steps=2)
    fit(lstm(), watch)
    assert [report.step for report in sink.reports] == [0, 2, 4, 6]
    watch, sink = monitor(every_n_epochs=lm.every(2))
    fit(lstm(), watch, epochs=3)
    assert [report.epoch for report in sink.reports] == [0, 2, 3]


def test_an_epoch_of_one_batch_without_validation_and_held_out_data() -> None:
    watch, sink = monitor(held_out=None)
    fit(lstm(), watch, batch_size=48)
    assert [report.step for report in sink.reports] == [0, 1, 2]
    assert watch.report["lstm.l0"].point_source == "default"


def test_values_are_those_of_the_layer_itself() -> None:
    held = data(20, seed=5)[0]
    watch, _ = monitor(held_out=held)
    model = lstm(return_sequences=True)
    fit(model, watch)
    (hidden,) = arrays(model.layers[0](held))
    np.testing.assert_allclose(watch.report["lstm.l0"].metrics["activity/std"].cells, hidden.std((0, 1)), rtol=1e-4)


def test_padding_stays_out_by_masks_of_the_model_and_by_lengths() -> None:
    held, ends = data(20, seed=5)[0], np.arange(20) % STEPS + 1
    padded = np.where(np.arange(STEPS)[:, None] < ends[:, None, None], held, 7.0).astype("float32")
    plain, _ = monitor(held_out=padded, lengths=ends)
    fit(lstm(), plain)
    masked, _ = monitor(held_out=padded)
    keras.utils.set_random_seed(0)
    fit(network(L.Masking(7.0), L.LSTM(5, name="lstm")), masked)
    found = [watch.report["lstm.l0"].metrics["activity/std"].cells for watch in (plain, masked)]
    np.testing.assert_allclose(*found, rtol=1e-4)
    unmasked, _ = monitor(held_out=padded)
    fit(lstm(), unmasked)
    assert not np.allclose(unmasked.report["lstm.l0"].metrics["activity/std"].cells, found[0], rtol=0.1)


def test_std_x_outgoing_knows_the_dense_layer_that_reads_the_cells() -> None:
    watch, _ = monitor(rank_by="std_x_outgoing")
    fit(network(L.Bidirectional(L.LSTM(5), name="both")), watch)
    for name in ("both.l0", "both.l0_reverse"):
        assert "(into dense" in watch.report[name].ranking.words


def test_models_with_several_inputs_of_any_structure() -> None:
    x = data()[0]
    one, two = keras.Input((STEPS, FEATURES), name="one"), keras.Input((STEPS, FEATURES), name="two")
    out = L.Dense(1)(L.Concatenate()([L.LSTM(3, name="a")(one), L.GRU(4, name="b")(two)]))
    for inputs in ([x, 2 * x], {"one": x, "two": 2 * x}):
        model = keras.Model({"one": one, "two": two} if isinstance(inputs, dict) else [one, two], out)
        model.compile("sgd", "mse")
        watch, _ = monitor(held_out=inputs)
        model.fit(inputs, data()[1], callbacks=[watch], verbose=0)
        assert [str(layer.key) for layer in watch.report.layers] == ["a.l0", "b.l0"]


def test_a_fixed_batch_size_and_the_states_of_stateful_layers_are_kept() -> None:
    model = keras.Sequential(
        [keras.Input(batch_shape=(16, STEPS, FEATURES)), L.LSTM(4, stateful=True, name="lstm"), L.Dense(1)]
    )
    watch, _ = monitor(held_out=data(40)[0])
    watch.set_model(model)
    watch.on_train_begin()  # no fit: Keras 3.15 cannot train a stateful layer on torch
    assert watch.report["lstm.l0"].point_source == "held_out"
    assert [len(batch[0]) for batch in watch.held_out] == [16, 16]
    assert not arrays(model.layers[0].states)[0].any()


# The training is untouched


def everything() -> keras.Model:
    """Dropout of every kind, normalization, masks."""
    keras.utils.set_random_seed(0)
    return network(
        L.Masking(),
        L.Bidirectional(L.LSTM(4, return_sequences=True, dropout=0.2, recurrent_dropout=0.2)),
        L.Dropout(0.3),
        L.BatchNormalization(),
        L.GaussianNoise(0.1),
        L.RNN([L.GRUCell(3, dropout=0.2), L.GRUCell(3)], return_sequences=True),
        L.LSTM(4, dropout=0.1),
    )


def trained(callbacks: list[Any], build: Callable[[], keras.Model] = everything) -> tuple[list[np.ndarray], Any]:
    model = build()
    x, y = data()
    history = model.fit(
        x, y, epochs=2, batch_size=16, verbose=0, callbacks=callbacks, validation_data=(x[:8], y[:8]), shuffle=True
    )
    kept = arrays([variable.value for variable in (*model.variables, *model.optimizer.variables)])
    states = torch.get_rng_state().numpy(), np.random.get_state()[1], np.array(random.getstate()[1])
    return [*kept, *states], {name: history.history[name] for name in ("loss", "val_loss")}


@pytest.fixture(scope="module")
def unwatched() -> tuple[list[np.ndarray], Any]:
    """The same training without us."""
    return trained([])


@pytest.mark.parametrize(
    "options",
    [
        {"every_n_steps": 1},
        {"ablation": lm.AblationCheck(random_orders=1, points=2, rankings=["measured"])},
        {"held_out": None, "every_n_steps": 2},
    ],
)
def test_weights_optimizer_seeds_and_random_states_are_bit_identical(
    options: dict[str, Any], unwatched: tuple[list[np.ndarray], Any]
) -> None:
    alone, history = unwatched
    watch, sink = monitor(**options)
    watched, same_history = trained([watch])
    assert len(sink.reports) >= 3
    assert history == same_history
    for ours, theirs in zip(watched, alone, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_check_leaves_no_trace_on_the_model() -> None:
    model = everything()
    before = [set(vars(layer)) for layer in model._flatten_layers()]
    watch, _ = monitor()
    watch.set_model(model)
    watch.check()
    assert [set(vars(layer)) for layer in model._flatten_layers()] == before


# Values for other callbacks


def test_early_stopping_and_checkpoints_monitor_our_values(tmp_path: Path) -> None:
    watch, _ = monitor()
    stop = keras.callbacks.EarlyStopping(SATURATION, mode="max", patience=0, min_delta=10)
    save = keras.callbacks.ModelCheckpoint(tmp_path / "best.keras", SATURATION, mode="min", save_best_only=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="keras|zipfile")  # its writing of files
        history = fit(lstm(), watch, stop, save, epochs=9).history
    assert stop.stopped_epoch > 0
    assert (tmp_path / "best.keras").exists()
    assert history[SATURATION][-1] == watch.report.scalars()[SATURATION]
    assert set(history) == {"loss", SATURATION}  # Keras prints all of `logs`


def test_logs_hold_what_was_asked_for_and_a_loop_of_ones_own_gets_all() -> None:
    watch, _ = monitor(logs=["*/gates/saturation/*", "_run/checks"])
    history = fit(lstm(), watch).history
    assert history["lstm_monitor/_run/checks"] == [2, 3]
    assert SATURATION in history
    assert all("saturation" in key or "_run" in key for key in history.keys() - {"loss"})
    logs: dict[str, float] = {}
    watch.on_epoch_end(2, logs)
    assert watch.report.scalars().items() <= logs.items()


def test_a_monitored_value_is_finite_from_the_first_epoch_on_even_if_unknown_or_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LSTM_MONITOR", "off")
    watch, sink = monitor()
    with pytest.warns(MonitorWarning, match="stand-ins"):
        history = fit(lstm(), watch, keras.callbacks.EarlyStopping(SATURATION, mode="min", patience=1), epochs=4)
    assert len(history.history[SATURATION]) == 4
    assert np.isfinite(history.history[SATURATION]).all()
    assert sink.reports == []


# What trainings do to a callback


def test_it_is_copied_and_pickled_before_and_after_fit() -> None:
    watch, _ = monitor()
    first = pickle.loads(pickle.dumps(copy.deepcopy(watch)))
    fit(lstm(), first)
    again = pickle.loads(pickle.dumps(first))
    assert again.report["lstm.l0"].hidden_size == 5
    assert again.model is None


def test_a_second_fit_goes_on_and_another_model_begins_anew() -> None:
    watch, sink = monitor()
    model = lstm()
    fit(model, watch, epochs=1)
    fit(model, watch, epochs=1)
    assert [report.step for report in sink.reports] == [0, 3, 6]
    fit(network(L.GRU(7, name="gru")), watch, epochs=1)
    assert [(report.step, str(report.layers[0].key)) for report in sink.reports[3:]] == [(0, "gru.l0"), (3, "gru.l0")]


def test_its_state_goes_into_a_checkpoint_of_ones_own() -> None:
    watch, _ = monitor()
    model = lstm()
    fit(model, watch)
    resumed, sink = monitor()
    resumed.load_state_dict(watch.state_dict())
    fit(model, resumed, epochs=1)
    assert [report.step for report in sink.reports] == [9]
    assert sink.reports[0].checks == 4


def test_a_callback_outside_a_list_is_called_from_another_thread_and_checks_in_the_trainings_own() -> None:
    seen = []

    class Sink(lm.MemorySink):
        def write(self, report: lm.Report) -> None:
            seen.append(threading.current_thread() is threading.main_thread())

    watch, _ = monitor(every_n_steps=1)
    watch.sinks = [Sink()]
    x, y = data()
    lstm().fit(x, y, epochs=2, batch_size=8, verbose=0, callbacks=watch)
    assert len(seen) >= 3
    assert all(seen)


def test_an_error_of_ours_is_one_warning_and_one_of_the_training_is_its_own() -> None:
    watch = KerasLSTMMonitor(held_out=data(4)[0][..., :2])
    with pytest.warns(MonitorWarning, match="held_out: the model could not be run"):
        history = fit(lstm(), watch).history
    assert len(history["loss"]) == 2

    class Stop(keras.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        fit(lstm(), monitor()[0], Stop())


def test_a_model_without_recurrent_layers_is_told() -> None:
    with pytest.warns(MonitorWarning, match="no recurrent layer that can be characterized. It contains:"):
        fit(network(L.Flatten()), KerasLSTMMonitor())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"held_out": [data(4)[0], data(5)[0]]}, "no targets"),
        ({"held_out": []}, "no targets"),
        ({"held_out": data(4)[0], "lengths": [7, 1, 1, 1]}, "an integer from 1 to 6"),
        ({"held_out": data(4)[0], "mask": [1, 1]}, "give (N, T)"),
        ({"lengths": [1]}, "without held_out="),
        ({"held_out": data(4)[0], "lengths": [1] * 4, "mask": [[1]] * 4}, "both given"),
        ({"every_n_epochs": 0}, "every_n_epochs=0"),
        ({"ablation": lm.AblationCheck(score="val_acc"), "held_out": data(4)[0]}, "AblationCheck(score=evaluate)"),
    ],
)
def test_bad_arguments_are_told_at_once(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        KerasLSTMMonitor(**options)


def test_data_that_are_no_arrays_are_told_at_once() -> None:
    with pytest.raises(TypeError, match="held_out holds generator: give arrays"):
        KerasLSTMMonitor(held_out=(x for x in "ab"))
    with pytest.raises(TypeError, match="give the numbers"):
        KerasLSTMMonitor(held_out=np.array(["a", "b"]))


def test_tensorboard_gets_the_same_values(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    watch, _ = monitor(history=False)
    watch.sinks = [TensorBoardSink(tmp_path, pictures_every=0)]
    fit(lstm(), watch)
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert events.Scalars(SATURATION)[-1].value == pytest.approx(watch.report.scalars()[SATURATION])


def test_a_training_that_keras_resumes_goes_on_at_its_step(tmp_path: Path) -> None:
    class Kill(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            if epoch == 2:
                raise KeyboardInterrupt

    x, y = data()
    folder = str(tmp_path / "history")
    for killed in (True, False):
        watch, _ = monitor()
        watch.sinks.append(lm.HistorySink(folder))
        calls = [keras.callbacks.BackupAndRestore(str(tmp_path / "backup")), watch, *([Kill()] if killed else [])]
        with pytest.raises(KeyboardInterrupt) if killed else nullcontext():
            lstm().fit(x, y, epochs=4, batch_size=8, verbose=0, callbacks=calls)
    history = lm.load_history(folder)
    assert history.steps == (0, 6, 12, 18, 24)
    assert history.epochs == (0, 1, 2, 3, 4)


def test_steps_are_batches_where_gradients_are_accumulated() -> None:
    model = lstm()
    model.compile(keras.optimizers.SGD(gradient_accumulation_steps=2), "mse")
    x, y = data()
    for start in (0, 1):
        watch, sink = monitor()
        model.fit(x, y, initial_epoch=start, epochs=start + 1, batch_size=8, verbose=0, callbacks=[watch])
        assert [report.step for report in sink.reports] == [6 * start, 6 * start + 6]
    assert watch.epochs == 2


def test_targets_among_the_held_out_data_are_told() -> None:
    watch, sink = monitor(held_out=data(20), on_error="warn")
    with pytest.warns(MonitorWarning, match=r"held_out holds 2 arrays, and the model '.*' takes 1: .* no targets"):
        fit(lstm(), watch, epochs=1)
    assert sink.reports == []


def test_dense_layers_that_adapt_or_are_never_called_are_no_obstacle() -> None:
    class Model(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.head, self.unused = L.LSTM(4, name="rnn"), L.Dense(1, name="head"), L.Dense(2)

        def call(self, x: Any) -> Any:
            return self.head(self.rnn(x))

        def build(self, shape: Any) -> None:
            self.rnn.build(shape)
            self.head.build((None, 4))

    model = Model()
    model.build((None, *data()[0].shape[1:]))
    model.head.enable_lora(1)
    model.compile("sgd", "mse")
    watch, sink = monitor(rank_by="std_x_outgoing")
    fit(model, watch, epochs=1)
    assert "into head" in sink.reports[-1].layers[0].ranking.words
