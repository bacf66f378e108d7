"""The reverse scan equals autograd through a plain unroll of the equations, for every kind of layer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lstm_monitor.core.terms import GATES, Kind
from lstm_monitor.core.weights import LayerWeights
from lstm_monitor.engines import backward as kernel
from lstm_monitor.engines.backward import reverse
from lstm_monitor.engines.fused import run_fused
from tests.helpers.unrolls import advance

KINDS: tuple[Kind, ...] = ("lstm", "gru", "rnn_tanh", "rnn_relu")
NAMES = {"lstm": "LSTM", "gru": "GRU", "rnn_tanh": "tanh", "rnn_relu": "relu"}


class Case:
    """Random weights, inputs and derivatives, and what autograd makes of them, one sequence after the other."""

    def __init__(
        self, kind: Kind, size: int = 4, width: int = 3, steps: int = 6, count: int = 3, number: int = 2
    ) -> None:
        gates = len(GATES[kind])
        draw = lambda *shape: torch.randn(*shape, dtype=torch.float64)  # noqa: E731
        self.weights = LayerWeights(
            kind,
            *(draw(gates * size, inner) / inner**0.5 for inner in (width, size)),
            draw(gates * size),
            draw(gates * size),
        )
        self.start = tuple(draw(count, size) for _ in range(1 + (kind == "lstm")))
        self.inputs, self.direct = draw(steps, count, width), draw(steps, number, count, size)
        self.end = tuple(draw(number, count, size) for _ in self.start)
        self.hidden = run_fused(self.weights, self.inputs, self.start)[0]

    def got(self, lengths: Tensor | None = None, direct: Tensor | None = None, **options: Any) -> list[Tensor]:
        direct = self.direct if direct is None else direct
        done = reverse(self.weights, self.inputs, self.hidden, self.start, direct, self.end, lengths, **options)
        return [done.total, *([] if done.inputs is None else [done.inputs]), *done.start]

    def expected(self, lengths: list[int]) -> list[Tensor]:
        results = [[self._sequence(n, length, v) for n, length in enumerate(lengths)] for v in range(len(self.end[0]))]
        columns = []
        for place in range(len(results[0][0])):
            stacked = torch.stack([torch.stack([item[place] for item in row]) for row in results])  # (V, N, ...)
            columns.append(stacked.permute(2, 0, 1, 3) if stacked.dim() == 4 else stacked)
        return columns

    def _sequence(self, n: int, length: int, v: int) -> list[Tensor]:
        w = self.weights
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        parameters = {name: getattr(w, name) for name in names}
        start = [state[n].clone().requires_grad_() for state in self.start]
        xs = [x.clone().requires_grad_() for x in self.inputs[:, n]]
        nudges = [torch.zeros_like(start[0], requires_grad=True) for _ in xs]
        h, c, loss = start[0], start[1] if len(start) > 1 else None, torch.zeros((), dtype=torch.float64)
        for t in range(length):
            h, c = advance(NAMES[w.kind], parameters, xs[t], h, c)
            h = h + nudges[t]
            loss = loss + (self.direct[t, v, n] * h).sum()
        loss = loss + (self.end[0][v, n] * h).sum() + (0 if c is None else (self.end[1][v, n] * c).sum())
        wanted = [*nudges, *xs, *start]
        grads = torch.autograd.grad(loss, wanted, allow_unused=True)
        grads = [torch.zeros_like(a) if g is None else g for a, g in zip(wanted, grads, strict=True)]
        steps = len(xs)
        return [torch.stack(grads[:steps]), torch.stack(grads[steps : 2 * steps]), *grads[2 * steps :]]


def close(got: list[Tensor], expected: list[Tensor], tolerance: float = 1e-9) -> None:
    for mine, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("kind", KINDS)
def test_total_derivatives(kind: Kind) -> None:
    case = Case(kind)
    close(case.got(), case.expected([6] * 3))


@pytest.mark.parametrize("kind", KINDS)
def test_sequences_of_different_lengths(kind: Kind) -> None:
    case, lengths = Case(kind), torch.tensor([2, 6, 5])
    there = (torch.arange(6)[:, None] < lengths)[:, None, :, None]
    case.hidden = case.hidden.masked_fill(~there[:, 0], float("inf"))  # what lies beyond is never read
    close(case.got(lengths, case.direct * there), case.expected(lengths.tolist()))


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_asked_for_is_not_computed(kind: Kind) -> None:
    case = Case(kind)
    total, by_inputs, *start = case.got()
    close(case.got(for_inputs=False), [total, *start], 0)
    assert case.got(for_inputs=False)[0].shape == (6, 2, 3, 4)
    assert by_inputs.shape == (6, 2, 3, 3)


def test_without_derivatives_at_the_end() -> None:
    case = Case("lstm")
    case.end = tuple(torch.zeros_like(values) for values in case.end)
    done = reverse(case.weights, case.inputs, case.hidden, case.start, case.direct)
    close([done.total], case.expected([6] * 3)[:1])


def test_nothing_that_was_given_is_written_into() -> None:
    for kind in KINDS:
        case = Case(kind)
        given = [case.inputs, case.hidden, case.direct, *case.start, *case.end, *vars(case.weights).values()]
        tensors = [value for value in given if isinstance(value, Tensor)]
        before = [tensor.clone() for tensor in tensors]
        case.got()
        assert all(torch.equal(a, b) for a, b in zip(tensors, before, strict=True))


def test_a_relu_at_exactly_zero_has_slope_zero() -> None:
    case = Case("rnn_relu")
    case.hidden = torch.zeros_like(case.hidden)
    total = case.got()[0]
    torch.testing.assert_close(total[:-1], case.direct[:-1], rtol=0, atol=0)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(KINDS), st.tuples(*[st.integers(1, 5)] * 5), st.integers(0, 99))
def test_random_sizes(kind: Kind, sizes: tuple[int, ...], seed: int) -> None:
    torch.manual_seed(seed)
    case = Case(kind, *sizes)
    close(case.got(), case.expected([sizes[2]] * sizes[3]))


def test_a_planted_fault_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    real = kernel.gate_values
    monkeypatch.setattr(kernel, "gate_values", lambda *args: real(*args) * 1.00001)
    case = Case("lstm")
    with pytest.raises(AssertionError):
        close(case.got(), case.expected([6] * 3))
