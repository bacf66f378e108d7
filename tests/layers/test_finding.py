"""find_layers: every kind of recurrent layer under its name, and what is not supported with its reason."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lstm_monitor import find_layers

KINDS = [
    (nn.LSTM, {}, "lstm"),
    (nn.GRU, {}, "gru"),
    (nn.RNN, {}, "rnn_tanh"),
    (nn.RNN, {"nonlinearity": "relu"}, "rnn_relu"),
    (nn.LSTMCell, {}, "lstm"),
    (nn.GRUCell, {}, "gru"),
    (nn.RNNCell, {}, "rnn_tanh"),
    (nn.RNNCell, {"nonlinearity": "relu"}, "rnn_relu"),
]


class InheritingLSTM(nn.LSTM):
    """A subclass with arguments of its own that computes what nn.LSTM does."""

    def __init__(self, *, width: int) -> None:
        super().__init__(width, 4)


class OverridingLSTM(nn.LSTM):
    """A subclass whose cells may do anything."""

    def forward(self, input: Tensor, hx: Any = None) -> Any:
        return input * 2, hx


class PeepholeCell(nn.Module):
    """A custom cell with a matrix named as torch's."""

    def __init__(self) -> None:
        super().__init__()
        self.weight_hh = nn.Parameter(torch.zeros(16, 4))


class MinimalGRU(nn.Module):
    """A custom cell that only its name gives away."""

    def __init__(self) -> None:
        super().__init__()
        self.update = nn.Linear(7, 4)


class LSTMClassifier(nn.Module):
    """A wrapper around a supported layer, with an LSTM in its name."""

    def __init__(self, rnn: nn.Module | None = None) -> None:
        super().__init__()
        self.rnn = nn.LSTM(3, 4) if rnn is None else rnn
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0])


class OwnModule(nn.Module):
    """A user's network that calls its LSTM ``module``."""

    def __init__(self) -> None:
        super().__init__()
        self.module = nn.LSTM(3, 4)


def names(model: nn.Module, select: str | list[str] = "*") -> list[str]:
    return [str(layer.key) for layer in find_layers(model, select)]


def instance_forward() -> nn.Module:
    lstm = nn.LSTM(3, 4)
    lstm.forward = lambda x: x  # type: ignore[method-assign, assignment]
    return lstm


def attribute() -> nn.Module:
    """The recurrent matrix is no parameter, and nobody knows where it is from."""
    lstm = nn.LSTM(3, 4)
    weight = lstm._parameters.pop("weight_hh_l0")
    lstm.weight_hh_l0 = weight.detach().clone()  # type: ignore[assignment, union-attr]
    return lstm


def weights_absent() -> nn.Module:
    lstm = nn.LSTM(3, 4)
    del lstm._parameters["weight_hh_l0"]
    return lstm


def uninitialized() -> nn.Module:
    lstm = nn.LSTM(3, 4)
    lstm.weight_ih_l0 = nn.parameter.UninitializedParameter()
    return lstm


def quantized() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.ao is deprecated, and still in use
        return torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.LSTM(3, 4)), {nn.LSTM})[0]


UNSUPPORTED: list[tuple[Callable[[], nn.Module], str]] = [
    (PeepholeCell, "custom cell with weights of its own"),
    (MinimalGRU, "custom cell; it is no nn.LSTM"),
    (lambda: OverridingLSTM(3, 4), "forward is overridden"),
    (instance_forward, "forward is overridden"),
    (quantized, "quantized"),
    (attribute, "weight_hh_l0 is no parameter, and it is unknown"),
    (weights_absent, "weight_hh_l0 is no parameter"),
    (uninitialized, "not initialized yet"),
    (lambda: nn.RNNBase("LSTM", 3, 4), "custom subclass of torch's recurrent base"),
]


