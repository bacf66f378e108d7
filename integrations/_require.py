"""Import an optional library, or say which extra installs it."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType


def require(name: str, extra: str) -> ModuleType:
    """The module `name`.

    Raises:
        ImportError: it is not installed; the message holds the line that installs it.
    """
    try:
        return import_module(name)
    except ImportError as error:
        raise ImportError(f'{name} is needed for this: pip install "lstm-monitor[{extra}]" ({error})') from error
