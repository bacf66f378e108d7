"""The compiled loops for held-out data, where they can be used; they are imported, and compiled, at the first call."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from lstm_monitor.kernels.choice import engine_for, give_up, words_of


def loops_for(*tensors: Tensor) -> Any:
    """The module `numba_heldout` for float32 on the CPU, where the engine there is numba's; else None."""
    if any(tensor.dtype != torch.float32 or tensor.device.type != "cpu" for tensor in tensors):
        return None
    return _loops() if engine_for(tensors[0].device, torch.float32).name == "numba" else None


@cache
def _loops() -> Any:
    """The module, or None with one message where numba cannot compile it."""
    try:
        return import_module("lstm_monitor.kernels.numba_heldout")
    except Exception as error:  # whatever is wrong with numba here
        give_up("numba", words_of(error))
        return None
