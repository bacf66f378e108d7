"""watch_optimizer: a training that is nobody's but the library's, watched through the steps of its optimizer."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim import optimizer as torch_optimizer

from lstm_monitor import MemorySink, register_cell
from lstm_monitor.core.guard import MonitorWarning
from lstm_monitor.layers.layer import Layer
from lstm_monitor.monitor.watching import watch_optimizer

STEPS = 6


class Net(nn.Module):
    """Dropout, and an LSTM that is called by its root's ``forward`` only."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(3, 4, batch_first=True)
        self.drop, self.head = nn.Dropout(0.2), nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.drop(self.rnn(x)[0][:, -1]))


def adam(model: nn.Module, **options: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=1e-2, **options)


def library(
    steps: int = STEPS,
    *,
    make: Callable[[nn.Module], torch.optim.Optimizer] = adam,
    seen: Callable[[Any, Any], object] = lambda model, optimizer: None,
    step: int | None = None,
) -> Net:
    """A library's train(): the model and the optimizer are its own; it raises at `step`."""
    torch.manual_seed(0)
    model = Net()
    optimizer = make(model)
    seen(model, optimizer)
    for number in range(steps):
        x = torch.randn(8, 6, 3)

        def closure(x: Tensor = x) -> Tensor:
            optimizer.zero_grad()
            loss: Tensor = model.forward(x).square().mean()  # past the hooks of the root
            loss.backward()
            return loss

        if isinstance(optimizer, torch.optim.LBFGS):
            optimizer.step(closure)
        else:
            closure()
            optimizer.step()
        if number + 1 == step:
            raise RuntimeError("the library's own")
    return model


def hooks() -> int:
    return len(torch_optimizer._global_optimizer_pre_hooks) + len(torch_optimizer._global_optimizer_post_hooks)


def states() -> tuple[Any, ...]:
    return torch.get_rng_state().tolist(), np.random.get_state(legacy=False)["state"]["key"].tolist()


def held_out() -> Tensor:
    return torch.randn(5, 6, 3, generator=torch.Generator().manual_seed(1))


# --- what is seen --------------------------------------------------------------------------------------------


def test_the_model_is_found_from_the_optimizers_parameters() -> None:
    sink = MemorySink()
    with watch_optimizer(sinks=[sink], every_n_steps=2, budget=None) as monitor:
        model = library()
    assert monitor.model is model
    assert [report.step for report in sink.reports] == [1, 2, 4, 6]
    assert monitor.report is sink.reports[-1]
    assert monitor.report.layers[0].point_source == "held_out"
    assert str(monitor.report.layers[0].key) == "rnn.l0"
    assert hooks() == 0
    assert not model.rnn._forward_hooks


@pytest.mark.parametrize("held", [True, False])
def test_a_model_that_is_given_is_checked_before_the_first_step(held: bool) -> None:
    sink, model = MemorySink(), Net()
    before = model.rnn.get_parameter("weight_hh_l0").detach().clone()
    with watch_optimizer(model, held_out() if held else None, sinks=[sink], every_n_steps=3, budget=None):
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        for _ in range(STEPS):
            model(torch.randn(8, 6, 3)).sum().backward()
            optimizer.step()
    assert [report.step for report in sink.reports] == [0, 3, 6]
    assert [report.layers[0].point_source for report in sink.reports] == ["held_out"] * 3
    assert sink.reports[0].layers[0].ranking.name == ("output_sensitivity" if held else "std_x_outgoing")
    assert not torch.equal(before, model.rnn.get_parameter("weight_hh_l0"))


def test_a_function_is_asked_until_there_is_a_model() -> None:
    built: list[nn.Module] = []
    sink = MemorySink()
    with watch_optimizer(lambda: built[0] if built else None, held_out(), sinks=[sink], every_n_steps=4, budget=None):
        warm = nn.Linear(2, 2)
        warm(torch.ones(1, 2)).sum().backward()
        torch.optim.SGD(warm.parameters(), 0.1).step()  # no model yet, and not its optimizer later
        library(seen=lambda model, _: built.append(model))
    assert [report.step for report in sink.reports] == [0, 4, 6]


