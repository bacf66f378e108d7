"""Which cells are meant: numbers or masks by layer name, checked against a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lstm_monitor.core.errors import unknown
from lstm_monitor.core.terms import GATES
from lstm_monitor.layers.finding import OWN_CODE, layers_of, named_modules, unsupported
from lstm_monitor.layers.inner_calls import inner_now
from lstm_monitor.layers.layer import Layer
from lstm_monitor.layers.registered.registry import registration_of
from lstm_monitor.layers.torch_modules import base_of, reaches_torch

Cells = Mapping[str, Sequence[int] | Tensor]
"""Layer name -> cell numbers, or a boolean mask ``(H,)``."""


@dataclass(frozen=True, eq=False)
class Removal:
    """Some cells of a layer, ``cells (K,)`` ascending, on the host; they stand still at ``fill (H,)``, or at 0."""

    layer: Layer
    cells: Tensor
    fill: Tensor | None = None


def choose_cells(model: nn.Module, cells: Cells, standing: type | None = None) -> list[Removal]:
    """The cells of live layers that `cells` names.

    Besides the layers that `find_layers` finds there are those whose weights are attributes of which it is unknown how
    they are computed, and those whose ``forward`` is an instance of `standing`.

    Raises:
        TypeError: `model` is no torch module, `cells` no mapping, cells that are no integers.
        ValueError: a layer that is not known or not supported; cells out of range.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model={type(model).__name__} is no torch.nn.Module; give the module that holds the LSTM")
    if not isinstance(cells, Mapping):
        raise TypeError(f"cells={cells!r} is no mapping; give layer names and cell numbers, such as {{'rnn.l0': [3]}}")
    layers, reasons = _layers(model, standing)
    for name in map(str, cells):
        if name not in layers:
            raise _no_layer(name, layers, reasons)
    return [Removal(layers[str(name)], numbers(layers[str(name)], given)) for name, given in cells.items()]


def _layers(model: nn.Module, standing: type | None) -> tuple[dict[str, Layer], dict[str, str]]:
    """Layers by name, and the reasons why others are none, by the path of the module."""
    layers: dict[str, Layer] = {}
    reasons: dict[str, str] = {}
    for path, module in named_modules(model):
        reason = None if _computable(module, standing) else unsupported(module, model)
        reason = reason if registration_of(module) is None else OWN_CODE
        if reason is not None:
            reasons[path] = f"{path or 'the model'} ({type(module).__name__}): {reason}"
        elif base_of(module) is not None:
            layers.update({str(layer.key): layer for layer in layers_of(path, module, model)})
    return layers, reasons


def _computable(module: nn.Module, standing: type | None) -> bool:
    """Whether a module computes what torch's own does, from dense weights that can be read as its attributes."""
    forward = vars(inner_now(module)).get("forward")
    if base_of(module) is None or not reaches_torch(module):
        return False
    ours = forward is None or (standing is not None and isinstance(forward, standing))
    found = layers_of("", module, module)
    weights = [layer.parameter(name) for layer in found for name in ("weight_ih", "weight_hh")]
    return ours and not any(weight is None or nn.parameter.is_lazy(weight) for weight in weights)


def _no_layer(name: str, layers: Mapping[str, Layer], reasons: Mapping[str, str]) -> ValueError:
    for path, reason in reasons.items():
        if not path or name == path or name.startswith(f"{path}."):
            return ValueError(
                f"cells: {name!r} cannot be ablated. {reason}. Its cells can only be set to zero in its own code, "
                "after each step"
            )
    return unknown("cells", name, layers)


def numbers(layer: Layer, given: Any) -> Tensor:
    """Cell numbers ``(K,)``, ascending and each once, from numbers or a mask ``(H,)``."""
    name, size = str(layer.key), int(getattr(layer.module, "hidden_size", 0))
    allowed = f"give a list of cell numbers from 0 to {size - 1}, or a boolean mask of {size}"
    try:
        values = torch.as_tensor(list(given) if isinstance(given, set | frozenset) else given).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"cells[{name!r}]={given!r} cannot be read ({error}); {allowed}") from error
    if values.dim() != 1 or (values.dtype == torch.bool and len(values) != size):
        raise ValueError(f"cells[{name!r}]={given!r} has shape {tuple(values.shape)}; {allowed}")
    if values.dtype == torch.bool:
        return values.nonzero()[:, 0]
    if len(values) and (values.is_floating_point() or values.is_complex()):
        raise TypeError(f"cells[{name!r}]={given!r} holds no integers; {allowed}")
    outside = values[(values < 0) | (values >= size)].tolist()
    if outside:
        raise ValueError(f"cells[{name!r}] holds {outside}; the layer has the cells 0 to {size - 1}")
    return values.long().unique()


def check_weights(layer: Layer) -> None:
    """Refuse weights that cannot be edited or copied, or that would leak out of an ablated cell.

    Raises:
        TypeError: a weight that is no plain, dense tensor of floating point with its values at hand.
        ValueError: a weight in another shape than the layer's, or with values that are NaN or infinite.
    """
    found = {name + layer.suffix: layer.parameter(name) for name in (*WEIGHTS, "weight_hr")}
    weights = {name: tensor for name, tensor in found.items() if tensor is not None}
    for name, tensor in weights.items():
        what = _not_plain(tensor)
        if what is not None:
            raise TypeError(f"{layer.key}: {name} is {what}; give the model with plain, dense weights")
    weight = weights["weight_hh" + layer.suffix]
    rows = len(GATES[layer.kind]) * int(getattr(layer.module, "hidden_size", 0))
    if weight.dim() != 2 or len(weight) != rows:
        raise ValueError(
            f"{layer.key}: weight_hh{layer.suffix} has shape {tuple(weight.shape)} in place of {rows} rows; its parts "
            "lie elsewhere (FSDP?). Gather the whole parameters first"
        )
    if not bool(torch.stack([tensor.detach().sum() for tensor in weights.values()]).sum().isfinite()):
        for name, tensor in weights.items():
            _check_finite(layer, name, tensor)


WEIGHTS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


def _not_plain(tensor: Tensor) -> str | None:
    if type(tensor.data) is not Tensor:
        return f"a {type(tensor.data).__name__}"
    if tensor.is_meta:
        return "on the meta device, without values"
    if tensor.is_quantized or tensor.layout != torch.strided or not tensor.is_floating_point():
        return f"of {tensor.dtype} with layout {tensor.layout}"
    return None


def _check_finite(layer: Layer, name: str, tensor: Tensor) -> None:
    bad = int((~torch.isfinite(tensor)).sum())
    if bad:
        raise ValueError(
            f"{layer.key}: {bad} of {tensor.numel()} values of {name} are NaN or infinite. They leak out of a cell "
            "that is set to zero, so nothing can be measured; find out first why the network diverged"
        )
