"""lstm_monitor: watch recurrent cells while a network trains.

Method: R. Hasani et al., Response Characterization for Auditing Cell Dynamics in Long Short-term Memory Networks,
IJCNN 2019, arXiv 1809.03864.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any


def _modules() -> dict[str, str]:
    """The module of every public name, from the lines ``from module import name as name`` of ``__init__.pyi``."""
    stub: str = __spec__.loader.get_data(f"{__file__}i").decode()
    lines = (line.split() for line in stub.splitlines() if line.startswith("from "))
    return {words[-1]: words[1] for words in lines}


_WHERE = _modules()
__all__ = list(_WHERE)


def __getattr__(name: str) -> Any:
    """Import what a public name stands for when it is first used: torch alone takes longer than all."""
    if name not in _WHERE:
        raise AttributeError(f"module 'lstm_monitor' has no attribute {name!r}")
    module = _WHERE[name]
    value = import_module(f"{module}.{name}") if module == __name__ else getattr(import_module(module), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """The public names."""
    return sorted(__all__)
