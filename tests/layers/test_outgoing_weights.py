"""Readers are found through wrappers, and named without them."""

from typing import Any

import pytest
import torch
from torch import nn

import lstm_monitor as lm


class Net(nn.Module):
    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.rnn = nn.LSTM(3, 8)
        self.other = nn.Linear(5, 2)
        self.head = head

    def forward(self, x: torch.Tensor) -> Any:
        return self.head(self.rnn(x)[0])


def wrapped(module: nn.Module, name: str) -> nn.Module:
    """A module under `name`, as torch.compile, FSDP and data parallelism put it."""
    kind = {"module": nn.DataParallel}.get(name, type("OptimizedModule", (nn.Module,), {}))
    wrapper = kind.__new__(kind)
    nn.Module.__init__(wrapper)
    wrapper.add_module(name, module)
    return wrapper


@pytest.mark.parametrize("name", ["_orig_mod", "_fsdp_wrapped_module", "module"])
def test_the_name_has_no_wrapper(name: str) -> None:
    inner = nn.Linear(8, 4)
    for net in (wrapped(Net(inner), name), Net(wrapped(inner, name)), wrapped(Net(wrapped(inner, name)), name)):
        (snap,) = lm.snapshot(net)
        assert snap.reader == "head"
        torch.testing.assert_close(snap.outgoing, inner.weight.norm(dim=0))


@pytest.mark.parametrize(
    ("head", "weight"),
    [(nn.GRU(8, 2), "weight_ih_l0"), (nn.LSTMCell(8, 2), "weight_ih"), (nn.Linear(8, 1), "weight")],
)
def test_linear_and_recurrent_modules_read(head: nn.Module, weight: str) -> None:
    snap = lm.snapshot(Net(head), layers="rnn*")[0]
    assert snap.reader == "head"
    torch.testing.assert_close(snap.outgoing, head.get_parameter(weight).norm(dim=0))


@pytest.mark.parametrize("head", [nn.LazyLinear(4), nn.Linear(7, 4), nn.Identity()])
def test_what_does_not_take_the_layers_features_is_no_reader(head: nn.Module) -> None:
    assert lm.snapshot(Net(head))[0].reader is None
