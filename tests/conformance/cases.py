"""What the conformance suite crosses: adapters, sinks, kinds of layers and situations, all discovered, none listed."""

from __future__ import annotations

import itertools
import os
import random
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
Case = tuple[str, ...]


def parts(kind: str) -> dict[str, Any]:
    """What the modules ``<kind>_*.py`` beside this file make, by name: hosts (a training each) or sinks."""
    return {part.name: part for module in modules(kind) for part in module.PARTS}


def modules(kind: str) -> list[Any]:
    """The modules ``<kind>_*.py`` beside this file; of hosts only ``CONFORMANCE_HOSTS=fastai``, where that is set."""
    only = os.environ.get("CONFORMANCE_HOSTS", "*") if kind == "host" else "*"
    names = sorted(path.stem for path in FOLDER.glob(f"{kind}_{only}.py"))
    return [import_module(f"tests.conformance.{name}") for name in names]


def pairwise(columns: Sequence[Sequence[str]]) -> list[Case]:
    """Few cases in which every two values of different columns meet; always the same ones.

    Greedy: of some random cases around one missing pair, the one with most missing pairs.
    """
    generator = random.Random(0)
    missing = {
        frozenset([(i, a), (j, b)])
        for i, j in itertools.combinations(range(len(columns)), 2)
        for a in columns[i]
        for b in columns[j]
    }
    cases: list[Case] = []
    while missing:
        fixed = dict(min(missing, key=sorted))
        tries = [tuple(fixed.get(i) or generator.choice(column) for i, column in enumerate(columns)) for _ in range(40)]
        best = max(tries, key=lambda case: len(missing & _pairs(case)))
        missing -= _pairs(best)
        cases.append(best)
    return cases


def few(cases: Sequence[Case]) -> list[Case]:
    """As few of the cases as it takes for every value of each column to occur; always the same ones.

    Greedy: the case with most values that are missing still.
    """
    missing = {value for case in cases for value in enumerate(case)}
    chosen: list[Case] = []
    while missing:
        best = max(cases, key=lambda case: len(missing & set(enumerate(case))))
        missing -= set(enumerate(best))
        chosen.append(best)
    return chosen


def _pairs(case: Case) -> set[frozenset[tuple[int, str]]]:
    return {frozenset(pair) for pair in itertools.combinations(enumerate(case), 2)}
