"""torch's switches of precision are as they were."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lstm_monitor.core.precision import full_precision

BACKENDS: Any = torch.backends
SWITCHES: dict[str, tuple[Any, str]] = {
    "all": (BACKENDS, "fp32_precision"),
    "cudnn": (BACKENDS.cudnn, "fp32_precision"),
    "recurrent": (BACKENDS.cudnn.rnn, "fp32_precision"),
    "convolutions": (BACKENDS.cudnn.conv, "fp32_precision"),
    "products": (BACKENDS.cuda.matmul, "fp32_precision"),
    "products of the host": (BACKENDS.mkldnn.matmul, "fp32_precision"),
    "older, cudnn": (BACKENDS.cudnn, "allow_tf32"),
    "older, products": (BACKENDS.cuda.matmul, "allow_tf32"),
}
NEWER = [name for name in SWITCHES if not name.startswith("older")]
settings_of_users = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(NEWER), st.sampled_from(("ieee", "tf32", "none"))),
        st.tuples(st.sampled_from(("older, cudnn", "older, products")), st.booleans()),
    ),
    max_size=3,
)


def _set(choices: Sequence[tuple[str, Any]]) -> None:
    for name, value in choices:
        owner, attribute = SWITCHES[name]
        setattr(owner, attribute, value)


def _shown() -> dict[str, Any]:
    found = {}
    for name, (owner, attribute) in SWITCHES.items():
        try:
            found[name] = getattr(owner, attribute)
        except RuntimeError:  # both generations were set, to different values
            found[name] = "refused"
    return found


@pytest.fixture(autouse=True)
def _as_at_first() -> Any:
    yield
    _set([(name, "none") for name in NEWER])
    _set([("older, cudnn", True), ("older, products", False), ("recurrent", "tf32"), ("convolutions", "tf32")])
    _set([("products", "none"), ("products of the host", "none")])


def _start_anew() -> None:
    _set([(name, "none") for name in NEWER])
    _set([("older, products", False), ("products", "none"), ("products of the host", "none")])
    _set([("older, cudnn", True), ("recurrent", "tf32"), ("convolutions", "tf32")])


@settings(max_examples=150, deadline=None)
@given(before=settings_of_users, after=settings_of_users)
def test_switches_are_as_they_were_and_follow_as_they_did(before: Any, after: Any) -> None:
    """Also those that only show what one above them says: set later, it must reach them as without us."""

    def outcome(inside: Callable[[], None]) -> list[dict[str, Any]]:
        _start_anew()
        _set(before)
        inside()
        seen = [_shown()]
        _set(after)
        return [*seen, _shown()]

    def check() -> None:
        with full_precision():
            assert [BACKENDS.cudnn.rnn.fp32_precision, BACKENDS.cuda.matmul.fp32_precision] == ["ieee", "ieee"]

    assert outcome(check) == outcome(lambda: None)


def test_where_nothing_was_set_no_switch_is_ever_seen_at_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other threads see them, and a product there would be rounded, or refused where the older switch differs."""
    _start_anew()
    written: list[Any] = []
    setter = torch._C._set_fp32_precision_setter
    monkeypatch.setattr(
        torch._C, "_set_fp32_precision_setter", lambda *given: (written.append(given[-1]), setter(*given))[1]
    )
    with full_precision():
        seen = list(written)
    assert set(seen) == {"ieee"}


def test_switches_are_as_they_were_after_an_interrupt_at_any_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """While they are set and while they are put back, until a place is never come to."""
    _start_anew()
    before, setter = _shown(), torch._C._set_fp32_precision_setter
    count = at = 0

    def interrupted(*given: Any) -> Any:
        nonlocal count
        count += 1
        setter(*given)
        if count == at:
            raise KeyboardInterrupt

    monkeypatch.setattr(torch._C, "_set_fp32_precision_setter", interrupted)
    while count >= at:
        count, at = 0, at + 1
        with contextlib.suppress(KeyboardInterrupt), full_precision():
            pass
        assert _shown() == before, at
    assert at > 2 * 5, "each of five switches is set, and put back"
