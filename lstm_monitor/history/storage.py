"""Folders of files that are there whole or not at all: local ones, and any that fsspec reaches."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from lstm_monitor.core.errors import require


def absolute(path: str | os.PathLike[str]) -> str:
    """A path that stays the same when the working directory changes; a URL as it is."""
    given = os.fspath(path)
    return given if "://" in given else os.path.abspath(os.path.expanduser(given))


@dataclass(frozen=True)
class Folder:
    """A folder by its path or fsspec URL. Nothing is opened or made before it is used."""

    path: str

    def names(self) -> list[str]:
        """The names of the files in it, sorted; FileNotFoundError without it."""
        system, root = self._system()
        return sorted(_last(item["name"]) for item in system.ls(root, detail=True) if item["type"] == "file")

    def write(self, name: str, data: bytes) -> None:
        """Put a file there, in a folder that is made where it is missing.

        On a local disk a file appears under its name only when all of it is on the disk. Elsewhere it is one
        ``pipe_file``: object stores show a file whole or not at all; other systems may leave a half-written one,
        which a reader finds out.
        """
        system, root = self._system()
        if _is_local(system):
            write_local(os.path.join(root, name), data)
        else:
            system.makedirs(root, exist_ok=True)
            system.pipe_file(f"{root}/{name}", data)

    def open(self, name: str) -> Any:
        """The file, open for reading."""
        system, root = self._system()
        return system.open(f"{root}/{name}", "rb")

    def read(self, name: str) -> bytes:
        """All of a file."""
        system, root = self._system()
        data: bytes = system.cat_file(f"{root}/{name}")
        return data

    def below(self) -> Iterator[tuple[Folder, list[str]]]:
        """Itself and every folder below it, each with the names of its files."""
        system, root = self._system()
        for folder, _, names in system.walk(root):
            path = folder if _is_local(system) else system.unstrip_protocol(folder)
            yield Folder(str(path)), sorted(map(_last, names))

    def holds(self, names: Sequence[str]) -> bool:
        """Whether any of these files is there; the last one is looked for first."""
        system, root = self._system()
        if not names or system.exists(f"{root}/{names[-1]}"):
            return bool(names)
        return system.isdir(root) and not set(self.names()).isdisjoint(names)

    def exists(self) -> bool:
        """Whether it is there."""
        system, root = self._system()
        return bool(system.isdir(root))

    def _system(self) -> tuple[Any, str]:
        system, root = require("fsspec.core", "history").url_to_fs(self.path)
        system.invalidate_cache()  # of listings: others write here as well
        return system, root.rstrip("/") or root


def write_local(path: str, data: bytes) -> None:
    """Write a file that is there whole or not at all, whenever the process or the machine stops."""
    folder, name = os.path.split(path)
    os.makedirs(folder, exist_ok=True)
    part = os.path.join(folder, f".{name}.part")
    try:
        with open(part, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        with suppress(OSError):
            os.remove(part)
        raise
    _sync(folder)


def _sync(folder: str) -> None:
    """Make the new name last, on systems where a folder can be synced."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _is_local(system: Any) -> bool:
    return isinstance(system, require("fsspec.implementations.local", "history").LocalFileSystem)


def _last(path: str) -> str:
    return path.rstrip("/").rsplit("/", 1)[-1]
