"""Records come to the host in one copy, unchanged."""

from dataclasses import dataclass

import torch
from torch import Tensor

import lstm_monitor as lm
from lstm_monitor.core.trees import _move, _rebuild, tensors_of, to_host


@dataclass(frozen=True)
class Nested:
    first: Tensor
    parts: tuple[Tensor, ...]
    gates: dict[str, Tensor]
    words: str = "x"


def test_one_transfer_brings_a_record_to_the_host_unchanged() -> None:
    pieces = [torch.arange(5), torch.rand(3, 2), torch.rand(4, dtype=torch.float64).t(), torch.tensor([True, False])]
    assert _move([]) == []
    for before, after in zip(pieces, _move(pieces), strict=True):
        assert before.dtype == after.dtype
        assert torch.equal(before, after)
    record = lm.LayerKey("rnn")
    assert to_host(record) == record


def test_every_tensor_of_a_record_is_found_and_replaced() -> None:
    a, b, c = (torch.full((2,), float(k)) for k in range(3))
    record = (Nested(a, (b, a), {"input": c}), [c])
    assert [float(t[0]) for t in tensors_of(record)] == [0, 1, 0, 2, 2]
    nested, others = _rebuild(record, {id(t): t + 10 for t in (a, b, c)})
    assert [float(t[0]) for t in tensors_of((nested, others))] == [10, 11, 10, 12, 12]
    assert isinstance(others, list)
    assert nested.words == "x"


def test_what_is_on_the_host_is_the_same_tensor() -> None:
    record = Nested(torch.ones(2), (), {})
    assert to_host(record).first is record.first