def test_only_the_outermost_module_with_a_recurrent_layer_is_taken() -> None:
    outer: list[nn.Module] = []

    def wrap(model: nn.Module, _: Any) -> None:
        outer.append(nn.ModuleDict({"inner": model, "other": nn.Linear(2, 2)}))

    with watch_optimizer(every_n_steps=3, budget=None) as monitor:
        library(seen=wrap)
    assert monitor.model is outer[0]
    assert monitor.report is not None
    assert str(monitor.report.layers[0].key) == "inner.rnn.l0"


def test_of_several_models_the_first_is_watched() -> None:
    with watch_optimizer(every_n_steps=2, budget=None) as monitor:
        first, _ = library(), library()
    assert monitor.model is first
    assert monitor.steps == STEPS


def test_two_watch_at_once() -> None:
    a, b = Net(), Net()
    with watch_optimizer(a, held_out()) as one, watch_optimizer(b, held_out()) as other:
        for model, steps in ((a, 2), (b, 3)):
            optimizer = torch.optim.SGD(model.parameters(), 0.1)
            for _ in range(steps):
                model(torch.randn(8, 6, 3)).sum().backward()
                optimizer.step()
    assert (one.steps, other.steps) == (2, 3)
    assert hooks() == 0


# --- ways to step --------------------------------------------------------------------------------------------


class Twice(torch.optim.Adam):
    """Its step calls the step of its base class, which is hooked too once there was an Adam."""

    def step(self, closure: Any = None) -> Any:
        return super().step(closure)


class Wrapping(torch.optim.Optimizer):
    """As sharpness-aware minimization: an optimizer around another one of the same parameters."""

    def __init__(self, model: nn.Module) -> None:
        self.base = torch.optim.SGD(model.parameters(), 0.1)
        super().__init__(self.base.param_groups, {})

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self.base.step()


MAKE: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    "adam": adam,
    "fused": lambda model: adam(model, fused=True),
    "foreach": lambda model: adam(model, foreach=True),
    "LBFGS": lambda model: torch.optim.LBFGS(model.parameters(), 0.1, max_iter=3),
    "calls its base": lambda model: Twice(model.parameters()),
    "wraps another": Wrapping,
}


@pytest.mark.parametrize("name", MAKE)
def test_every_optimizer_is_counted_once_and_left_as_it_is(name: str) -> None:
    adam(Net())  # so that the base class of `Twice` is hooked, too
    plain = library(make=MAKE[name])
    expected = states()
    sink = MemorySink()
    with watch_optimizer(sinks=[sink], every_n_steps=2, budget=None) as monitor:
        watched = library(make=MAKE[name])
    assert monitor.steps == STEPS
    assert len(sink.reports) == 4
    assert states() == expected
    for (key, a), (_, b) in zip(plain.state_dict().items(), watched.state_dict().items(), strict=True):
        assert torch.equal(a, b), key


def test_steps_that_a_gradient_scaler_skips_are_none() -> None:
    model, scaler = Net(), torch.amp.GradScaler("cpu", init_scale=4.0)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with watch_optimizer(model, held_out(), budget=None) as monitor:
        for number in range(4):
            loss = model(torch.randn(8, 6, 3)).sum() * (float("inf") if number == 1 else 1.0)
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
    assert monitor.steps == 3


def test_two_optimizers_of_one_model_or_only_one_of_them() -> None:
    for one, expected in ((False, 4), (True, 2)):
        model = Net()
        body = torch.optim.SGD(model.rnn.parameters(), 0.1)
        head = torch.optim.SGD(model.head.parameters(), 0.1)
        with watch_optimizer(model, held_out(), optimizer=body if one else None) as monitor:
            for _ in range(2):
                model(torch.randn(8, 6, 3)).sum().backward()
                body.step()
                head.step()
        assert monitor.steps == expected


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # torch 2.13's compiler uses what it deprecates
@pytest.mark.parametrize("what", ["step", pytest.param("loop", marks=pytest.mark.thorough)])
def test_compiled_steps(what: str) -> None:
    def train(watch: bool) -> tuple[nn.Module, int]:
        torch.manual_seed(0)
        torch._dynamo.reset()
        model = Net()
        optimizer = adam(model)

        def update() -> None:
            optimizer.step()

        step = torch.compile(optimizer.step if what == "step" else update, backend="eager")

        def run() -> None:
            for _ in range(STEPS):
                optimizer.zero_grad()
                model(torch.randn(8, 6, 3)).sum().backward()
                step()

        if not watch:
            run()
            return model, STEPS
        with watch_optimizer(every_n_steps=2, budget=None, on_error="raise") as monitor:
            run()
        return model, monitor.steps

    (plain, _), (watched, counted) = train(watch=False), train(watch=True)
    assert counted == STEPS
    for a, b in zip(plain.parameters(), watched.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_lightning_training_inside() -> None:
    import lightning as L

    class Module(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = Net()

        def training_step(self, batch: Any, index: int) -> Tensor:
            return self.net(batch[0]).square().mean()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return adam(self)

    torch.manual_seed(0)
    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.randn(32, 6, 3)), 8)
    module = Module()
    with watch_optimizer(every_n_steps=2, budget=None) as monitor:
        L.Trainer(
            max_epochs=1,
            logger=False,
            accelerator="cpu",
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        ).fit(module, data)
    assert monitor.model is module
    assert monitor.steps == 4
    assert monitor.report is not None
    assert monitor.report.layers[0].point_source == "held_out"
    assert str(monitor.report.layers[0].key) == "net.rnn.l0"


