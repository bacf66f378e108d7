"""torch's fused recurrent ops on a record of weights: no module is built, no random number drawn."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from lstm_monitor.records import LayerWeights

State = tuple[Tensor, ...]


def zero_state(weights: LayerWeights, count: int) -> State:
    """The zero state of `count` sequences: ``(h,)``, for LSTM ``(h, c)``, each ``(count, H)``."""
    zeros = weights.weight_hh.new_zeros(count, weights.hidden_size)
    return (zeros, zeros) if weights.kind == "lstm" else (zeros,)


def run_fused(weights: LayerWeights, inputs: Tensor, state: State) -> tuple[Tensor, State]:
    """Run ``inputs (T, N, I)`` from ``state``; returns ``hidden (T, N, H)`` and the state at the end."""
    op = {"lstm": torch.lstm, "gru": torch.gru, "rnn_tanh": torch.rnn_tanh, "rnn_relu": torch.rnn_relu}[weights.kind]
    flat = [weights.weight_ih, weights.weight_hh, weights.bias_ih, weights.bias_hh]
    start = [part[None].contiguous() for part in state]
    with warnings.catch_warnings():  # cuDNN asks for one flat buffer, which a snapshot read once does not repay
        warnings.filterwarnings("ignore", message=".*single contiguous chunk.*")
        hidden, *final = op(
            inputs, start if weights.kind == "lstm" else start[0], flat, True, 1, 0.0, False, False, False
        )  # type: ignore[operator]
    return hidden, tuple(part[0] for part in final)
