"""Train a network at several sizes, measure each, and say which size is enough; where one fails, the others go on."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from lstm_monitor.characterization import check_horizon
from lstm_monitor.core.errors import choose
from lstm_monitor.core.terms import Better
from lstm_monitor.core.undisturbed import random_states, undisturbed
from lstm_monitor.report.ablation.verdict import HARMLESS
from lstm_monitor.report.sinks import FanOut, Sink
from lstm_monitor.snapshots.held_out import Forward
from lstm_monitor.snapshots.outputs import Select
from lstm_monitor.studies.capacity.measuring import HeldOut, measure_network
from lstm_monitor.studies.capacity.records import Trained
from lstm_monitor.studies.capacity.result import CapacityStudy


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


Build = Callable[[int], nn.Module]
Train = Callable[[nn.Module], Any]
Evaluate = Callable[[nn.Module], Any]
Sinks = Callable[[int], Sequence[Sink]]
Progress = Callable[[str], object]

_NAN = float("nan")


@dataclass(eq=False)
class Plan:
    """What is done at every size (as `capacity_study` describes it), and notes of what went wrong."""

    build: Build
    train: Train
    evaluate: Evaluate | None
    data: HeldOut
    sinks: Sinks | None = None
    progress: Progress | None = None
    notes: list[str] = field(default_factory=list)

    def rehearse(self, sizes: Sequence[int], seed: int) -> None:
        """Everything but the training, so that a mistake shows before the first one; its error is raised."""
        for size in sizes:
            model = self._built(size, seed)
            if size == sizes[0] and not any(map(nn.parameter.is_lazy, model.parameters())):
                self.data.try_out(model)
                if self.evaluate is not None:
                    _evaluated(self.evaluate, model)

    def size(self, size: int, seeds: Sequence[int]) -> Iterator[Trained]:
        """One training a seed; the reports are written to the size's sinks, which are closed whatever happens."""
        sink = FanOut(self._attempt(f"size {size}", "making its sinks", partial(self._sinks, size)) or [])
        try:
            for number, seed in enumerate(seeds):
                name = f"size {size}" if len(seeds) == 1 else f"size {size}, seed {seed}"
                found = self._training(size, seed, name)
                if found.report is not None:
                    self._attempt(name, "writing its report", partial(sink.write, replace(found.report, step=number)))
                yield found
        finally:
            self._attempt(f"size {size}", "closing its sinks", sink.close)

    def _built(self, size: int, seed: int) -> nn.Module:
        torch.manual_seed(seed)
        _seed_others(seed)
        model = self.build(size)
        self.data.check(model, size)
        return model

    def _sinks(self, size: int) -> list[Sink]:
        return [] if self.sinks is None else list(self.sinks(size))

    def _training(self, size: int, seed: int, name: str) -> Trained:
        """Build, train, evaluate and measure one network."""
        attempt, began = partial(self._attempt, name), time.perf_counter()
        model = attempt("building", partial(self._built, size, seed))
        if model is None:
            return Trained(size, seed, _NAN, _NAN, 0)
        built = time.perf_counter()
        done = attempt("training", lambda: (self.train(model),))
        seconds = time.perf_counter() - built
        if done is None:
            return Trained(size, seed, _NAN, seconds, _count(model))
        model = done[0] if isinstance(done[0], nn.Module) else model
        trained = Trained(size, seed, self._score(model, done[0], name), seconds, _count(model))
        found = measure_network(model, self.data, trained, attempt)
        self._report(f"{name}: trained in {seconds:.3g} s, {time.perf_counter() - began - seconds:.3g} s of measuring, "
                     f"score {found.score:.4g}")  # fmt: skip
        return found

    def _score(self, model: nn.Module, returned: Any, name: str) -> float:
        """The score of a trained network; NaN, with a note, where it has none that is finite."""
        if self.evaluate is not None:
            score = self._attempt(name, "evaluate", partial(_evaluated, self.evaluate, model))
        else:
            score = _number(returned)
            if score is None and returned is not None and not isinstance(returned, nn.Module):
                self.notes.append(f"{name}: train returned {type(returned).__name__}, neither a number nor a module")
        if score is not None and not math.isfinite(score):
            self.notes.append(f"{name}: the score is {score}")
        return score if score is not None and math.isfinite(score) else _NAN

    def _attempt(self, name: str, what: str, act: Callable[[], Any]) -> Any:
        """What `act` returns; None, with a note, if it raises an error."""
        try:
            return act()
        except Exception as error:
            self.notes.append(f"{name}: {what} failed: {type(error).__name__}: {error}")
            self._report(self.notes[-1])
            return None

    def _report(self, line: str) -> None:
        if self.progress is not None:
            self.progress(line)


def _seed_others(seed: int) -> None:
    """Python's and numpy's global generators; whoever calls this puts them back."""
    import numpy as np

    random.seed(seed)
    np.random.seed(seed)


def _evaluated(evaluate: Evaluate, model: nn.Module) -> float:
    """The score by the user's function, in eval mode and without gradients."""
    with undisturbed(model):
        value = evaluate(model)
    score = _number(value)
    if score is None:
        raise TypeError(f"evaluate returned {type(value).__name__}; it must return one number, such as an accuracy")
    return score


def _number(value: Any) -> float | None:
    """A number, or an array or tensor of one, as float; None for anything else."""
    if isinstance(value, Tensor) or type(value).__module__ == "numpy":
        return float(value) if getattr(value, "ndim", 1) == 0 or value.shape == (1,) else None
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _count(model: nn.Module) -> int:
    """How many numbers the network's parameters hold."""
    return sum(parameter.numel() for parameter in model.parameters() if not nn.parameter.is_lazy(parameter))
