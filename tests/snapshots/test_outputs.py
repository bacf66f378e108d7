"""The output as one tensor, and as a row a sequence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_sequence

from lstm_monitor.snapshots.outputs import batch_axis, by_sequence, output_tensor

FOUND = torch.randn(3, 4)


class Pair(NamedTuple):
    labels: Tensor
    logits: Tensor


@dataclass
class Output:
    loss: None
    logits: Tensor


@dataclass(slots=True)
class Slotted:
    loss: None
    logits: Tensor


@pytest.mark.parametrize(
    "output",
    [
        FOUND,
        (FOUND, torch.ones(2)),
        [torch.tensor([1, 2]), FOUND],
        {"labels": torch.tensor([1]), "deep": {"logits": FOUND}},
        Pair(torch.tensor([1]), FOUND),
        Output(None, FOUND),
        Slotted(None, FOUND),
        (None, "words", (FOUND,)),
    ],
)
def test_the_first_tensor_of_floating_point(output: Any) -> None:
    assert output_tensor(output) is FOUND


def test_packed_outputs_are_padded() -> None:
    packed = pack_sequence([torch.ones(1, 2), torch.ones(3, 2)], enforce_sorted=False)
    assert output_tensor((packed, FOUND)).sum((1, 2)).tolist() == [2, 6]
    assert output_tensor(packed).shape == (2, 3, 2)


@pytest.mark.parametrize("output", [torch.tensor([1]), None, "words", {}, [], torch.ones(2, dtype=torch.bool)])
def test_nothing_to_take_is_an_error(output: Any) -> None:
    with pytest.raises(ValueError, match=f"returned {type(output).__name__}, in which no tensor.*give output=lambda"):
        output_tensor(output)


def test_a_selection() -> None:
    assert output_tensor({"a": torch.ones(1), "b": FOUND}, lambda result: result["b"]) is FOUND
    for wrong in (torch.tensor([1]), [1.0], None):
        with pytest.raises(TypeError, match=f"output= returned {type(wrong).__name__}; it must return a tensor"):
            output_tensor(FOUND, lambda result, wrong=wrong: wrong)


def test_the_axis_of_the_sequences() -> None:
    assert batch_axis(torch.ones(3, 4), 3) == 0
    assert batch_axis(torch.ones(5, 3), 3) == 1
    assert batch_axis(torch.ones(3, 3), 3) == 0
    assert batch_axis(torch.ones(3, 4), 2) is None
    assert batch_axis(torch.tensor(1.0), 1) is None


def test_rows() -> None:
    values = torch.arange(24.0).reshape(2, 3, 4)
    assert torch.equal(by_sequence(values, 2), values.reshape(2, 12))
    assert torch.equal(by_sequence(values, 3), values.transpose(0, 1).reshape(3, 8))
    assert torch.equal(by_sequence(values, 7), values.reshape(1, 24))
    assert torch.equal(by_sequence(torch.arange(3.0), 3), torch.arange(3.0)[:, None])
    assert by_sequence(torch.tensor(2.0), 3).shape == (1, 1)


def test_a_mask_is_for_outputs_with_a_value_a_step() -> None:
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]]).bool()
    values = torch.ones(2, 3, 4)
    for given in (values, values.transpose(0, 1)):
        assert by_sequence(given, 2, mask).reshape(2, 3, 4).sum(-1).tolist() == [[4, 4, 0], [4, 0, 0]]
    assert by_sequence(values[..., 0], 2, mask).tolist() == mask.float().tolist()
    assert float(by_sequence(torch.ones(2, 5), 2, mask).sum()) == 10
