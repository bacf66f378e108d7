"""Which classes of modules are registered as recurrent, how they are read, and whether that gives what they put out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from lstm_monitor.core.weights import LayerWeights, Step

Weights = Callable[[Any], LayerWeights | Sequence[LayerWeights] | Mapping[str, LayerWeights]]
"""``weights(module)``: one record, or one a layer, or records by ``"l0"``, ``"l0_reverse"``, ``"l1"``."""
Start = Callable[[Any, int], Tensor | tuple[Tensor, ...]]
"""``state(cell, n)``: the state of n sequences before their first step."""

_TORCH = (nn.Module, nn.RNNBase, nn.RNNCellBase, nn.LSTM, nn.GRU, nn.RNN, nn.LSTMCell, nn.GRUCell, nn.RNNCell)
_REGISTERED: dict[type, Registration] = {}


@dataclass(frozen=True, eq=False)
class Registration:
    """How the modules of a class are read; in a ``with`` statement it ends with the block. See `register_cell`."""

    cls: type[nn.Module]
    weights: Weights | None
    step: Step | None
    state: Start | None
    input_size: int | None
    batch_first: bool | None
    verify: bool
    before: Registration | None = None

    def __enter__(self) -> Registration:
        """It holds already."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """What was registered before holds again."""
        if _REGISTERED.get(self.cls) is self:
            del _REGISTERED[self.cls]
            if self.before is not None:
                _REGISTERED[self.cls] = self.before

    def reads_sequences(self, module: nn.Module) -> bool:
        """Whether a module is known to take whole sequences: it says which axis is the batch."""
        return self.batch_first is not None or isinstance(getattr(module, "batch_first", None), bool)

    def is_batch_first(self, module: nn.Module) -> bool:
        """Whether sequences are ``(N, T, I)``: as registered, else as the module says, else not, as in torch."""
        return bool(getattr(module, "batch_first", False)) if self.batch_first is None else self.batch_first


def register_cell(
    cls: type[nn.Module],
    weights: Weights | None = None,
    step: Step | None = None,
    *,
    state: Start | None = None,
    input_size: int | None = None,
    batch_first: bool | None = None,
    verify: bool = True,
) -> Registration:
    """Have all modules of a class of your own characterized and monitored like nn.LSTM, from now on.

    For a module that computes an LSTM, GRU or RNN, but is written in another way, give `weights`: then everything is
    measured as with torch's own. For any other recurrence give `step`: then there are step and sine responses (coupled
    and alone: that takes H times as long), activity and drift, but no gates. In both cases cells are ranked by std and
    outgoing weights, and they cannot be removed: `ablation_study`, `capacity_study` and output sensitivity leave these
    modules out, `ablated` and `prune` refuse them.

    What is inside a registered module belongs to it and is not looked at. Register at import time where processes are
    spawned. Registering a class again replaces what was said before.

    Args:
        cls: the class; its subclasses too, where they are not registered themselves. It takes one step of inputs
            ``(N, I)`` or whole sequences, and these inputs (or a packed sequence) first, a state second, if at all.
        weights: ``weights(module)`` returns a `LayerWeights` in torch's layout and order of gates; for several layers
            a list of them, or a dict with the keys "l0", "l0_reverse", "l1". With a projection ``weight_hh`` is
            ``(G*H, P)``, as in torch. Live or computed tensors; the module must not be changed.
        step: ``step(cell, inputs, state)`` with inputs ``(N, I)`` returns ``(hidden, new_state)``, hidden ``(N, H)``.
            The state is a tensor or a tuple of tensors ``(N, ...)``. The state of one cell is its column,
            ``part[:, h]``, in all parts ``(N, H, ...)``; other parts are shared. The cell is a detached copy in eval
            mode. Only the first two parts of a given state are known: with more, sequences start as `state` says.
        state: ``state(cell, n)`` returns the state before the first step; by default zeros ``(n, H)``, H being the
            cell's ``hidden_size``, ``state_size`` or ``units``. For `step` only.
        input_size: features that a cell reads; needed where there is no held-out data and no ``cell.input_size``.
        batch_first: whether whole sequences are ``(N, T, I)``; by default what ``module.batch_first`` says, else not.
        verify: compare what `weights` or `step` gives on held-out data with what the module put out, at each check.
            False where its outputs are not its hidden states.

    Returns:
        The registration; ``with register_cell(...):`` ends it with the block, `unregister_cell` at any time.

    Raises:
        TypeError: `cls` is no class of modules, `weights`, `step` or `state` no function.
        ValueError: both or neither of `weights` and `step`; `state` without `step`; a class of torch's own; an
            `input_size` under 1.

    Example:
        >>> import torch, lstm_monitor as lm
        >>> class Leaky(torch.nn.Module):
        ...     def __init__(self, features, hidden_size):
        ...         super().__init__()
        ...         self.hidden_size, self.mix = hidden_size, torch.nn.Linear(features + hidden_size, hidden_size)
        ...     def forward(self, x, h):
        ...         return 0.9 * h + 0.1 * torch.tanh(self.mix(torch.cat([x, h], dim=1)))
        >>> def step(cell, x, h):
        ...     h = cell(x, h)
        ...     return h, h
        >>> with register_cell(Leaky, step=step, input_size=3):
        ...     report = lm.characterize(torch.nn.ModuleDict({"leaky": Leaky(3, 8)}))
        >>> report["leaky"].hidden_size
        8
    """
    _check_class(cls)
    _check_functions(weights, step, state)
    if input_size is not None and (isinstance(input_size, bool) or not isinstance(input_size, int) or input_size < 1):
        raise ValueError(f"input_size={input_size!r} must be an integer of at least 1: the features that a cell reads")
    before = _REGISTERED.get(cls)
    _REGISTERED[cls] = Registration(cls, weights, step, state, input_size, batch_first, verify, before)
    return _REGISTERED[cls]


def unregister_cell(cls: type[nn.Module]) -> None:
    """Forget what was registered for a class.

    Raises:
        ValueError: nothing was.
    """
    if cls not in _REGISTERED:
        names = ", ".join(known.__name__ for known in _REGISTERED) or "nothing"
        raise ValueError(f"cls={cls!r} is not registered; registered: {names}")
    del _REGISTERED[cls]


def registration_of(module: nn.Module) -> Registration | None:
    """What was registered for the class of a module, or for the nearest class that it inherits from."""
    return next((_REGISTERED[cls] for cls in type(module).__mro__ if cls in _REGISTERED), None) if _REGISTERED else None


def _check_class(cls: Any) -> None:
    if not isinstance(cls, type) or not issubclass(cls, nn.Module):
        given = f"a {type(cls).__name__} object" if isinstance(cls, nn.Module) else repr(cls)
        raise TypeError(f"cls is {given}, no class of modules; give the class itself, such as MyCell")
    if cls in _TORCH:
        raise ValueError(f"cls={cls.__name__} is torch's own; give the class of your cell, not what it is derived from")


def _check_functions(weights: Any, step: Any, state: Any) -> None:
    for name, function in (("weights", weights), ("step", step), ("state", state)):
        if function is not None and not callable(function):
            raise TypeError(f"{name}={function!r} is no function; see the example in help(lstm_monitor.register_cell)")
    if (weights is None) == (step is None):
        given = "neither was" if weights is None else "both were"
        raise ValueError(
            f"weights= or step=: {given} given; give weights= for an LSTM, GRU or RNN written in another way, step= "
            "for any other recurrence"
        )
    if state is not None and step is None:
        raise ValueError("state= was given with weights=, where the states are torch's; leave it out, or give step=")


_WITHIN = {torch.float64: 1e-6, torch.float32: 2e-3}
_WITHIN_HALF = 5e-2


def check_outputs(registration: Registration, name: str, ours: Tensor, theirs: Tensor, mask: Tensor) -> None:
    """Compare ``ours (N, T, W)`` with the first sequences that the module put out, over the steps in ``mask (N, T)``.

    Where the widths differ, the module does something more with its hidden states, and nothing can be compared.

    Raises:
        ValueError: they differ by more than the precision of the module's outputs explains, with by how much.
    """
    rows, steps, width = theirs.shape
    if width != ours.shape[-1]:
        return
    counted = mask[:rows, :steps].to(ours.device)
    expected = theirs.to(ours)[counted]
    difference = (ours[:rows, :steps][counted] - expected).abs()
    size = float(expected.abs().max()) if len(expected) else 0.0
    largest = float(difference.max()) if len(expected) else 0.0
    if not largest <= _WITHIN.get(theirs.dtype, _WITHIN_HALF) * size + 1e-6:
        given = "weights" if registration.weights is not None else "step"
        raise ValueError(
            f"{name}: {given}= registered for {registration.cls.__name__} does not give what the module puts out on "
            f"the held-out data: they differ by up to {largest:.3g}, of values up to {size:.3g}. Look at the order of "
            "the gates, the biases, the state at the start, and whether sequences are batch_first=; give verify=False "
            "where the module's outputs are not its hidden states"
        )


def runs_steps(model: nn.Module) -> bool:
    """Whether a module of the model is run by a registered step, the user's own code."""
    known = (registration_of(module) for module in model.modules())
    return any(registration is not None and registration.step is not None for registration in known)
