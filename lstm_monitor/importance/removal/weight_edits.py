"""Cells set to zero on the live module: rows of its weights in place, and the states that it is given."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lstm_monitor.core.changes import Change
from lstm_monitor.importance.removal.cells import WEIGHTS, Removal
from lstm_monitor.importance.replay.stages import candidate_rows
from lstm_monitor.layers.inner_calls import inner_now, inner_of, settle

Hook = Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], tuple[tuple[Any, ...], dict[str, Any]] | None]


@dataclass(frozen=True, eq=False)
class Span:
    """The memory of a parameter or buffer: from `start` up to `end`, and whose it is."""

    start: int
    end: int
    owner: tuple[nn.Module, str]


def spans_of(model: nn.Module) -> list[Span]:
    """The memory of every parameter and buffer of a model, each place that holds one on its own."""
    places = (
        (module, name, tensor)
        for module in model.modules()
        for name, tensor in (*module._parameters.items(), *module._buffers.items())
    )
    return [
        Span(*_extent(tensor), (module, name))
        for module, name, tensor in places
        if tensor is not None and not nn.parameter.is_lazy(tensor) and type(tensor.data) is Tensor
    ]


def _extent(tensor: Tensor) -> tuple[int, int]:
    if tensor.layout != torch.strided or tensor.is_meta or tensor.numel() == 0:
        return 0, 0
    if tensor.is_contiguous():
        return tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes
    last = sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.data_ptr(), tensor.data_ptr() + (last + 1) * tensor.element_size()


def is_its_own(removal: Removal, spans: Sequence[Span]) -> bool:
    """Whether the layer's weights are parameters whose memory nothing else in the model uses."""
    module = removal.layer.module
    for name, tensor in _weights(removal):
        if module._parameters.get(name) is not tensor or 0 in tensor.stride():
            return False
        start, end = _extent(tensor)
        if any(span.start < end and start < span.end and span.owner != (module, name) for span in spans):
            return False
    return True


def _weights(removal: Removal) -> Iterator[tuple[str, Tensor]]:
    for name in WEIGHTS:
        tensor = removal.layer.parameter(name)
        if tensor is not None:
            yield name + removal.layer.suffix, tensor


@dataclass(frozen=True, eq=False)
class _Saved:
    """Rows of a parameter as they were."""

    tensor: Tensor
    rows: Tensor
    values: Tensor

    def clear(self) -> None:
        with torch.inference_mode(self.tensor.is_inference()):
            self.tensor.data.index_fill_(0, self.rows.to(self.tensor.device), 0)

    def put_back(self) -> None:
        data = self.tensor.data
        with torch.inference_mode(self.tensor.is_inference()):
            data.index_copy_(0, self.rows.to(data.device), self.values.to(data))


def weight_edit(module: nn.Module, removals: Sequence[Removal]) -> Change:
    """The rows that make the cells' candidate values set to zero, and their entries in given states.

    Gradients, version counters, memory and other rows are not touched. Nothing is done until the change is applied.
    """
    saved = [part for removal in removals for part in _save(removal)]
    hook = _zero_given(module, removals)

    def apply() -> None:
        inner_of(module).register_forward_pre_hook(hook, with_kwargs=True)  # the last: it sees what the module will get
        for part in saved:
            part.clear()
        torch.clear_autocast_cache()  # it may hold casts of the weights as they were

    def undo() -> None:
        for part in saved:
            part.put_back()
        torch.clear_autocast_cache()
        inner = inner_now(module)
        for number in [number for number, other in inner._forward_pre_hooks.items() if other is hook]:
            inner._forward_pre_hooks_with_kwargs.pop(number, None)
            del inner._forward_pre_hooks[number]
        settle(module)

    return Change(module, apply, undo)


def _save(removal: Removal) -> Iterator[_Saved]:
    marked = torch.zeros(int(getattr(removal.layer.module, "hidden_size", 0)), dtype=torch.bool)
    marked[removal.cells] = True
    rows = candidate_rows(removal.layer.kind, marked)
    for _, tensor in _weights(removal):
        with torch.inference_mode(tensor.is_inference()):
            here = rows.to(tensor.device)
            yield _Saved(tensor, here, tensor.data.index_select(0, here))


def _zero_given(module: nn.Module, removals: Sequence[Removal]) -> Hook:
    """A hook that sets the removed cells to zero in a state that the module is given."""
    gone = _marks(module, removals)

    def hook(
        _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        if kwargs.get("hx") is not None:
            return args, {**kwargs, "hx": _zeroed(module, kwargs["hx"], gone)}
        if len(args) > 1 and args[1] is not None:
            return (args[0], _zeroed(module, args[1], gone), *args[2:]), kwargs
        return None

    return hook


def _marks(module: nn.Module, removals: Sequence[Removal]) -> Tensor:
    """True for the removed cells, ``(layers * directions, H)`` as in the module's states; ``(1, H)`` for a cell."""
    directions = 1 + bool(getattr(module, "bidirectional", False))
    gone = torch.zeros(int(getattr(module, "num_layers", 1)) * directions, module.hidden_size, dtype=torch.bool)  # type: ignore[call-overload]
    for removal in removals:
        key = removal.layer.key
        gone[directions * (key.index or 0) + key.reverse, removal.cells] = True
    return gone.to(removals[0].layer.weights().weight_hh.device)


def _zeroed(module: nn.Module, state: Any, gone: Tensor) -> Any:
    """A given state without the removed cells; a projected ``h0`` is not of cells and stays."""
    if not isinstance(state, tuple | list):
        return _masked(module, state, gone)
    parts = [_masked(module, part, gone) for part in state]
    return (state[0], *parts[1:]) if getattr(module, "proj_size", 0) else tuple(parts)


def _masked(module: nn.Module, state: Any, gone: Tensor) -> Any:
    """``(D, N, H)``, ``(D, H)`` or a cell's ``(N, H)`` or ``(H,)``; what does not fit is left for torch to refuse."""
    is_cell = not isinstance(module, nn.RNNBase)
    if not isinstance(state, Tensor) or state.dim() == 0 or state.shape[-1] != gone.shape[1]:
        return state
    if not is_cell and (state.dim() not in (2, 3) or len(state) != len(gone)):
        return state
    mask = gone[0] if is_cell else gone[:, None] if state.dim() == 3 else gone
    return state.masked_fill(mask.to(state.device), 0)
