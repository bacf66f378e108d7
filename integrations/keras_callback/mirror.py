"""A Keras model as a module of torch: modules with its recurrent weights, and a forward that runs all else in Keras."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lstm_monitor.core.undisturbed import eval_mode, tensors_put_back
from lstm_monitor.integrations.keras_callback.calls import computed_by, to_torch
from lstm_monitor.integrations.keras_callback.layers import KerasLayers, Stack, find_keras_layers
from lstm_monitor.integrations.keras_callback.weights import as_array
from lstm_monitor.integrations.keras_callback.weights import to_torch as torch_weights
from lstm_monitor.snapshots.runs import Run

Pack = Callable[[tuple[Tensor, ...]], Any]


class KerasMirror(nn.Module):
    """Copies of a Keras model's recurrent weights, at the model's paths, in torch's own modules.

    Called with the tensors of a batch it runs the Keras model on them, without any effect on it, its recurrent layers
    computed here; derivatives come back where torch is Keras's backend. Dense layers are there as modules as well, for
    what they read; they are not called. `layers` says where all that comes from.
    """

    def __init__(self, model: Any, pack: Pack) -> None:
        """Copy the weights as they are now; `pack` makes what the model takes from the tensors of a batch.

        Raises:
            ValueError: no recurrent layer that is supported.
        """
        super().__init__()
        self.layers: KerasLayers = find_keras_layers(model)
        self.stacks = {stack.path: stack for site in self.layers.sites for stack in site.stacks}
        self._run = partial(_run, (model,), pack)  # in a tuple: Keras's models are modules where torch is the backend
        self._device = _device_of(model)
        for path in self.layers.order:
            stack = self.stacks.get(path)
            self._put(path, self._reader(path) if stack is None else self._stack(stack))

    def forward(self, *tensors: Tensor) -> Any:
        """What the Keras model returns, as tensors of torch.

        Raises:
            ValueError: derivatives are to be taken, and torch is not Keras's backend.
        """
        import keras

        if torch.is_grad_enabled() and keras.backend.backend() != "torch":
            raise ValueError(f"no derivative comes back through Keras on the backend {keras.backend.backend()!r}")
        with computed_by(self.layers, self.modules_by_path()):
            return self._run(tensors)

    def runs(self, batches: Sequence[tuple[Tensor, ...]], masks: Sequence[Tensor] | None) -> tuple[Run, ...]:
        """The model on each batch."""
        valid = [None] * len(batches) if masks is None else masks
        return tuple(Run(partial(self, *batch), mask) for batch, mask in zip(batches, valid, strict=True))

    def modules_by_path(self) -> dict[str, nn.RNNBase]:
        """The module of each stack."""
        return {path: self.get_submodule(path) for path in self.stacks}  # type: ignore[misc]  # all are RNNBase

    def _put(self, path: str, module: nn.Module) -> None:
        *parents, name = path.split(".")
        owner: nn.Module = self
        for parent in parents:
            if parent not in owner._modules:
                owner.add_module(parent, nn.Module())
            owner = owner.get_submodule(parent)
        owner.add_module(name, module)

    def _stack(self, stack: Stack) -> nn.Module:
        kind, cell = stack.kind, stack.cells[0][0]
        options: dict[str, Any] = {"num_layers": len(stack.cells), "bidirectional": len(stack.cells[0]) == 2}
        if kind.startswith("rnn"):
            options["nonlinearity"] = kind.removeprefix("rnn_")
        make = {"lstm": nn.LSTM, "gru": nn.GRU}.get(kind, nn.RNN)
        values = weights_of(stack)
        size = values["weight_ih_l0"].shape[1]
        module = make(size, cell.units, bias=cell.use_bias, batch_first=True, device="meta", **options)
        return _filled(module, values, self._device)

    def _reader(self, path: str) -> nn.Module:
        kernel = as_array(self.layers.readers[path].kernel)
        module = nn.Linear(kernel.shape[0], kernel.shape[1], bias=False, device="meta")
        return _filled(module, {"weight": kernel.T}, self._device)


def weights_of(stack: Stack) -> dict[str, np.ndarray[Any, Any]]:
    """The weights of a stack by the names of torch's parameters."""
    return {
        f"{name}{suffix}": value
        for suffix, cell in cells_of(stack)
        for name, value in torch_weights(stack.kind, cell).items()
    }


def cells_of(stack: Stack) -> Iterator[tuple[str, Any]]:
    """The cells of a stack with the endings of their parameters' names."""
    for index, directions in enumerate(stack.cells):
        for suffix, cell in zip(("", "_reverse"), directions, strict=False):
            yield f"_l{index}{suffix}", cell


def _filled(module: nn.Module, values: dict[str, np.ndarray[Any, Any]], device: torch.device) -> nn.Module:
    """A module from the meta device, with these values: making it drew no random numbers."""
    doubles = all(value.dtype == np.float64 for value in values.values())
    module.to_empty(device=device).to(torch.float64 if doubles else torch.float32)
    for name, parameter in module.named_parameters():
        parameter.data.copy_(torch.from_numpy(np.ascontiguousarray(values[name])))
        parameter.requires_grad_(False)
    return module.eval()


def _device_of(model: Any) -> torch.device:
    value = next((variable.value for variable in model.variables), None)
    return value.device if isinstance(value, Tensor) else torch.device("cpu")


def _run(holder: tuple[Any], pack: Pack, tensors: tuple[Tensor, ...]) -> Any:
    """The Keras model's output on a batch: its variables, seeds and modes stay as they are."""
    import keras

    (model,) = holder
    with keras.StatelessScope(), _modes_kept(model):
        outputs = model(pack(tensors), training=False)
    return keras.tree.map_structure(to_torch, outputs)


@contextmanager
def _modes_kept(model: Any) -> Iterator[None]:
    """Torch modules inside a Keras model in eval mode, and as before afterwards."""
    is_module = isinstance(model, nn.Module)
    with eval_mode(model) if is_module else nullcontext(), tensors_put_back(model) if is_module else nullcontext():
        yield
