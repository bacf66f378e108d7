"""Which module reads a layer, and how strongly it reads each cell."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from lstm_monitor.layers import Layer, strip_wrappers
from lstm_monitor.records import LayerWeights


def outgoing_norms(model: nn.Module, layer: Layer, weights: LayerWeights) -> tuple[Tensor | None, str | None]:
    """Norm ``(H,)`` of each cell's outgoing columns in the module that reads the layer, and that module's name.

    The reader is the next layer of the same stack; after the last one, the next module in the model's order (a
    linear or recurrent one) that takes as many features as the layer gives. (None, None) where there is none.
    """
    module = layer.module
    width = weights.hidden_size if weights.weight_hr is None else weights.weight_hr.shape[0]
    two = isinstance(module, nn.RNNBase) and module.bidirectional
    for name, matrix in _candidates(model, layer):
        if matrix.shape[-1] == width * (1 + two):
            start = width * layer.key.reverse
            columns = matrix.detach()[:, start : start + width].to(weights.weight_hh)
            if weights.weight_hr is not None:
                columns = columns @ weights.weight_hr
            return columns.norm(dim=0), name
    return None, None


def _candidates(model: nn.Module, layer: Layer) -> Iterator[tuple[str, Tensor]]:
    module = layer.module
    if isinstance(module, nn.RNNBase) and layer.key.index is not None and layer.key.index + 1 < module.num_layers:
        above = f"l{layer.key.index + 1}"
        suffixes = ("", "_reverse")[: 1 + module.bidirectional]
        yield f"the layer above, {above}", torch.cat([module.get_parameter(f"weight_ih_{above}{s}") for s in suffixes])
        return
    after = False
    modules = dict(model.named_modules())
    for name, other in modules.items():
        weight = _input_weight(other) if after else None
        if weight is not None:
            yield strip_wrappers(name, modules), weight
        after = after or other is module


def _input_weight(module: nn.Module) -> Tensor | None:
    """The matrix by which a linear or recurrent module reads; None for any other, and while it is lazy."""
    names = {nn.Linear: "weight", nn.RNNBase: "weight_ih_l0", nn.RNNCellBase: "weight_ih"}
    name = next((name for kind, name in names.items() if isinstance(module, kind)), "")
    weight = getattr(module, name, None)
    return weight if isinstance(weight, Tensor) and not nn.parameter.is_lazy(weight) else None
