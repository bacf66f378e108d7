"""Torch's switches of precision as they were, and products that do not depend on them."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import lstm_monitor as lm
from lstm_monitor.characterization import examine
from lstm_monitor.core.definitions import Thresholds
from lstm_monitor.core.precision import full_precision, own_precision, product_type
from lstm_monitor.core.records import Snapshot
from lstm_monitor.core.terms import Kind
from lstm_monitor.core.undisturbed import beside
from lstm_monitor.core.weights import LayerWeights
from lstm_monitor.engines import choice
from lstm_monitor.engines.loop_engine import run_loop
from tests.helpers.elsewhere import Elsewhere, There, sent

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


# Products that do not depend on the switches, on a device that is stood in for


@pytest.mark.parametrize(
    "product",
    [
        lambda a, b: a @ b,
        lambda a, b: a @ b[0],
        lambda a, b: torch.addmm(a, a, b),
        lambda a, b: a.clone().addmm_(a, b),
        lambda a, b: torch.addmm(a, a, b, out=torch.empty_like(a)),
        lambda a, b: torch.baddbmm(a[:, None], a.expand(2, *a.shape), b.expand(2, *b.shape)),
        lambda a, b: nn.functional.linear(a, b, b[0]),
    ],
)
def test_products_are_those_of_float64(product: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = torch.randn(2, 2, 2)
    wanted = product(a.double(), b.double()).float()
    with Elsewhere(monkeypatch):
        there = [There(a.clone()), There(b.clone())]
        with own_precision():
            found = product(*there)
        assert isinstance(found, There)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.cpu(), wanted, atol=0, rtol=0)
        assert not Elsewhere.rounded
        product(*there)
        assert Elsewhere.rounded, "without a precision of our own it must be seen"


def test_what_is_no_float32_of_a_device_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    here = torch.randn(3, 3)
    with Elsewhere(monkeypatch), own_precision():
        assert torch.equal(here @ here, torch.mm(here, here))
        assert product_type(here) == torch.float32
        assert product_type(There(here)) == torch.float64
        assert (There(here.bfloat16()) @ There(here.bfloat16())).dtype == torch.bfloat16


def test_it_is_of_one_thread_only(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.dtype] = []
    with Elsewhere(monkeypatch):
        there = There(torch.ones(2))
        with own_precision():
            with own_precision():
                pass
            assert product_type(there) == torch.float64
            thread = threading.Thread(target=lambda: seen.append(product_type(there)))
            thread.start()
            thread.join()
        assert seen == [torch.float32]
        assert product_type(there) == torch.float32


def _recurrent(kind: Kind) -> Callable[..., Any]:
    """In the place of torch's fused op, which looks for a real device; it is told apart by its type alone."""

    def op(inputs: Tensor, state: Any, flat: Sequence[Tensor], *options: Any) -> Any:
        Elsewhere.rounded += ["recurrent"] if inputs.dtype == torch.float32 else []
        start = tuple(part[0] for part in (state if kind == "lstm" else (state,)))
        hidden, last, _ = run_loop(LayerWeights(kind, *flat), inputs, start)
        return hidden, *(part[None] for part in last)

    return op


@pytest.fixture
def snaps(monkeypatch: pytest.MonkeyPatch) -> tuple[Snapshot, ...]:
    """Layers with held-out data; the first reads so many features that directions are found."""
    monkeypatch.setenv(choice.VARIABLE, "torch")
    nets = {"a": nn.LSTM(7, 4, batch_first=True), "b": nn.GRU(3, 3, batch_first=True)}
    found = []
    for name, net in nets.items():
        (snap,) = lm.snapshot(net, torch.randn(4, 16, net.input_size))
        monkeypatch.setattr(torch, snap.kind, _recurrent(snap.kind))
        found.append(replace(snap, key=replace(snap.key, path=name)))
    return tuple(found)


def test_a_whole_check_beside_a_training_rounds_no_product(
    snaps: tuple[Snapshot, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the stimuli that it designs; the values are those of the host, but for times on a plateau."""
    asked: Any = ({}, "std_x_outgoing", Thresholds(), 8)
    expected = examine(snaps, *asked)
    with Elsewhere(monkeypatch):
        with pytest.MonkeyPatch.context() as patched, beside():
            patched.setattr("lstm_monitor.core.undisturbed.full_precision", lambda: pytest.fail("a switch was touched"))
            found = examine(sent(snaps), *asked)
        assert Elsewhere.rounded == []
        for (mine, _), (theirs, _) in zip(found, expected, strict=True):
            for name, metric in mine.metrics.by_path.items():
                if not name.endswith("peak_time"):
                    values, wanted = metric.values, theirs.metrics[name].values
                    torch.testing.assert_close(
                        values, wanted, rtol=1e-3, atol=1e-4, equal_nan=True, msg=lambda m, n=name: f"{n}: {m}"
                    )
        examine(sent(snaps[:1]), *asked)
        assert {"recurrent", "aten.mm.default"} < {*Elsewhere.rounded}, "without it they must be seen"
