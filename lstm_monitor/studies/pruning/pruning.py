"""Physically smaller recurrent layers: a copy of a model that holds only the cells that are kept."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from lstm_monitor.core.errors import unknown
from lstm_monitor.core.terms import GATES, LayerKey
from lstm_monitor.importance.removal.cells import Cells
from lstm_monitor.layers.computed_weights import is_parameter
from lstm_monitor.layers.finding import removable_layers
from lstm_monitor.layers.layer import Layer, Layers
from lstm_monitor.layers.torch_modules import overrides_forward, weight_names
from lstm_monitor.snapshots.held_out import Forward
from lstm_monitor.studies.pruning.readers import thin_readers
from lstm_monitor.studies.pruning.torch_layers import Kept, Split, ThinCell, ThinRecurrent, become, flatten


def prune(model: nn.Module, keep: Cells, *, example: Any = None, forward: Forward | None = None) -> nn.Module:
    """A copy of `model` whose recurrent layers hold only the cells in `keep`; it computes what the ablated model does.

    Removed cells are really gone from the layer and from the layers above it in the same stack. Around a thinner module
    stands `ThinRecurrent` (or `ThinCell`): it gives zeros for the removed cells, so that every shape stays as it was.
    With an `example` the linear and recurrent modules that read a layer are cut as well, wherever a run of the
    model proves that they are all that reads the removed cells; where nothing reads them any more, the layer becomes a
    plain, smaller nn.LSTM, nn.GRU or nn.RNN. The proof covers the paths of the model that the example takes in eval
    mode: give an example that takes those that count (initial states, for instance).

    Args:
        model: any torch module; it is not changed. A compiled module is pruned as what was compiled; the result is
            not compiled.
        keep: layer name -> the cells that stay: their numbers, or a boolean mask ``(H,)``. The order of the given
            model holds. With ``proj_size`` a cell is the unit before the projection, and more than ``proj_size`` of
            them must stay, as torch demands. Layers that are not named stay whole.
        example: a batch for the model (``model(x)``, ``model(*batch)``, ``model(**batch)``), or a list of such.
        forward: called as ``forward(model, batch)`` instead of the model itself.

    Returns:
        The smaller model: new parameters with the old names (below ``.inner`` behind a wrapper; then the layer
        ``rnn.l0`` is found as ``rnn.inner.l0``, or as ``rnn.inner.l0.l0`` where layers keep different numbers of
        cells), the same flags, device and dtype. A wrapper is no instance of nn.LSTM.

    Raises:
        TypeError: `model` is no torch module; cells that are no integers.
        ValueError: a layer that is not known or not supported; cells out of range, given twice, or none at all;
            weights that are NaN or infinite, or shared with another module; a module with hooks; an example that
            the model cannot be run on.

    Example:
        >>> smaller = prune(nn.LSTM(3, 8), {"l0": [0, 2, 5]})
        >>> tuple(smaller.inner.weight_hh_l0.shape), tuple(smaller(torch.zeros(4, 1, 3))[0].shape)
        ((12, 3), (4, 1, 8))
    """
    if forward is not None and example is None:
        raise ValueError("forward= was given without example=; it says how the model is run on the example")
    if not isinstance(model, nn.Module):
        raise TypeError(f"model={type(model).__name__} is no torch.nn.Module; give the module that holds the LSTM")
    with torch.inference_mode(False):  # inside it the copy's parameters could never be trained
        smaller = _pruned(model, keep)
        return smaller if example is None else thin_readers(smaller, example, forward)


def _pruned(model: nn.Module, keep: Cells) -> nn.Module:
    """A copy with thinner layers that still show the full width."""
    smaller = _copy(model)
    layers = removable_layers(smaller)
    kept = _cells_to_keep(layers, keep)
    for module in dict.fromkeys(layer.module for layer in layers):
        own = [layer for layer in layers if layer.module is module]
        if any(len(kept[layer.key]) < _cells_of(layer) for layer in own):
            _check(smaller, own, kept)
            _thin(own, [kept[layer.key] for layer in own])
    flatten(smaller)
    return smaller


def _copy(model: nn.Module) -> nn.Module:
    """A deep copy: not compiled, without a trainer, and without the history of tensors that stand as attributes."""
    model = getattr(model, "_orig_mod", model)
    memo: dict[int, Any] = {}
    for module in model.modules():
        for name, value in vars(module).items():
            if name in ("_trainer", "_fabric") and value is not None:
                memo[id(value)] = None
            elif isinstance(value, Tensor) and value.grad_fn is not None:
                memo[id(value)] = value.detach().clone()
    copied = copy.deepcopy(model, memo)
    for module in list(copied.modules()):
        for name, child in module.named_children():
            if hasattr(child, "_orig_mod"):
                module._modules[name] = child._orig_mod
    return copied


def _cells_of(layer: Layer) -> int:
    weight = layer.parameter("weight_ih")
    assert weight is not None
    return len(weight) // len(GATES[layer.kind])


def _cells_to_keep(layers: Layers, keep: Cells) -> dict[LayerKey, Tensor]:
    """The cells that stay in every layer, ascending; all of them where `keep` says nothing."""
    if not isinstance(keep, Mapping):
        allowed = "give the cells of each layer, {'rnn.l0': [0, 3]}, or study.keep(max_loss=0.01)"
        raise TypeError(f"keep={keep!r} is no mapping; {allowed}")
    given = {str(name): cells for name, cells in keep.items()}
    names = [str(layer.key) for layer in layers]
    for name in given:
        for skipped in layers.skipped:
            if name == skipped.path or name.startswith(f"{skipped.path}."):
                raise ValueError(f"keep: {name!r} cannot be pruned. {skipped}")
        if name not in names:
            raise unknown("keep", name, names)
    return {layer.key: _ascending(str(layer.key), given.get(str(layer.key)), _cells_of(layer)) for layer in layers}


def _ascending(name: str, cells: Any, size: int) -> Tensor:
    if cells is None:
        return torch.arange(size)
    numbers = _integers(name, cells, size)
    outside = numbers[(numbers < 0) | (numbers >= size)].tolist()
    if outside:
        raise ValueError(f"keep[{name!r}] holds {outside}; the layer has the cells 0 to {size - 1}")
    unique, counts = numbers.unique(return_counts=True)
    if len(unique) < len(numbers):
        raise ValueError(f"keep[{name!r}] holds {unique[counts > 1].tolist()} more than once; give each cell once")
    if not len(numbers):
        raise ValueError(f"keep[{name!r}] is empty, but a layer must keep at least one cell")
    return unique


def _integers(name: str, cells: Any, size: int) -> Tensor:
    allowed = f"give the numbers of the cells that stay, or a boolean mask of {size}"
    try:
        values = torch.as_tensor(cells).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"keep[{name!r}]={cells!r} cannot be read ({error}); {allowed}") from error
    if values.dim() != 1 or (values.dtype == torch.bool and len(values) != size):
        raise ValueError(f"keep[{name!r}] has shape {tuple(values.shape)} and dtype {values.dtype}; {allowed}")
    if values.dtype == torch.bool:
        return values.nonzero()[:, 0]
    if len(values) and (values.is_floating_point() or values.is_complex()):
        raise TypeError(f"keep[{name!r}] has dtype {values.dtype}; {allowed}")
    return values.long()


def _check(model: nn.Module, own: list[Layer], kept: dict[LayerKey, Tensor]) -> None:
    """Refuse what could not be cut, or would not compute the same when it is."""
    module, path = own[0].module, own[0].key.path or "the model itself"
    _check_plain(own[0])
    if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks:
        raise ValueError(f"{path} has hooks, which would see other shapes in the pruned model; remove them first")
    holders = Counter(id(p) for other in model.modules() for p in other._parameters.values())
    for name, parameter in module.named_parameters():
        if not bool(torch.isfinite(parameter).all()):
            raise ValueError(f"{path}: {name} holds NaN or infinite values, so no cell can be removed from it")
        if holders[id(parameter)] > 1:
            raise ValueError(f"{path}: {name} is shared with another layer or module; give each weights of its own")
    least = getattr(module, "proj_size", 0) + 1
    for layer in own:
        if len(kept[layer.key]) < least:
            raise ValueError(
                f"keep[{str(layer.key)!r}] holds {len(kept[layer.key])} cells; torch needs {least} at "
                f"least with proj_size={least - 1}"
            )


def _check_plain(layer: Layer) -> None:
    """Refuse a subclass that does more around its cells, and weights that are computed from others."""
    module = layer.module
    computed = [name for name in weight_names(module) if not is_parameter(module, name)]
    reasons = [f"{name} is no parameter; remove the weight norm, parametrization or weight drop" for name in computed]
    reasons += ["its class overrides forward; put the plain module in its place"] * overrides_forward(module)
    if reasons:
        where = f"{layer.key.path or 'the model itself'} ({type(module).__name__})"
        raise ValueError(f"keep: {str(layer.key)!r} cannot be pruned. {where}: {reasons[0]}")


def _thin(own: list[Layer], kept: list[Tensor]) -> None:
    """Cut every layer of one module and put the wrapper that shows the full width in the module's place."""
    size, device = _cells_of(own[0]), next(own[0].module.parameters()).device
    kept = [cells.to(device) for cells in kept]
    cells = [Kept(index, size) for index in kept]
    if own[0].is_cell:
        _cut(own[0], kept[0], None)
        cell = cast(nn.RNNCellBase, own[0].module)
        become(cell, ThinCell(cell, _shrunk(cell, len(kept[0])), cells[0]).train(cell.training))
        return
    module = cast(nn.RNNBase, own[0].module)
    width = 1 + module.bidirectional
    outputs = [None if module.proj_size else _features(kept[i : i + width], size) for i in range(0, len(own), width)]
    for place, layer in enumerate(own):
        _cut(layer, kept[place], outputs[place // width - 1] if place >= width else None)
    sizes = [len(index) for index in kept]
    inner = _shrunk(module, sizes[0]) if len(set(sizes)) == 1 else Split(own, sizes)
    last = outputs[-1]
    output = None if last is None or len(last) == size * width else Kept(last, size * width)
    become(module, ThinRecurrent(module, inner, cells, output).train(module.training))


def _features(kept: list[Tensor], size: int) -> Tensor:
    """The places of the kept cells in an output whose directions stand side by side."""
    return torch.cat([index + size * direction for direction, index in enumerate(kept)])


def _cut(layer: Layer, kept: Tensor, inputs: Tensor | None) -> None:
    """Leave only the kept cells' rows and columns in a layer's parameters, and the kept columns of what it reads."""
    size = _cells_of(layer)
    rows = torch.cat([kept + size * gate for gate in range(len(GATES[layer.kind]))])
    projected = layer.parameter("weight_hr") is not None
    columns = {"weight_ih": inputs, "weight_hh": None if projected else kept, "bias_ih": None, "bias_hh": None}
    for name, which in columns.items():
        parameter = layer.parameter(name)
        if parameter is not None:
            parameter.data = parameter.data[rows] if which is None else parameter.data[rows][:, which]
    projection = layer.parameter("weight_hr")
    if projection is not None:
        projection.data = projection.data[:, kept]


def _shrunk(module: Any, size: int) -> Any:
    """The same module, with the same parameters, as another object that knows its new size."""
    smaller = copy.copy(module)
    smaller.hidden_size = size
    return smaller
