"""Let a model run with its recurrent modules computed here, from records of weights: whole, or some cells of them.

The live weights are not touched: inside the context the module's ``forward`` is ours (what it calls as
``super().forward``, where its class overrides that), and everything else that the model does is its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

from lstm_monitor.core.changes import changed, uncompiled
from lstm_monitor.engines.fused import State
from lstm_monitor.layers.inner_calls import inner_now, inner_of, settle


@dataclass(frozen=True, eq=False)
class Call:
    """One call of a recurrent module: ``inputs (T, N, I)``, ``lengths (N,)`` if packed, and the given state.

    ``state``: ``(h0,)`` or ``(h0, c0)``, each ``(layers * directions, N, size)``; empty where none was given.
    """

    module: nn.Module
    inputs: Tensor
    lengths: Tensor | None
    state: State
    given: Any


Stand = Callable[[Call], tuple[Tensor, State]]
"""Computes a call: ``outputs (T, N, W)`` and the final state, each ``(layers * directions, N, size)``."""


@contextmanager
def standing_in(stands: Mapping[nn.Module, Stand]) -> Iterator[None]:
    """Inside, calls of these modules are computed by their stands; afterwards each module is as it was."""
    before = {module: vars(inner_now(module)).get("forward") for module in stands}
    try:
        for module, stand in stands.items():
            vars(inner_of(module))["forward"] = _forward_of(module, stand)
        with changed([uncompiled()]):  # compiled code would not see another forward
            yield
    finally:
        for module, forward in before.items():
            put_forward_back(module, forward)


def put_forward_back(module: nn.Module, forward: object) -> None:
    """The forward that stood in for the module's before, or none."""
    attributes = vars(inner_now(module))
    attributes.pop("forward", None)
    if forward is not None:
        attributes["forward"] = forward
    settle(module)


def _forward_of(module: nn.Module, stand: Stand) -> Callable[..., Any]:
    def forward(input: Any, hx: Any = None) -> Any:
        call = open_call(module, input, hx)
        return close_call(call, *stand(call))

    return forward


def open_call(module: nn.Module, inputs: Any, hx: Any) -> Call:
    """A call with its inputs as ``(T, N, I)``; gradients flow through. RuntimeError if their width is another."""
    state = () if hx is None else tuple(hx) if isinstance(hx, tuple | list) else (hx,)
    _check_width(module, inputs.data if isinstance(inputs, PackedSequence) else inputs)
    if not isinstance(module, nn.RNNBase):
        columns = inputs.reshape(1, -1, inputs.shape[-1])
        return Call(module, columns, None, tuple(part.reshape(1, -1, part.shape[-1]) for part in state), inputs)
    batched = tuple(part if part.dim() == 3 else part[:, None] for part in state)
    if isinstance(inputs, PackedSequence):
        padded, lengths = pad_packed_sequence(inputs)
        return Call(module, padded, lengths.to(padded.device), batched, inputs)
    if inputs.dim() == 2:
        return Call(module, inputs[:, None], None, batched, inputs)
    return Call(module, inputs.transpose(0, 1) if module.batch_first else inputs, None, batched, inputs)


def _check_width(module: nn.Module, inputs: Tensor) -> None:
    """The fused ops do not check it; the error is that of torch's own modules."""
    width = inputs.shape[-1]
    if width != module.input_size:
        raise RuntimeError(f"input.size(-1) must be equal to input_size. Expected {module.input_size}, got {width}")


def close_call(call: Call, outputs: Tensor, final: State) -> Any:
    """What the module would have returned, in the form of its inputs; gradients flow through."""
    module, given = call.module, call.given
    if not isinstance(module, nn.RNNBase):
        states = tuple(part[0].reshape(*given.shape[:-1], -1) for part in final)
        return states if len(states) > 1 else states[0]
    if isinstance(given, PackedSequence):
        shown: Any = _pack_as(given, outputs)
    elif given.dim() == 2:
        shown, final = outputs[:, 0], tuple(part[:, 0] for part in final)
    else:
        shown = outputs.transpose(0, 1) if module.batch_first else outputs
    return shown, final if len(final) > 1 else final[0]


def _pack_as(given: PackedSequence, outputs: Tensor) -> PackedSequence:
    """``outputs (T, N, W)`` packed in the same order as the given sequences."""
    if given.sorted_indices is not None:
        outputs = outputs.index_select(1, given.sorted_indices)
    there = torch.arange(outputs.shape[1]) < given.batch_sizes[:, None]
    data = outputs[there.to(outputs.device)]
    return PackedSequence(data, given.batch_sizes, given.sorted_indices, given.unsorted_indices)
