"""What ``weights=`` of a registered class returns, checked, by layer and direction."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from lstm_monitor.core.errors import choose
from lstm_monitor.core.terms import GATES
from lstm_monitor.core.undisturbed import undisturbed
from lstm_monitor.core.weights import LayerWeights
from lstm_monitor.layers.registered.registry import Registration

Place = tuple[int | None, bool]
"""The index of a layer (None: there is one, without a number) and whether it reads in reverse."""
_NAME = re.compile(r"l(\d+)(_reverse)?")


def mapped_weights(registration: Registration, module: nn.Module) -> dict[Place, LayerWeights]:
    """The live weights of every layer and direction of a module, from the first layer on.

    Raises:
        TypeError: `weights` returned something else than records of weights.
        ValueError: it failed; keys that are no names of layers; shapes that do not fit each other.
    """
    assert registration.weights is not None
    who = f"weights= registered for {registration.cls.__name__}"
    try:
        with undisturbed():
            given = registration.weights(module)
    except Exception as error:
        raise ValueError(f"{who} failed: {type(error).__name__}: {error}") from error
    found = _by_place(given, who)
    for place, weights in found.items():
        _check(weights, f"{who}, {_name(place)}")
    _check_stack(found, who)
    return found


def _by_place(given: Any, who: str) -> dict[Place, LayerWeights]:
    if isinstance(given, LayerWeights):
        return {(None, False): given}
    named = given if isinstance(given, Mapping) else None
    if named is None and isinstance(given, tuple | list):
        named = {f"l{index}": weights for index, weights in enumerate(given)}
    if not named or not all(isinstance(weights, LayerWeights) for weights in named.values()):
        raise TypeError(
            f"{who} returned {type(given).__name__}; return lstm_monitor.LayerWeights(kind, weight_ih, weight_hh, "
            "bias_ih, bias_hh), a list of them, or a dict of them by 'l0', 'l0_reverse', 'l1'"
        )
    return dict(sorted((_place(str(name), who), weights) for name, weights in named.items()))


def _place(name: str, who: str) -> Place:
    match = _NAME.fullmatch(name)
    if match is None:
        raise ValueError(f"{who} returned the key {name!r}; allowed: 'l0', 'l0_reverse', 'l1' and so on")
    return int(match[1]), match[2] is not None


def _name(place: Place) -> str:
    return "its layer" if place[0] is None else f"l{place[0]}{'_reverse' if place[1] else ''}"


def _check(weights: LayerWeights, where: str) -> None:
    choose(f"{where}: kind", weights.kind, GATES)
    if not isinstance(weights.weight_hh, Tensor) or weights.weight_hh.dim() != 2:
        raise ValueError(f"{where}: weight_hh is {_shape(weights.weight_hh)}; give a tensor (G*H, H)")
    rows, width = weights.weight_hh.shape
    size = rows // len(GATES[weights.kind])
    wanted = {
        "weight_ih": (rows, weights.weight_ih.shape[-1] if isinstance(weights.weight_ih, Tensor) else 0),
        "weight_hh": (len(GATES[weights.kind]) * size, size if weights.weight_hr is None else width),
        "bias_ih": (rows,),
        "bias_hh": (rows,),
        **({} if weights.weight_hr is None else {"weight_hr": (width, size)}),
    }
    for name, shape in wanted.items():
        value = getattr(weights, name)
        if not isinstance(value, Tensor) or tuple(value.shape) != shape:
            raise ValueError(
                f"{where}: {name} is {_shape(value)} where {shape} is wanted; {weights.kind} has the gates "
                f"{', '.join(GATES[weights.kind])}, each a block of H rows, and a missing bias is zeros"
            )


def _shape(value: Any) -> str:
    return f"of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"


def _check_stack(found: Mapping[Place, LayerWeights], who: str) -> None:
    """Layers are numbered from 0 without gaps, all in as many directions, each reading what the one below hands on."""
    if (None, False) in found:
        return
    reverses = sorted({reverse for _, reverse in found})
    count = len(found) // len(reverses)
    if list(found) != [(index, reverse) for index in range(count) for reverse in reverses] or reverses[0]:
        names = ", ".join(map(_name, found))
        raise ValueError(f"{who} returned {names}; number the layers from l0 on, and give each the same directions")
    for index in range(1, count):
        below = sum(_width(found[index - 1, reverse]) for reverse in reverses)
        for reverse in reverses:
            if found[index, reverse].input_size != below:
                raise ValueError(
                    f"{who}: l{index} reads {found[index, reverse].input_size} features, but l{index - 1} hands on "
                    f"{below}"
                )


def _width(weights: LayerWeights) -> int:
    return weights.weight_hh.shape[1]
