"""LSTMs that are not plain nn.LSTM: a forward of their own around torch's, and weights that are no parameters."""

from __future__ import annotations

import copy
import gc
import pickle
import warnings
import weakref
from abc import ABC
from collections.abc import Callable
from functools import wraps
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize
from torch.nn.utils.prune import random_unstructured
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

import lstm_monitor as lm
from lstm_monitor.importance.removal.contexts import thinned
from lstm_monitor.layers.inner_calls import inner_now
from lstm_monitor.snapshots.recorder import Recorder

LENGTHS = torch.tensor([3, 7, 5, 7])


class Packing(nn.LSTM):
    """As in forecasting libraries: padded sequences and their lengths, by other names, packed inside."""

    def forward(self, x: Any, hx: Any = None, lengths: Any = None, *, enforce_sorted: bool = False) -> Any:
        if lengths is None:
            return super().forward(x, hx=hx)
        total = x.shape[1 if self.batch_first else 0]
        packed = pack_padded_sequence(x, lengths, self.batch_first, enforce_sorted)
        outputs, state = super().forward(packed, hx=hx)
        return pad_packed_sequence(outputs, self.batch_first, total_length=total)[0], state


class PackingGRU(nn.GRU):
    """The state comes first here, and the sequence second."""

    def forward(self, hx: Any, x: Any, lengths: Any) -> Any:
        packed = pack_padded_sequence(x, lengths, self.batch_first, enforce_sorted=False)
        outputs, state = super().forward(packed, hx)
        return pad_packed_sequence(outputs, self.batch_first)[0], state


class Doubling(nn.LSTM):
    """What its cells receive and give is not what the module receives and gives."""

    def forward(self, input: Any, hx: Any = None) -> Any:
        outputs, state = super().forward(input * 2, hx)
        return nn.functional.dropout(outputs, 0.5, self.training) * 3 + 1, state


class Base(ABC, nn.RNNBase):
    """An abstract base, with another layout in memory, beside nn.LSTM, as in pytorch-forecasting."""

    def forward(self, x: Any, hx: Any = None, lengths: Any = None) -> Any:
        if lengths is None:
            return super().forward(x, hx=hx)
        return super().forward(pack_padded_sequence(x, lengths, self.batch_first, enforce_sorted=False), hx=hx)


class Mixed(Base, nn.LSTM):
    """Two bases."""


class Stepping(nn.LSTMCell):
    """A cell whose state is given by a keyword of its own."""

    def forward(self, x: Tensor, state: Any = None) -> Any:
        return super().forward(x, state)


def logged(function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)
    def inner(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return inner


class Decorated(nn.GRU):
    """Its forward is wrapped."""

    @logged
    def forward(self, input: Any, hx: Any = None) -> Any:
        return super().forward(input, hx)


class Counted(nn.LSTM):
    """A class that counts its subclasses, with arguments of their own."""

    known: list[str] = []  # noqa: RUF012  # a registry

    def __init_subclass__(cls, *, label: str, **options: Any) -> None:
        super().__init_subclass__(**options)
        Counted.known.append(label)

    def forward(self, input: Any, hx: Any = None) -> Any:
        return super().forward(input, hx)


class Net(nn.Module):
    """A network around a subclass, and the same around plain torch with packing."""

    def __init__(self, rnn: nn.Module, *, packs: bool) -> None:
        super().__init__()
        self.rnn, self.packs = rnn, packs
        self.head = nn.Linear(5, 1)

    def forward(self, x: Tensor) -> Tensor:
        lengths = LENGTHS[: len(x)]
        if not self.packs:
            outputs, (hidden, _) = self.rnn(x=x, lengths=lengths)
            return self.head(outputs[:, -1] + hidden[-1])
        packed = pack_padded_sequence(x, lengths, True, enforce_sorted=False)
        outputs, (hidden, _) = self.rnn(packed)
        return self.head(pad_packed_sequence(outputs, True)[0][:, -1] + hidden[-1])


def nets(**options: Any) -> tuple[Net, Net, Tensor]:
    torch.manual_seed(0)
    own = Net(Packing(3, 5, batch_first=True, **options), packs=False)
    plain = Net(nn.LSTM(3, 5, batch_first=True, **options), packs=True)
    plain.load_state_dict(own.state_dict())
    return own, plain, torch.randn(4, 7, 3)


def agree(a: Tensor, b: Tensor, atol: float = 1e-6) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=atol, equal_nan=True)


