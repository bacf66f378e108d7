"""Weights that are no parameters of their own, as an evaluation would compute them now, without a trace."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from lstm_monitor.core.undisturbed import undisturbed

RAW = "_raw"
"""Weight drop keeps ``weight_hh_l0_raw``, in the module or in its parent, and computes ``weight_hh_l0`` from it."""


def is_parameter(module: nn.Module, name: str) -> bool:
    """Whether a weight is a parameter of the module itself, and not one that is made of raw values at each call."""
    return isinstance(module._parameters.get(name), nn.Parameter) and name + RAW not in module._parameters


def holder_of(model: nn.Module, module: nn.Module, names: list[str]) -> nn.Module | None:
    """The module or its parent in `model` that holds one of these weights as ``<name>_raw``; None if there is none."""
    raw = {name + RAW for name in names}
    around = (other for other in model.modules() if other is module or any(part is module for part in other.children()))
    return next((other for other in around if not raw.isdisjoint(other._parameters)), None)


def computed(module: nn.Module, name: str, holder: nn.Module | None = None) -> Tensor | None:
    """The weight that a forward pass in eval mode would use now; None where it is unknown from what it is computed.

    Known are torch's parametrizations, weight norm, spectral norm and pruning, and weight drop (see `holder_of`). An
    attribute may be that of the last training step, or a dropped-out one, so it is not read. No buffer changes, and
    no random number is drawn.
    """
    source = source_of(module, name, holder)
    return None if source is None else source()


def source_of(module: nn.Module, name: str, holder: nn.Module | None) -> Callable[[], Tensor] | None:
    """How a weight is computed; None if that is unknown."""
    if parametrize.is_parametrized(module, name):
        return partial(_parametrized, module, name)
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, WeightNorm) and hook.name == name:
            return partial(hook.compute_weight, module)
        if isinstance(hook, SpectralNorm) and hook.name == name:
            return partial(hook.compute_weight, module, do_power_iteration=False)
        if isinstance(hook, BasePruningMethod) and hook._tensor_name == name:
            return partial(hook.apply_mask, module)
    raw = None if holder is None else holder._parameters.get(name + RAW)
    return None if raw is None else lambda: raw


def _parametrized(module: nn.Module, name: str) -> Tensor:
    assert isinstance(module.parametrizations, nn.ModuleDict)
    with undisturbed(module.parametrizations):
        value: Tensor = module.parametrizations[name]()  # not the attribute: that may be cached
    return value


def unknown(module: nn.Module, names: list[str], holder: nn.Module | None) -> Iterator[str]:
    """Those of these weights that are neither parameters nor computed in a way that is known."""
    return (name for name in names if not is_parameter(module, name) and source_of(module, name, holder) is None)
