"""What may be registered, which modules it then holds for, and weights of modules that are LSTMs by another name."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lstm_monitor as lm
from lstm_monitor.layers.registered import registry
from tests.helpers.custom_modules import F, H, N, OwnCell, OwnLayer, Reader, Stepper, T, step, weights


@pytest.fixture(autouse=True)
def _forgotten() -> Iterator[None]:
    yield
    registry._REGISTERED.clear()


@pytest.mark.parametrize(
    ("cls", "options", "kind", "message"),
    [
        (OwnCell("gru"), {"step": step}, TypeError, "cls is a OwnCell object, no class of modules"),
        (int, {"step": step}, TypeError, "cls is <class 'int'>"),
        (nn.LSTM, {"step": step}, ValueError, "cls=LSTM is torch's own"),
        (OwnCell, {}, ValueError, "weights= or step=: neither was given"),
        (OwnCell, {"step": step, "weights": weights}, ValueError, "both were given"),
        (OwnCell, {"weights": weights, "state": step}, ValueError, "state= was given with weights="),
        (OwnCell, {"step": 3}, TypeError, "step=3 is no function"),
        (OwnCell, {"step": step, "input_size": 0}, ValueError, "input_size=0 must be an integer of at least 1"),
    ],
)
def test_bad_arguments(cls: Any, options: dict[str, Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        lm.register_cell(cls, **options)
    assert not registry._REGISTERED


class Derived(OwnCell):
    pass


def test_subclasses_contexts_and_forgetting() -> None:
    model = nn.ModuleDict({"a": OwnCell("gru"), "b": Derived("gru")})
    outer = lm.register_cell(OwnCell, step=step)
    assert [str(layer.key) for layer in lm.find_layers(model)] == ["a", "b"]
    with lm.register_cell(Derived, weights=weights), lm.register_cell(OwnCell, weights=weights):
        assert [layer.kind for layer in lm.find_layers(model)] == ["gru", "gru"]
    assert [layer.kind for layer in lm.find_layers(model)] == ["custom", "custom"]
    assert registry.registration_of(model["a"]) is outer
    assert repr(lm.find_layers(model)).startswith("a: custom, 3 features")
    lm.unregister_cell(OwnCell)
    with pytest.raises(ValueError, match="is not registered; registered: nothing"):
        lm.unregister_cell(OwnCell)
    with pytest.raises(
        ValueError, match=r"register the class of a cell of another kind with lstm_monitor.register_cell"
    ):
        lm.find_layers(model)


def test_skipped_cells_say_how_to_register_them() -> None:
    class MyLSTM(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gates = nn.Linear(5, 12)

    skipped = lm.find_layers(nn.ModuleDict({"own": MyLSTM(), "rnn": nn.LSTM(2, 3)})).skipped
    assert "Register its class with lstm_monitor.register_cell(...)" in str(skipped[0])


def test_what_is_inside_belongs_to_the_registered_module() -> None:
    class Around(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.LSTMCell(F, H)

    lm.register_cell(Around, step=lambda m, x, s: m.inner(x, s), state=lambda m, n: (torch.zeros(n, H),) * 2)
    assert [str(layer.key) for layer in lm.find_layers(nn.Sequential(Around(), nn.LSTM(2, 3)))] == ["0", "1.l0"]


class Stack(nn.Module):
    """torch's own layers under another name, with a place for everything that a stack can have."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.inside, self.batch_first = nn.LSTM(F, H, batch_first=True, **options), True

    def forward(self, x: Tensor, state: Any = None) -> Any:
        return self.inside(x, state)


