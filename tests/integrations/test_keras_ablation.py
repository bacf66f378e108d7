"""The ablation check of a Keras training: what editing its weights by hand gives, and every variable put back."""

from typing import Any

import numpy as np
import pytest
import torch

import lstm_monitor as lm
from lstm_monitor.core.guard import MonitorWarning
from tests.helpers.keras_models import L, arrays, data, keras, monitor, network, shuffled

# Keras 3.15 reads torch tensors in a way that numpy 2.4 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword")

X, Y = data(16, seed=3)
QUICK: dict[str, Any] = {"random_orders": 1, "points": 2, "rankings": ["measured"], "seconds": None}


def evaluate(model: keras.Model) -> float:
    return model.evaluate(X, Y, verbose=0)


def study_of(model: keras.Model, check: lm.AblationCheck, **options: Any) -> lm.Study:
    watch, _ = monitor(ablation=check, **options)
    watch.set_model(model)
    return watch.held_out_study(check)


def by_hand(model: keras.Model, cell: Any, number: int, gates: int, place: int) -> float:
    """The score with the columns of a cell's candidate value set to zero; the weights are put back."""
    before = [np.array(variable.value.detach()) for variable in cell.weights[:3]]
    column = place * cell.units + number
    for variable, values in zip(cell.weights, before, strict=False):
        edited = values.copy()
        edited[..., column] = 0
        variable.assign(edited)
    score = evaluate(model)
    for variable, values in zip(cell.weights, before, strict=False):
        variable.assign(values)
    return score


@pytest.mark.parametrize(
    ("layer", "gates", "place"),
    [(L.LSTM(4, name="rnn"), 4, 2), (L.GRU(4, name="rnn"), 3, 2), (L.SimpleRNN(4, name="rnn"), 1, 0)],
)
def test_effects_are_those_of_editing_the_weights_by_hand(layer: Any, gates: int, place: int) -> None:
    model = shuffled(network(layer))
    study = study_of(model, lm.AblationCheck(score=evaluate, better="lower", **QUICK))
    intact = evaluate(model)
    assert study.intact == pytest.approx(intact, rel=1e-6)
    expected = [by_hand(model, layer.cell, number, gates, place) - intact for number in range(4)]
    np.testing.assert_allclose(study["rnn.l0"].effects.score, expected, rtol=1e-4, atol=1e-5)
    assert bool(study["rnn.l0"].effects.exact.all())


def test_effects_on_the_output_are_those_of_keras_too() -> None:
    layer = L.Bidirectional(L.LSTM(3), name="both")
    model, held = shuffled(network(layer)), data(20, seed=5)[0]
    effects = study_of(model, lm.AblationCheck(**QUICK))["both.l0_reverse"].effects.output
    cell, (intact,) = layer.backward_layer.cell, arrays(model(held))
    before = [np.array(variable.value.detach()) for variable in cell.weights[:3]]
    for variable, values in zip(cell.weights, before, strict=False):
        variable.assign(np.where(np.arange(values.shape[-1]) == 2 * 3 + 1, 0, values))
    (without,) = arrays(model(held))
    assert float(effects[1]) == pytest.approx(float(((without - intact) ** 2).mean()), rel=1e-4)


def test_cells_that_are_given_states_are_removed_from_the_first_step_on() -> None:
    inputs = keras.Input(X.shape[1:])
    _, *state = L.LSTM(4, return_state=True, name="encoder")(inputs)
    model = shuffled(keras.Model(inputs, L.LSTM(4, name="decoder")(inputs[:, :2], initial_state=state)))
    model.compile("sgd", "mse")
    seen = []

    def watched(network: keras.Model) -> float:
        seen.append(arrays(network(X))[0])
        return evaluate_all(network)

    def evaluate_all(network: keras.Model) -> float:
        return network.evaluate(X, np.zeros((16, 4), "float32"), verbose=0)

    study_of(model, lm.AblationCheck(score=watched, layers="decoder.*", **QUICK))
    assert any((output[:, [1]] == 0).all() and (output[:, [0, 2, 3]] != 0).all() for output in seen)


