"""One direction of one layer of a live module, and the list of those that were found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn

from lstm_monitor.core.records import Skipped
from lstm_monitor.core.terms import Kind, LayerKey
from lstm_monitor.core.weights import LayerWeights
from lstm_monitor.layers.computed_weights import computed, is_parameter
from lstm_monitor.layers.registered.registry import Registration
from lstm_monitor.layers.registered.weights import Place, mapped_weights


@dataclass(frozen=True, eq=False)
class Layer:
    """One direction of one layer of a live module; nothing is copied yet.

    Weights that are computed (weight norm, weight drop) are read as an evaluation would use them now; `running`: as the
    call that is running does. ``holder`` is the module that keeps their raw values, if any does.
    """

    key: LayerKey
    kind: Kind
    module: nn.Module
    holder: nn.Module | None = None
    running: bool = False

    @property
    def is_cell(self) -> bool:
        """Whether the module takes one step at a time (LSTMCell, GRUCell, RNNCell)."""
        return self.key.index is None

    @property
    def suffix(self) -> str:
        """The ending of this layer's parameter names, such as ``_l0_reverse``."""
        return "" if self.is_cell else f"_l{self.key.index}{'_reverse' if self.key.reverse else ''}"

    def parameter(self, name: str) -> Tensor | None:
        """The live tensor ``weight_ih``, ``weight_hh``, ``bias_ih``, ``bias_hh`` or ``weight_hr``; None if absent."""
        full = name + self.suffix
        if not self.running and not is_parameter(self.module, full):
            value = computed(self.module, full, self.holder)
            if value is not None:
                return value
        value = getattr(self.module, full, None)
        return value if isinstance(value, Tensor) else None

    @property
    def input_size(self) -> int | None:
        """I, the number of features that it reads; None where that is not known."""
        return self.weights().input_size

    def weights(self) -> LayerWeights:
        """The live weights as a record (not detached, the projection not folded)."""
        weight_ih, weight_hh = self.parameter("weight_ih"), self.parameter("weight_hh")
        assert weight_ih is not None
        assert weight_hh is not None
        zeros = weight_ih.new_zeros(weight_ih.shape[0])
        bias_ih, bias_hh = self.parameter("bias_ih"), self.parameter("bias_hh")
        return LayerWeights(
            self.kind,
            weight_ih,
            weight_hh,
            zeros if bias_ih is None else bias_ih,
            zeros if bias_hh is None else bias_hh,
            self.parameter("weight_hr"),
        )


@dataclass(frozen=True, eq=False)
class CustomLayer(Layer):
    """One direction of one layer of a module of a registered class, see `lstm_monitor.register_cell`."""

    registration: Registration = field(kw_only=True)

    @property
    def is_step(self) -> bool:
        """Whether it is run by the registered step; else it has weights in torch's layout."""
        return self.registration.step is not None

    @property
    def place(self) -> Place:
        """Its index and direction."""
        return self.key.index, self.key.reverse

    @property
    def input_size(self) -> int | None:
        """I, the number of features that it reads; None where that is not known."""
        if not self.is_step:
            return self.weights().input_size
        said = self.registration.input_size, getattr(self.module, "input_size", None)
        return next((size for size in said if isinstance(size, int)), None)

    def parameter(self, name: str) -> Tensor | None:
        """A tensor of its weights; None where it has none."""
        value = None if self.is_step else getattr(self.weights(), name)
        return value if isinstance(value, Tensor) else None

    def weights(self) -> LayerWeights:
        """What the registered ``weights=`` returns for it; TypeError where it is run by a step."""
        if self.is_step:
            raise TypeError(
                f"{self.key} is run by the step= that is registered for its class; it has no weights of torch's"
            )
        return mapped_weights(self.registration, self.module)[self.place]


@dataclass(frozen=True, eq=False)
class Layers(Sequence[Layer]):
    """The layers found, in the order of the module, and what was skipped and why."""

    found: tuple[Layer, ...]
    skipped: tuple[Skipped, ...] = ()

    def __getitem__(self, index):  # type: ignore[no-untyped-def]  # int -> Layer, slice -> tuple
        """The layer at a place."""
        return self.found[index]

    def __len__(self) -> int:
        """How many layers were found."""
        return len(self.found)

    def __repr__(self) -> str:
        """What was found and what was not, a line each."""
        lines = [f"{layer.key}: {layer.kind}, {layer.input_size or '?'} features" for layer in self.found]
        return "\n".join([*lines, *(f"not supported: {skipped}" for skipped in self.skipped)])