# --- a forward of their own ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Packing, PackingGRU, Doubling, Mixed, Stepping, Decorated])
def test_a_class_that_calls_torchs_forward_is_found(kind: type[nn.Module]) -> None:
    assert [str(layer.key) for layer in lm.find_layers(nn.ModuleDict({"rnn": kind(3, 5)}))] == [
        "rnn" if kind is Stepping else "rnn.l0"
    ]


@pytest.mark.parametrize("layers", [1, 2])
def test_reports_are_those_of_packed_sequences(layers: int) -> None:
    own, plain, x = nets(num_layers=layers)
    seen, expected = lm.characterize(own, held_out=x), lm.characterize(plain, held_out=x)
    assert seen.layers[0].ranking.name == "output_sensitivity"
    assert seen.scalars().keys() == expected.scalars().keys()
    for key, value in expected.scalars().items():
        assert seen.scalars()[key] == pytest.approx(value, rel=1e-4, abs=1e-6, nan_ok=True), key
    for one, other in zip(lm.snapshot(own, x), lm.snapshot(plain, x), strict=True):
        assert one.held_out is not None
        assert other.held_out is not None
        assert torch.equal(one.held_out.mask, other.held_out.mask)
        assert one.held_out.mask.sum(1).tolist() == LENGTHS.tolist()


@pytest.mark.parametrize("context", ["zero", "mean", "thinned", "nested"])
def test_ablation_is_that_of_packed_sequences(context: str) -> None:
    own, plain, x = nets(num_layers=2)
    before = copy.deepcopy(own.state_dict())

    def run(net: Net) -> Tensor:
        cells = {"rnn.l0": [1, 3], "rnn.l1": [0]}
        if context == "thinned":
            with thinned(net, cells):
                return net(x)
        if context == "nested":
            with lm.ablated(net, {"rnn.l0": [1]}), lm.ablated(net, {"rnn.l0": [2]}, "mean", held_out=x):
                return net(x)
        with lm.ablated(net, cells, context, held_out=x if context == "mean" else None):  # type: ignore[arg-type]
            return net(x)

    intact = own(x)
    got = run(own)
    agree(got, run(plain))
    assert not torch.equal(got, intact)
    assert torch.equal(own(x), intact)
    assert type(own.rnn) is Packing
    assert inner_now(own.rnn) is own.rnn
    assert all(torch.equal(value, before[name]) for name, value in own.state_dict().items())


def test_studies_are_those_of_packed_sequences() -> None:
    own, plain, x = nets()
    results = []
    for net in (own, plain):
        study = lm.ablation_study(net, lambda network: network(x).detach()[:, 0] ** 2, held_out=x, random_orders=2)
        results.append(study.to_pandas())
    numbers = results[0].select_dtypes("number").columns
    assert len(numbers) > 0
    agree(torch.tensor(results[0][numbers].values), torch.tensor(results[1][numbers].values), 1e-5)


def test_given_states_are_those_of_the_inner_call() -> None:
    torch.manual_seed(0)
    own, plain = PackingGRU(3, 5, batch_first=True), nn.GRU(3, 5, batch_first=True)
    plain.load_state_dict(own.state_dict())
    x, h0 = torch.randn(4, 7, 3), torch.randn(1, 4, 5)
    with lm.ablated(own, {"l0": [2]}), lm.ablated(plain, {"l0": [2]}):
        outputs, state = own(h0, x, LENGTHS)
        packed, expected = plain(pack_padded_sequence(x, LENGTHS, True, enforce_sorted=False), h0)
    agree(outputs, pad_packed_sequence(packed, True)[0])
    agree(state, expected)
    assert (outputs[..., 2] == 0).all()


def test_cells_see_what_the_subclass_gives_them() -> None:
    rnn, x = Doubling(3, 5).eval(), torch.randn(7, 4, 3)
    (snap,) = lm.snapshot(rnn, x)
    assert snap.held_out is not None
    assert snap.held_out_hidden is not None
    agree(snap.held_out.inputs, (2 * x).transpose(0, 1))
    agree(snap.held_out_hidden * 3 + 1, rnn(x)[0])
    with lm.ablated(rnn, {"l0": [1]}):
        assert (rnn(x)[0][..., 1] == 1).all(), "0 before the subclass makes 1 of it"
    with lm.ablated(rnn, {"l0": [1]}, "mean", means={"l0": torch.full((5,), 0.25)}):
        agree(rnn(x)[0][..., 1], torch.full((7, 4), 1.75))


