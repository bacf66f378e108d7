"""Find every recurrent layer of a torch module, and say what was found and not supported."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from lstm_monitor.errors import nearest
from lstm_monitor.records import Kind, LayerKey, LayerWeights, Skipped

SUPPORTED: dict[type[nn.Module], str] = {
    nn.LSTM: "lstm",
    nn.GRU: "gru",
    nn.RNN: "rnn",
    nn.LSTMCell: "lstm",
    nn.GRUCell: "gru",
    nn.RNNCell: "rnn",
}
_WRAPPERS = {"_orig_mod", "_fsdp_wrapped_module"}
_DATA_PARALLEL = {"DataParallel", "DistributedDataParallel", "AveragedModel"}
_RECURRENT_NAME = re.compile(r"lstm|gru|rnn|recurrent", re.IGNORECASE)


@dataclass(frozen=True, eq=False)
class Layer:
    """One direction of one layer of a live module; nothing is copied yet."""

    key: LayerKey
    kind: Kind
    module: nn.Module

    @property
    def is_cell(self) -> bool:
        """Whether the module takes one step at a time (LSTMCell, GRUCell, RNNCell)."""
        return self.key.index is None

    @property
    def suffix(self) -> str:
        """The ending of this layer's parameter names, such as ``_l0_reverse``."""
        return "" if self.is_cell else f"_l{self.key.index}{'_reverse' if self.key.reverse else ''}"

    def parameter(self, name: str) -> Tensor | None:
        """The live tensor ``weight_ih``, ``weight_hh``, ``bias_ih``, ``bias_hh`` or ``weight_hr``; None if absent."""
        value = getattr(self.module, name + self.suffix, None)
        return value if isinstance(value, Tensor) else None

    def weights(self) -> LayerWeights:
        """The live weights as a record (not detached, the projection not folded)."""
        weight_ih, weight_hh = self.parameter("weight_ih"), self.parameter("weight_hh")
        assert weight_ih is not None
        assert weight_hh is not None
        zeros = weight_ih.new_zeros(weight_ih.shape[0])
        bias_ih, bias_hh = self.parameter("bias_ih"), self.parameter("bias_hh")
        return LayerWeights(
            self.kind,
            weight_ih,
            weight_hh,
            zeros if bias_ih is None else bias_ih,
            zeros if bias_hh is None else bias_hh,
            self.parameter("weight_hr"),
        )


@dataclass(frozen=True, eq=False)
class Layers(Sequence[Layer]):
    """The layers found, in the order of the module, and what was skipped and why."""

    found: tuple[Layer, ...]
    skipped: tuple[Skipped, ...] = ()

    def __getitem__(self, index):  # type: ignore[no-untyped-def]  # int -> Layer, slice -> tuple
        """The layer at a place."""
        return self.found[index]

    def __len__(self) -> int:
        """How many layers were found."""
        return len(self.found)

    def __repr__(self) -> str:
        """What was found and what was not, a line each."""
        lines = [f"{layer.key}: {layer.kind}, {layer.weights().input_size} features" for layer in self.found]
        return "\n".join([*lines, *(f"not supported: {skipped}" for skipped in self.skipped)])


