"""What a network puts out is caught while anything runs it, and no hook stays."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torchmetrics
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from lstm_monitor.core.undisturbed import undisturbed
from lstm_monitor.importance.removal.network import Network
from lstm_monitor.importance.replay.captures import captured
from lstm_monitor.layers.finding import find_layers
from lstm_monitor.snapshots.runs import Run


class Net(nn.Module):
    """With a loss, a metric and a part that is called from outside."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.LSTM(2, 4, batch_first=True), nn.Linear(4, 3)
        self.loss, self.metric, self.other = nn.CrossEntropyLoss(), torchmetrics.MeanMetric(), nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0][:, -1])


X, Y = torch.randn(5, 6, 2), torch.tensor([0, 1, 2, 0, 1])


def hooks() -> int:
    names = ("_global_forward_hooks", "_global_forward_pre_hooks", "_global_forward_hooks_always_called")
    return sum(len(getattr(torch_module, name, ())) for name in names)


@torch.no_grad()
def test_the_outermost_module_is_caught() -> None:
    net = Net()
    with captured(net) as caught:
        expected = net(X)
    assert [module for module, _ in caught.calls] == [net]
    assert torch.equal(caught.outputs()[0], expected)
    assert len(caught.outputs()) == 1


@torch.no_grad()
def test_losses_and_metrics_are_not_the_output() -> None:
    net = Net()
    with captured(net) as caught:
        expected = net(X)
        net.metric(net.loss(expected, Y))
        again = net(X)  # a metric's hash is another after it was updated
    assert [id(module) for module, _ in caught.calls] == [*map(id, (net, net.loss, net.metric, net))]
    assert [out.shape for out in caught.outputs()] == [(5, 3), (5, 3)]
    assert torch.equal(caught.outputs()[1], again)


@torch.no_grad()
def test_a_loss_for_each_sequence_is_not_the_output() -> None:
    net = Net()
    net.loss = nn.CrossEntropyLoss(reduction="none")
    with captured(net) as caught:
        net.loss(net(X), Y)
    assert [out.shape for out in caught.outputs()] == [(5, 3)]


@torch.no_grad()
def test_parts_called_from_outside_give_that_of_the_last() -> None:
    net = Net()
    with captured(net) as caught:
        hidden = net.rnn(X)[0]
        expected = net.head(hidden[:, -1])
    assert torch.equal(caught.outputs()[0], expected)
    assert torch.equal(caught.outputs(lambda result: result)[0], expected)


@torch.no_grad()
def test_every_call_of_the_network_counts() -> None:
    net = Net()
    with captured(net) as caught:
        both = [net(X), net(X[:2])]
    assert all(torch.equal(a, b) for a, b in zip(caught.outputs(), both, strict=True))
    assert [len(out) for out in caught.outputs(lambda result: result.softmax(-1))] == [5, 2]


@torch.no_grad()
def test_modules_that_are_not_the_networks_are_not_caught() -> None:
    net, stranger = Net(), nn.Linear(3, 3)
    with captured(net) as caught:
        stranger(net(X))
    assert [module for module, _ in caught.calls] == [net]
    with captured(net) as caught:
        nn.Sequential(net, stranger)(X)  # inside of a stranger it is the outermost still
    assert [module for module, _ in caught.calls] == [net]


@torch.no_grad()
def test_outputs_in_which_there_is_nothing_are_passed_over() -> None:
    net = Net()
    with captured(net) as caught:
        net.head(net.rnn(X)[0][:, -1])
        net.other(torch.tensor([1, 2]))
        net.other(torch.tensor(1.0))
        net.other({"words": "none"})
    assert caught.outputs()[0].shape == (5, 3)
    with captured(net) as caught:
        net.other(torch.tensor([1, 2]))
    assert caught.outputs() == []
    assert caught.outputs(lambda result: result["logits"]) == []


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_no_hook_stays(error: type[BaseException]) -> None:
    net, before = Net(), hooks()
    with captured(net):
        assert hooks() > before
    with pytest.raises(error), captured(net):
        raise error
    assert hooks() == before


@torch.no_grad()
def test_a_part_that_failed_does_not_hide_the_next() -> None:
    net = Net()
    with captured(net) as caught:
        with pytest.raises(RuntimeError):
            net(X[..., :1])
        expected = net(X)
    assert torch.equal(caught.outputs()[0], expected)
    assert len(caught.calls) == 2


@torch.no_grad()
@pytest.mark.parametrize("where", ["whole", "part"])
def test_compiled_modules(where: str) -> None:
    net: Any = Net().eval()
    plain = net(X)
    if where == "whole":
        net = torch.compile(net, backend="eager")
    else:
        net.rnn = torch.compile(net.rnn, backend="eager")
    net(X)
    with captured(net) as caught:
        net(X)
    assert torch.equal(caught.outputs()[-1], plain)
    with undisturbed(net):
        network = Network(net, find_layers(net), [Run(lambda: net(X), score=lambda out: out.mean())])
        assert [rows.shape for rows in network.intact[0].outputs] == [(5, 3)]
        (key,) = network.parts
        change = network.changes(0, {key: torch.arange(4)})[0]
        expected = (getattr(net, "_orig_mod", net).head.bias - plain).square().mean(1)
        torch.testing.assert_close(change, expected.double())