def test_steps_of_a_cell_are_joined() -> None:
    cell, x = Stepping(3, 5), torch.randn(6, 2, 3)
    recorder = Recorder([cell])
    with recorder.batch(), torch.no_grad():
        state = None
        for t in range(6):
            state = cell(x[t], state=state)
    assert torch.equal(recorder.recordings()[cell].inputs, x.transpose(0, 1))
    assert type(cell) is Stepping


def test_two_that_record_and_one_that_ablates_at_once() -> None:
    own, _, x = nets()
    first, second = Recorder([own.rnn]), Recorder([own.rnn])
    handles = first.attach()
    with lm.ablated(own, {"rnn.l0": [1]}):
        more = second.attach()
        own(x)
        first.detach(handles)
        own(x)
        second.detach(more)
        assert type(own.rnn) is not Packing
    assert type(own.rnn) is Packing
    assert [len(r.recordings()[own.rnn].inputs) for r in (first, second)] == [4, 8]


def test_the_class_is_back_after_any_end() -> None:
    own, _, x = nets()
    for error in (ValueError, KeyboardInterrupt):
        with pytest.raises(error), lm.ablated(own, {"rnn.l0": [1]}):
            raise error
        assert type(own.rnn) is Packing
        assert inner_now(own.rnn) is own.rnn
    pickle.loads(pickle.dumps(own))(x)
    assert not own.rnn._forward_hooks
    assert not own.rnn._forward_pre_hooks


def test_copies_made_inside_are_without_the_cells_and_of_their_own() -> None:
    own, _, x = nets()
    with lm.ablated(own, {"rnn.l0": [1]}):
        copied = copy.deepcopy(own)
    copied.rnn.weight_hh_l0.data.zero_()
    assert not torch.equal(copied(x), own(x))


def test_nothing_holds_the_model_afterwards() -> None:
    own, _, x = nets()
    lm.snapshot(own, x)
    with lm.ablated(own, {"rnn.l0": [1]}):
        own(x)
    gone = weakref.ref(own.rnn)
    del own
    gc.collect()
    assert gone() is None


def test_registries_of_subclasses_do_not_notice() -> None:
    class Named(Counted, label="named"):
        """One that is counted."""

    module, x = Named(3, 5), torch.randn(7, 4, 3)
    with lm.ablated(module, {"l0": [1]}):
        assert (module(x)[0][..., 1] == 0).all()
    assert Counted.known == ["named"]


class Once(type):
    """A metaclass that takes each name once."""

    known: set[str] = set()  # noqa: RUF012  # a registry

    def __new__(cls, name: str, *rest: Any) -> Once:
        if name in cls.known:
            raise TypeError(f"{name} is there already")
        cls.known.add(name)
        return super().__new__(cls, name, *rest)


def test_registries_of_metaclasses_do_not_notice_and_classes_are_not_kept() -> None:
    class Local(nn.LSTM, metaclass=Once):
        """One that is counted."""

        def forward(self, input: Any, hx: Any = None) -> Any:
            return super().forward(input, hx)

    lm.snapshot(Local(3, 5), torch.randn(7, 4, 3))
    assert Once.known == {"Local"}
    gone = weakref.ref(Local)
    del Local
    gc.collect()
    assert gone() is None


def test_a_class_above_one_that_computes_something_else_is_skipped() -> None:
    class Own(nn.LSTM):
        def forward(self, input: Any, hx: Any = None) -> Any:
            return input.cumsum(0), hx

    class Above(Own):
        def forward(self, input: Any, hx: Any = None) -> Any:
            return super().forward(input, hx)

    found = lm.find_layers(nn.ModuleDict({"above": Above(3, 5), "gru": nn.GRU(3, 5)}))
    assert [str(layer.key) for layer in found] == ["gru.l0"]
    assert "does not call super().forward" in found.skipped[0].reason


def test_compiled_models() -> None:
    own, plain, x = nets()
    compiled = torch.compile(own, backend="eager")
    compiled(x)
    (one,), (other,) = lm.snapshot(compiled, x), lm.snapshot(plain, x)
    assert one.held_out is not None
    assert other.held_out is not None
    agree(one.held_out.inputs[one.held_out.mask], other.held_out.inputs[other.held_out.mask])
    with lm.ablated(compiled, {"rnn.l0": [1]}), lm.ablated(plain, {"rnn.l0": [1]}):
        agree(compiled(x), plain(x))
    agree(compiled(x), own(x))


def test_such_a_class_cannot_be_pruned() -> None:
    own, _, _ = nets()
    with pytest.raises(ValueError, match=r"'rnn.l0' cannot be pruned. rnn \(Packing\): its class overrides forward"):
        lm.prune(own, {"rnn.l0": [0, 1]})


