"""What trainings are compared by: seeds, the states of all generators, and where two traces differ in any bit."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor


def seed_all(seed: int = 0) -> None:
    """Torch's, numpy's and Python's generators."""
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


def random_states() -> dict[str, Any]:
    """The state of every global generator."""
    name, keys, *rest = np.random.get_state()
    return {"torch": torch.get_rng_state(), "numpy": torch.tensor(keys.astype("int64")), "numpy place": [name, *rest],
            "python": random.getstate()}  # fmt: skip


def differences(one: Any, other: Any, path: str = "") -> list[str]:
    """Where two traces differ in any bit."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return [] if one.dtype == other.dtype and torch.equal(one, other) else [path]
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        return [found for name in one for found in differences(one[name], other[name], f"{path}/{name}")]
    if isinstance(one, list | tuple) and isinstance(other, list | tuple) and len(one) == len(other):
        pairs = enumerate(zip(one, other, strict=True))
        return [found for i, pair in pairs for found in differences(*pair, f"{path}/{i}")]
    return [] if type(one) is type(other) and one == other else [path]
