"""torch's switches for the precision of float32 products, set for a while and put back.

On a GPU torch may round the factors of such products to 10 bits (TF32); in cuDNN's recurrent layers it does by default.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch

from lstm_monitor.core.changes import Change, changed

Switch = tuple[Callable[[], Any], Callable[[Any], object], object]
"""How to read one, how to write it, and its value for full precision."""


@contextlib.contextmanager
def full_precision() -> Iterator[None]:
    """No TF32 and no bfloat16 inside float32 products, by the switches that this torch has.

    By the older ones first, inside and after: where they differ from the newer ones torch raises as soon as they are
    read, which ``torch.backends.cudnn.flags`` in anybody's forward does.
    """
    switches = [*_older_precision(), *(_switch(*place) for place in _precision() if place[1] != "allow_tf32")]
    before = [read() for read, _, _ in switches]
    exact = [value for _, _, value in switches]

    def write(values: Sequence[object]) -> None:
        for (_, put, _), value in zip(switches, values, strict=True):
            put(value)

    with changed([Change("precision", partial(write, exact), partial(write, before))]):
        yield


def _switch(owner: Any, name: str, exact: object) -> Switch:
    read = partial(_own_value, owner) if name == "fp32_precision" else partial(getattr, owner, name)
    return read, partial(setattr, owner, name), exact


def _older_precision() -> list[Switch]:
    """The switches of every torch, where they can be read: not where the newer ones were already set otherwise."""
    matmul = (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, "highest")
    readable: list[Switch] = []
    for switch in (_switch(torch.backends.cudnn, "allow_tf32", False), matmul):
        with contextlib.suppress(RuntimeError):
            switch[0]()
            readable.append(switch)
    return readable


def _precision() -> list[tuple[Any, str, object]]:
    """Where the precision of float32 products is set, by which name, and to what."""
    backends: Any = torch.backends
    if hasattr(backends.cudnn, "rnn"):  # torch 2.9 and later: mixing in the older switches can raise
        cudnn, mkldnn = backends.cudnn, backends.mkldnn
        new = (cudnn.rnn, backends.cuda.matmul, cudnn.conv, mkldnn.rnn, mkldnn.matmul)
        return [(owner, "fp32_precision", "ieee") for owner in new]
    return [(owner, "allow_tf32", False) for owner in (backends.cudnn, backends.cuda.matmul)]


def _own_value(owner: Any) -> str:
    """What to write into a newer switch to have it as it is: "none" where it shows the value of the one above it.

    With that value in it it would no longer follow when somebody sets the one above. A switch that nobody has set may
    follow and yet show another value, its default; nothing but that value can be written back then.
    """
    above, shown = _above(owner), str(owner.fp32_precision)
    if above is None or shown == "none" or shown != above.fp32_precision:
        return shown
    kept = _own_value(above)
    above.fp32_precision = "ieee" if shown == "tf32" else "tf32"
    follows = owner.fp32_precision != shown
    above.fp32_precision = kept
    return "none" if follows else shown


def _above(owner: Any) -> Any:
    """The switch that holds where this one is not set; that of mkldnn cannot be written in torch 2.9 to 2.13."""
    backends: Any = torch.backends
    if owner is backends:
        return None
    return backends.cudnn if owner in (backends.cudnn.rnn, backends.cudnn.conv, backends.cuda.matmul) else backends
