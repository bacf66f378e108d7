"""What removing cells does to a network's output and score, on fixed runs of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lstm_monitor.core.terms import LayerKey
from lstm_monitor.core.undisturbed import eval_mode, tensors_put_back
from lstm_monitor.importance.removal.contexts import ablated
from lstm_monitor.importance.removal.outcomes import Outcome, as_score, check_alike, output_change, rows_of
from lstm_monitor.importance.replay.calls import Call, Stand, standing_in
from lstm_monitor.importance.replay.captures import captured
from lstm_monitor.importance.replay.stages import LayerRun, Part, run_module, silenced, whole, without
from lstm_monitor.layers.layer import Layer, Layers
from lstm_monitor.snapshots.outputs import Select, output_tensor
from lstm_monitor.snapshots.runs import Run
from lstm_monitor.snapshots.taking import flip, freeze

FEW = 16
"""Fewer removed cells than this are silenced rather than cut out: odd sizes cost the fused ops more than they save."""

Removed = Mapping[LayerKey, Tensor]


@dataclass(frozen=True, eq=False)
class _Known:
    """A call of a recurrent module in the intact network, and what its parts did in it."""

    call: Call
    runs: list[list[LayerRun]]


class Network:
    """A model on fixed runs, from which cells are removed; what all variants share is computed once.

    Recurrent modules are computed from copies of their weights, so the live ones are never touched. A call that
    receives what it received in the intact network computes only the parts that changed and what is above them.
    In half precision, where copies in single precision would be another network, the live weights are edited instead
    and put back (`live`). Use it inside `undisturbed(model)`. ``trains``: whether a run left the model in train mode.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Layers,
        runs: Sequence[Run],
        *,
        means: Mapping[LayerKey, Tensor] | None = None,
        select: Select | None = None,
        live: bool | None = None,
    ) -> None:
        """Run the intact network once; with `means` removed cells stand still at theirs instead of at 0.

        `live` None: edit the live weights only where one of them is in half precision.

        Raises:
            ValueError: the layers received nothing.
        """
        self.model, self.layers, self.runs = model, layers, tuple(runs)
        self.means, self.select, self.trains = means, select, False
        samples: dict[nn.Module, Layer] = {layer.module: layer for layer in layers}
        self.stages = {module: whole(module, sample) for module, sample in samples.items()}
        self.parts = {part.layer.key: part for stages in self.stages.values() for stage in stages for part in stage}
        self.live = any(map(_is_half, self.parts.values())) if live is None else live
        self._known: list[dict[nn.Module, list[_Known]]] = []
        self.intact = tuple(self._first(run) for run in self.runs)
        if not any(calls for known in self._known for calls in known.values()):
            names = ", ".join(str(layer.key) for layer in layers)
            raise ValueError(f"the model ran, but its recurrent layers ({names}) received nothing")

    def outcome(self, index: int, removed: Removed) -> Outcome:
        """What run `index` gives without some cells: cell numbers ``(K,)`` by layer."""
        found = self._edited(index, removed) if self.live else self._stood_in(index, removed)
        check_alike(found, self.intact[index])
        return found

    def _stood_in(self, index: int, removed: Removed) -> Outcome:
        changed = {key: self._part(key, cells) for key, cells in removed.items() if len(cells)}
        stands = {
            module: _stand_again(_replaced(stages, changed), self._known[index][module])
            for module, stages in self.stages.items()
        }
        return self._read(self.runs[index], stands, self._counts(index))

    def changes(self, index: int, removed: Removed) -> tuple[Tensor, Tensor]:
        """Of run `index`: the mean squared change of the output ``(N,)`` and the change of the score, ``(N,)`` or (1,).

        Empty where there is no output, or no score.
        """
        now, then = self.outcome(index, removed), self.intact[index]
        return output_change(now, then), now.score - then.score

    def hidden_means(self) -> dict[LayerKey, Tensor]:
        """The mean hidden state ``(H,)`` of every layer in the intact runs that are watched, over steps that count."""
        sums = {
            key: torch.zeros_like(part.weights.bias_hh[: part.weights.hidden_size]) for key, part in self.parts.items()
        }
        counts = dict.fromkeys(sums, 0.0)
        for run, known in self._watched():
            for item in (layer for calls in known.values() for call in calls for stage in call.runs for layer in stage):
                key, counted = item.part.layer.key, _counted(item, run.mask)
                sums[key] += (item.hidden * counted[..., None]).sum((0, 1))
                counts[key] += float(counted.sum())
        return {key: total / max(counts[key], 1.0) for key, total in sums.items()}

    def _watched(self) -> Iterator[tuple[Run, dict[nn.Module, list[_Known]]]]:
        pairs = zip(self.runs, self._known, strict=True)
        return ((run, known) for run, known in pairs if run.watched)

    def _part(self, key: LayerKey, cells: Tensor) -> Part:
        means = None if self.means is None else self.means[key]
        remove = silenced if len(cells) < FEW else without
        return remove(self.parts[key], cells, means)

    def _first(self, run: Run) -> Outcome:
        known: dict[nn.Module, list[_Known]] = {module: [] for module in self.stages}
        self._known.append(known)
        stands = {module: _stand_first(stages, known[module]) for module, stages in self.stages.items()}
        first = self._read(run, stands, lambda: _counts_of(known))
        return self._read(run, {}, lambda: _counts_of(known)) if self.live else first

    def _edited(self, index: int, removed: Removed) -> Outcome:
        cells = {str(key): numbers for key, numbers in removed.items() if len(numbers)}
        means = None if self.means is None else {str(key): self.means[key] for key in removed}
        with ablated(self.model, cells, "zero" if means is None else "mean", means=means):
            return self._read(self.runs[index], {}, self._counts(index))

    def _counts(self, index: int) -> Callable[[], list[int]]:
        return lambda: _counts_of(self._known[index])

    def _read(self, run: Run, stands: Mapping[nn.Module, Stand], counts: Callable[[], list[int]]) -> Outcome:
        catching = captured(self.model) if run.score is not None and run.watched else nullcontext()
        with eval_mode(self.model), tensors_put_back(self.model):  # every run starts from the same state
            with standing_in(stands), catching as caught:
                result = run.call()
            self.trains = self.trains or any(module.training for module in self.model.modules())
        if caught is not None:
            outputs = caught.outputs(self.select)
        else:
            outputs = [output_tensor(result, self.select)] if run.score is None else []
        score = torch.empty(0) if run.score is None else as_score(run.score(result))
        return Outcome(tuple(rows_of(tensor, counts(), run.mask) for tensor in outputs), score)


