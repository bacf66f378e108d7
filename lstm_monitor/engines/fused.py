"""torch's fused recurrent ops on a record of weights: no module is built, no random number drawn."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from threading import get_ident

import torch
from torch import Tensor

from lstm_monitor.core.float64 import product_type
from lstm_monitor.core.terms import GATES, Kind
from lstm_monitor.core.weights import LayerWeights

State = tuple[Tensor, ...]
_MODES = {"rnn_relu": 0, "rnn_tanh": 1, "lstm": 2, "gru": 3}
"""cuDNN's numbers (cudnnRNNMode_t)."""
MOST_KEPT = 2**23
"""Recurrent weights of a layer whose buffer is kept from run to run; a larger one is given back at once."""


def zero_state(weights: LayerWeights, count: int) -> State:
    """The zero state of `count` sequences: ``(h,)``, for LSTM ``(h, c)``, each ``(count, H)``."""
    zeros = weights.weight_hh.new_zeros(count, weights.hidden_size)
    return (zeros, zeros) if weights.kind == "lstm" else (zeros,)


def run_fused(weights: LayerWeights, inputs: Tensor, state: State) -> tuple[Tensor, State]:
    """Run ``inputs (T, N, I)`` from ``state``; returns ``hidden (T, N, H)`` and the state at the end."""
    if (wide := product_type(inputs)) != inputs.dtype:
        hidden, last = run_fused(_in_type(weights, wide), inputs.to(wide), tuple(part.to(wide) for part in state))
        return hidden.to(inputs), tuple(part.to(inputs) for part in last)
    op = {"lstm": torch.lstm, "gru": torch.gru, "rnn_tanh": torch.rnn_tanh, "rnn_relu": torch.rnn_relu}[weights.kind]
    start = [part[None].contiguous() for part in state]
    with _one_piece(weights) as flat:
        hidden, *final = op(
            inputs, start if weights.kind == "lstm" else start[0], flat, True, 1, 0.0, False, False, False
        )  # type: ignore[operator]
    return hidden, tuple(part[0] for part in final)


def _in_type(weights: LayerWeights, dtype: torch.dtype) -> LayerWeights:
    given = (weights.weight_ih, weights.weight_hh, weights.bias_ih, weights.bias_hh)
    return LayerWeights(weights.kind, *(part.to(dtype) for part in given))


@contextmanager
def _one_piece(weights: LayerWeights) -> Iterator[list[Tensor]]:
    """The weights as torch's ops take them; for cuDNN, which would copy them at every call, in one piece of memory."""
    given = [weights.weight_ih, weights.weight_hh, weights.bias_ih, weights.bias_hh]
    if not _for_cudnn(weights.like):
        yield given
    elif torch.is_grad_enabled() and any(tensor.requires_grad for tensor in given):
        with warnings.catch_warnings():  # a copy would take them out of the graph
            warnings.filterwarnings("ignore", message=".*single contiguous chunk.*")
            yield given
    else:
        where = (weights.like.dtype, weights.like.device, _stream(weights.like.device), get_ident())
        buffers = _buffers if weights.weight_hh.numel() <= MOST_KEPT else _buffers.__wrapped__
        yield _filled(buffers(weights.kind, weights.input_size, weights.hidden_size, *where), given)


def _for_cudnn(like: Tensor) -> bool:
    return like.is_cuda and torch._use_cudnn_rnn_flatten_weight() and torch.backends.cudnn.is_acceptable(like)


def _stream(device: torch.device) -> int:
    """What runs on one stream runs in order, so a buffer of its own is not refilled before it was read."""
    return torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0


@lru_cache(maxsize=8)
def _buffers(
    kind: Kind, input_size: int, size: int, dtype: torch.dtype, device: torch.device, _stream: int, _thread: int
) -> list[Tensor]:
    """Weights of this shape as views of one piece of memory in cuDNN's layout, kept for the next run of this shape."""
    rows = len(GATES[kind]) * size
    shapes = ((rows, input_size), (rows, size), (rows,), (rows,))
    with torch.inference_mode(False), torch.no_grad():
        parts = [torch.empty(shape, dtype=dtype, device=device) for shape in shapes]
        with torch.cuda.device_of(parts[0]):
            torch._cudnn_rnn_flatten_weight(parts, len(parts), input_size, _MODES[kind], size, 0, 1, False, False)
    return parts


def _filled(buffers: list[Tensor], given: list[Tensor]) -> list[Tensor]:
    with torch.no_grad():
        torch._foreach_copy_(buffers, given)
    return buffers


def release_buffers() -> None:
    """Give back the memory that weights were laid out in; the next run takes it anew."""
    _buffers.cache_clear()
