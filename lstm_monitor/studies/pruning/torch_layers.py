"""Recurrent modules that hold fewer cells than they show: each layer and direction with a number of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from lstm_monitor.layers.layer import Layer
from lstm_monitor.layers.torch_modules import SUPPORTED

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


class Kept(nn.Module):
    """Which of `width` features are held: ``take`` picks them, a call puts them back between `fill` (zeros).

    Args:
        index: (K,) the features that are held, ascending.
        width: how many features there are in the full width.
    """

    index: Tensor

    def __init__(self, index: Tensor, width: int) -> None:
        super().__init__()
        self.register_buffer("index", index)
        self.width = width
        self.fill = 0.0

    def take(self, full: Tensor) -> Tensor:
        """``(..., K)`` of ``(..., width)``.

        Raises:
            ValueError: the last axis has another width.
        """
        if full.shape[-1] != self.width:
            raise ValueError(
                f"hx has {full.shape[-1]} features, but the state shows {self.width}: the pruned model takes and "
                "gives states of the original width, with zeros for the cells that were removed"
            )
        return full.index_select(-1, self.index)

    def forward(self, thin: Tensor) -> Tensor:
        """``(..., width)`` of ``(..., K)``."""
        full = thin.new_full((*thin.shape[:-1], self.width), self.fill)
        return full.index_copy(-1, self.index, thin)

    def extra_repr(self) -> str:
        """How many of how many."""
        return f"{len(self.index)} of {self.width}"


class ThinRecurrent(nn.Module):
    """A smaller nn.LSTM, nn.GRU or nn.RNN with the interface and the shapes of the whole one.

    The initial states that it takes and the final states that it gives have the original width; a removed cell's entry
    is dropped from the one and zero in the other. So is the output, unless what reads it was cut to fit.

    Args:
        whole: the module whose place it takes; its options are shown as attributes.
        inner: the smaller module, or `Split` where the layers keep different numbers of cells.
        cells: what each layer and direction keeps of its cells, in torch's order.
        output: what the output keeps of its features; None where it is full, or shall be thin.
    """

    def __init__(
        self, whole: nn.RNNBase, inner: nn.RNNBase | Split, cells: Sequence[Kept], output: Kept | None
    ) -> None:
        super().__init__()
        for name in ("mode", "hidden_size", "num_layers", "bias", "batch_first", "dropout", "bidirectional"):
            setattr(self, name, getattr(whole, name))
        self.proj_size = whole.proj_size
        self.inner = inner
        self.cells = nn.ModuleList(cells)
        self.output = output

    @property
    def input_size(self) -> int:
        """How many features it reads."""
        return self.inner.input_size

    def forward(self, input: Sequence3d, hx: State | None = None) -> tuple[Sequence3d, State]:
        """As nn.LSTM's, nn.GRU's or nn.RNN's: the output and the final state of every layer and direction."""
        rows = None if hx is None else self._each(Kept.take, split_rows(hx))
        output, rows = self._run(input, rows)
        if self.output is not None:
            output = over_data(self.output, output)
        return output, join_rows(self._each(lambda kept, row: kept(row), rows))

    def _run(self, input: Sequence3d, rows: list[State] | None) -> tuple[Sequence3d, list[State]]:
        if isinstance(self.inner, Split):
            return self.inner(input, rows)
        output, state = self.inner(input, None if rows is None else join_rows(rows))
        return output, split_rows(state)

    def _each(self, move: Callable[[Kept, Tensor], Tensor], rows: list[State]) -> list[State]:
        """Every row of the states moved to the thin or the full width; a projected h has no cells."""
        moved: list[State] = []
        for kept, row in zip(cast("list[Kept]", self.cells), rows, strict=True):
            if isinstance(row, Tensor):
                moved.append(move(kept, row))
            else:
                moved.append((row[0] if self.proj_size else move(kept, row[0]), move(kept, row[1])))
        return moved

    def flatten_parameters(self) -> None:
        """As nn.LSTM's: one piece of memory for all weights on a GPU; nothing to do on a CPU."""
        self.inner.flatten_parameters()


class ThinCell(nn.Module):
    """A smaller LSTMCell, GRUCell or RNNCell whose states have the original width."""

    def __init__(self, whole: nn.RNNCellBase, inner: nn.RNNCellBase, cells: Kept) -> None:
        super().__init__()
        self.hidden_size, self.bias = whole.hidden_size, whole.bias
        self.inner = inner
        self.cells = cells

    @property
    def input_size(self) -> int:
        """How many features it reads."""
        return self.inner.input_size

    def forward(self, input: Tensor, hx: State | None = None) -> State:
        """As the whole cell's: the next state, zero where a cell was removed."""
        state: State = self.inner(input, None if hx is None else _both(self.cells.take, hx))
        return _both(self.cells, state)


def become(module: nn.Module, other: nn.Module) -> None:
    """Make `module` what `other` is, in place: whoever holds it, a list or an alias too, then holds the new module."""
    object.__setattr__(module, "__dict__", vars(other))
    object.__setattr__(module, "__class__", type(other))


def flatten(model: nn.Module) -> None:
    """One piece of memory again for the weights of every recurrent module, as a GPU wants it; nothing on a CPU."""
    for module in model.modules():
        if isinstance(module, nn.RNNBase):
            module.flatten_parameters()


def split_rows(state: State) -> list[State]:
    """A state ``(L, N, H)``, or a pair of them, as one ``(1, N, H)`` (or pair) a layer and direction."""
    if isinstance(state, Tensor):
        return list(state.split(1))
    return list(zip(state[0].split(1), state[1].split(1), strict=True))


def join_rows(rows: list[State]) -> State:
    """The opposite of `split_rows`."""
    if isinstance(rows[0], Tensor):
        return torch.cat(cast("list[Tensor]", rows))
    pairs = cast("list[tuple[Tensor, Tensor]]", rows)
    return torch.cat([h for h, _ in pairs]), torch.cat([c for _, c in pairs])


def _both(move: Callable[[Tensor], Tensor], state: State) -> State:
    return move(state) if isinstance(state, Tensor) else (move(state[0]), move(state[1]))
