"""Cut what reads a thinner layer, where runs of the model prove that nothing else reads the removed cells."""

from __future__ import annotations

import contextlib
import copy
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, is_dataclass
from functools import partial
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from lstm_monitor.core.undisturbed import undisturbed
from lstm_monitor.layers.finding import removable_layers
from lstm_monitor.snapshots.held_out import Forward
from lstm_monitor.snapshots.runs import call_model, check_initialized
from lstm_monitor.studies.pruning.torch_layers import Kept, Split, ThinCell, ThinRecurrent, become, flatten, over_data

Form = Literal["plain", "thin output"]
Forms = Mapping[str, Form]
Removed = dict[str, Tensor]
LARGE = 1e3
"""Far beyond what a cell gives, and small enough for half precision."""


class _NotExactError(Exception):
    """The removed cells are read by something that cannot be cut."""


def thin_readers(model: nn.Module, example: Any, forward: Forward | None) -> nn.Module:
    """The model with every full width gone that can be proven not to be needed; `model` may be changed or used in it.

    Args:
        model: with `ThinRecurrent` and `ThinCell` modules.
        example: a batch, or a list of batches.
        forward: how the model is run on a batch; None for the model's own call.

    Raises:
        ValueError: the model cannot be run on the example, or is not initialized yet.
    """
    check_initialized(model, "example")
    forms = {path: _forms(module) for path, module in model.named_modules() if _forms(module)}
    try:
        _run(model, example, forward)
    except Exception as error:
        raise ValueError(
            f"example: the model could not be run on it: {type(error).__name__}: {error}. A tensor is given as "
            "model(x), a tuple as model(*batch), a dict as model(**batch), each item of a list in turn; or give "
            "forward=lambda model, batch: ..."
        ) from error
    together = _attempt(model, {path: own[0] for path, own in forms.items()}, example, forward)
    if together is not None:
        return together
    for path, own in forms.items():
        tries = (_attempt(model, {path: form}, example, forward) for form in own)
        model = next((tried for tried in tries if tried is not None), model)
    return model


def _forms(module: nn.Module) -> tuple[Form, ...]:
    """What a wrapper could become, the thinnest first."""
    if isinstance(module, ThinCell):
        return ("plain",)
    if not isinstance(module, ThinRecurrent):
        return ()
    output: tuple[Form, ...] = () if module.output is None else ("thin output",)
    return output if isinstance(module.inner, Split) else ("plain", *output)


def _attempt(model: nn.Module, forms: Forms, example: Any, forward: Forward | None) -> nn.Module | None:
    """A copy of the model in which some wrappers are in thinner forms; None if it is not proven to be the same."""
    try:
        whole = _run(model, example, forward)
        removed = _removed(model, forms, whole, example, forward)
        thinner = copy.deepcopy(model)
        for path, columns in removed.items():
            _cut(thinner.get_submodule(path), columns)
        for path, form in forms.items():
            _reshape(thinner.get_submodule(path), form)
        flatten(thinner)
        same = same_runs(_without(removed, whole), _run(thinner, example, forward))
    except Exception:  # the user's model may refuse the other shapes, or the NaN, in any way it likes
        return None
    return thinner if same else None


def _run(
    model: nn.Module, example: Any, forward: Forward | None, observe: Observe = lambda _, received: received
) -> TrialRun:
    return run_observed(model, _readers(model), example, forward, observe)


def _removed(model: nn.Module, forms: Forms, whole: TrialRun, example: Any, forward: Forward | None) -> Removed:
    """Which columns of which reader are its view of the removed cells: path -> mask over its features.

    Raises:
        _NotExactError: something else reads the removed cells.
    """
    removed: Removed = {}
    expected = iter(whole.received)

    def find(path: str, received: Tensor) -> Tensor:
        path_before, before = next(expected)
        columns = _turned_to_nan(before, received)
        if path_before != path or not torch.equal(removed.setdefault(path, columns), columns) or bool(columns.all()):
            raise _NotExactError
        return clear(path, received)

    def clear(path: str, received: Tensor) -> Tensor:
        return received.masked_fill(removed[path], 0.0)

    for fill, observe in ((float("nan"), find), (LARGE, clear), (-LARGE, clear)):
        with _filled(model, forms, fill):
            if not same_runs(whole, _run(model, example, forward, observe)):
                raise _NotExactError
    return {path: columns for path, columns in removed.items() if bool(columns.any())}


def _turned_to_nan(before: Tensor, after: Tensor) -> Tensor:
    """The columns that held only zeros `before` and hold NaN (or zeros still, as in padding) `after`."""
    before, after = before.reshape(-1, before.shape[-1]), after.reshape(-1, after.shape[-1])
    return (before == 0).all(0) & (after.isnan() | (after == 0)).all(0) & after.isnan().any(0)


@contextlib.contextmanager
def _filled(model: nn.Module, forms: Forms, fill: float) -> Iterator[None]:
    """`fill` in the place of the zeros that the thinner forms will no longer give."""
    wrappers = [(model.get_submodule(path), form) for path, form in forms.items()]
    parts = [(one, form == "plain" or one is wrapper.output) for wrapper, form in wrappers for one in wrapper.modules()]
    filled = [one for one, shown in parts if isinstance(one, Kept) and shown]
    for one in filled:
        one.fill = fill
    try:
        yield
    finally:
        for one in filled:
            one.fill = 0.0


