"""How much a network's output, or its loss, needs each cell: derivatives through time, times what the cell does."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lstm_monitor.core.records import Snapshot
from lstm_monitor.core.terms import LayerKey
from lstm_monitor.core.undisturbed import undisturbed
from lstm_monitor.importance.replay.stages import Stages
from lstm_monitor.importance.sensitivity.contributions import absolute, complete, of_losses, of_outputs, signed
from lstm_monitor.importance.sensitivity.observing import observe, step_means
from lstm_monitor.layers.finding import removable_layers
from lstm_monitor.layers.layer import Layers
from lstm_monitor.snapshots.held_out import Forward
from lstm_monitor.snapshots.outputs import Select
from lstm_monitor.snapshots.recording import HELD_OUT_STEPS
from lstm_monitor.snapshots.runs import Run, runs_of

Loss = Callable[[nn.Module, Any], Tensor]
"""``loss(model, batch)``: a mean over the sequences, or one loss a sequence ``(N,)``."""
_VECTORS = 8


def output_sensitivity(  # noqa: PLR0913  # one argument for each thing that a user may choose
    model: nn.Module,
    held_out: Any,
    *,
    layers: str | Sequence[str] = "*",
    centred: bool = True,
    vectors: int = _VECTORS,
    seed: int = 0,
    output: Select | None = None,
    forward: Forward | None = None,
    lengths: Any = None,
    mask: Any = None,
    max_steps: int = HELD_OUT_STEPS,
) -> dict[str, Tensor]:
    """How far the output would move, to first order, if each cell stood still at its mean, or at 0.

    ``sqrt(mean over sequences n and vectors v of (sum_t (h_t - mean_t) * d(v . o) / dh_t) ** 2)``, where the derivative
    is total (through the recurrence), v are random vectors of +-1 and mean_t is over the sequences at each step, in the
    order in which the layer reads (over all steps, where fewer than two sequences get there).

    Args:
        model: any torch module; it is left exactly as it is.
        held_out: data to run it on, as for `characterize`.
        layers: glob or globs over layer names.
        centred: whether the mean is subtracted; else the cell is held against 0.
        vectors: how many v are drawn. Outputs of no more values a sequence need none: then the result is exact.
        seed: of the generator that draws them.
        output: selects a tensor from what the model returns; by default its first one.
        forward: called as ``forward(model, batch)`` instead of the model itself.
        lengths: (N,) steps of each sequence that are no padding.
        mask: (N, T) True for the steps that count, of the cells and of an output with a value a step.
        max_steps: about how many sequence steps are followed back, of 4 sequences at least. The means are over all
            sequences of the batches that are run for them.

    Returns:
        By layer name ``(H,)``, in the output's unit; NaN for layers on which the output does not depend.

    Raises:
        TypeError: `model` is no torch module; held-out data that are no tensors; `output` selects no tensor.
        ValueError: no recurrent layer; a model that cannot be run; an output that depends on none of the layers, or
            from which no derivative comes back; derivatives that are NaN or infinite; a mask that does not fit.

    Example:
        >>> from torch import nn
        >>> {name: len(cells) for name, cells in output_sensitivity(nn.LSTM(3, 5), torch.ones(7, 2, 3)).items()}
        {'l0': 5}

    Source: this project's definition; it foretells the effect of removing a cell better than how much the cell moves.
    """
    found = removable_layers(model, layers)
    runs = runs_of(model, found, held_out, forward=forward, lengths=lengths, mask=mask)
    with undisturbed(model):
        scores = sensitivities(
            model, found, runs, centred=centred, vectors=vectors, seed=seed, output=output, max_steps=max_steps
        )
    return _by_name(scores)


def taylor(
    model: nn.Module,
    held_out: Any,
    loss: Loss,
    *,
    layers: str | Sequence[str] = "*",
    lengths: Any = None,
    mask: Any = None,
    max_steps: int = HELD_OUT_STEPS,
) -> dict[str, Tensor]:
    """How strongly each cell acts on the loss: the mean over sequences of ``sum_t abs(h_t * dL/dh_t)``.

    Args:
        model: any torch module; it is left exactly as it is.
        held_out: batches for `loss`, targets included.
        loss: called as ``loss(model, batch)``; returns the mean over the sequences, or one loss a sequence ``(N,)``.
        layers: glob or globs over layer names.
        lengths: (N,) steps of each sequence that are no padding.
        mask: (N, T) True for the steps that count.
        max_steps: about how many sequence steps are followed back.

    Returns:
        By layer name ``(H,)``, in the loss's unit; NaN for layers on which it does not depend.

    Raises:
        TypeError: as `output_sensitivity`, or a loss that is no tensor.
        ValueError: as `output_sensitivity`.

    Source: Molchanov et al., Pruning Convolutional Neural Networks for Resource Efficient Inference (2017), eq. 7.
    """
    found = removable_layers(model, layers)
    runs = runs_of(model, found, held_out, forward=loss, lengths=lengths, mask=mask)
    with undisturbed(model):
        seen = observe(model, found, runs, max_steps)
        rows = complete(seen, of_losses(seen, absolute))
    return _by_name({key: values.mean(0) for key, values in rows.items()})


def first_order(
    model: nn.Module,
    held_out: Any,
    loss: Loss,
    *,
    layers: str | Sequence[str] = "*",
    max_steps: int | None = None,
) -> dict[str, Tensor]:
    """By how much the loss of each sequence would fall, to first order, with each cell at 0: ``sum_t h_t * dL/dh_t``.

    All cells cost one backward pass. It is an estimate only: check it against measured effects before it is trusted.

    Args:
        model: any torch module; it is left exactly as it is.
        held_out: batches for `loss`, targets included.
        loss: called as ``loss(model, batch)``; returns the mean over the sequences, or one loss a sequence ``(N,)``.
        layers: glob or globs over layer names.
        max_steps: about how many sequence steps are followed back; None: all.

    Returns:
        By layer name ``(N, H)``, signed, in the loss's unit. A layer whose calls have other numbers of rows than there
        are sequences has one line a row. NaN for layers on which the loss does not depend.

    Raises:
        TypeError: as `taylor`.
        ValueError: as `taylor`.
    """
    found = removable_layers(model, layers)
    with undisturbed(model):
        return _by_name(loss_changes(model, found, runs_of(model, found, held_out, forward=loss), max_steps=max_steps))


# On runs, inside `undisturbed(model)`


def sensitivities(  # noqa: PLR0913  # as `output_sensitivity`
    model: nn.Module,
    layers: Layers,
    runs: Sequence[Run],
    *,
    centred: bool = True,
    vectors: int = _VECTORS,
    seed: int = 0,
    output: Select | None = None,
    max_steps: int | None = HELD_OUT_STEPS,
    stages: Mapping[nn.Module, Stages] | None = None,
    snaps: Sequence[Snapshot] = (),
) -> dict[LayerKey, Tensor]:
    """`output_sensitivity` ``(H,)`` on runs; call it inside `undisturbed(model)`.

    With `stages` these modules are computed from these parts, some cells of which may be removed: they get NaN.
    With `snaps` of the layers as they are now, what these hold is not computed again.
    """
    seen = observe(model, layers, runs, max_steps, stages, snaps)
    means = step_means(seen) if centred else None
    squares = of_outputs(seen, lambda traced: signed(traced, means, traced.run.mask), vectors, seed, output)
    rows = {key: torch.cat([values for values, _ in parts]) for key, parts in squares.items()}
    return {key: values.mean(0).sqrt() for key, values in complete(seen, rows).items()}


def output_changes(
    model: nn.Module,
    layers: Layers,
    runs: Sequence[Run],
    *,
    vectors: int = _VECTORS,
    seed: int = 0,
    output: Select | None = None,
    max_steps: int | None = None,
) -> dict[LayerKey, Tensor]:
    """Each sequence's mean squared change of the output per element without a cell, to first order, ``(N, H)``.

    ``mean over v of (sum_t h_t * d(v . o) / dh_t) ** 2 / D`` over all steps, D being the values of a sequence's output;
    call it inside `undisturbed(model)`. Rows and NaN are as of `first_order`.
    """
    seen = observe(model, layers, runs, max_steps)
    squares = of_outputs(seen, lambda traced: signed(traced, None, None), vectors, seed, output)
    return complete(seen, {key: torch.cat([values / size for values, size in parts]) for key, parts in squares.items()})


def loss_changes(
    model: nn.Module, layers: Layers, runs: Sequence[Run], *, max_steps: int | None = None
) -> dict[LayerKey, Tensor]:
    """`first_order` ``(N, H)`` on runs whose score or result is a loss; call it inside `undisturbed(model)`."""
    seen = observe(model, layers, runs, max_steps)
    return complete(seen, of_losses(seen, lambda traced: signed(traced, None, None)))


def _by_name(scores: Mapping[LayerKey, Tensor]) -> dict[str, Tensor]:
    return {str(key): values for key, values in scores.items()}