@pytest.mark.parametrize(("kind", "options", "expected"), KINDS)
def test_every_kind_is_found_with_its_live_weights(kind: type[nn.Module], options: Any, expected: str) -> None:
    module = kind(3, 4, **options)
    (layer,) = find_layers(nn.ModuleDict({"rnn": module}))
    assert layer.kind == expected
    assert str(layer.key) == ("rnn" if layer.is_cell else "rnn.l0")
    parameters = dict(module.named_parameters())
    for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
        assert getattr(layer.weights(), name) is parameters[name + ("" if layer.is_cell else "_l0")]


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (nn.LSTM(3, 4), ["l0"]),
        (nn.LSTM(3, 4, bidirectional=True), ["l0", "l0_reverse"]),
        (nn.GRU(3, 4, num_layers=2, bidirectional=True), ["l0", "l0_reverse", "l1", "l1_reverse"]),
        (nn.LSTMCell(3, 4), ["cell"]),
        (nn.ModuleDict({"rnn": nn.LSTM(3, 4, num_layers=2)}), ["rnn.l0", "rnn.l1"]),
        (nn.ModuleDict({"rnn": nn.LSTM(3, 4, bidirectional=True)}), ["rnn.l0", "rnn.l0_reverse"]),
        (nn.ModuleDict({"a": nn.ModuleList([nn.GRUCell(3, 4), nn.RNN(4, 5)])}), ["a.0", "a.1.l0"]),
    ],
)
def test_names_are_those_of_torchs_parameters(module: nn.Module, expected: list[str]) -> None:
    assert names(module) == expected


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_options_reach_the_weights(batch_first: bool, bidirectional: bool) -> None:
    lstm = nn.LSTM(3, 5, 2, bias=False, batch_first=batch_first, bidirectional=bidirectional, proj_size=2)
    for layer in find_layers(lstm):
        weights = layer.weights()
        assert weights.input_size == (3 if layer.key.index == 0 else 2 * (1 + bidirectional))
        assert weights.weight_hr is lstm.get_parameter("weight_hr" + layer.suffix)
        assert weights.weight_hr.shape == (2, 5)
        assert weights.bias_ih.shape == (20,)
        assert not weights.bias_ih.any()
        assert not weights.bias_hh.any()


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("bias", [False, True])
def test_any_dtype_and_device(dtype: torch.dtype, device: str, bias: bool) -> None:
    (layer,) = find_layers(nn.GRU(3, 4, bias=bias, dtype=dtype, device=device))
    weights = layer.weights()
    for tensor in (weights.weight_ih, weights.weight_hh, weights.bias_ih, weights.bias_hh):
        assert (tensor.dtype, tensor.device.type) == (dtype, device)


def test_subclasses_that_inherit_forward() -> None:
    assert names(InheritingLSTM(width=3)) == ["l0"]


def test_a_shared_module_is_found_once() -> None:
    lstm = nn.LSTM(3, 4)
    assert names(nn.ModuleDict({"a": lstm, "b": nn.Sequential(lstm)})) == ["a.l0"]


@pytest.mark.parametrize(
    ("wrap", "expected"),
    [
        (lambda: torch.compile(LSTMClassifier(), backend="eager"), "rnn.l0"),
        (lambda: LSTMClassifier(torch.compile(nn.LSTM(3, 4), backend="eager")), "rnn.l0"),
        (lambda: nn.DataParallel(LSTMClassifier()), "rnn.l0"),
        (lambda: nn.DataParallel(torch.compile(nn.LSTM(3, 4), backend="eager")), "l0"),
        (lambda: torch.optim.swa_utils.AveragedModel(LSTMClassifier()), "rnn.l0"),
        (OwnModule, "module.l0"),
        (lambda: nn.DataParallel(OwnModule()), "module.l0"),
    ],
)
def test_wrappers_leave_no_trace_in_names(wrap: Callable[[], nn.Module], expected: str) -> None:
    assert names(wrap()) == [expected]


def test_a_user_who_calls_a_module_orig_mod_loses_only_that_part() -> None:
    assert names(nn.ModuleDict({"_orig_mod": nn.ModuleDict({"rnn": nn.LSTM(3, 4)})})) == ["rnn.l0"]