def _readers(model: nn.Module) -> dict[str, nn.Module]:
    """The linear and recurrent modules whose columns can be cut: without hooks, with weights of their own."""
    recurrent = {layer.module for layer in removable_layers(model)}
    holders = Counter(id(p) for module in model.modules() for p in module._parameters.values())
    return {
        path: module
        for path, module in model.named_modules()
        if (module in recurrent or type(module) is nn.Linear)
        and not (module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module))
        and all(isinstance(w, nn.Parameter) and holders[id(w)] == 1 for w in _reading_weights(module).values())
    }


def _reading_weights(module: nn.Module) -> dict[str, Any]:
    """The matrices by which a module reads its input; a column a feature."""
    names = {nn.Linear: ["weight"], nn.RNNCellBase: ["weight_ih"], nn.RNNBase: ["weight_ih_l0", "weight_ih_l0_reverse"]}
    own = next(own for kind, own in names.items() if isinstance(module, kind))
    return {name: getattr(module, name, None) for name in own if name in module._parameters or name == own[0]}


def _cut(module: nn.Module, columns: Tensor) -> None:
    for weight in _reading_weights(module).values():
        if not bool(weight.isfinite().all()):
            raise _NotExactError
        weight.data = weight.data[:, ~columns]
    setattr(module, "in_features" if isinstance(module, nn.Linear) else "input_size", int((~columns).sum()))


def _reshape(wrapper: nn.Module, form: Form) -> None:
    if form == "plain":
        become(wrapper, cast(nn.Module, wrapper.inner))
    else:
        cast(ThinRecurrent, wrapper).output = None


def _without(removed: Removed, run: TrialRun) -> TrialRun:
    """The run as it must look when the removed columns are gone."""
    kept = [(path, tensor[..., ~removed[path]] if path in removed else tensor) for path, tensor in run.received]
    return TrialRun(run.outputs, kept)


Observe = Callable[[str, Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class TrialRun:
    """What a model gave, and what its readers received in the order of their calls: (path, tensor)."""

    outputs: list[Any]
    received: list[tuple[str, Tensor]]


def run_observed(
    model: nn.Module, readers: Mapping[str, nn.Module], example: Any, forward: Forward | None, observe: Observe
) -> TrialRun:
    """Run the model on the example without a trace.

    Args:
        model: the model.
        readers: path -> the modules to listen at.
        example: a batch, or a list of batches.
        forward: how the model is run on a batch; None for the model's own call.
        observe: is given a reader's path and what it receives, and gives what it shall receive.
    """
    received: list[tuple[str, Tensor]] = []

    def note(path: str, tensor: Tensor) -> Tensor:
        seen = observe(path, tensor)
        received.append((path, seen.clone()))
        return seen

    with undisturbed(model), contextlib.ExitStack() as stack:
        for path, reader in readers.items():
            handle = reader.register_forward_pre_hook(partial(_pass_on, partial(note, path)), with_kwargs=True)
            stack.callback(handle.remove)
        batches = example if isinstance(example, list) else [example]
        outputs = [leaf for batch in batches for leaf in _leaves(call_model(model, batch, forward))]
        return TrialRun([leaf.clone() if isinstance(leaf, Tensor) else leaf for leaf in outputs], received)


def _pass_on(observe: Callable[[Tensor], Tensor], _: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
    """A hook that lets `observe` see, and replace, the tensor (or a packed sequence's data) that a module reads."""
    if args:
        return (over_data(observe, args[0]), *args[1:]), kwargs
    return args, {**kwargs, "input": over_data(observe, kwargs["input"])}


def _leaves(output: Any) -> Iterator[Any]:
    """The tensors and plain values in what a model gives."""
    if isinstance(output, Mapping):
        output = tuple(output.values())
    elif is_dataclass(output):
        output = tuple(getattr(output, name, None) for name in output.__dataclass_fields__)
    if isinstance(output, tuple | list):
        for part in output:
            yield from _leaves(part)
    else:
        yield output


def same_runs(a: TrialRun, b: TrialRun) -> bool:
    """Whether two runs gave and received the same; a run that gave nothing proves nothing."""
    pairs = [(x, y) for (_, x), (_, y) in zip(a.received, b.received, strict=False)] + list(
        zip(a.outputs, b.outputs, strict=False)
    )
    complete = len(a.received) == len(b.received) and len(a.outputs) == len(b.outputs)
    return complete and any(leaf is not None for leaf in a.outputs) and all(_close(x, y) for x, y in pairs)


def _close(a: Any, b: Any) -> bool:
    """Equal; floating point up to half the digits, for the sums are over fewer terms. NaN is like nothing."""
    if not (isinstance(a, Tensor) and isinstance(b, Tensor)):
        return type(a) is type(b) and bool(a == b)
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if not (a.is_floating_point() or a.is_complex()):
        return torch.equal(a, b)
    finite = a[a.isfinite()].abs()
    scale = float(finite.max()) if finite.numel() else 0.0
    return torch.allclose(a, b, rtol=0.0, atol=torch.finfo(a.dtype).eps ** 0.5 * scale)
