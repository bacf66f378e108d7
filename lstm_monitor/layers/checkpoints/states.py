"""Find the state_dict in what a checkpoint holds, with plain names and plain weights."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

State = dict[str, Tensor]

USUAL = ("state_dict", "model_state_dict", "model_state", "model", "module", "net", "network", "weights", "params")
"""Under what names people keep a state_dict in a checkpoint, the first that holds recurrent weights being it."""
_RECURRENT = re.compile(r"(^|[._])weight_hh(_|$|\.)")
_WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")


def state_of(content: Any, prefix: str = "") -> State:
    """The tensors by their plain names: wrappers stripped, weight norm and the like computed; empty if none is there.

    Args:
        content: a state_dict, or a dict that holds one (or several: then their names in it come first).
        prefix: only names that start with it are taken, and without it, as ``model.encoder``.

    Raises:
        ValueError: no name starts with `prefix`.
    """
    state = effective(_without_wrappers(_search(content, 5)))
    prefix = f"{prefix.rstrip('.')}." if prefix else ""
    below = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    if state and not below:
        tops = dict.fromkeys(name.split(".")[0] for name in state)
        raise ValueError(f"no name starts with the prefix {prefix!r}; the names start with {', '.join(tops)}")
    return below


def _search(content: Any, depth: int) -> State:
    """The first usual part that holds recurrent weights, else all other parts that do, with their names first."""
    if not isinstance(content, Mapping) or depth == 0:
        return {}
    tensors = {name: value for name, value in content.items() if isinstance(value, Tensor)}
    own = {name: tensor.detach() for name, tensor in tensors.items() if isinstance(name, str)}
    if any(_RECURRENT.search(name) for name in own):
        return own
    for name in USUAL:
        if found := _search(content.get(name), depth - 1):
            return found
    parts = {str(name): _search(value, depth - 1) for name, value in content.items() if name not in USUAL}
    parts = {name: part for name, part in parts.items() if part}
    if len(parts) == 1:
        return next(iter(parts.values()))
    return {f"{name}.{inner}": tensor for name, part in parts.items() for inner, tensor in part.items()}


def _without_wrappers(state: State) -> State:
    """Names without what torch.compile, FSDP and data parallelism put into them."""
    for wrapper in _WRAPPERS:
        state = {name.replace(wrapper, ""): tensor for name, tensor in state.items()}
    names = [name for name in state if name != "n_averaged"]
    while names and all(name.startswith("module.") for name in names):
        state = {name.removeprefix("module."): state[name] for name in names}
        names = list(state)
    return state


def effective(state: State) -> State:
    """The weights that a network computes with, where the state holds what they are computed from.

    Known are weight norm, spectral norm and pruning, as functions and as parametrizations, and fastai's dropped
    weights. Everything else stays as it is.
    """
    found: State = {}
    for name, tensor in state.items():
        made = _made(state, name)
        if made is not None:
            found[made[0]] = made[1]
        elif name not in found:
            found[name] = tensor
    return found


def _made(state: State, name: str) -> tuple[str, Tensor] | None:
    """The name and the value of the weight of which `name` is the first part; None where it is a part of none."""
    for part, other, plain, make in _PARTS:
        stem = name.removesuffix(part)
        if stem != name and f"{stem}{other}" in state:
            return plain(stem), make(state, name, stem)
    path, _, last = name.rpartition(".")
    dropped = f"{path}.module.{last.removesuffix('_raw')}"
    if last.endswith("_raw") and dropped.replace("weight_hh", "weight_ih") in state:
        return dropped, state[name]
    return None


def _parametrized(stem: str) -> str:
    """``rnn.weight_hh_l0`` of ``rnn.parametrizations.weight_hh_l0.``."""
    return stem.removesuffix(".").replace("parametrizations.", "")


def _same(stem: str) -> str:
    return stem


def _normed(direction: str) -> _Make:
    def make(state: State, name: str, stem: str) -> Tensor:
        return torch._weight_norm(state[f"{stem}{direction}"], state[name], _kept_axis(state[name]))

    return make


def _kept_axis(norms: Tensor) -> int:
    """The axis along which weight norm keeps norms ``(R, 1)`` apart; -1 where there is one norm for all."""
    return next((axis for axis, size in enumerate(norms.shape) if size > 1), 0 if norms.dim() else -1)


def _spectral(vectors: str) -> _Make:
    """Over the largest singular value, by the singular vectors that the training kept."""

    def make(state: State, name: str, stem: str) -> Tensor:
        return state[name] / (state[f"{stem}{vectors}u"] @ state[name] @ state[f"{stem}{vectors}v"])

    return make


def _masked(state: State, name: str, stem: str) -> Tensor:
    return state[name] * state[f"{stem}_mask"]


_Make = Callable[[State, str, str], Tensor]
_PARTS: tuple[tuple[str, str, Callable[[str], str], _Make], ...] = (
    ("original0", "original1", _parametrized, _normed("original1")),
    ("original", "0._v", _parametrized, _spectral("0._")),
    ("_g", "_v", _same, _normed("_v")),
    ("_orig", "_mask", _same, _masked),
    ("_orig", "_v", _same, _spectral("_")),
)
"""The ending of the first part, that of another one that tells what it is, the weight's name, and its value."""
