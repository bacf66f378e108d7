"""Rebuild the recurrent layers of a state_dict as torch's own modules, in a tree of the same names."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import nn

from lstm_monitor.core.records import Skipped
from lstm_monitor.core.terms import Kind
from lstm_monitor.layers.checkpoints.states import State

_NAME = re.compile(r"(weight|bias)_(ih|hh|hr)(_l(?P<index>\d+)(?P<reverse>_reverse)?)?")
_HIDDEN = re.compile(r"weight_hh(_l\d+(_reverse)?)?")
_BLOCKS: Mapping[int, Kind] = {4: "lstm", 3: "gru", 1: "rnn_tanh"}
"""What torch's layers have so many row blocks of one row a cell; of plain ones the nonlinearity is not known."""
_STACKS = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn_tanh": nn.RNN, "rnn_relu": nn.RNN}
_CELLS = {"lstm": nn.LSTMCell, "gru": nn.GRUCell, "rnn_tanh": nn.RNNCell, "rnn_relu": nn.RNNCell}


@dataclass(frozen=True, eq=False)
class Skeleton:
    """The recurrent and linear modules of a checkpoint, with its weights, in modules that only hold them.

    ``open_kind``: paths of plain RNNs that were read as tanh, which nothing says; ``skipped``: what holds recurrent
    weights and is none of torch's layers; ``notes``: what a reader has to know.
    """

    model: nn.Module
    open_kind: tuple[str, ...] = ()
    skipped: tuple[Skipped, ...] = ()
    notes: tuple[str, ...] = ()
    ordered: bool = True


class UnreadableError(Exception):
    """These weights are not those of one of torch's layers; the message says why."""


def skeleton_of(state: State, kind: Kind | None = None) -> Skeleton:
    """Modules with the weights of `state`; `kind` says what the layers are whose shapes allow it.

    Raises:
        ValueError: there are recurrent layers, and none of them can be of this kind.
    """
    groups = _by_path(state)
    recurrent = {path: own for path, own in groups.items() if any(_HIDDEN.fullmatch(name) for name in own)}
    modules: dict[str, nn.Module] = {}
    skipped = []
    for path, own in groups.items():
        try:
            module = _recurrent(own, kind) if path in recurrent else _linear(path, own)
        except UnreadableError as error:
            skipped.append(Skipped(path, "weights in the checkpoint", str(error)))
            continue
        modules |= {} if module is None else {path: module}
    layers = {path: module for path, module in modules.items() if path in recurrent}
    _check_kind(kind, layers)
    plain = [path for path, module in layers.items() if kind is None and isinstance(module, nn.RNN | nn.RNNCell)]
    notes = tuple(note for path in layers for note in _extras(path, recurrent[path]))
    ordered = list(state) != sorted(state)
    last = {} if ordered else {path: module for path, module in modules.items() if path not in recurrent}
    tree = _tree({path: module for path, module in modules.items() if path not in last} | last)
    return Skeleton(tree, tuple(plain), tuple(skipped), notes, ordered)


def _by_path(state: State) -> dict[str, State]:
    """The tensors of each module by their own names, in the order of the state."""
    modules: dict[str, State] = {}
    for name, tensor in state.items():
        path, _, own = name.rpartition(".")
        modules.setdefault(path, {})[own] = tensor
    return modules


def _linear(path: str, own: State) -> nn.Module | None:
    """A linear layer where these look like the weights of one: it may read a recurrent one."""
    weight, bias = own.get("weight"), own.get("bias")
    if weight is None or weight.dim() != 2 or not weight.is_floating_point() or not set(own) <= {"weight", "bias"}:
        return None
    if (bias is None and "emb" in path.lower()) or (bias is not None and bias.shape != weight.shape[:1]):
        return None
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    linear.load_state_dict(own, assign=True)
    return linear


