"""Ablation as one writes it first: copy the network, zero the cell's candidate rows, run everything again, in a loop.

Slow and plain, and independent of the library: the truth that its numbers are held against. For networks with one
recurrent layer ``rnn`` in one direction that starts from zero states.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from tasks import Network, Split, Task
from torch import Tensor

BATCH = 128
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
CANDIDATE = {"LSTM": 2, "GRU": 2, "RNN": 0}
"""How many row blocks of H rows the weights have, and which of them is the candidate's."""


@dataclass(frozen=True, eq=False)
class Effects:
    """What removing each cell by itself does ``(H,)``: mean squared change of the output, change of the mean loss.

    ``held``: the output's change when the cell stands still at its mean instead of at zero (LSTM only, else NaN).
    """

    output: Tensor
    loss: Tensor
    held: Tensor


def without(network: Network, cells: Sequence[int]) -> Network:
    """A copy of the network whose given cells stay at exactly zero."""
    smaller = copy.deepcopy(network)
    kind, size = type(network.rnn).__name__, network.rnn.hidden_size
    with torch.no_grad():
        for name, weight in smaller.rnn.named_parameters():
            assert len(weight) == GATES[kind] * size, f"rnn.{name} is not a weight of one plain layer"
            weight[[CANDIDATE[kind] * size + cell for cell in cells]] = 0.0
    return smaller


def standing(network: Network, cell: int, mean: Tensor) -> Network:
    """A copy whose cell is read as its mean: removed, and what others and the head read of it put into their biases."""
    still = without(network, [cell])
    bias = still.rnn.get_parameter("bias_hh_l0")
    with torch.no_grad():
        bias.add_(network.rnn.get_parameter("weight_hh_l0")[:, cell] * mean)
        bias[CANDIDATE["LSTM"] * network.rnn.hidden_size + cell] = 0.0  # the removed cell itself stays at zero
        still.head.bias.add_(network.head.weight[:, cell] * mean)
    return still


@torch.no_grad()
def outputs(network: Network, split: Split) -> Tensor:
    """The network's answers to a whole split."""
    return torch.cat([network(x) for x in split.x.split(BATCH)])


@torch.no_grad()
def effects(network: Network, task: Task, split: Split) -> Effects:
    """Every cell removed by itself."""
    intact = outputs(network, split)
    loss = task.loss(intact, split.y).mean()
    means = torch.cat([network.rnn(x)[0] for x in split.x.split(BATCH)]).mean((0, 1))
    changed = [outputs(without(network, [cell]), split) for cell in range(network.rnn.hidden_size)]
    return Effects(
        output=torch.stack([(output - intact).square().mean() for output in changed]),
        loss=torch.stack([task.loss(output, split.y).mean() - loss for output in changed]),
        held=torch.stack([_held_change(network, split, cell, intact, mean) for cell, mean in enumerate(means)]),
    )


def _held_change(network: Network, split: Split, cell: int, intact: Tensor, mean: Tensor) -> Tensor:
    if not isinstance(network.rnn, torch.nn.LSTM):
        return torch.tensor(float("nan"))
    return (outputs(standing(network, cell, mean), split) - intact).square().mean()


def counts(cells: int, points: int = 16) -> list[int]:
    """How many cells are removed at each point of a curve: none, all, and evenly between."""
    return sorted({round(cells * i / points) for i in range(points + 1)})


def curve(network: Network, task: Task, split: Split, order: Sequence[int]) -> Tensor:
    """Performance kept at each of `counts`, the cells being removed in this order: 1 intact, 0 with none left.

    The loss on the scale between the intact network's and that with no cell left. Below 0 the network is worse than
    with no cell at all, above 1 better than the intact one.
    """
    losses = [
        task.loss(outputs(without(network, order[:count]), split), split.y).mean() for count in counts(len(order))
    ]
    values = torch.stack(losses)
    return (values[-1] - values) / (values[-1] - values[0])


def area(kept: Tensor, cells: int) -> float:
    """Area under a curve over the share of cells removed."""
    return float(torch.trapezoid(kept, torch.tensor(counts(cells)) / cells))
