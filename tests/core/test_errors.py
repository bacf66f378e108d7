"""Errors name the argument and hand over the fix."""

import pytest

from lstm_monitor.core.errors import choose, nearest, require, unknown


def test_the_nearest_names_are_offered_else_all_of_them() -> None:
    assert nearest("setling", ["settling", "settling", "rise"]) == "Did you mean 'settling'?"
    assert nearest("abc", ["abd", "abe"]) == "Did you mean 'abe' or 'abd'?"
    assert nearest("zzz", ["settling", "rise"]) == "Allowed: settling, rise."
    assert nearest("x", []) == "Allowed: (nothing)."


def test_a_choice_is_one_of_the_allowed() -> None:
    assert choose("mode", "alone", iter(["coupled", "alone"])) == "alone"
    with pytest.raises(ValueError, match="mode='alon' is not known. Did you mean 'alone'?"):
        choose("mode", "alon", ["coupled", "alone"])
    assert isinstance(unknown("mode", "x", []), ValueError)


def test_a_missing_module_names_the_line_that_installs_it() -> None:
    assert require("math", "plots").pi > 3
    with pytest.raises(ImportError, match=r'no_such_module is needed for this: pip install "lstm-monitor\[plots\]"'):
        require("no_such_module", "plots")