# --- weights that are no parameters --------------------------------------------------------------------------


class WeightDropout(nn.Module):
    """As fastai's: the raw weight is in the parent, the module's own is a dropped-out copy made at each call."""

    def __init__(self, module: nn.LSTM) -> None:
        super().__init__()
        self.module = module
        self.weight_hh_l0_raw = nn.Parameter(module.weight_hh_l0.data)
        del module._parameters["weight_hh_l0"]
        self.set()

    def set(self) -> None:
        self.module.weight_hh_l0 = nn.functional.dropout(self.weight_hh_l0_raw, 0.5, self.training)

    def forward(self, *args: Any) -> Any:
        self.set()
        return self.module(*args)


class WeightDrop(nn.LSTM):
    """As in the AWD-LSTM's own code: the raw weight is beside the dropped-out one, which is a parameter anew."""

    def __init__(self, *sizes: int) -> None:
        super().__init__(*sizes)
        self.weight_hh_l0_raw = nn.Parameter(self.weight_hh_l0.data)

    def forward(self, input: Any, hx: Any = None) -> Any:
        self.weight_hh_l0 = nn.Parameter(nn.functional.dropout(self.weight_hh_l0_raw, 0.5, self.training))
        return super().forward(input, hx)


class Dropped(nn.Module):
    """A parametrization that drops out."""

    def forward(self, weight: Tensor) -> Tensor:
        return nn.functional.dropout(weight, 0.5, self.training)


def by_hook(function: Callable[..., Any]) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch deprecates these, and they are in use
        return function(nn.LSTM(3, 5), "weight_hh_l0")


def dropping() -> nn.Module:
    module = nn.LSTM(3, 5)
    parametrize.register_parametrization(module, "weight_hh_l0", Dropped())
    return module


COMPUTED: dict[str, Callable[[], nn.Module]] = {
    "weight norm by hook": lambda: by_hook(nn.utils.weight_norm),
    "spectral norm by hook": lambda: by_hook(nn.utils.spectral_norm),
    "torch's pruning": lambda: random_unstructured(nn.LSTM(3, 5), "weight_hh_l0", 0.3),
    "weight norm": lambda: parametrizations.weight_norm(nn.LSTM(3, 5), "weight_hh_l0"),
    "spectral norm": lambda: parametrizations.spectral_norm(nn.LSTM(3, 5), "weight_hh_l0"),
    "orthogonal": lambda: parametrizations.orthogonal(nn.LSTM(3, 5), "weight_hh_l0"),
    "dropout": dropping,
    "fastai's weight drop": lambda: WeightDropout(nn.LSTM(3, 5)),
    "weight drop": lambda: WeightDrop(3, 5),
}


def trained(model: nn.Module) -> nn.Module:
    """After a step in train mode: attributes are those of before the step, or dropped out."""
    torch.manual_seed(1)
    x = torch.randn(7, 4, 3)
    model.train()(x)[0].sum().backward()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter -= 0.3 * parameter.grad
    return model


def state_of(model: nn.Module) -> bytes:
    flags = [module.training for module in model.modules()]
    tensors = [t.detach().clone() for t in (*model.parameters(), *model.buffers())]
    plain = [v.detach().clone() for m in model.modules() for v in vars(m).values() if isinstance(v, Tensor)]
    return pickle.dumps((flags, [t.numpy().tobytes() for t in (*tensors, *plain)], torch.get_rng_state().numpy()))


@pytest.mark.parametrize("name", COMPUTED)
def test_computed_weights_are_those_of_an_evaluation_now(name: str) -> None:
    model = trained(COMPUTED[name]())
    before = state_of(model)
    found = lm.find_layers(model)
    (layer,) = found
    assert not found.skipped
    (snap,) = lm.snapshot(model)
    assert state_of(model) == before, "nothing is drawn, and no buffer moves"
    x = torch.randn(7, 4, 3)
    expected = copy.deepcopy(_with_leaves(model)).eval()(x)[0]
    plain = nn.LSTM(3, 5)
    for part in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
        getattr(plain, f"{part}_l0").data.copy_(getattr(snap.weights, part))
    agree(plain(x)[0], expected)
    assert layer.key.path == ("module" if isinstance(model, WeightDropout) else "")


def _with_leaves(model: nn.Module) -> nn.Module:
    """Tensors with a history cannot be copied deeply."""
    for module in model.modules():
        for key, value in list(vars(module).items()):
            if isinstance(value, Tensor):
                vars(module)[key] = value.detach()
            elif key == "_flat_weights":
                vars(module)[key] = [weight.detach() for weight in value]
    return model


