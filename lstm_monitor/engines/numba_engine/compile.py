"""Compiling an entry once, and reading it from numba's cache from then on.

Imported on demand, since it imports numba.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from numba import njit  # noqa: TID253  # this module is imported only where numba is used


def _version() -> str:
    """Of all compiled code: numba itself looks at the file of an entry only, not at those that it calls."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    if not files:
        raise FileNotFoundError(f"no source is beside {__file__}: the age of compiled code is not known")
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:12]


_VERSION = _version()


def compiled(signature: Any, **options: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A decorator: compiled at once, without Python's lock.

    Without the cache where numba finds no folder to write to, or cannot read what lies there.
    """
    settings = {"nogil": True, "error_model": "numpy", **options}

    def compile_now(function: Callable[..., Any]) -> Callable[..., Any]:
        function.__qualname__ = f"{function.__name__}_{_VERSION}"  # it names the files of the cache
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # numba's advice is not for the user
            try:
                return njit(signature, cache=True, **settings)(function)
            except Exception:  # numba's words for a bad cache are many; what is wrong with the code is raised below
                return njit(signature, **settings)(function)

    return compile_now