def stack_weights(module: Stack) -> dict[str, lm.LayerWeights]:
    names = [str(layer.key) for layer in lm.find_layers(module.inside)]
    inside = dict(module.inside.named_parameters())

    def read(name: str) -> lm.LayerWeights:
        parts = [inside[f"{part}_{name}"] for part in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
        return lm.LayerWeights("lstm", *parts, inside.get(f"weight_hr_{name}"))

    return {name: read(name) for name in reversed(names)}


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize("options", [{"num_layers": 2}, {"num_layers": 2, "bidirectional": True}, {"proj_size": 2}])
@pytest.mark.parametrize("given", [False, True])
def test_stacks_by_their_weights(options: dict[str, Any], given: bool) -> None:
    torch.manual_seed(0)
    module, x = Stack(**options).double(), torch.randn(N, T, F).double()
    count = options.get("num_layers", 1) * (1 + options.get("bidirectional", False))
    state = tuple(torch.randn(count, N, size).double() for size in (options.get("proj_size", H), H)) if given else None

    def forward(model: nn.Module, batch: Tensor) -> Tensor:
        return model(batch, state)[0]

    lm.register_cell(Stack, weights=stack_weights)
    mine = lm.snapshot(module, x, forward=forward)
    theirs = lm.snapshot(module.inside, x, forward=forward)
    assert [str(snap.key) for snap in mine] == [str(snap.key) for snap in theirs]
    for one, other in zip(mine, theirs, strict=True):
        assert torch.allclose(one.held_out_hidden, other.held_out_hidden, atol=1e-12)
        assert torch.equal(one.weights.weight_hh, other.weights.weight_hh)
        assert (one.outgoing is None) == (other.outgoing is None)
        assert one.outgoing is None or torch.equal(one.outgoing, other.outgoing)


def test_a_wrong_mapping_is_told_with_the_size_of_the_difference() -> None:
    def swapped(module: nn.Module) -> lm.LayerWeights:
        right = weights(module)
        i, f, g, o = right.weight_ih.chunk(4)
        return lm.LayerWeights("lstm", torch.cat([f, i, g, o]), right.weight_hh, right.bias_ih, right.bias_hh)

    torch.manual_seed(0)
    model, x = Reader(OwnLayer("lstm")), torch.randn(N, T, F)
    lm.register_cell(OwnLayer, weights=swapped)
    with pytest.raises(
        ValueError, match=r"rnn: weights= registered for OwnLayer does not give .* differ by up to 0\.\d+"
    ):
        lm.characterize(model, held_out=x)
    monitor = lm.LSTMMonitor(model, x)
    with pytest.warns(lm.MonitorWarning, match="Look at the order of the gates"):
        monitor.on_train_begin()
    lm.register_cell(OwnLayer, weights=weights)
    lm.characterize(model, held_out=x)


def records(**changed: Any) -> lm.LayerWeights:
    parts = {"weight_ih": torch.zeros(20, 3), "weight_hh": torch.zeros(20, 5)}
    parts |= {"bias_ih": torch.zeros(20), "bias_hh": torch.zeros(20), **changed}
    return lm.LayerWeights(**{"kind": "lstm", **parts})


@pytest.mark.parametrize(
    ("returned", "kind", "message"),
    [
        (torch.zeros(3), TypeError, "returned Tensor; return lstm_monitor.LayerWeights"),
        ([], TypeError, "returned list"),
        ({"layer0": records()}, ValueError, "the key 'layer0'; allowed: 'l0'"),
        ({"l1": records()}, ValueError, "returned l1; number the layers from l0 on"),
        ({"l0_reverse": records()}, ValueError, "returned l0_reverse; number the layers"),
        ([records(), records()], ValueError, "l1 reads 3 features, but l0 hands on 5"),
        (records(bias_ih=torch.zeros(5)), ValueError, r"bias_ih is of shape \(5,\) where \(20,\) is wanted"),
        (records(bias_hh=None), ValueError, "bias_hh is a NoneType.*a missing bias is zeros"),
        (records(weight_hh=torch.zeros(20, 4)), ValueError, r"weight_hh is of shape \(20, 4\) where \(20, 5\)"),
        (records(kind="lsmt"), ValueError, "Did you mean 'lstm'"),
    ],
)
def test_wrong_weights_are_told(returned: Any, kind: type[Exception], message: str) -> None:
    lm.register_cell(OwnCell, weights=lambda module: returned)
    with pytest.raises(kind, match=message):
        lm.find_layers(Stepper(OwnCell("lstm")))


def test_weights_that_fail_or_draw_random_numbers() -> None:
    lm.register_cell(OwnCell, weights=lambda module: 1 / 0)
    with pytest.raises(ValueError, match="weights= registered for OwnCell failed: ZeroDivisionError"):
        lm.find_layers(OwnCell("lstm"))
    before = torch.get_rng_state()
    lm.register_cell(OwnCell, weights=lambda module: records(bias_ih=torch.randn(20)))
    lm.find_layers(nn.ModuleDict({"a": (cell := OwnCell("lstm"))}))
    del cell
    with torch.random.fork_rng():
        torch.set_rng_state(before)
        OwnCell("lstm")
        expected = torch.get_rng_state()
    assert torch.equal(torch.get_rng_state(), expected)


def test_what_is_no_tensor_of_features_is_told_after_the_forward_pass() -> None:
    class Embedding(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.own = nn.Embedding(7, F), OwnLayer("gru")

        def forward(self, tokens: Tensor) -> Tensor:
            return self.own(self.table(tokens))[0]

    lm.register_cell(Embedding, step=step, state=lambda m, n: torch.zeros(n, H))
    with pytest.raises(TypeError, match=r"Embedding received torch.int64 \(6, 12\) first"):
        lm.characterize(Embedding(), held_out=torch.randint(7, (N, T)))
