"""Lightning, `lightning.pytorch`.

The callback goes into the Trainer's list; EarlyStopping monitors one of its values.
"""

from __future__ import annotations

import lightning.pytorch
from _lightning_results import results
from common import Results, finish
from lightning.pytorch.loggers import TensorBoardLogger

REQUIRES = ["lightning"]
MINUTES = 2
FAST = True


def main() -> Results:
    """The package `lightning`."""
    return results(lightning.pytorch, "lightning", TensorBoardLogger)


if __name__ == "__main__":
    finish(main())