def find_layers(model: nn.Module, select: str | Sequence[str] = "*") -> Layers:
    """Every recurrent layer of `model`: one entry for each layer and direction.

    Args:
        model: any module. Found are nn.LSTM, nn.GRU, nn.RNN, LSTMCell, GRUCell, RNNCell and subclasses that inherit
            ``forward``; shared modules once. ``_orig_mod.`` and data-parallel ``module.`` are stripped from names.
        select: glob or globs over layer names such as ``rnn.l0`` or ``encoder.*``.

    Returns:
        The layers, with `skipped`: what looks recurrent and is not supported, each with its reason.

    Raises:
        TypeError: `model` is no torch module.
        ValueError: nothing was found (the error lists what the module contains), or a glob matches nothing.

    Example:
        >>> from torch import nn
        >>> [str(layer.key) for layer in find_layers(nn.LSTM(3, 4, num_layers=2))]
        ['l0', 'l1']
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model={type(model).__name__} is no torch.nn.Module; give the module that holds the LSTM")
    found: list[Layer] = []
    skipped: list[Skipped] = []
    for path, module in _named_modules(model):
        reason = _unsupported(module)
        if reason is not None:
            skipped.append(Skipped(path, type(module).__name__, reason))
        elif _base(module) is not None:
            found.extend(_layers_of(path, module))
    if not found:
        raise ValueError(_nothing_found(model, skipped))
    return Layers(_select(found, select), tuple(skipped))


def _named_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    modules = dict(model.named_modules())
    for path, module in modules.items():
        yield strip_wrappers(path, modules), module


def strip_wrappers(path: str, modules: dict[str, nn.Module]) -> str:
    """The path of a module without the parts that torch.compile, FSDP and data parallelism put into it."""
    parts = path.split(".") if path else []
    kept = []
    for depth, part in enumerate(parts):
        parent = type(modules[".".join(parts[:depth])]).__name__
        if part not in _WRAPPERS and not (part == "module" and parent in _DATA_PARALLEL):
            kept.append(part)
    return ".".join(kept)


def _base(module: nn.Module) -> type[nn.Module] | None:
    return next((base for base in SUPPORTED if isinstance(module, base)), None)


def _unsupported(module: nn.Module) -> str | None:
    """Why a module that looks recurrent is not supported; None if it is, or does not look recurrent."""
    base = _base(module)
    if base is None:
        return _unsupported_stranger(module)
    if type(module).forward is not base.forward or "forward" in vars(module):
        return "its forward is overridden, so its cells may compute something else"
    names = [name for name in _weight_names(module) if not isinstance(module._parameters.get(name), nn.Parameter)]
    if names:
        return f"{', '.join(names)} is no parameter (weight norm, parametrization or weight drop)"
    if any(isinstance(p, nn.parameter.UninitializedParameter) for p in module.parameters()):
        return "its parameters are not initialized yet (lazy module)"
    return None


def _unsupported_stranger(module: nn.Module) -> str | None:
    kind = type(module)
    if isinstance(module, torch.jit.ScriptModule):
        scripted = _RECURRENT_NAME.search(str(module.original_name)) is not None
        return "scripted; characterize the module that was given to torch.jit.script" if scripted else None
    if "quantized" in kind.__module__ and _RECURRENT_NAME.search(kind.__name__):
        return "quantized; characterize the float module before it is quantized"
    if isinstance(module, nn.RNNBase | nn.RNNCellBase):
        return "a custom subclass of torch's recurrent base class, not of LSTM, GRU or RNN"
    if any(name.startswith("weight_hh") for name in (*module._parameters, *module._buffers)):
        return "a custom cell with weights of its own; it is no nn.LSTM, nn.GRU or nn.RNN"
    if _RECURRENT_NAME.search(kind.__name__) and not any(map(_looks_recurrent, list(module.modules())[1:])):
        return "a custom cell; it is no nn.LSTM, nn.GRU or nn.RNN and holds none"
    return None


def _looks_recurrent(module: nn.Module) -> bool:
    return _base(module) is not None or bool(_RECURRENT_NAME.search(type(module).__name__))


def _weight_names(module: nn.Module) -> list[str]:
    if isinstance(module, nn.RNNBase):
        return [name for names in module._all_weights for name in names]
    return ["weight_ih", "weight_hh"] + (["bias_ih", "bias_hh"] if getattr(module, "bias", True) is not False else [])


def _layers_of(path: str, module: nn.Module) -> Iterator[Layer]:
    kind = _kind(module)
    if not isinstance(module, nn.RNNBase):
        yield Layer(LayerKey(path, None), kind, module)
        return
    for index in range(module.num_layers):
        for reverse in (False, True)[: 1 + module.bidirectional]:
            yield Layer(LayerKey(path, index, reverse), kind, module)


def _kind(module: nn.Module) -> Kind:
    kinds: dict[str, Kind] = {"lstm": "lstm", "gru": "gru", "tanh": "rnn_tanh", "relu": "rnn_relu"}
    base = _base(module)
    assert base is not None
    name = SUPPORTED[base]
    return kinds[str(getattr(module, "nonlinearity", "tanh")) if name == "rnn" else name]


def _select(found: list[Layer], select: str | Sequence[str]) -> tuple[Layer, ...]:
    globs = [select] if isinstance(select, str) else list(select)
    if not globs:
        raise ValueError("layers=[] selects nothing; give globs such as 'rnn.*', or '*' for all")
    names = [str(layer.key) for layer in found]
    for glob in globs:
        if not any(fnmatchcase(name, glob) for name in names):
            raise ValueError(f"layers={glob!r} matches no layer. {nearest(glob, names)}")
    return tuple(layer for layer in found if any(fnmatchcase(str(layer.key), glob) for glob in globs))


def _nothing_found(model: nn.Module, skipped: list[Skipped]) -> str:
    counts = Counter(type(module).__name__ for module in model.modules())
    inventory = ", ".join(f"{count} {name}" for name, count in counts.most_common(12))
    lines = [
        f"model={type(model).__name__} has no recurrent layer that can be characterized. It contains: {inventory}."
    ]
    lines += [f"Looks recurrent, but is not supported: {item}." for item in skipped]
    lines.append("Give a module that holds an nn.LSTM, nn.GRU, nn.RNN or one of torch's cells.")
    return "\n".join(lines)