def test_ablation_at_the_end() -> None:
    with watch_optimizer(None, held_out(), ablation=True) as monitor:
        library(2)
    assert monitor.report is not None
    assert monitor.report.study is not None


# --- while the first step is recorded --------------------------------------------------------------------------


class Around(nn.LSTM):
    """Its forward calls torch's."""

    def forward(self, input: Any, hx: Any = None) -> Any:
        return super().forward(input, hx)


COPY: dict[str, Callable[[nn.Module], nn.Module]] = {
    "deepcopy": copy.deepcopy,
    "average": lambda model: torch.optim.swa_utils.AveragedModel(model).module,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
}


@pytest.mark.parametrize("rnn", [nn.LSTM, Around])
@pytest.mark.parametrize("how", COPY)
def test_copies_are_of_their_own_and_need_nothing_of_ours(how: str, rnn: type[nn.LSTM]) -> None:
    model = nn.Sequential(rnn(3, 4))
    with watch_optimizer(model, budget=None, on_error="raise") as monitor:
        copied = COPY[how](model)
        assert b"lstm_monitor" not in pickle.dumps(model)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        for _ in range(2):
            model(torch.ones(5, 2, 3))[0].sum().backward()
            copied(torch.ones(5, 4, 3))
            optimizer.step()
            copied(torch.ones(5, 4, 3))
    assert monitor.report is not None
    assert monitor.report.layers[0].point_source == "held_out"
    assert type(copied[0]) is type(model[0]) is rnn
    assert vars(copied[0]).keys() == vars(model[0]).keys() == vars(rnn(3, 4)).keys()


def test_a_parametrization_that_comes_meanwhile_stays() -> None:
    model = Around(3, 4)
    with watch_optimizer(model, budget=None, on_error="raise"):
        nn.utils.parametrizations.weight_norm(model, "weight_hh_l0")
        model(torch.ones(5, 2, 3))[0].sum().backward()
        torch.optim.SGD(model.parameters(), 0.1).step()
    assert type(model).__mro__[1] is Around
    assert nn.utils.parametrize.is_parametrized(model, "weight_hh_l0")
    model(torch.ones(5, 2, 3))[0].sum().backward()


class Cells(nn.Module):
    """A loop of cells, which compiles as one graph."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        state = (x.new_zeros(len(x), 4), x.new_zeros(len(x), 4))
        for column in x.unbind(1):
            state = self.cell(column, state)
        return state[0]


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # torch 2.13's compiler uses what it deprecates
@pytest.mark.parametrize(("make", "whole"), [(Cells, True), (Net, False)])
def test_compiled_models_are_compiled_as_without(make: Callable[[], nn.Module], whole: bool) -> None:
    torch._dynamo.reset()
    model = make()
    compiled = torch.compile(model, backend="eager", fullgraph=whole)
    with watch_optimizer(compiled, budget=None, on_error="raise") as monitor:
        optimizer = adam(model)
        for _ in range(3):
            compiled(torch.randn(8, 6, 3)).sum().backward()
            optimizer.step()
    assert monitor.steps == 3
    assert monitor.report is not None
    assert monitor.report.layers[0].point_source == ("default" if whole else "held_out")


class Noisy(nn.Module):
    """A cell that starts anywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.input_size, self.hidden_size, self.mix = 3, 4, nn.Linear(7, 4)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return torch.tanh(self.mix(torch.cat([x, h], 1)))


