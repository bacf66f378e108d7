"""Products that do not depend on torch's switches of precision, on a device that is stood in for."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lstm_monitor as lm
from lstm_monitor.characterization import examine
from lstm_monitor.core.definitions import Thresholds
from lstm_monitor.core.float64 import own_precision, product_type
from lstm_monitor.core.records import Snapshot
from lstm_monitor.core.terms import Kind
from lstm_monitor.core.undisturbed import beside
from lstm_monitor.core.weights import LayerWeights
from lstm_monitor.engines import choice
from lstm_monitor.engines.loop_engine import run_loop
from tests.helpers.elsewhere import Elsewhere, There, sent


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
