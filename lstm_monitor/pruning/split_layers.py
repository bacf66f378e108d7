"""Single layers and directions, each with a number of cells of its own, run as one stack."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from lstm_monitor.kinds import SUPPORTED
from lstm_monitor.layers import Layer

State = Tensor | tuple[Tensor, Tensor]
Sequence3d = Tensor | PackedSequence


class Split(nn.ModuleDict):
    """Single layers and directions, each with a number of cells of its own, run as one stack.

    States are lists with one row ``(1, N, K)`` (LSTM: a pair of them) a layer and direction, K its own.

    Args:
        layers: the layers and directions of one module in torch's order; their weights are used, not copied.
        sizes: how many cells each has.
    """

    def __init__(self, layers: Sequence[Layer], sizes: Sequence[int]) -> None:
        pairs = zip(layers, sizes, strict=True)
        super().__init__({layer.suffix[1:]: _single(layer, size) for layer, size in pairs})
        whole = cast(nn.RNNBase, layers[0].module)
        self.directions, self.dropout, self.batch_first = 1 + whole.bidirectional, whole.dropout, whole.batch_first

    @property
    def input_size(self) -> int:
        """How many features the first layer reads."""
        return cast(nn.RNNBase, next(iter(self.values()))).input_size

    def forward(self, input: Sequence3d, rows: list[State] | None = None) -> tuple[Sequence3d, list[State]]:
        """The output of the last layer (its directions side by side) and every layer's final state."""
        singles, states = list(self.values()), list[State]()
        for first in range(0, len(singles), self.directions):
            if first:
                input = over_data(lambda data: F.dropout(data, self.dropout, self.training), input)
            outputs = []
            for place in range(first, first + self.directions):
                output, state = self._direction(
                    singles[place], input, place > first, None if rows is None else rows[place]
                )
                outputs.append(output)
                states.append(state)
            input = _side_by_side(outputs)
        return input, states

    def _direction(
        self, single: nn.Module, input: Sequence3d, reverse: bool, state: State | None
    ) -> tuple[Sequence3d, State]:
        output, state = single(self._reversed(input) if reverse else input, state)
        return self._reversed(output) if reverse else output, state

    def _reversed(self, sequences: Sequence3d) -> Sequence3d:
        """The sequences backwards in time, each within its own length."""
        if isinstance(sequences, PackedSequence):
            index = _backwards(sequences.batch_sizes).to(sequences.data.device)
            return over_data(lambda data: data[index], sequences)
        return sequences.flip(1 if self.batch_first and sequences.dim() == 3 else 0)

    def flatten_parameters(self) -> None:
        """As nn.LSTM's, for each single layer."""
        for single in self.values():
            cast(nn.RNNBase, single).flatten_parameters()


def _single(layer: Layer, size: int) -> nn.RNNBase:
    """One direction of one layer as a module that holds the layer's own, already cut parameters."""
    whole = cast(nn.RNNBase, layer.module)
    base = next(base for base in SUPPORTED if isinstance(whole, base))
    own: dict[type[nn.Module], dict[str, Any]] = {
        nn.LSTM: {"proj_size": whole.proj_size},
        nn.RNN: {"nonlinearity": layer.kind.removeprefix("rnn_")},
    }
    options = {"bias": whole.bias, "batch_first": whole.batch_first, "device": "meta"}  # meta: no random draw
    single = cast(nn.RNNBase, base(1, whole.hidden_size, **options, **own.get(base, {})))
    for name in list(single._parameters):
        setattr(single, name, layer.parameter(name.removesuffix("_l0")))
    single.input_size, single.hidden_size = cast(Tensor, single.weight_ih_l0).shape[1], size
    return single


def _backwards(batch_sizes: Tensor) -> Tensor:
    """Where the rows of a packed sequence come from when each sequence is turned around in time.

    Row ``start[t] + n`` of the packed data is step t of sequence n; it takes step ``length[n] - 1 - t``.
    """
    steps = torch.arange(len(batch_sizes))
    start = batch_sizes.cumsum(0) - batch_sizes
    step = steps.repeat_interleave(batch_sizes)
    sequence = torch.arange(len(step)) - start[step]
    length = (batch_sizes > torch.arange(int(batch_sizes[0]))[:, None]).sum(1)
    return start[length[sequence] - 1 - step] + sequence


def _side_by_side(outputs: list[Sequence3d]) -> Sequence3d:
    parts = [output.data if isinstance(output, PackedSequence) else output for output in outputs]
    return over_data(lambda _: torch.cat(parts, dim=-1), outputs[0])


def over_data(move: Callable[[Tensor], Tensor], sequences: Sequence3d) -> Sequence3d:
    """A tensor moved, or a packed sequence with its data moved."""
    if isinstance(sequences, PackedSequence):
        return PackedSequence(move(sequences.data), *sequences[1:])
    return move(sequences)
