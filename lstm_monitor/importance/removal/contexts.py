"""Exact ablation: a live model without some of its recurrent cells, for as long as a context lasts.

A cell is removed in one of two ways. Where its weights are parameters of its own, the rows that make its candidate
value are set to zero in place, and the network runs as ever. Otherwise (cells at their mean, weights that are computed
or shared) the module is computed by a stand-in from a copy of its weights. Source: this project's definition.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lstm_monitor.core.changes import Change, changed, uncompiled
from lstm_monitor.core.errors import choose
from lstm_monitor.importance.removal.cells import Cells, Removal, check_weights, choose_cells
from lstm_monitor.importance.removal.weight_edits import is_its_own, spans_of, weight_edit
from lstm_monitor.importance.replay.calls import close_call, open_call, put_forward_back
from lstm_monitor.importance.replay.stages import Part, run_module, silenced, whole, without
from lstm_monitor.layers.computed_weights import is_parameter
from lstm_monitor.layers.inner_calls import inner_now, inner_of
from lstm_monitor.layers.layer import Layers
from lstm_monitor.layers.torch_modules import weight_names
from lstm_monitor.snapshots.held_out import Forward
from lstm_monitor.snapshots.taking import snapshot

MEAN_STEPS = 16384
"""About how many held-out steps a mean is taken over."""


@contextmanager
def ablated(
    model: nn.Module,
    cells: Cells,
    mode: Literal["zero", "mean"] = "zero",
    *,
    held_out: Any = None,
    means: Mapping[str, Tensor] | None = None,
    forward: Forward | None = None,
    lengths: Any = None,
    mask: Any = None,
) -> Iterator[nn.Module]:
    """Inside, `model` runs without some cells; afterwards every bit is as it was, also after an error or Ctrl-C.

    With "zero" the hidden and the cell state of a removed cell are exactly 0 at every step, the first state included,
    if one is given (what the caller gives is not touched). The module's own fused kernels run. With "mean" the hidden
    state stands still at its mean, from the first step on, and what the others read from it is a constant. Modes,
    gradients and random numbers are left to the caller: call ``model.eval()`` where dropout is not wanted.

    It is for measuring. In "zero" mode removed cells still receive gradients, and what was run inside has to be
    differentiated inside too; what was run before may be differentiated afterwards. In "mean" mode the module's
    weights receive none. Contexts may be nested; cells then stay as the outer one has them. Only calls of modules are
    seen, ``layer(x)``, not ``layer.forward(x)``. Not for two threads at once on one model. Compiled code runs
    uncompiled inside.

    With ``proj_size`` a cell is the unit before the projection. A given first state ``h0`` is then not of single cells:
    it is used as it is, and only ``c0`` is set to zero. Where none is given, cells at their mean start there.

    Args:
        model: any torch module, compiled or not, in any mode.
        cells: layer name -> the cells to remove: numbers from 0 (twice does no harm), or a boolean mask ``(H,)``.
        mode: "zero" or "mean".
        held_out: data to take the means on, in "mean" mode; see `characterize`. About 16,384 steps of it are used.
        means: in place of `held_out`, the mean hidden state ``(H,)`` of each layer (before a projection).
        forward: called as ``forward(model, batch)`` instead of the model itself, to take the means.
        lengths: (N,) steps of each held-out sequence that are no padding.
        mask: (N, T) True for the held-out steps that count.

    Yields:
        The model itself.

    Raises:
        TypeError: `model` is no torch module; cells that are no integers; weights that are no plain tensors (sharded,
            quantized, on the meta device).
        ValueError: a layer that is not known or not supported; cells out of range; weights that are NaN or infinite;
            no means, or means that do not fit; in "mean" mode, when the module is run: dropout between its layers.

    Example:
        >>> model, x = nn.LSTM(3, 8), torch.randn(5, 2, 3)
        >>> with ablated(model, {"l0": [3, 7]}):
        ...     hidden, _ = model(x)
        >>> bool((hidden[..., [3, 7]] == 0).all()), bool((model(x)[0] == 0).any())
        (True, False)
    """
    choose("mode", mode, ("zero", "mean"))
    removals = choose_cells(model, cells, _StandIn)
    _check_sources(mode, held_out, means)
    if held_out is not None:
        layers = Layers(tuple(removal.layer for removal in removals))
        means = held_out_means(model, held_out, layers, forward=forward, lengths=lengths, mask=mask)
    with changed(_changes(model, _filled(removals, means), thin=False)):
        yield model


@contextmanager
def thinned(
    model: nn.Module,
    cells: Cells,
    mode: Literal["zero", "mean"] = "zero",
    *,
    means: Mapping[str, Tensor] | None = None,
) -> Iterator[nn.Module]:
    """The same network as in `ablated`, computed on the cells that are left only: faster where many are removed.

    Equal to rounding. Weights are read once, on entry, and receive no gradients; there is no dropout between the
    layers of a module. With ``proj_size`` P and fewer than P cells left, a given ``h0`` that these cannot make is
    replaced by the nearest that they can.

    Args:
        model: any torch module.
        cells: layer name -> the cells to remove.
        mode: "zero" or "mean".
        means: the mean hidden state ``(H,)`` of each layer, in "mean" mode.

    Yields:
        The model itself.

    Raises:
        TypeError: as `ablated`.
        ValueError: as `ablated`.
    """
    choose("mode", mode, ("zero", "mean"))
    removals = choose_cells(model, cells, _StandIn)
    _check_sources(mode, None, means)
    with changed(_changes(model, _filled(removals, means), thin=True)):
        yield model


def held_out_means(model: nn.Module, held_out: Any, layers: Layers, **options: Any) -> dict[str, Tensor]:
    """The mean hidden state ``(H,)`` of each layer over the held-out steps that count, by layer name."""
    if not layers:
        return {}
    snaps = snapshot(model, held_out, layers=layers, max_steps=MEAN_STEPS, **options)
    return {str(snap.key): snap.hidden_mean for snap in snaps}


def _check_sources(mode: str, held_out: Any, means: Mapping[str, Tensor] | None) -> None:
    given = [name for name, value in (("held_out", held_out), ("means", means)) if value is not None]
    if mode == "zero" and given:
        raise ValueError(
            f"{given[0]}= was given with mode='zero', which needs no means; leave it out, or set mode='mean'"
        )
    if mode == "mean" and len(given) != 1:
        what = "both held_out= and means= were" if given else "neither held_out= nor means= was"
        raise ValueError(f"mode='mean' needs the means of the cells, but {what} given; give one of them")


def _filled(removals: Sequence[Removal], means: Mapping[str, Tensor] | None) -> list[Removal]:
    if means is None:
        return list(removals)
    return [replace(removal, fill=_mean_of(removal, means)) for removal in removals]


def _mean_of(removal: Removal, means: Mapping[str, Tensor]) -> Tensor:
    name, size = str(removal.layer.key), getattr(removal.layer.module, "hidden_size", None)
    if name not in means:
        raise ValueError(
            f"means holds {', '.join(map(repr, means)) or 'nothing'}, but cells names {name!r}; give its mean"
        )
    mean = torch.as_tensor(means[name]).detach()
    if tuple(mean.shape) != (size,):
        raise ValueError(f"means[{name!r}] has shape {tuple(mean.shape)}; give one value for each of the {size} cells")
    if not bool(torch.isfinite(mean[removal.cells.to(mean.device)]).all()):
        raise ValueError(f"means[{name!r}] holds NaN or infinite values for cells that are removed; give finite ones")
    return mean


# Changes to the live model


def _changes(model: nn.Module, removals: Sequence[Removal], *, thin: bool) -> list[Change]:
    """Everything that has to be done, with what is needed to undo it saved; nothing is done yet."""
    removals = [removal for removal in removals if len(removal.cells)]
    if not removals:
        return []
    for removal in removals:
        check_weights(removal.layer)
    spans = spans_of(model)
    modules = dict.fromkeys(removal.layer.module for removal in removals)
    changes = [uncompiled()]
    for module in modules:
        own = [removal for removal in removals if removal.layer.module is module]
        editable = not thin and _standing(module) is None and all(r.fill is None and is_its_own(r, spans) for r in own)
        changes.append(weight_edit(module, own) if editable else _stand_in(module, own, thin))
    return changes


# Stand-ins


@dataclass(frozen=True, eq=False)
class _StandIn:
    """The forward of a module without some cells: removals by the ending of their layer's parameter names.

    ``stages`` are its parts; None where its weights are computed anew for each call.
    """

    module: nn.Module
    removals: Mapping[str, Removal]
    thin: bool
    stages: list[list[Part]] | None = None

    def __call__(self, input: Any, hx: Any = None) -> Any:
        _check_dropout(self.module)
        call = open_call(self.module, input, hx)
        outputs, final, _ = run_module(call, self.stages or self.parts())
        return close_call(call, outputs, final)

    def parts(self) -> list[list[Part]]:
        """The module's parts, from its weights as they are now, in the call that is running if they are computed."""
        sample = replace(next(iter(self.removals.values())).layer, running=True)
        return [[self._without(part) for part in stage] for stage in whole(self.module, sample)]

    def _without(self, part: Part) -> Part:
        removal = self.removals.get(part.layer.suffix)
        if removal is None:
            return part
        remove = without if self.thin else silenced
        return remove(part, removal.cells.to(part.weights.weight_hh.device), removal.fill)


