"""Find every recurrent layer of a torch module, and say what was found and not supported."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase

import torch
from torch import nn

from lstm_monitor.core.errors import nearest
from lstm_monitor.core.records import Skipped
from lstm_monitor.core.terms import LayerKey
from lstm_monitor.layers.computed_weights import RAW, holder_of, is_parameter, unknown
from lstm_monitor.layers.inner_calls import inner_now
from lstm_monitor.layers.layer import CustomLayer, Layer, Layers
from lstm_monitor.layers.registered.registry import Registration, registration_of
from lstm_monitor.layers.registered.weights import mapped_weights
from lstm_monitor.layers.torch_modules import base_of, kind_of, reaches_torch, weight_names

_WRAPPERS = {"_orig_mod", "_fsdp_wrapped_module"}
_DATA_PARALLEL = {"DataParallel", "DistributedDataParallel", "AveragedModel"}
_GRAD_SAMPLE = {"GradSampleModule", "GradSampleModuleFastGradientClipping"}  # of opacus
OWN_CODE = "its class is registered by register_cell, and only inside torch's own modules can cells be removed"
_REGISTER = "Register its class with lstm_monitor.register_cell(...)"
_RECURRENT_NAME = re.compile(r"lstm|gru|rnn|recurrent", re.IGNORECASE)


def find_layers(model: nn.Module, select: str | Sequence[str] = "*") -> Layers:
    """Every recurrent layer of `model`: one entry for each layer and direction.

    Args:
        model: any module. Found are nn.LSTM, nn.GRU, nn.RNN, LSTMCell, GRUCell, RNNCell and subclasses that inherit
            ``forward`` or call ``super().forward``, with weights that are parameters or computed from some (torch's
            parametrizations and pruning, weight norm, weight drop); shared modules once; and modules of the classes
            given to `register_cell`. ``_orig_mod.`` and data-parallel ``module.`` are stripped from names.
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
    for path, module in named_modules(model):
        registration = registration_of(module)
        reason = None if registration else unsupported(module, model)
        if registration is not None:
            found.extend(custom_layers(path, module, registration))
        elif reason is not None:
            skipped.append(Skipped(path, type(module).__name__, reason))
        elif base_of(module) is not None:
            found.extend(layers_of(path, module, model))
    if not found:
        raise ValueError(_nothing_found(model, skipped))
    return Layers(_select(found, select), tuple(skipped))


def removable_layers(model: nn.Module, select: str | Sequence[str] = "*") -> Layers:
    """As `find_layers`, without those of registered classes: what is inside them cannot be changed from outside.

    Raises:
        TypeError: as `find_layers`.
        ValueError: as `find_layers`; or only layers of registered classes were found.
    """
    found = find_layers(model, select)
    kept = tuple(layer for layer in found if not isinstance(layer, CustomLayer))
    if not kept:
        names = ", ".join(str(layer.key) for layer in found)
        raise ValueError(f"{names}: {OWN_CODE}. Its cells can only be set to zero in its own code, after each step")
    return Layers(kept, found.skipped)


def custom_layers(path: str, module: nn.Module, registration: Registration) -> list[CustomLayer]:
    """Every direction of every layer of a module of a registered class; one layer, where it is run by a step."""
    if registration.step is not None:
        return [CustomLayer(LayerKey(path, None), "custom", module, registration=registration)]
    return [
        CustomLayer(LayerKey(path, *place), weights.kind, module, registration=registration)
        for place, weights in mapped_weights(registration, module).items()
    ]


def named_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Every module by its path; not what is inside modules of registered classes."""
    modules = dict(model.named_modules())
    inside = {id(part) for module in modules.values() if registration_of(module) for part in _parts(module)}
    for path, module in modules.items():
        if id(module) not in inside:
            yield strip_wrappers(path, modules), module


def _parts(module: nn.Module) -> list[nn.Module]:
    """The modules inside a module."""
    return list(module.modules())[1:]


def strip_wrappers(path: str, modules: dict[str, nn.Module]) -> str:
    """The path of a module without the parts that torch.compile, FSDP, data parallelism and opacus put into it."""
    parts = path.split(".") if path else []
    kept = []
    for depth, part in enumerate(parts):
        parent = type(modules[".".join(parts[:depth])]).__name__
        inside = (part == "module" and parent in _DATA_PARALLEL) or (part == "_module" and parent in _GRAD_SAMPLE)
        if part not in _WRAPPERS and not inside:
            kept.append(part)
    return ".".join(kept)


def unsupported(module: nn.Module, model: nn.Module) -> str | None:
    """Why a module that looks recurrent is not supported; None if it is, or does not look recurrent."""
    if base_of(module) is None:
        return _unsupported_stranger(module)
    if "forward" in vars(inner_now(module)) or not reaches_torch(module):
        return (
            "its forward is overridden and does not call super().forward, so its cells may compute something else. "
            f"{_REGISTER}"
        )
    if any(isinstance(p, nn.parameter.UninitializedParameter) for p in module.parameters()):
        return "its parameters are not initialized yet (lazy module)"
    made = [name for name in weight_names(module) if not is_parameter(module, name)]
    lost = list(unknown(module, made, holder_of(model, module, made))) if made else []
    if lost:
        return f"{', '.join(lost)} is no parameter, and it is unknown from which parameters it is computed"
    return None


def _unsupported_stranger(module: nn.Module) -> str | None:
    kind = type(module)
    if isinstance(module, torch.jit.ScriptModule):
        scripted = _RECURRENT_NAME.search(str(module.original_name)) is not None
        return "scripted; characterize the module that was given to torch.jit.script" if scripted else None
    if "quantized" in kind.__module__ and _RECURRENT_NAME.search(kind.__name__):
        return "quantized; characterize the float module before it is quantized"
    if isinstance(module, nn.RNNBase | nn.RNNCellBase):
        return f"a custom subclass of torch's recurrent base class, not of LSTM, GRU or RNN. {_REGISTER}"
    own = {*module._parameters, *module._buffers}
    if any(name.startswith("weight_hh") and not name.endswith(RAW) for name in own):
        return f"a custom cell with weights of its own; it is no nn.LSTM, nn.GRU or nn.RNN. {_REGISTER}"
    named = _RECURRENT_NAME.search(kind.__name__) and next(module.parameters(), None) is not None  # no "RNNDropout"
    if named and not any(map(_looks_recurrent, list(module.modules())[1:])):
        return f"a custom cell; it is no nn.LSTM, nn.GRU or nn.RNN and holds none. {_REGISTER}"
    return None


def _looks_recurrent(module: nn.Module) -> bool:
    return base_of(module) is not None or bool(_RECURRENT_NAME.search(type(module).__name__))


def layers_of(path: str, module: nn.Module, model: nn.Module) -> Iterator[Layer]:
    """Every direction of every layer of one of torch's recurrent modules."""
    kind, names = kind_of(module), weight_names(module)
    holder = None if all(is_parameter(module, name) for name in names) else holder_of(model, module, names)
    if not isinstance(module, nn.RNNBase):
        yield Layer(LayerKey(path, None), kind, module, holder)
        return
    for index in range(module.num_layers):
        for reverse in (False, True)[: 1 + module.bidirectional]:
            yield Layer(LayerKey(path, index, reverse), kind, module, holder)


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
    lines.append(
        "Give a module that holds an nn.LSTM, nn.GRU, nn.RNN or one of torch's cells; or register the class of a cell "
        "of another kind with lstm_monitor.register_cell(...)."
    )
    return "\n".join(lines)