def test_the_check_runs_when_the_training_ends_and_puts_everything_back() -> None:
    ends = []

    class Last(keras.callbacks.Callback):
        def on_train_end(self, logs: Any = None) -> None:
            ends.append(arrays([v.value for v in (*self.model.variables, *self.model.metrics_variables)]))

    watch, sink = monitor(ablation=lm.AblationCheck(score=evaluate, **QUICK))
    model = network(L.LSTM(3, dropout=0.5, recurrent_dropout=0.2, name="rnn"), L.BatchNormalization())
    model.fit(*data(), epochs=1, verbose=0, callbacks=[Last(), watch, Last()])
    for before, after in zip(*ends, strict=True):
        np.testing.assert_array_equal(before, after)
    study = sink.reports[-1].study
    assert study is watch.report.study
    assert sink.reports[-1].layers == ()
    assert study.intact == pytest.approx(evaluate(model), rel=1e-6)
    assert "evaluate" in str(study)


@pytest.mark.parametrize("error", [ValueError("in evaluate"), KeyboardInterrupt()])
def test_everything_is_put_back_after_an_error_and_an_interrupt(error: BaseException) -> None:
    model, calls = shuffled(network(L.LSTM(3, name="rnn"))), []
    before = arrays([variable.value for variable in model.variables])

    def fails(network: keras.Model) -> float:
        calls.append(network)
        if len(calls) == 4:  # a cell is missing
            assert not np.array_equal(arrays(network.layers[0].cell.kernel.value)[0], before[0])
            raise error
        return evaluate(network)

    with pytest.raises(type(error)):
        study_of(model, lm.AblationCheck(score=fails, **QUICK))
    for now, then in zip(arrays([variable.value for variable in model.variables]), before, strict=True):
        np.testing.assert_array_equal(now, then)
    assert "call" not in vars(model.layers[0])


def test_lists_arrays_and_one_number_a_sequence_are_scores() -> None:
    def squares(network: keras.Model) -> np.ndarray:
        return ((network.predict(X, verbose=0) - Y) ** 2)[:, 0]

    def with_metrics(network: keras.Model) -> list[float]:
        return [evaluate(network), 0.5]

    model = shuffled(network(L.GRU(3, name="rnn")))
    for score in (squares, with_metrics, evaluate):
        study = study_of(model, lm.AblationCheck(score=score, **QUICK))
        assert study.intact == pytest.approx(evaluate(model), rel=1e-5)


def test_a_score_is_enough_without_held_out_data() -> None:
    model = shuffled(network(L.GRU(3, name="rnn")))
    study = study_of(model, lm.AblationCheck(score=evaluate, random_orders=1, points=2), held_out=None)
    assert bool(torch.isnan(study["rnn.l0"].effects.output).all())
    assert bool(torch.isfinite(study["rnn.l0"].effects.score).all())
    assert study["rnn.l0"].trials


def test_cells_at_their_mean_go_with_the_outputs_change_only() -> None:
    model = shuffled(network(L.LSTM(3, name="rnn")))
    study = study_of(model, lm.AblationCheck(mode="mean", **QUICK))
    assert study.mode == "mean"
    with pytest.raises(ValueError, match="take mode='zero', or leave score= out"):
        study_of(model, lm.AblationCheck(mode="mean", score=evaluate, **QUICK))


def test_a_failing_score_is_one_warning() -> None:
    def broken(network: keras.Model) -> float:
        raise OSError("no data")

    watch, sink = monitor(ablation=lm.AblationCheck(score=broken, **QUICK), on_error="warn")
    with pytest.warns(MonitorWarning, match="The ablation check failed: OSError: no data"):
        network(L.LSTM(3, name="rnn")).fit(*data(), verbose=0, callbacks=[watch])
    assert len(sink.reports) == 2