def _is_half(part: Part) -> bool:
    weight = part.layer.parameter("weight_ih")
    return weight is not None and weight.dtype not in (torch.float32, torch.float64)


def _counted(run: LayerRun, mask: Tensor | None) -> Tensor:
    """Which steps count ``(T, N)``, as numbers, in the order in which the part reads."""
    steps, count = run.hidden.shape[:2]
    counted = run.hidden.new_ones(steps, count)
    if run.lengths is not None:
        counted = (torch.arange(steps, device=counted.device)[:, None] < run.lengths).to(counted)
    if mask is not None and tuple(mask.shape) == (count, steps):
        valid = flip(mask.to(counted), run.lengths) if run.part.layer.key.reverse else mask.to(counted)
        counted = counted * valid.T
    return counted


def _stand_first(stages: list[list[Part]], known: list[_Known]) -> Stand:
    def stand(call: Call) -> tuple[Tensor, tuple[Tensor, ...]]:
        if not known:
            _check_same_weights(stages)
        outputs, final, runs = run_module(call, stages)
        known.append(_Known(call, runs))
        return outputs, final

    return stand


def _check_same_weights(stages: list[list[Part]]) -> None:
    """Refuse a run that puts other weights into the model for a while, such as their average over the training."""
    for part in (part for stage in stages for part in stage):
        live, copied = freeze(part.layer), part.weights
        if not all(torch.equal(getattr(live, name), getattr(copied, name)) for name in ("weight_ih", "weight_hh")):
            raise ValueError(
                f"{part.layer.key} runs with other weights than the model has outside of evaluate (averaged ones?), "
                "which the study would not see; put those weights into the model first, and call the study then"
            )


def _stand_again(stages: list[list[Part]], known: Sequence[_Known]) -> Stand:
    number = -1

    def stand(call: Call) -> tuple[Tensor, tuple[Tensor, ...]]:
        nonlocal number
        number += 1
        seen = number < len(known) and _same(call, known[number].call)
        return run_module(call, stages, known[number].runs if seen else None)[:2]

    return stand


def _replaced(stages: list[list[Part]], changed: Mapping[LayerKey, Part]) -> list[list[Part]]:
    return [[changed.get(part.layer.key, part) for part in stage] for stage in stages]


def _same(call: Call, before: Call) -> bool:
    """Whether a call receives what it received before."""
    if call.inputs.shape != before.inputs.shape or len(call.state) != len(before.state):
        return False
    lengths = (call.lengths, before.lengths)
    pairs = [(call.inputs, before.inputs), *zip(call.state, before.state, strict=True)]
    pairs += [(a, b) for a, b in [lengths] if a is not None and b is not None]
    return (lengths[0] is None) == (lengths[1] is None) and all(a is b or torch.equal(a, b) for a, b in pairs)


def _counts_of(known: Mapping[nn.Module, Sequence[_Known]]) -> list[int]:
    """How many sequences the calls had, the last first."""
    return list(dict.fromkeys(item.call.inputs.shape[1] for calls in known.values() for item in reversed(calls)))
