"""The trainings of a capacity study, one after the other: what fails is noted, and the others go on."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lstm_monitor.capacity.measuring import HeldOut, measure_network
from lstm_monitor.capacity.records import Trained
from lstm_monitor.sinks import FanOut, Sink
from lstm_monitor.undisturbed import undisturbed

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
