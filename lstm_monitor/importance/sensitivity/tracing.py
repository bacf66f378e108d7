"""Run a model once and pull derivatives of its output back to every hidden state of its recurrent layers.

Every call of a recurrent module hands out leaves of autograd in place of its results. So autograd sees only the small
graphs between the calls; the way back through a call's own recurrence is one scan for all derivatives together.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import count
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lstm_monitor.core.terms import LayerKey
from lstm_monitor.engines.fused import State
from lstm_monitor.importance.replay.calls import Call, Stand, standing_in
from lstm_monitor.importance.replay.captures import Captured, captured
from lstm_monitor.importance.replay.stages import LayerRun, Stages, run_module
from lstm_monitor.importance.sensitivity.backward import Runs, first_rows, through
from lstm_monitor.snapshots.outputs import Select, output_tensor
from lstm_monitor.snapshots.runs import Run


@dataclass(frozen=True, eq=False)
class TracedCall:
    """One call of a recurrent module, the `ordinal`-th of its module in this run of the model.

    ``leaves``: what autograd sees of it, the outputs ``(T, N, W)`` and the final states ``(layers * directions, N,
    size)``.
    """

    call: Call
    runs: Runs
    leaves: tuple[Tensor, ...]
    ordinal: int

    @property
    def steps(self) -> int:
        """T of this call."""
        return self.call.inputs.shape[0]

    @property
    def rows(self) -> int:
        """N of this call."""
        return self.call.inputs.shape[1]


@dataclass(frozen=True, eq=False)
class TracedRun:
    """One run of a model: the calls of its recurrent modules in their order, and what the run returned."""

    run: Run
    calls: tuple[TracedCall, ...]
    result: Any
    caught: Captured

    @property
    def steps(self) -> int:
        """The steps that the busiest module took, its calls one after the other."""
        taken: Counter[nn.Module] = Counter()
        for traced in self.calls:
            taken[traced.call.module] += traced.steps
        return max(taken.values(), default=0)

    def outputs(self, select: Select | None = None) -> list[Tensor]:
        """The network's output; where the run is scored, what the network gave inside it, as often as it was called."""
        with torch.enable_grad():  # `select` may compute something
            return [output_tensor(self.result, select)] if self.run.score is None else self.caught.outputs(select)

    def score(self) -> Any:
        """The score or the loss that the run returned."""
        return self.result if self.run.score is None else self.run.score(self.result)


class Pulled(NamedTuple):
    """What came back to one part in one call: its run on the sequences followed, and ``total (T, V, n, h)``."""

    traced: TracedCall
    run: LayerRun
    total: Tensor


def trace(
    model: nn.Module, run: Run, stages: Mapping[nn.Module, Stages], seen: Mapping[LayerKey, LayerRun] | None = None
) -> TracedRun:
    """Run the model once, its recurrent modules computed from their `stages`; call it inside `undisturbed(model)`.

    Its parameters get no gradient, whether they want one or not. Calls that were `seen` before are not computed again.
    """
    calls: list[TracedCall] = []
    stands = {module: _stand(parts, calls, seen) for module, parts in stages.items()}
    catching = nullcontext(Captured()) if run.score is None else captured(model)
    with torch.enable_grad(), standing_in(stands), catching as caught:
        result = run.call()
    return TracedRun(run, tuple(calls), result, caught)


def _stand(stages: Stages, calls: list[TracedCall], seen: Mapping[LayerKey, LayerRun] | None) -> Stand:
    ordinals = count()

    def stand(call: Call) -> tuple[Tensor, State]:
        with torch.no_grad():
            fixed = replace(call, inputs=call.inputs.detach(), state=tuple(part.detach() for part in call.state))
            outputs, final, runs = run_module(fixed, stages, seen=seen)
        leaves = tuple(value.detach().requires_grad_() for value in (outputs, *final))
        calls.append(TracedCall(call, runs, leaves, next(ordinals)))
        handed = [leaf.clone() for leaf in leaves]  # a model may write into what it gets, but not into a leaf
        return handed[0], tuple(handed[1:])

    return stand


