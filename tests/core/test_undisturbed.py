"""undisturbed(): whatever happens inside, random states, modes, buffers and precision are as before."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lstm_monitor.core.undisturbed import eval_mode, undisturbed


class PlantedError(RuntimeError):
    """A failure inside."""


class Counter(nn.Module):
    """Puts a new tensor in its buffer's place at every call."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(1))
        self.register_buffer("last", None)

    def forward(self, x: Tensor) -> Tensor:
        self.calls = self.calls + 1
        self.last = x.detach().clone()
        return x


def network() -> nn.Sequential:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), Counter())
    model[1].eval()  # frozen by hand
    model[3].eval()
    return model


def random_states() -> list[bytes]:
    legacy = np.random.get_state(legacy=False)
    return [torch.get_rng_state().numpy().tobytes(), repr(random.getstate()).encode(), repr(legacy).encode()]


def flags(model: nn.Module) -> list[bool]:
    return [module.training for module in model.modules()]


def draw() -> None:
    torch.randn(3)
    np.random.rand(3)
    random.random()


DRAWS: list[Callable[[], Any]] = [
    lambda: torch.randn(3),
    lambda: torch.manual_seed(7),
    lambda: np.random.rand(3),
    lambda: np.random.seed(7),
    random.random,
    lambda: random.seed(7),
    lambda: nn.LSTM(3, 4),
]


@pytest.mark.parametrize("act", DRAWS)
@pytest.mark.parametrize("fails", [False, True])
def test_random_states_are_put_back(act: Callable[[], Any], fails: bool) -> None:
    before = random_states()
    try:
        with undisturbed():
            act()
            assert random_states() != before, "the planted draw must be seen inside"
            if fails:
                raise PlantedError
    except PlantedError:
        pass
    assert random_states() == before


def test_a_draw_outside_would_be_noticed() -> None:
    before = random_states()
    for act in (torch.rand, np.random.rand, random.random):
        act(1) if act is not random.random else act()
        now = random_states()
        assert now != before
        before = now


@pytest.mark.parametrize("fails", [False, True])
def test_training_flags_set_by_hand_survive(fails: bool) -> None:
    model = network()
    before = flags(model)
    assert True in before
    assert False in before
    try:
        with undisturbed(model):
            assert not any(flags(model))
            model.train()
            if fails:
                raise PlantedError
    except PlantedError:
        pass
    assert flags(model) == before


@pytest.mark.parametrize("fails", [False, True])
def test_buffers_are_put_back_bit_for_bit(fails: bool) -> None:
    model = network()
    before = {name: (buffer, buffer.clone()) for name, buffer in model.named_buffers()}
    try:
        with undisturbed(model):
            model.train()
            model(torch.randn(8, 3))
            assert not torch.equal(model[1].running_mean, before["1.running_mean"][1])
            assert model[3].calls == 1
            if fails:
                raise PlantedError
    except PlantedError:
        pass
    after = dict(model.named_buffers())
    assert after.keys() == before.keys()
    for name, (buffer, value) in before.items():
        assert after[name] is buffer, name
        assert torch.equal(buffer, value), name


def test_buffers_that_hold_nan_come_back_too() -> None:
    model = nn.Sequential(nn.BatchNorm1d(2))
    model[0].running_mean.fill_(float("nan"))
    with undisturbed(model):
        model[0].running_mean.zero_()
    assert model[0].running_mean.isnan().all()


def test_a_buffer_replaced_by_one_of_another_shape_comes_back() -> None:
    model = Counter()
    with undisturbed(model):
        model.calls = torch.zeros(5)
    assert model.calls.shape == (1,)


def test_an_overridden_eval_is_not_called() -> None:
    class Loud(nn.Linear):
        def eval(self) -> Loud:
            raise PlantedError

        def train(self, mode: bool = True) -> Loud:
            raise PlantedError

    model = nn.Sequential(Loud(3, 3))
    with undisturbed(model):
        assert not model[0].training
    assert model[0].training


def test_inside_no_gradient_is_recorded_and_the_mode_outside_stays() -> None:
    model = nn.Linear(3, 3)
    with undisturbed(model):
        assert not model(torch.ones(3)).requires_grad
    assert torch.is_grad_enabled()
    with torch.no_grad():
        with undisturbed(model):
            pass
        assert not torch.is_grad_enabled()


def test_inside_inference_mode_tensors_are_ordinary_ones() -> None:
    model = network()
    with torch.inference_mode():
        with undisturbed(model):
            made = model(torch.ones(2, 3))
            assert not made.is_inference()
        assert torch.is_inference_mode_enabled()
    assert model[3].calls == 0


def test_inside_autocast_results_are_in_full_precision() -> None:
    model = nn.Linear(3, 3)
    with torch.autocast("cpu", torch.bfloat16):
        with undisturbed(model):
            assert model(torch.ones(3)).dtype == torch.float32
        assert model(torch.ones(3)).dtype == torch.bfloat16


def test_tensor_float_32_is_off_inside_and_as_before_after() -> None:
    backends = torch.backends
    owners = (backends.cudnn.rnn, backends.cuda.matmul, backends.mkldnn.rnn, backends.mkldnn.matmul)
    before = [owner.fp32_precision for owner in owners]
    with undisturbed():
        assert [owner.fp32_precision for owner in owners] == ["ieee"] * 4
    assert [owner.fp32_precision for owner in owners] == before


def test_switches_of_both_generations_may_have_been_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn.rnn, "fp32_precision", "ieee")  # allow_tf32 now raises when it is read
    with undisturbed():
        pass
    assert torch.backends.cudnn.rnn.fp32_precision == "ieee"


def test_attributes_and_lists_of_a_model_are_put_back() -> None:
    class Remembers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.state, self.seen = torch.zeros(2), [1]

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.state, self.new = x, 1
            self.seen.append(2)
            return x

    model = Remembers()
    seen = model.seen
    with undisturbed(model):
        model(torch.ones(2))
    assert model.state.tolist() == [0, 0]
    assert model.seen is seen
    assert seen == [1]
    assert not hasattr(model, "new")


def test_lazy_modules_that_are_not_initialized_yet_are_left_alone() -> None:
    model = nn.Sequential(nn.LSTM(3, 4), nn.LazyBatchNorm1d())
    with undisturbed(model):
        pass
    assert isinstance(model[1].running_mean, nn.parameter.UninitializedBuffer)


@pytest.mark.parametrize("at", range(1, 12))
def test_modules_are_whole_after_an_interrupt_while_they_are_put_back(at: int) -> None:
    model = nn.Sequential(nn.LSTM(2, 3), nn.Dropout(0.5))
    before = [dict(vars(module)) for module in model.modules()]
    lines = 0

    def interrupt(frame: Any, event: str, _: Any) -> Any:
        nonlocal lines
        if event == "line" and frame.f_code.co_name in ("put_back", "_refill"):
            lines += 1
            if lines == at:
                raise KeyboardInterrupt
        return interrupt

    context, trace = eval_mode(model), sys.gettrace()
    context.__enter__()
    assert not model.training
    sys.settrace(interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            context.__exit__(None, None, None)
    finally:
        sys.settrace(trace)
    assert [vars(module) for module in model.modules()] == before
    assert [[*vars(module)] for module in model.modules()] == [[*values] for values in before]