@pytest.mark.parametrize("name", COMPUTED)
def test_everything_runs_on_them(name: str) -> None:
    model = trained(COMPUTED[name]())
    x = torch.randn(7, 4, 3)
    (key,) = [str(layer.key) for layer in lm.find_layers(model)]
    before = state_of(model)
    report = lm.characterize(model, held_out=x)
    study = lm.ablation_study(model, held_out=x, random_orders=2, rankings=["output_sensitivity"])
    assert state_of(model) == before
    assert report.layers[0].ranking.name == "output_sensitivity"
    effects = study.layers[0].effects.output
    model.eval()
    with torch.no_grad():
        intact = model(x)[0]
        for cell in range(5):
            with lm.ablated(model, {key: [cell]}):
                changed = model(x)[0]
            assert (changed[..., cell] == 0).all()
            agree((changed - intact).square().mean(), effects[cell].to(intact), 1e-5)
    with pytest.raises(ValueError, match=f"'{key}' cannot be pruned|weight_hh_l0 is shared"):
        lm.prune(model, {key: [0, 1]})


@pytest.mark.parametrize("name", [*COMPUTED, "doubling", "packing"])
def test_a_training_is_left_as_it_is(name: str) -> None:
    make: dict[str, Callable[[], nn.Module]] = {**COMPUTED, "doubling": lambda: Doubling(3, 5)}
    make["packing"] = lambda: nets()[0]

    def train(*, watched: bool) -> bytes:
        torch.manual_seed(0)
        model = make[name]()
        shape = (4, 7, 3) if name == "packing" else (7, 4, 3)
        monitor = (
            lm.LSTMMonitor(model, torch.ones(shape), every_n_steps=1, budget=None, on_error="raise")
            if watched
            else None
        )
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        for _ in range(3):
            optimizer.zero_grad()
            output = model(torch.randn(shape))
            (output if isinstance(output, Tensor) else output[0]).square().sum().backward()
            optimizer.step()
            if monitor is not None:
                monitor.on_train_batch_end(0)
        return state_of(model)

    assert train(watched=True) == train(watched=False)


def test_a_second_layer_with_computed_weights_is_the_first_ones_reader() -> None:
    model = parametrizations.weight_norm(nn.LSTM(3, 5, 2), "weight_ih_l1")
    first, _ = lm.snapshot(model)
    assert first.outgoing is not None
    agree(first.outgoing, model.weight_ih_l1.norm(dim=0))


def test_a_weight_of_unknown_origin_is_skipped() -> None:
    lstm = nn.LSTM(3, 5)
    weight = lstm._parameters.pop("weight_hh_l0")
    assert weight is not None
    lstm.weight_hh_l0 = weight.detach().clone()
    found = lm.find_layers(nn.ModuleDict({"good": nn.GRU(3, 4), "odd": lstm}))
    assert "odd (LSTM): weight_hh_l0 is no parameter, and it is unknown" in repr(found)


# --- other ways to use them ----------------------------------------------------------------------------------


def test_frozen_unused_and_shared_modules() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.LSTM(3, 5, batch_first=True), nn.LSTM(3, 5)
            self.again = self.used
            self.used.requires_grad_(False)

        def forward(self, x: Tensor) -> Tensor:
            state = None
            for t in range(x.shape[1]):  # a rollout: T = 1, the state carried on
                outputs, state = self.used(x[:, t : t + 1], state)
            return outputs[:, -1] + self.again(x.flip(1))[0][:, -1]

    model, x = Model(), torch.randn(4, 7, 3)
    report = lm.characterize(model, held_out=x)
    assert [str(layer.key) for layer in report.layers] == ["used.l0", "unused.l0"]
    assert [layer.point_source for layer in report.layers] == ["held_out", "default"]
    used, _ = lm.snapshot(model, x)
    assert used.held_out is not None
    agree(used.held_out.inputs, torch.cat([x, x.flip(1)]))


def test_packed_input_by_keyword() -> None:
    packed = pack_padded_sequence(torch.randn(7, 4, 3), LENGTHS, enforce_sorted=False)

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = Mixed(3, 5)

        def forward(self, batch: PackedSequence) -> Any:
            return self.rnn(x=batch)[0]

    (snap,) = lm.snapshot(Model(), packed)
    assert snap.held_out is not None
    assert snap.held_out.mask.sum(1).tolist() == LENGTHS.tolist()