def pull(trace: TracedRun, output: Tensor, vectors: Iterable[Tensor], rows: Mapping[int, int]) -> Iterator[Pulled]:
    """Total derivatives of each ``(vector * output).sum()`` by every hidden state, from the last call to the first.

    Args:
        trace: what the model did.
        output: one of its tensors, of any shape.
        vectors: V tensors of the output's shape.
        rows: of calls with N rows only the first n are followed, ``{N: n}``; of others all.

    Yields:
        One item a part and call that the output depends on.
    """
    way = _Way({id(leaf): leaf for traced in trace.calls for leaf in traced.leaves}, rows)
    way.follow([output], ([vector.to(output)] for vector in vectors))
    for traced in reversed(trace.calls):
        came = way.arrived_at(traced)
        if came:
            goes_on = bool(way.reached([traced.call.inputs, *traced.call.state]))
            runs = [[first_rows(run, came[0].shape[2]) for run in stage] for stage in traced.runs]
            totals, back = through(runs, came, for_inputs=goes_on)
            if goes_on:
                way.follow(*_sent(traced, back))
            yield from (Pulled(traced, run, total) for run, total in totals)


class _Way:
    """The derivatives that are on their way back to the leaves of the calls."""

    def __init__(self, leaves: Mapping[int, Tensor], rows: Mapping[int, int]) -> None:
        self._leaves, self._rows = leaves, rows
        self._arrived: dict[int, list[Tensor]] = {}

    def arrived_at(self, traced: TracedCall) -> list[Tensor]:
        """What came to the leaves of a call, ``(T, V, n, W)``, ``(layers * directions, V, n, size)``; [] if nothing."""
        like = traced.runs[0][0].hidden
        came = [self._arrived.pop(id(leaf), None) for leaf in traced.leaves]
        number = max((len(values) for values in came if values is not None), default=0)
        if number == 0:
            return []
        filled = [self._nothing(leaf, number) if v is None else v for v, leaf in zip(came, traced.leaves, strict=True)]
        return [torch.stack(tuple(values), dim=1).to(like) for values in filled]

    def _nothing(self, leaf: Tensor, number: int) -> list[Tensor]:
        return [torch.zeros_like(leaf[:, : self._count(leaf)])] * number

    def follow(self, tensors: Sequence[Tensor], vectors: Iterable[Sequence[Tensor]]) -> None:
        """Send V vectors, one a tensor, from these tensors through what lies between them and the leaves."""
        below = self.reached(tensors)
        if not below:
            return
        for number, vector in enumerate(vectors):
            found = torch.autograd.grad(tensors, below, vector, retain_graph=True, allow_unused=True)
            for leaf, value in zip(below, found, strict=True):
                if value is not None:
                    self._add(leaf, number, value)

    def _add(self, leaf: Tensor, number: int, value: Tensor) -> None:
        values = self._arrived.setdefault(id(leaf), [])
        kept = value[:, : self._count(leaf)].contiguous()
        if number == len(values):
            values.append(kept)
        else:
            values[number] = values[number] + kept

    def _count(self, leaf: Tensor) -> int:
        return self._rows.get(leaf.shape[1], leaf.shape[1])

    def reached(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The leaves from which these tensors were computed."""
        waiting = [tensor.grad_fn for tensor in tensors if tensor.grad_fn is not None]
        seen, found = set(waiting), []
        while waiting:
            node = waiting.pop()
            leaf = self._leaves.get(id(getattr(node, "variable", None)))
            if leaf is not None:
                found.append(leaf)
            fresh = {after for after, _ in node.next_functions if after is not None} - seen
            seen |= fresh
            waiting.extend(fresh)
        return found


def _sent(traced: TracedCall, back: Sequence[Tensor]) -> tuple[list[Tensor], Iterator[list[Tensor]]]:
    """What a call received that wants a derivative, and V derivatives of each, 0 in the rows that are not followed."""
    pairs = zip((traced.call.inputs, *traced.call.state), back, strict=False)
    wanted = [(source, values) for source, values in pairs if source.requires_grad]
    vectors = ([_padded(values[:, v], source) for source, values in wanted] for v in range(back[0].shape[1]))
    return [source for source, _ in wanted], vectors


def _padded(values: Tensor, like: Tensor) -> Tensor:
    full = torch.zeros_like(like)
    full[:, : values.shape[1]] = values
    return full