def _standing(module: nn.Module) -> _StandIn | None:
    forward = vars(inner_now(module)).get("forward")
    return forward if isinstance(forward, _StandIn) else None


def _stand_in(module: nn.Module, removals: Sequence[Removal], thin: bool) -> Change:
    outer, own = _standing(module), {removal.layer.suffix: removal for removal in removals}
    if outer is not None:
        shared = {suffix: _both(outer.removals[suffix], own[suffix]) for suffix in own if suffix in outer.removals}
        own, thin = {**outer.removals, **own, **shared}, thin or outer.thin
    stand = _StandIn(module, own, thin)
    if all(is_parameter(module, name) for name in weight_names(module)):
        stand = replace(stand, stages=stand.parts())

    def apply() -> None:
        vars(inner_of(module))["forward"] = stand

    return Change(module, apply, lambda: put_forward_back(module, outer))


def _both(outer: Removal, inner: Removal) -> Removal:
    """The cells of both; those of the outer one stay where they are."""
    fill = None
    if outer.fill is not None or inner.fill is not None:
        size = int(getattr(inner.layer.module, "hidden_size", 0))
        held, new = (torch.zeros(size) if r.fill is None else r.fill.cpu() for r in (outer, inner))
        fill = new.to(torch.promote_types(held.dtype, new.dtype), copy=True)
        fill[outer.cells] = held[outer.cells].to(fill)
    return Removal(inner.layer, torch.cat([outer.cells, inner.cells]).unique(), fill)


def _check_dropout(module: nn.Module) -> None:
    if isinstance(module, nn.RNNBase) and module.training and module.dropout and module.num_layers > 1:
        raise ValueError(
            f"{type(module).__name__} is in train mode with dropout={module.dropout} between its layers, which is left "
            "out where cells are removed in this way (at their mean, thinned, or with weights that are no parameters); "
            "call model.eval() first"
        )
