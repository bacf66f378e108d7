"""Which module reads a layer, and how strongly it reads each cell."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn

from lstm_monitor.core.weights import CellWeights, LayerWeights
from lstm_monitor.layers.finding import named_modules
from lstm_monitor.layers.layer import CustomLayer, Layer
from lstm_monitor.layers.registered.registry import registration_of
from lstm_monitor.layers.registered.weights import mapped_weights


def outgoing_norms(
    model: nn.Module, layer: Layer, weights: LayerWeights | CellWeights
) -> tuple[Tensor | None, str | None]:
    """Norm ``(H,)`` of each cell's outgoing columns in the module that reads the layer, and that module's name.

    The reader is the next layer of the same stack; after the last one, the next module in the model's order (a
    linear or recurrent one) that takes as many features as the layer gives. (None, None) where there is none.
    """
    projection = weights.weight_hr if isinstance(weights, LayerWeights) else None
    width = weights.hidden_size if projection is None else projection.shape[0]
    for name, matrix in _candidates(model, layer):
        if matrix.shape[-1] == width * _directions(layer):
            start = width * layer.key.reverse
            columns = matrix.detach()[:, start : start + width].to(weights.like)
            if projection is not None:
                columns = columns @ projection
            return columns.norm(dim=0), name
    return None, None


def _candidates(model: nn.Module, layer: Layer) -> Iterator[tuple[str, Tensor]]:
    above = _above(layer)
    if above:
        yield f"the layer above, l{(layer.key.index or 0) + 1}", torch.cat(above)
        return
    after = False
    for name, other in named_modules(model):
        weight = _input_weight(other) if after else None
        if weight is not None:
            yield name, weight
        after = after or other is layer.module


def _above(layer: Layer) -> list[Tensor]:
    """The matrices by which the next layer of the same stack reads, one a direction; none above the last."""
    if layer.key.index is None:
        return []
    above = layer.key.index + 1
    if isinstance(layer, CustomLayer):
        places = mapped_weights(layer.registration, layer.module).items()
        return [weights.weight_ih for (index, _), weights in places if index == above]
    keys = [replace(layer.key, index=above, reverse=reverse) for reverse in (False, True)[: _directions(layer)]]
    read = [replace(layer, key=key).parameter("weight_ih") for key in keys] if above < layer.module.num_layers else []  # type: ignore[operator]
    return [weight for weight in read if weight is not None]


def _directions(layer: Layer) -> int:
    """1, or 2 where the module reads in both directions."""
    if isinstance(layer, CustomLayer):
        return 1 if layer.is_step else len({reverse for _, reverse in mapped_weights(layer.registration, layer.module)})
    return 1 + bool(getattr(layer.module, "bidirectional", False))


def _input_weight(module: nn.Module) -> Tensor | None:
    """The matrix by which a linear or recurrent module reads; None for any other, and while it is lazy."""
    registration = registration_of(module)
    if registration is not None:
        return (
            None
            if registration.weights is None
            else next(iter(mapped_weights(registration, module).values())).weight_ih
        )
    names = {nn.Linear: "weight", nn.RNNBase: "weight_ih_l0", nn.RNNCellBase: "weight_ih"}
    name = next((name for kind, name in names.items() if isinstance(module, kind)), "")
    weight = getattr(module, name, None)
    return weight if isinstance(weight, Tensor) and not nn.parameter.is_lazy(weight) else None
