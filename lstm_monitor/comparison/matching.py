"""Which layers of several runs are compared with each other."""

from __future__ import annotations

from collections.abc import Sequence

from lstm_monitor.comparison.course import Course, LayerCourse

Matched = tuple[LayerCourse | None, ...]


def match_layers(runs: Sequence[Course], names: Sequence[str]) -> tuple[list[Matched], list[str]]:
    """The layers that two or more runs have, a course or None for each run, and what a reader has to know of the rest.

    By name. A run that shares no name with those before it is matched by the order of its layers, if it has as many in
    the same directions.
    """
    rows: dict[str, list[LayerCourse | None]] = {}
    notes: list[str] = []
    for place, run in enumerate(runs):
        found = {layer.name: layer for layer in run.layers}
        if place and not rows.keys() & found.keys():
            found, told = _by_order(runs[0], run, names[0], names[place])
            notes += told
        for name, layer in found.items():
            rows.setdefault(name, [None] * len(runs))[place] = layer
    shared = [tuple(row) for row in rows.values() if sum(layer is not None for layer in row) > 1]
    return shared, [*notes, *_lacking(rows, names)]


def _by_order(first: Course, run: Course, *names: str) -> tuple[dict[str, LayerCourse], list[str]]:
    """A run's layers by the names of the first run's, with a note that says so; by their own where they do not fit."""
    theirs = [layer.name for layer in first.layers]
    directions = [[layer.last.key.reverse for layer in course.layers] for course in (first, run)]
    if directions[0] != directions[1]:
        return {layer.name: layer for layer in run.layers}, []
    pairs = ", ".join(f"{layer.name} with {name}" for layer, name in zip(run.layers, theirs, strict=True))
    note = f"no layer has the same name in {names[0]} and {names[1]}; compared in their order: {pairs}"
    return dict(zip(theirs, run.layers, strict=True)), [note]


def _lacking(rows: dict[str, list[LayerCourse | None]], names: Sequence[str]) -> list[str]:
    found = []
    for layer, row in rows.items():
        without = [name for name, course in zip(names, row, strict=True) if course is None]
        if without:
            found.append(f"{layer} is not in {', '.join(without)}")
    return found
