"""Lightning, `pytorch_lightning`.

The same callback in an environment without the package `lightning`.
"""

from __future__ import annotations

from importlib.util import find_spec

import pytorch_lightning
from _lightning_results import results
from common import Results, finish
from pytorch_lightning.loggers import TensorBoardLogger

REQUIRES = ["pytorch-lightning"]
MINUTES = 2
FAST = True


def main() -> Results:
    """The package `pytorch_lightning` alone."""
    assert find_spec("lightning") is None
    return results(pytorch_lightning, "pytorch-lightning", TensorBoardLogger)


if __name__ == "__main__":
    finish(main())
