"""A compiled network in a plain PyTorch loop.

The network and loop of `with_plain_torch.py`, after ``torch.compile(model)``.
"""

from __future__ import annotations

from common import Results, finish
from with_plain_torch import results

REQUIRES: list[str] = []
MINUTES = 2
FAST = True


def main() -> Results:
    """Compiled."""
    return results(compiled=True)


if __name__ == "__main__":
    finish(main())
