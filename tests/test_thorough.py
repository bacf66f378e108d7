"""Which cases of a sweep are run by `make test`."""

import itertools
from types import SimpleNamespace
from typing import Any

from tests.helpers.thorough import _beyond_pairs

COLUMNS = {"kind": ["lstm", "gru", "rnn"], "layers": [1, 2], "both": [False, True], "bias": [False, True]}


class Case:
    """Has what a test of pytest has."""

    def __init__(self, **values: Any) -> None:
        self.callspec = SimpleNamespace(params=values)


def test_each_two_values_meet_in_few_cases() -> None:
    cases = [Case(**dict(zip(COLUMNS, row, strict=True))) for row in itertools.product(*COLUMNS.values())]
    left_out = _beyond_pairs(cases)
    kept = [case.callspec.params for case in cases if case not in left_out]
    for one, other in itertools.combinations(COLUMNS, 2):
        assert {(row[one], row[other]) for row in kept} == set(itertools.product(COLUMNS[one], COLUMNS[other]))
    assert len(kept) < len(cases) / 2


def test_of_one_parameter_every_value_is_run() -> None:
    assert _beyond_pairs([Case(name=name) for name in "abc"]) == []
