"""Keras 3 on jax.

`model.fit` of a functional model with a model inside it; the ablation's score is `model.evaluate`.
"""

from __future__ import annotations

import torch
from _keras_results import results
from common import Results, finish

REQUIRES = ["keras>=3", "jax"]
MINUTES = 3
FAST = False
ENVIRONMENT = {"KERAS_BACKEND": "jax"}


def main() -> Results:
    """Train without and with the monitor, and read back what it wrote."""
    return results()


if __name__ == "__main__":
    torch.set_num_threads(1)
    finish(main())
