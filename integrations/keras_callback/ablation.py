"""The ablation check of a Keras training: cells are removed from the Keras model's own weights, which are put back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from lstm_monitor.core.changes import Change, changed
from lstm_monitor.core.terms import GATES
from lstm_monitor.core.undisturbed import undisturbed
from lstm_monitor.integrations.keras_callback.held_out import KerasData
from lstm_monitor.integrations.keras_callback.mirror import KerasMirror, cells_of, weights_of
from lstm_monitor.integrations.keras_callback.weights import Array, as_array, sealed, to_keras
from lstm_monitor.layers.finding import find_layers
from lstm_monitor.report.ablation.result import Study
from lstm_monitor.snapshots.outputs import Select
from lstm_monitor.snapshots.runs import Run
from lstm_monitor.snapshots.taking import snapshot
from lstm_monitor.studies.ablation.check import AblationCheck, options_of
from lstm_monitor.studies.ablation.making import make_study

Pairs = Sequence[tuple[Any, Array]]


def keras_study(  # what the monitor knows
    model: Any,
    check: AblationCheck,
    held_out: KerasData | None,
    *,
    layers: str | Sequence[str],
    rank_by: str,
    select: Select | None,
    size: int | None = None,
) -> Study:
    """The study of a Keras model, on its held-out data and the check's own score, ``evaluate(model)``.

    For each evaluation cells are taken out of the weights of the Keras model itself, so that whatever runs it, compiled
    or not, runs without them; then every variable of the model is what it was. Effects on the output are measured on
    about ``check.sequences`` held-out sequences, beside the model. `size`: that of its batches, if it is fixed.

    Raises:
        ValueError: ``mode="mean"`` with a score: cells at their mean are no matter of weights alone.
    """
    if check.score is not None and check.mode == "mean":
        raise ValueError(
            "mode='mean' with score=: Keras's own weights can only be edited so that a cell gives zero; take "
            "mode='zero', or leave score= out to measure the output's change on held_out="
        )
    with undisturbed(), variables_kept(model) as put_back:
        mirror = KerasMirror(model, tuple if held_out is None else held_out.pack)
        found = find_layers(mirror, check.layers_or(layers))
        batches, masks = (None, None) if held_out is None else held_out.batches(check.sequences, size)
        snaps = snapshot(mirror, batches, layers=found, mask=masks)
        runs = () if batches is None else mirror.runs(batches, masks)
        scored = (_scored(model, check.score, mirror, put_back),) if callable(check.score) else ()
        options = options_of(check, rank_by, _name(check.score), None)
        chosen = check.output or select
        return make_study(mirror, found, (*runs, *scored), options, snaps=snaps, select=chosen, live=bool(scored))


def _name(score: Any) -> str | None:
    name = str(getattr(score, "__name__", "score"))
    return None if score is None else "score" if name.startswith("<") else name


def _scored(model: Any, evaluate: Callable[[Any], Any], mirror: KerasMirror, put_back: Callable[[], None]) -> Run:
    """A run whose score is that of the Keras model with the mirror's weights."""
    intact = {path: weights_of(stack) for path, stack in mirror.stacks.items()}

    def call() -> Any:
        _touch(mirror)
        pairs = [pair for path in mirror.stacks for pair in _edited(mirror, path, intact[path])]
        with changed([Change(id(model), lambda: assign(pairs), put_back)]):
            return as_number(evaluate(model))

    return Run(call, score=lambda result: result, watched=False)


def _touch(mirror: KerasMirror) -> None:
    """Call every module once: a study wants to see that the layers which it edits are run."""
    for module in mirror.modules_by_path().values():
        module(module.get_parameter("weight_ih_l0").new_zeros(1, 1, module.input_size))


def as_number(result: Any) -> Any:
    """What `evaluate` returned as a number, or one a sequence, of torch; the first of a list, which is Keras's loss."""
    if isinstance(result, list | tuple) and result:
        return as_number(result[0])
    if isinstance(result, torch.Tensor | int | float) or not hasattr(result, "__array__"):
        return result
    return torch.from_numpy(np.array(result, dtype=np.float64))


def _edited(mirror: KerasMirror, path: str, intact: dict[str, Array]) -> Iterator[tuple[Any, Array]]:
    """The variables of a stack from which cells were removed in the mirror, with their values without these cells."""
    stack, module = mirror.stacks[path], mirror.get_submodule(path)
    for suffix, cell in cells_of(stack):
        names = [name for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh") if name + suffix in intact]
        now = {name: _live(module, name + suffix) for name in names}
        rows = _candidates(stack.kind, now), _candidates(stack.kind, {name: intact[name + suffix] for name in names})
        removed = np.asarray(~rows[0].any(1) & rows[1].any(1))
        if removed.any():
            yield from to_keras(stack.kind, cell, sealed(stack.kind, now, removed))


def _live(module: nn.Module, name: str) -> Array:
    return module.get_parameter(name).detach().cpu().numpy().copy()


def _candidates(kind: Any, weights: dict[str, Array]) -> Array:
    """Whether each weight ``(H, K)`` of the cells' candidate values is other than 0."""
    blocks, place = len(GATES[kind]), GATES[kind].index("candidate")
    rows = [np.split(value.reshape(len(value), -1), blocks)[place] for value in weights.values()]
    return np.concatenate(rows, axis=1) != 0


# Variables


@contextmanager
def variables_kept(model: Any) -> Iterator[Callable[[], None]]:
    """Afterwards every variable of a model is as it was, its optimizer's and its metrics' too; also when it is called.

    What was wrong with a variable inside does no harm: an interrupt may leave one without a value on jax.
    """
    variables = {id(variable): variable for variable in _variables(model)}.values()
    saved = [(variable, as_array(variable)) for variable in variables]

    def put_back() -> None:
        assign(saved)

    with changed([Change(("variables", id(model)), lambda: None, put_back)]):
        yield put_back


def _variables(model: Any) -> Iterator[Any]:
    yield from model.variables
    yield from getattr(model, "metrics_variables", ())
    yield from getattr(getattr(model, "optimizer", None), "variables", ())


def assign(pairs: Pairs) -> None:
    """Give variables their values."""
    for variable, value in pairs:
        variable.assign(value)