def _kind(own: State) -> Kind:
    """LSTM, GRU or RNN by the row blocks of the weights."""
    suffix = next(name for name in own if name.startswith("weight_hh")).removeprefix("weight_hh")
    weight, projection = own[f"weight_hh{suffix}"], own.get(f"weight_hr{suffix}")
    if weight.dim() != 2 or not weight.is_floating_point():
        raise UnreadableError(
            f"weight_hh{suffix} is {weight.dtype} of shape {tuple(weight.shape)}, no matrix of floats"
        )
    rows, cells = weight.shape[0], (weight if projection is None else projection).shape[-1]
    kind = _BLOCKS.get(rows // max(cells, 1)) if rows % max(cells, 1) == 0 else None
    if kind is None or (projection is not None and kind != "lstm"):
        raise UnreadableError(
            f"weight_hh{suffix} has {rows} rows for {cells} cells; torch's LSTM has 4 a cell, its GRU 3 and its RNN 1"
        )
    return kind


def _check_kind(kind: Kind | None, layers: Mapping[str, nn.Module]) -> None:
    if (
        kind is None
        or not layers
        or any(isinstance(module, (_STACKS[kind], _CELLS[kind])) for module in layers.values())
    ):
        return
    names = ", ".join(f"{path or 'the model itself'} ({type(module).__name__})" for path, module in layers.items())
    raise ValueError(f"kind={kind!r} fits none of the layers, by their shapes: {names}")


def _recurrent(own: State, kind: Kind | None) -> nn.Module:
    """The module of torch with these weights, of this kind if their shapes allow it.

    Raises:
        UnreadableError: they are not all there, or do not fit each other.
    """
    found = _kind(own)
    if kind is not None and kind.split("_")[0] == found.split("_")[0]:
        found = kind
    named = {name: tensor for name, tensor in own.items() if _NAME.fullmatch(name)}
    try:
        module = _cell(named, found) if "weight_hh" in named else _stack(named, found)
        module.load_state_dict(named, assign=True)
    except (KeyError, RuntimeError) as error:
        raise UnreadableError(f"its weights are not those of one layer ({' '.join(str(error).split())})") from error
    return module


def _cell(named: State, kind: Kind) -> nn.Module:
    size, inputs = named["weight_hh"].shape[1], named["weight_ih"].shape[1]
    return _CELLS[kind](inputs, size, "bias_ih" in named, device="meta", **_nonlinearity(kind))


def _stack(named: State, kind: Kind) -> nn.Module:
    matches = [match for name in named if (match := _NAME.fullmatch(name)) is not None]
    projection = named.get("weight_hr_l0")
    return _STACKS[kind](
        named["weight_ih_l0"].shape[1],
        (named["weight_hh_l0"] if projection is None else projection).shape[1],
        num_layers=1 + max(int(match["index"] or 0) for match in matches),
        bias="bias_ih_l0" in named,
        bidirectional=any(match["reverse"] for match in matches),
        device="meta",
        **({} if projection is None else {"proj_size": projection.shape[0]}),
        **_nonlinearity(kind),
    )


def _nonlinearity(kind: Kind) -> dict[str, str]:
    return {"nonlinearity": kind.removeprefix("rnn_")} if kind.startswith("rnn") else {}


def _extras(path: str, own: State) -> Iterator[str]:
    """A note where a layer has weights that torch's own has not."""
    others = [name for name in own if not _NAME.fullmatch(name)]
    if others:
        yield (
            f"{path or 'the model itself'} holds {', '.join(others)} too; it is read as torch's layer without, and may "
            "compute something else"
        )


def _tree(modules: Mapping[str, nn.Module]) -> nn.Module:
    root = modules.get("", nn.Module())
    for path, module in modules.items():
        parent, _, name = path.rpartition(".")
        if path:
            _descend(root, parent).add_module(name, module)
    return root


def _descend(root: nn.Module, path: str) -> nn.Module:
    """The module at a path, made where there is none."""
    for part in path.split(".") if path else ():
        if part not in root._modules:
            root.add_module(part, nn.Module())
        child = root._modules[part]
        assert child is not None
        root = child
    return root
