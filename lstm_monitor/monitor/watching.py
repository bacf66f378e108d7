"""Watch a training whose loop is not yours: checks hang on the steps of torch's optimizers."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from weakref import WeakSet

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils.hooks import RemovableHandle

from lstm_monitor.core.guard import switched_off, tell
from lstm_monitor.layers.finding import find_layers
from lstm_monitor.layers.inner_calls import InnerHandle
from lstm_monitor.monitor.budget import BUDGET
from lstm_monitor.monitor.monitor import LSTMMonitor
from lstm_monitor.monitor.schedule import Schedule
from lstm_monitor.snapshots.recorder import GuardedRecorder
from lstm_monitor.snapshots.recording import Recording

Source = nn.Module | Callable[[], nn.Module | None] | None


@contextmanager
def watch_optimizer(
    model: Source = None,
    held_out: Any = None,
    *,
    optimizer: Optimizer | None = None,
    every_n_steps: int | Schedule = 100,
    budget: float | None = BUDGET,
    **options: Any,
) -> Iterator[LSTMMonitor]:
    """Inside, trainings are watched through the steps of their optimizer: for libraries that take no callback.

    The monitor counts the steps of optimizers that hold parameters of the model, checks before the first of them, after
    every n-th, and at the end. Everything is taken off at the end, also after an error or Ctrl-C; the training is left
    as it is without. Epochs are not known. One model is watched: the first whose training is seen, if none is named.

    Without `held_out` the checks use what the recurrent layers receive in the training itself, until the first step (or
    the second, where the model is found, or run, in the first only): the first check is made then. No ranking or
    ablation that needs the network's output can be made on that.

    Args:
        model: the module that trains; a function that returns it, or None as long as there is none, asked at each step;
            or None: the outermost module with a recurrent layer that holds parameters of the optimizer that steps.
        held_out: data on which to set the operating point and measure activity and gates; see `characterize`.
        optimizer: count only the steps of this one; by default of all that hold parameters of the model, so that two
            optimizers for one model count two steps.
        every_n_steps: check after every n-th optimizer step, or a schedule of their number. Steps that a gradient
            scaler leaves out are none.
        budget: share of the training time that periodic checks may take; where they would take more, fewer are made.
            None checks whenever one is due.
        options: as of `LSTMMonitor`: sinks, ablation, layers, rank_by, forward, output, lengths, mask, horizon,
            held_out_steps, thresholds, on_error, ...

    Yields:
        The monitor; afterwards its ``report`` is the last report.

    Raises:
        TypeError: a model or an optimizer of another type; an option that `LSTMMonitor` does not have.
        ValueError: as `LSTMMonitor`; epochs are asked for.

    Example:
        >>> import torch
        >>> def train():  # a library's function: the model is its own
        ...     model = nn.LSTM(3, 4)
        ...     optimizer = torch.optim.Adam(model.parameters())
        ...     for _ in range(5):
        ...         optimizer.zero_grad()
        ...         model(torch.randn(6, 2, 3))[0].sum().backward()
        ...         optimizer.step()
        >>> with watch_optimizer(every_n_steps=2, budget=None) as monitor:
        ...     train()
        >>> monitor.steps, monitor.checks, str(monitor.report.layers[0].key)
        (5, 4, 'l0')
    """
    if "every_n_epochs" in options:
        raise ValueError("every_n_epochs= was given, but an optimizer knows no epochs; give every_n_steps=")
    _check_types(model, optimizer)
    monitor = LSTMMonitor(None, held_out, every_n_steps=every_n_steps, budget=budget, **options)
    watch = _Watch(monitor, model, optimizer)
    try:
        with ExitStack() as stack:
            stack.callback(watch.off)
            watch.on()
            yield monitor
    except BaseException:
        monitor.close()
        raise
    watch.finish()


def _check_types(model: object, optimizer: object) -> None:
    if model is not None and (isinstance(model, type) or not callable(model)):
        raise TypeError(
            f"model={model!r} is no torch.nn.Module; give the module that trains, a function that returns it, or None"
        )
    if optimizer is not None and not hasattr(optimizer, "param_groups"):
        raise TypeError(f"optimizer={optimizer!r} is no torch optimizer; give the one that steps, or None for any")


class _Watch:
    """The hooks on optimizers, and what they do."""

    def __init__(self, monitor: LSTMMonitor, source: Source, optimizer: Optimizer | None) -> None:
        self.monitor, self.source, self.optimizer = monitor, source, optimizer
        self.recordings: dict[nn.Module, Recording] | None = None
        self._recorder: GuardedRecorder | None = None
        self._handles: list[RemovableHandle] = []
        self._others: WeakSet[Optimizer] = WeakSet()
        self._began = self._stepping = self._waited = False

    # On and off

    def on(self) -> None:
        """Hang on all optimizers; a model that is known is taken at once.

        The compiler would look into our hooks where it compiles a step. Making an optimizer imports it, too.
        """
        if switched_off():
            return
        before, after = torch.compiler.disable(self._before), torch.compiler.disable(self._after)
        if isinstance(self.source, nn.Module):
            self._do("The start of the training", lambda: self._take(self.source))
        self._handles += [register_optimizer_step_pre_hook(before), register_optimizer_step_post_hook(after)]

    def off(self) -> None:
        """Nothing of ours is left."""
        for handle in self._handles:
            handle.remove()
        self._stop_recording()

    def finish(self) -> None:
        """The last check and the ablation."""
        monitor = self.monitor
        if monitor.guard.idle:
            monitor.close()
        elif monitor.model is None:
            monitor.close()
            tell(
                "lstm_monitor saw no step of an optimizer that holds a recurrent layer's parameters, so nothing was "
                "checked; give watch_optimizer(model=...) the module that trains, and train inside the context"
            )
        else:
            if monitor.checked_at != monitor.progress:
                self._check()
            monitor.on_train_end()

    def _do(self, doing: str, act: Callable[[], object]) -> None:
        if not self.monitor.guard.idle:
            with self.monitor.guard.protect(doing):
                act()

    # Hooks

    def _before(self, optimizer: Optimizer, *_: Any) -> None:
        self._do("Watching the optimizer", lambda: self._before_step(optimizer))

    def _after(self, optimizer: Optimizer, *_: Any) -> None:
        self._do("Watching the optimizer", lambda: self._after_step(optimizer))

    def _before_step(self, optimizer: Optimizer) -> None:
        if self._is_ours(optimizer):
            self._stepping = True
            if not self._began:
                self._begin()

    def _after_step(self, optimizer: Optimizer) -> None:
        """Count a step once, also where one optimizer's step calls another's."""
        monitor = self.monitor
        if self._stepping and self._is_ours(optimizer):
            self._stepping = False
            monitor.steps += 1
            if self._began and monitor.due(monitor.steps_due, monitor.steps - 1, monitor.steps):
                self._check()

    def _is_ours(self, optimizer: Optimizer) -> bool:
        if self.optimizer is not None and optimizer not in (self.optimizer, getattr(self.optimizer, "optimizer", None)):
            return False
        if self.monitor.model is None:
            self._take(self._found(optimizer))
        return self.monitor.model is not None and (self.optimizer is not None or _holds(optimizer, self.monitor.model))

    # The model

    def _found(self, optimizer: Optimizer) -> nn.Module | None:
        if self.source is not None:
            return self.source()
        if optimizer in self._others:
            return None
        model = _trained_by(optimizer)
        if model is None:
            self._others.add(optimizer)
        return model

    def _take(self, model: Any) -> None:
        if model is None:
            return
        if not isinstance(model, nn.Module):
            raise TypeError(f"model: the function returned {type(model).__name__}; return a torch.nn.Module, or None")
        self.monitor.set_model(model)
        self.monitor.clock.start()
        if self.monitor.held_out is None:
            modules = dict.fromkeys(layer.module for layer in find_layers(model, self.monitor.layers))
            self._recorder = GuardedRecorder(modules, self.monitor.held_out_steps, self.monitor.guard)
            self._handles += self._recorder.attach()
        elif isinstance(self.source, nn.Module):
            self._begin()

    def _begin(self) -> None:
        """The first check, once it is known what the layers receive."""
        if self._recorder is not None:
            self._stop_recording()
            if not self.recordings and not self._waited:
                self._waited = True
                self._handles += self._recorder.attach()
                return
            self._recorder = None
        self._began = True
        self._check()

    def _stop_recording(self) -> None:
        if self._recorder is not None:
            self._recorder.detach([handle for handle in self._handles if isinstance(handle, InnerHandle)])
            self.recordings = self._recorder.recordings() or None

    def _check(self) -> None:
        self.monitor.check(recordings=self.recordings)


def _holds(optimizer: Optimizer, model: nn.Module) -> bool:
    own = set(map(id, model.parameters()))
    return any(id(parameter) in own for group in optimizer.param_groups for parameter in group["params"])


def _trained_by(optimizer: Optimizer) -> nn.Module | None:
    """The outermost module with a recurrent layer that holds parameters of an optimizer, of all that there are."""
    alive = [thing for thing in gc.get_objects() if issubclass(type(thing), nn.Module) and "_modules" in vars(thing)]
    holding = [module for module in alive if _holds(optimizer, module)]
    inside = {id(part) for module in holding for part in list(module.modules())[1:]}
    return next((module for module in holding if id(module) not in inside and _is_recurrent(module)), None)


def _is_recurrent(model: nn.Module) -> bool:
    try:
        return bool(find_layers(model))
    except ValueError:
        return False
