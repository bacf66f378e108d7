"""Counts what a newcomer has to find the way in: ``python -m tests.helpers.count [TREE]``, by default this one.

A *room* is a file or a folder at the top of ``lstm_monitor``; an *arrow* is one room that imports another, imports for
typing counted too; a *floor* is the number of rooms on the longest way down from it. Rooms that import each other in a
circle share a floor.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

PACKAGE = "lstm_monitor"
Arrows = dict[str, set[str]]


def sources(tree: Path) -> list[Path]:
    """Every source of the package, those that it reaches through the link once."""
    return sorted({path.resolve() for folder in (PACKAGE, "integrations") for path in (tree / folder).rglob("*.py")})


def room_of(parts: tuple[str, ...]) -> str:
    """The room of a module, ``("report", "text")``; nothing for the package itself."""
    return parts[0] if parts and parts[0] != "__init__" else ""


def imported(module: ast.Module) -> Iterator[tuple[str, ...]]:
    """What a module imports of the package, without the package's own name."""
    for node in ast.walk(module):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        yield from (tuple(name.split(".")[1:]) for name in names if name.split(".")[0] == PACKAGE)


def arrows(tree: Path) -> Arrows:
    """Which rooms each room imports."""
    root = tree.resolve()
    found: Arrows = {}
    for path in sources(tree):
        parts = path.relative_to(root).with_suffix("").parts
        room = room_of(parts[parts[0] == PACKAGE :])
        if room:
            reached = map(room_of, imported(ast.parse(path.read_text(encoding="utf-8"))))
            found.setdefault(room, set()).update(reached)
    return {room: {other for other in others if other in found} - {room} for room, others in found.items()}


def floors(rooms: Arrows) -> dict[str, int]:
    """The floor of each room, from 1; `__main__` has none."""

    @cache
    def reached(room: str) -> frozenset[str]:
        seen, waiting = set(), [room]
        while waiting:
            waiting += (new := rooms[waiting.pop()] - seen)
            seen |= new
        return frozenset(seen)

    @cache
    def floor(room: str) -> int:
        below = [other for other in reached(room) if room not in reached(other) and other != room]
        return 1 + max(map(floor, below), default=0)

    return {room: floor(room) for room in rooms if room != "__main__"}


def count(tree: Path) -> dict[str, int]:
    """Rooms, floors, arrows, files and lines, and the lines of the longest file."""
    rooms = arrows(tree)
    lines = [len(path.read_text(encoding="utf-8").splitlines()) for path in sources(tree)]
    return {
        "rooms": len(rooms) - ("__main__" in rooms),
        "floors": max(floors(rooms).values()),
        "arrows": sum(map(len, rooms.values())),
        "files": len(lines),
        "lines": sum(lines),
        "longest file": max(lines),
    }


if __name__ == "__main__":
    for what, number in count(Path(*sys.argv[1:2])).items():
        print(f"{what:>12}  {number:,}")
