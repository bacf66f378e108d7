"""How much is computed at once, so that a check leaves the training its memory."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TypeVar

import torch

from lstm_monitor.core.float64 import has_float64
from lstm_monitor.core.guard import LOG
from lstm_monitor.core.trees import tensors_of, to_host
from lstm_monitor.engines.fused import release_buffers

R = TypeVar("R")
T = TypeVar("T")

AT_ONCE = 16
"""Stimuli that are simulated together: more do not make a core faster."""
HOST_MOST = 2**28
"""Bytes of a batch's responses on the host, with the copies that are made of them."""
SHARE = 1 / 4
"""Of a GPU's free memory, what a check may take."""
COPIES = {"cpu": 2, "cuda": 8}
"""How many times the size of a response running and measuring it takes: on CUDA with what cuDNN keeps of the gates."""


def stimuli_at_once(
    device: torch.device, hidden_size: int, steps: int, dtype: torch.dtype, free: int | None = None
) -> int:
    """How many stimuli of `steps` a layer of this size is given together: 16, or 8, 4, 2, 1 where memory is short.

    On the host their responses and a copy stay within 256 MiB (torch's own work comes on top: as much again for an
    LSTM, four times for a GRU); on CUDA they take at most a quarter of the memory that is `free`, in bytes, by default
    that of the device now. At least one is simulated, however long it is.
    """
    of_one = COPIES.get(device.type, COPIES["cpu"]) * steps * hidden_size * dtype.itemsize
    if device.type == "cuda":
        most = int(SHARE * (torch.cuda.mem_get_info(device)[0] if free is None else free))
    else:
        most = HOST_MOST
    fitting = min(AT_ONCE, most // max(1, of_one))
    return 1 << max(0, fitting.bit_length() - 1)


def with_less(simulate: Callable[[int], R], at_once: int) -> R:
    """``simulate(at_once)``; where a GPU has no room for that many at once, with half as many.

    Raises:
        RuntimeError: it has no room for half as many either; see `or_on_host`.
    """
    try:
        return simulate(at_once)
    except RuntimeError as error:
        if not is_out_of_memory(error) or at_once == 1:
            raise
    _give_back()  # not above: as long as it is handled, the error holds what was allocated
    return simulate(at_once // 2)


def or_on_host(compute: Callable[[T], R], record: T) -> R:
    """``compute(record)``; where a GPU has no room for it, or no float64, that of the same record on the host.

    All tensors of the record and of what is returned are then on the host, and one message says so.
    """
    if lacking := {str(tensor.device) for tensor in tensors_of(record) if not has_float64(tensor.device)}:
        _tell(f"{', '.join(sorted(lacking))} has no float64; responses and metrics are worked out on the host")
        return compute(to_host(record))
    try:
        return compute(record)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
    _give_back()
    _tell("the GPU has no memory left for a check; what does not fit is computed on the host")
    return compute(to_host(record))


def _give_back() -> None:
    release_buffers()
    torch.cuda.empty_cache()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a GPU had no room for something; torch, CUDA, cuBLAS and cuDNN say it each in its own way."""
    words = ("CUDA out of memory", "CUDA error: out of memory", "STATUS_ALLOC_FAILED")
    return isinstance(error, torch.cuda.OutOfMemoryError) or any(part in str(error) for part in words)


@cache
def _tell(words: str) -> None:
    LOG.warning("lstm_monitor: %s", words)
