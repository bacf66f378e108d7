"""Errors that name the argument, show the value, say what is allowed and hand over the fix."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from importlib import import_module
from types import ModuleType


def nearest(name: str, allowed: Iterable[str]) -> str:
    """A sentence with the nearest allowed names, or all of them where nothing is near."""
    names = list(dict.fromkeys(allowed))
    close = get_close_matches(name, names, n=3, cutoff=0.5)
    if close:
        return f"Did you mean {' or '.join(map(repr, close))}?"
    return f"Allowed: {', '.join(names) or '(nothing)'}."


def unknown(argument: str, name: str, allowed: Iterable[str]) -> ValueError:
    """The error for a name that is not known."""
    return ValueError(f"{argument}={name!r} is not known. {nearest(name, allowed)}")


def choose(argument: str, name: str, allowed: Iterable[str]) -> str:
    """`name` itself if it is allowed; otherwise ValueError with the nearest match."""
    names = list(allowed)
    if name not in names:
        raise unknown(argument, name, names)
    return name


def require(name: str, extra: str) -> ModuleType:
    """The optional module `name`.

    Raises:
        ImportError: it is not installed; the message holds the line that installs it.
    """
    try:
        return import_module(name)
    except ImportError as error:
        raise ImportError(f'{name} is needed for this: pip install "lstm-monitor[{extra}]" ({error})') from error
