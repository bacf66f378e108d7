"""Compare runs: read their histories and hold those layers side by side that match."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import PurePath
from typing import Protocol

import numpy as np

from lstm_monitor.history.comparison.records import ComparedLayer, ComparedMetric
from lstm_monitor.history.comparison.result import RunComparison
from lstm_monitor.history.comparison.trajectory import NAN, Course, LayerCourse, course_of
from lstm_monitor.metrics.catalog import CATALOG
from lstm_monitor.metrics.distributions import Values, finite, quantiles, relative_distance
from lstm_monitor.report.report import Report
from lstm_monitor.report.tables import HEADLINES

SPLITS = 200
"""Random halves by which the distance by chance is found."""
SHARE = 0.95
NOTHING: Values = np.empty(0)
FOLDER = "lstm_monitor_history"
"""The folder of a history within that of a run."""


class Recorded(Protocol):
    """A run that can be read: a `lstm_monitor.history.history.History`."""

    @property
    def path(self) -> str:
        """Where it lies."""
        ...

    @property
    def notes(self) -> Sequence[str]:
        """What a reader has to know."""
        ...

    def reports(self) -> Iterable[Report]:
        """The reports of its checks, in order."""
        ...


AnyRun = str | os.PathLike[str] | Recorded | Sequence[Report]


def compare_runs(runs: Sequence[AnyRun], names: Sequence[str] | None = None) -> RunComparison:
    """Two or more runs side by side, layer by layer, the first one being what the others are compared with.

    Layers are compared by the distributions of their cells' metrics at the last checks, so that they may be of
    different sizes. Layers of the same name belong together; where two runs share no name, those in the same place.

    Args:
        runs: folders of runs or histories (or URLs of such), what `load_history` returned, or lists of reports.
        names: what to call the runs; by default what tells their folders apart.

    Returns:
        A comparison: ``to_pandas()`` has one row a layer and metric, ``plot()`` shows the metrics over the trainings,
        ``in_words()`` says what differs most.

    Raises:
        FileNotFoundError: no history lies in a folder.
        ValueError: fewer than two runs, a run without checks, as many names as runs.
        ImportError: pyarrow is not installed (extra ``history``).
    """
    if isinstance(runs, str | os.PathLike) or len(runs) < 2:
        raise ValueError("runs: give a list of two or more runs, such as compare_runs(['runs/a', 'runs/b'])")
    if names is not None and (len(names) != len(runs) or len(set(names)) < len(names)):
        raise ValueError(f"names={list(names)!r}: give {len(runs)} different names, one a run")
    opened = [open_run(run) for run in runs]
    names = tuple(names or telling_apart([getattr(run, "path", "") for run in opened]))
    courses = tuple(course_of_run(run, name) for run, name in zip(opened, names, strict=True))
    matched, notes = match_layers(courses, names)
    layers = tuple(_compared(row, courses) for row in matched)
    return RunComparison(courses, names, layers, (*notes, *_run_notes(courses)))


def open_run(run: AnyRun) -> Recorded | Sequence[Report]:
    """The history at a path; anything else as it is."""
    if not isinstance(run, str | os.PathLike):
        return run
    from lstm_monitor.history.loading import load_history

    return load_history(run)


def course_of_run(run: Recorded | Sequence[Report], name: str, until: int | None = None) -> Course:
    """How an opened run went, up to the step `until`."""
    if isinstance(run, Sequence):
        return course_of(_until(run, until), name)
    course = course_of(_until(run.reports(), until), name, run.notes)
    return replace(course, notes=tuple(run.notes))  # reading may have found more


def _until(reports: Iterable[Report], step: int | None) -> Iterator[Report]:
    for report in reports:
        if step is not None and report.step is not None and report.step > step:
            return
        yield report


def telling_apart(paths: Sequence[str]) -> list[str]:
    """Short names: the parts of the paths in which they differ; "run 1" and so on where they do not."""
    parts = [[part for part in PurePath(path).parts if part != FOLDER] for path in paths]
    while all(len(own) > 1 for own in parts) and len({own[-1] for own in parts}) == 1:
        parts = [own[:-1] for own in parts]
    while all(len(own) > 1 for own in parts) and len({own[0] for own in parts}) == 1:
        parts = [own[1:] for own in parts]
    names = ["/".join(own) for own in parts]
    return names if all(names) and len(set(names)) == len(names) else [f"run {k + 1}" for k in range(len(paths))]


def _run_notes(courses: Sequence[Course]) -> list[str]:
    """The notes of each run, with its name, and that some had an ablation check and others not."""
    found = [f"{course.name}: {note}" for course in courses for note in course.notes]
    without = [course.name for course in courses if course.study is None]
    return [*found, f"no ablation check in {', '.join(without)}"] if 0 < len(without) < len(courses) else found


def _compared(row: Matched, courses: Sequence[Course]) -> ComparedLayer:
    pairs = zip(row, courses, strict=True)
    studies = tuple(None if layer is None else course.study_of(layer.name) for layer, course in pairs)
    paths = dict.fromkeys(path for layer in row if layer is not None for path in _shown(layer))
    return ComparedLayer(row, studies, tuple(_metric(path, row) for path in paths))


def _shown(layer: LayerCourse) -> list[str]:
    """The headline metrics first, then the others of which all quantiles are logged."""
    others = [path for path in layer.last.metrics.paths() if CATALOG[path].statistics == "full"]
    return [path for path in dict.fromkeys([*HEADLINES, *others]) if path in layer.last.metrics]


def _metric(path: str, row: Matched) -> ComparedMetric:
    cells = [_cells(layer, path) for layer in row]
    first = next(place for place, layer in enumerate(row) if layer is not None)
    others = [NOTHING if place == first else values for place, values in enumerate(cells)]
    return ComparedMetric(
        path,
        tuple(quantiles(values) for values in cells),
        tuple(relative_distance(values, cells[first]) for values in others),
        tuple(by_chance(values, cells[first]) for values in others),
    )


def _cells(layer: LayerCourse | None, path: str) -> Values:
    return NOTHING if layer is None or path not in layer.last.metrics else finite(layer.last.metrics[path].cells)


def by_chance(one: Values, other: Values) -> float:
    """The distance that random splits of the pooled cells into two such groups stay under, 95% of them.

    With a generator of its own. NaN as `lstm_monitor.compare`'s distance.
    """
    if min(len(one), len(other)) < 2:
        return NAN
    draw, both = np.random.default_rng(0), np.concatenate([one, other])
    splits = (draw.permutation(both) for _ in range(SPLITS))
    found = [relative_distance(np.sort(mixed[: len(one)]), np.sort(mixed[len(one) :])) for mixed in splits]
    return float(np.quantile(found, SHARE))


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
