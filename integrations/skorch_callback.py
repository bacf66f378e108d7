"""The monitor as a callback of skorch."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sized
from typing import Any

from skorch.callbacks import Callback
from skorch.dataset import unpack_data
from torch.utils.data import DataLoader

from lstm_monitor.core.undisturbed import random_states
from lstm_monitor.integrations._trainer_callback import Hosted, MonitorOptions
from lstm_monitor.monitor.monitor import LSTMMonitor
from lstm_monitor.report.keys import PREFIX

SEQUENCES = 64


class SkorchLSTMMonitor(Hosted, Callback):  # type: ignore[misc]  # skorch has no types
    """Watches the recurrent layers of a skorch net while it trains.

    ``NeuralNetRegressor(Module, callbacks=[SkorchLSTMMonitor(sinks=[TensorBoardSink("runs/a")])])``. Takes the options
    of `LSTMMonitor`, which is also where they are explained; as parameters of the net too, such as
    ``callbacks__SkorchLSTMMonitor__every_n_epochs``. Steps are training batches.

    Held-out data are the first 64 sequences of the net's own validation split, unless `held_out` is given. A key that
    another callback monitors, such as ``EarlyStopping(monitor="lstm_monitor/lstm.l0/gates/saturation/p50")`` listed
    after this one, is written to the net's history at each epoch, always finite. A pickled net, or ``partial_fit``,
    goes on where it was.

    Raises:
        TypeError: an option that does not exist.
        ValueError: a value that is not allowed.
    """

    finds_held_out = True

    def initialize(self) -> SkorchLSTMMonitor:
        """Forget the training before: the net starts anew."""
        self.close()
        self._left = None
        return self

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Every option by name, as scikit-learn's ``clone`` and grid searches need them."""
        return DEFAULTS | self.options

    def set_params(self, **params: Any) -> SkorchLSTMMonitor:
        """Change options; they hold from the next training on.

        Raises:
            TypeError: an option that does not exist.
            ValueError: a value that is not allowed.
        """
        options: Any = {**self.options, **params}
        self.check_options(options)
        self.options = options
        return self

    def on_train_begin(self, net: Any, X: Any = None, y: Any = None, **kwargs: Any) -> None:  # noqa: N803  # skorch's name
        """Begin; the first check is made when the split is known."""
        rows = net.history
        steps = sum(row.get("train_batch_count", 0) for row in rows)
        self.begin(net.module_, steps, len(rows), go_on=len(rows) > 0)

    def on_epoch_begin(self, net: Any, dataset_train: Any = None, dataset_valid: Any = None, **kwargs: Any) -> None:
        """Take held-out data from the validation split, and make the first check."""
        self.do("Taking held-out data", lambda: self._take_held_out(net, dataset_valid))
        self.first()

    def on_batch_end(self, net: Any, batch: Any = None, training: bool = False, **kwargs: Any) -> None:
        """Count a step, and check if one is due."""
        if training:
            self.stepped()

    def on_epoch_end(self, net: Any, dataset_train: Any = None, dataset_valid: Any = None, **kwargs: Any) -> None:
        """Count an epoch, check if one is due, and write what others monitor to the history."""
        self.epoch_ended()
        for key, value in self.watched(_watched_keys(net)).items():
            net.history.record(key, value)

    def on_train_end(self, net: Any, X: Any = None, y: Any = None, **kwargs: Any) -> None:  # noqa: N803  # skorch's name
        """Make the last check and the ablation check, and close the sinks; after Ctrl-C too."""
        self.finish()

    def _take_held_out(self, net: Any, dataset: Any) -> None:
        monitor = self.monitor
        if monitor is not None and monitor.held_out is None and isinstance(dataset, Sized) and len(dataset) > 0:
            with random_states():
                batch = _first_sequences(net, dataset)
            if batch is not None:
                monitor.held_out, monitor.forward = [batch], monitor.forward or infer


def infer(module: Any, x: Any) -> Any:
    """The module as skorch calls it: a dict by name, all else as one argument."""
    return module(**x) if isinstance(x, Mapping) else module(x)


def _first_sequences(net: Any, dataset: Any) -> Any:
    loader = net.get_iterator(dataset, training=False)
    if not isinstance(loader, DataLoader) or not hasattr(dataset, "__getitem__"):
        return None
    items = [dataset[i] for i in range(min(SEQUENCES, len(dataset)))]
    return unpack_data(loader.collate_fn(items))[0]


def _watched_keys(net: Any) -> dict[str, str]:
    found = {getattr(callback, "monitor", None): callback for _, callback in net.callbacks_}
    ours = {key: callback for key, callback in found.items() if isinstance(key, str) and key.startswith(f"{PREFIX}/")}
    return {key: "min" if getattr(callback, "lower_is_better", True) else "max" for key, callback in ours.items()}


def _defaults() -> dict[str, Any]:
    arguments = inspect.signature(LSTMMonitor).parameters
    return {name: arguments[name].default for name in MonitorOptions.__annotations__ if name in arguments}


DEFAULTS = _defaults()
