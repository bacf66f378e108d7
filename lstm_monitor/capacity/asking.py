"""Train a network at several sizes, measure each, and say which size is enough."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from lstm_monitor.capacity.measuring import HeldOut
from lstm_monitor.capacity.plan import Build, Evaluate, Plan, Progress, Sinks, Train
from lstm_monitor.capacity.result import CapacityStudy
from lstm_monitor.characterization import check_horizon
from lstm_monitor.errors import choose
from lstm_monitor.heldout import Forward
from lstm_monitor.outputs import Select
from lstm_monitor.records import Better
from lstm_monitor.study.trust import HARMLESS
from lstm_monitor.undisturbed import random_states


def capacity_study(  # noqa: PLR0913  # one argument for each thing that a user may choose
    build: Build,
    train: Train,
    sizes: Sequence[int] = (8, 16, 32, 64, 128),
    *,
    held_out: Any,
    evaluate: Evaluate | None = None,
    better: Better = "higher",
    tolerance: float | None = None,
    seeds: int | Sequence[int] = 1,
    harmless: float = HARMLESS,
    layers: str | Sequence[str] = "*",
    forward: Forward | None = None,
    lengths: Any = None,
    mask: Any = None,
    output: Select | None = None,
    horizon: int | None = None,
    sinks: Sinks | None = None,
    progress: Progress | None = None,
) -> CapacityStudy:
    """Train a network at each size, characterize it, remove each of its cells once, and recommend a size.

    Before the first training every size is built once, and the first network is run and evaluated untrained, so that
    mistakes show at once. From then on what fails for one size is noted in the result, and the other sizes go on; only
    an interruption (Ctrl-C) ends the study. The random states of torch, numpy and Python are set to the seed before
    each network is built, and put back in the end.

    Args:
        build: ``build(size)`` returns a fresh network whose recurrent layer has so many cells.
        train: ``train(model)`` trains it in place. A number that it returns is the score (unless `evaluate` is given),
            a module takes the place of the model.
        sizes: ascending.
        held_out: data that the network was not trained on, as for `characterize`. Removing every cell runs the network
            on all of it once a cell, so a few hundred sequences are a good choice.
        evaluate: ``evaluate(model)`` returns the score, called with the model in eval mode and without gradients.
        better: "higher" or "lower" scores are better; "lower" for a loss.
        tolerance: by how much a score may be worse than the best to be as good; see `advise` for the default.
        seeds: how many trainings a size (seeds 0, 1, ...), or the seeds.
        harmless: cells do not matter whose removal changes the output by less (mean squared, as a share of its variance
            over the held-out sequences).
        layers: glob or globs over layer names.
        forward: called as ``forward(model, batch)`` where the model takes its batch in another way.
        lengths: (N,) steps of each sequence that are no padding; a list of such for a list of batches.
        mask: (N, T) True for the steps that count; a list of such for a list of batches.
        output: takes the output tensor from what the model returns; by default its first floating-point tensor.
        horizon: steps of the step responses; by default as many as the cells of each network need.
        sinks: ``sinks(size)`` returns the sinks of that size, such as ``[TensorBoardSink(f"runs/size{size}")]``. They
            get the report of each seed (its ``step`` is the seed's number, from 0), and are closed.
        progress: called with a line after each training, such as ``print``.

    Returns:
        The study: `recommendation` and `reason`, ``to_pandas()``, ``plot()``, ``in_words()``.

    Raises:
        TypeError: `build` returns no module.
        ValueError: sizes that are no ascending integers, a network without a layer of the size asked for, held-out data
            that do not fit, options out of range.
        RuntimeError: no training of any size gave a score or a measurement.

    Example:
        >>> import lstm_monitor as lm, torch
        >>> study = capacity_study(lambda size: torch.nn.LSTM(2, size), lambda model: 1.0, [2, 4],
        ...                        held_out=torch.randn(12, 8, 2), horizon=16)
        >>> study.recommendation
        2
    """
    _check_options(better, tolerance, harmless)
    check_horizon(horizon)
    sizes, numbers = _sizes(sizes), _seeds(seeds)
    data = HeldOut(held_out, layers, forward, lengths, mask, output, horizon)
    plan = Plan(build, train, evaluate, data, sinks, progress)
    with random_states():
        plan.rehearse(sizes, numbers[0])
        trained = [item for size in sizes for item in plan.size(size, numbers)]
    if all(item.score != item.score and not item.layers for item in trained):
        raise RuntimeError(f"nothing is known of any size: {'; '.join(plan.notes)}")
    return CapacityStudy(tuple(trained), better, tolerance, harmless, tuple(plan.notes))


def _check_options(better: str, tolerance: float | None, harmless: float) -> None:
    choose("better", better, ("higher", "lower"))
    if tolerance is not None and not tolerance >= 0:
        raise ValueError(f"tolerance={tolerance!r} must be 0 or more, in the unit of the score, or None")
    if not harmless > 0:
        raise ValueError(f"harmless={harmless!r} must be above 0, a share of the variance of the output, such as 0.001")


def _sizes(sizes: Sequence[int]) -> list[int]:
    """The sizes as a list; ValueError unless they are ascending integers of at least 1."""
    found = list(sizes)
    whole = all(isinstance(size, int) and not isinstance(size, bool) and size > 0 for size in found)
    if not found or not whole or any(a >= b for a, b in pairwise(found)):
        raise ValueError(f"sizes={sizes!r} must be ascending integers of at least 1, such as [8, 16, 32, 64, 128]")
    return found


def _seeds(seeds: int | Sequence[int]) -> list[int]:
    """The seeds as a list, 0, 1, ... for a number of them; ValueError unless all differ and numpy takes them."""
    found = list(range(seeds)) if isinstance(seeds, int) else list(seeds)
    fits = all(isinstance(seed, int) and 0 <= seed < 2**32 for seed in found)
    if isinstance(seeds, bool) or not found or not fits or len(set(found)) < len(found):
        raise ValueError(f"seeds={seeds!r} must be how many trainings a size, such as 3, or different seeds: [0, 1, 2]")
    return found
