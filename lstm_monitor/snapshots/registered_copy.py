"""Detached copies of registered cells, ready to be run on their own."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from lstm_monitor.core.undisturbed import random_states
from lstm_monitor.core.weights import CellWeights
from lstm_monitor.engines.registered import one_step, own_parts
from lstm_monitor.layers.registered.calls import start_of
from lstm_monitor.layers.registered.registry import Registration

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_HALF = (torch.float16, torch.bfloat16)


def copied_cell(registration: Registration, cell: nn.Module, features: int | None, name: str) -> CellWeights:
    """A copy of a cell in float32 (float64 kept) and eval mode, without hooks; it reads `features`, where known.

    Raises:
        TypeError: it cannot be copied.
        ValueError: parameters that are NaN or infinite; an unknown number of features; a `state` or `step` that fails,
            or a state of which no part is the cells' own.
    """
    assert registration.step is not None
    _check_finite(cell, name)
    size = features_of(registration, cell, features, name)
    with random_states(), torch.no_grad():
        own = _detached(cell, name)
        like = next((p for p in own.parameters() if p.is_floating_point()), torch.zeros(()))
        start, bare = start_of(registration, own)
        start = tuple(part.to(like) if part.is_floating_point() else part.to(like.device) for part in start)
        weights = CellWeights(own, registration.step, 0, like.new_zeros(size), start, start, bare)
        hidden, _ = one_step(weights, like.new_zeros(1, size), start)
    weights = replace(weights, hidden_size=hidden.shape[1])
    if not any(own_parts(weights)):
        shapes = ", ".join(str(("N", *part.shape[1:])) for part in start)
        raise ValueError(
            f"{name}: hidden is (N, {hidden.shape[1]}), but no part of the state, {shapes}, has a column for each "
            f"cell, (N, {hidden.shape[1]}, ...); have step= and state= of register_cell reshape it"
        )
    return weights


def features_of(registration: Registration, cell: nn.Module, features: int | None, name: str) -> int:
    """How many features a cell reads: as seen (`features`), as registered, or as it says itself.

    Raises:
        ValueError: none of these is known, or what is registered differs from what was seen.
    """
    if features is not None and registration.input_size not in (None, features):
        raise ValueError(
            f"{name}: register_cell(input_size={registration.input_size}), but it received {features} features"
        )
    said = (features, registration.input_size, getattr(cell, "input_size", None), getattr(cell, "in_features", None))
    known = next((size for size in said if isinstance(size, int)), None)
    if known is None:
        raise ValueError(
            f"{name}: it is not known how many features it reads; give held-out data, or register_cell(input_size=...)"
        )
    return known


def _check_finite(cell: nn.Module, name: str) -> None:
    for parameter, value in cell.named_parameters():
        if not bool(torch.isfinite(value).all()):
            bad = int((~torch.isfinite(value)).sum())
            raise ValueError(
                f"{name}: {bad} of {value.numel()} values of {parameter} are NaN or infinite; the network has "
                "diverged, so its cells have no response"
            )


def _detached(cell: nn.Module, name: str) -> nn.Module:
    try:
        own = copy.deepcopy(cell, dict(_not_copied(cell)))
    except Exception as error:
        raise TypeError(
            f"{name}: {type(cell).__name__} cannot be copied ({type(error).__name__}: {error}); keep out of the module "
            "what copy.deepcopy refuses, such as locks and open files"
        ) from error
    for part in own.modules():
        vars(part)["training"] = False
    own.requires_grad_(False)
    return own.float() if any(parameter.dtype in _HALF for parameter in own.parameters()) else own


def _not_copied(cell: nn.Module) -> Iterator[tuple[int, Any]]:
    """What stands in a copy for hooks (torch's own stay: weight norm) and for tensors in the middle of a graph."""
    for part in cell.modules():
        for name in _HOOKS:
            hooks = vars(part).get(name)
            if hooks:
                yield id(hooks), type(hooks)((key, hook) for key, hook in hooks.items() if _is_of_torch(hook))
        for value in vars(part).values():
            if isinstance(value, Tensor) and not value.is_leaf:
                yield id(value), value.detach().clone()


def _is_of_torch(hook: Any) -> bool:
    return type(hook).__module__.startswith("torch.nn.utils")