def test_registered_cells_are_observed_until_the_first_step_and_draw_nothing() -> None:
    def step(cell: Noisy, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        return cell(x, h), cell(x, h)

    def begin(cell: Noisy, n: int) -> Tensor:
        return torch.randn(n, cell.hidden_size)

    model = Noisy()
    with register_cell(Noisy, step=step, state=begin), watch_optimizer(model, budget=None, on_error="raise") as monitor:
        optimizer, before = torch.optim.SGD(model.parameters(), 0.1), torch.get_rng_state()
        model(torch.ones(2, 3), torch.zeros(2, 4)).sum().backward()
        optimizer.step()
        assert torch.equal(before, torch.get_rng_state())
        assert not model._forward_hooks
    assert monitor.report is not None
    assert monitor.report.layers[0].point_source == "held_out"


# --- ends ----------------------------------------------------------------------------------------------------


class Closing(MemorySink):
    """Remembers that it was closed."""

    closed = 0

    def close(self) -> None:
        self.closed += 1


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_everything_is_off_after_an_error(error: type[BaseException]) -> None:
    sink, model = Closing(), Net()

    def train() -> None:
        with watch_optimizer(model, sinks=[sink]):
            model(torch.randn(8, 6, 3)).sum().backward()
            torch.optim.SGD(model.parameters(), 0.1).step()
            raise error

    with pytest.raises(error):
        train()
    assert hooks() == 0
    assert not model.rnn._forward_hooks
    assert (len(sink.reports), sink.closed) == (1, 1)


def test_an_error_in_a_step_does_not_stop_the_count() -> None:
    model = Net()
    optimizer = torch.optim.LBFGS(model.parameters(), 0.1)

    def fails() -> Any:
        raise ValueError("in the closure")

    with watch_optimizer(model, held_out()) as monitor:
        with pytest.raises(ValueError, match="in the closure"):
            optimizer.step(fails)
        for _ in range(2):
            optimizer.step(lambda: model(torch.ones(2, 6, 3)).sum())
    assert monitor.steps == 2


def test_a_fault_of_ours_is_one_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = library()

    def broken(*_: Any) -> None:
        raise ZeroDivisionError("planted")

    monkeypatch.setattr(Layer, "parameter", broken)
    with pytest.warns(MonitorWarning, match="planted") as caught, watch_optimizer(every_n_steps=1, budget=None):
        watched = library()
    assert len(caught) == 1
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), watched.parameters(), strict=True))
    assert hooks() == 0


def test_a_function_that_fails_or_returns_something_else_is_one_warning() -> None:
    given: Any
    for given in (lambda: 3, lambda: [][0]):
        with pytest.warns(MonitorWarning) as caught, watch_optimizer(given):
            library(2)
        assert len(caught) == 1


def test_no_step_is_told() -> None:
    with pytest.warns(MonitorWarning, match="saw no step of an optimizer"), watch_optimizer():
        pass


def test_a_single_step() -> None:
    with watch_optimizer(None, held_out()) as monitor:
        library(1)
    assert (monitor.steps, monitor.checks) == (1, 2)
    with watch_optimizer() as monitor:
        library(1)
    assert (monitor.steps, monitor.checks) == (1, 1)
    assert monitor.report is not None
    assert monitor.report.layers[0].point_source == "default", "nothing ran after the model was found"


def test_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LSTM_MONITOR", "off")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with watch_optimizer() as monitor:
            assert hooks() == 0
            library(2)
    assert monitor.checks == 0


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"model": 3}, TypeError, "model=3 is no torch.nn.Module"),
        ({"model": nn.LSTM}, TypeError, "is no torch.nn.Module"),
        ({"optimizer": "adam"}, TypeError, "optimizer='adam' is no torch optimizer"),
        ({"every_n_epochs": 1}, ValueError, "an optimizer knows no epochs"),
        ({"every_n_steps": 0}, ValueError, "every_n_steps=0 must be"),
        ({"sink": []}, TypeError, "sink"),
    ],
)
def test_bad_arguments_are_told_at_once(arguments: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words), watch_optimizer(**arguments):
        pass