@pytest.mark.parametrize(
    ("select", "expected"),
    [
        ("*", ["enc.l0", "enc.l1", "dec.l0"]),
        ("enc.*", ["enc.l0", "enc.l1"]),
        ("*.l0", ["enc.l0", "dec.l0"]),
        ("enc.l[1-9]", ["enc.l1"]),
        (["dec.l0", "enc.l1"], ["enc.l1", "dec.l0"]),
        (["enc.*", "enc.l0"], ["enc.l0", "enc.l1"]),
    ],
)
def test_selection_by_globs_keeps_the_models_order(select: Any, expected: list[str]) -> None:
    model = nn.ModuleDict({"enc": nn.LSTM(3, 4, num_layers=2), "dec": nn.GRU(3, 4)})
    assert names(model, select) == expected


@pytest.mark.parametrize("select", ["rnn.10", ["*", "rnn.10"]])
def test_a_glob_without_match_names_the_nearest_layer(select: Any) -> None:
    with pytest.raises(ValueError, match=r"'rnn\.10' matches no layer\. Did you mean 'rnn\.l0'"):
        find_layers(LSTMClassifier(), select)


@pytest.mark.parametrize(("build", "reason"), UNSUPPORTED)
def test_unsupported_modules_are_named_with_the_reason(build: Callable[[], nn.Module], reason: str) -> None:
    odd = build()
    layers = find_layers(nn.ModuleDict({"good": nn.LSTM(3, 4), "odd": odd}))
    assert [str(layer.key) for layer in layers] == ["good.l0"]
    (skipped,) = layers.skipped
    assert (skipped.path, skipped.type_name) == ("odd", type(odd).__name__)
    assert reason in skipped.reason
    assert f"not supported: odd ({type(odd).__name__})" in repr(layers)


@pytest.mark.parametrize(("build", "reason"), UNSUPPORTED)
def test_a_model_of_nothing_else_is_an_error_with_the_reason(build: Callable[[], nn.Module], reason: str) -> None:
    with pytest.raises(ValueError, match="no recurrent layer") as error:
        find_layers(nn.Sequential(build()))
    assert "Looks recurrent, but is not supported: 0 (" in str(error.value)
    assert reason in str(error.value)


def test_a_module_without_weights_is_no_cell_whatever_its_name() -> None:
    dropout = type("RNNDropout", (nn.Dropout,), {})
    assert find_layers(nn.ModuleDict({"drop": dropout(), "rnn": nn.LSTM(3, 4)})).skipped == ()


@pytest.mark.parametrize("inner", [nn.LSTM(3, 4), OverridingLSTM(3, 4)])
def test_a_wrapper_is_not_named_for_what_it_holds(inner: nn.Module) -> None:
    layers = find_layers(nn.ModuleDict({"net": LSTMClassifier(inner), "good": nn.GRU(3, 4)}))
    assert all(skipped.path == "net.rnn" for skipped in layers.skipped)


def test_nothing_found_lists_what_there_is() -> None:
    with pytest.raises(ValueError, match="Sequential has no recurrent layer") as error:
        find_layers(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1)))
    assert "It contains: 2 Linear, 1 Sequential, 1 ReLU." in str(error.value)
    assert "Give a module that holds an nn.LSTM" in str(error.value)


@pytest.mark.parametrize("model", [None, "rnn", lambda x: x, nn.LSTM])
def test_what_is_no_module_is_a_type_error(model: Any) -> None:
    with pytest.raises(TypeError, match=r"is no torch\.nn\.Module"):
        find_layers(model)


def test_layers_are_a_sequence_with_a_readable_repr() -> None:
    layers = find_layers(nn.LSTM(3, 4, num_layers=2))
    assert len(layers) == 2
    assert layers[-1].key.index == 1
    assert list(layers[:1]) == [layers[0]]
    assert repr(layers) == "l0: lstm, 3 features\nl1: lstm, 4 features"


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # torch 2.13 deprecates what is refused here
def test_a_scripted_layer_is_named_and_the_others_are_found() -> None:
    found = find_layers(nn.ModuleDict({"plain": nn.LSTM(3, 4), "scripted": torch.jit.script(nn.GRU(3, 4))}))
    assert [str(layer.key) for layer in found] == ["plain.l0"]
    assert ["scripted" in str(item) for item in found.skipped] == [True]
