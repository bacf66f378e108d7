"""Changes to live objects that are always undone: in reverse order, whatever interrupts."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch


@dataclass(eq=False)
class Change:
    """Something done to `key`, and how it is undone. Undoing twice, or what was not done, must do no harm."""

    key: object
    apply: Callable[[], object]
    undo: Callable[[], object]
    over: bool = False


_OPEN: dict[object, list[Change]] = {}


@contextmanager
def changed(changes: Sequence[Change]) -> Iterator[None]:
    """Inside, the changes are in force; afterwards each is undone, also after an error or an interrupt.

    Changes of one key end in reverse order: where contexts are left in another order, one that is left early lasts
    until those that began after it have ended. An interrupt while they are undone is raised when all are undone.
    """
    try:
        for change in changes:
            _OPEN.setdefault(change.key, []).append(change)
            change.apply()
        yield
    finally:
        interrupt = None
        while True:
            try:
                _end_all(changes)
                break
            except KeyboardInterrupt as error:
                interrupt = error
        if interrupt is not None:
            raise interrupt


def _end_all(changes: Sequence[Change]) -> None:
    """The last first; each, even where another fails."""
    with ExitStack() as stack:
        for change in changes:
            stack.callback(_end, change)


def _end(change: Change) -> None:
    change.over = True
    waiting = _OPEN.get(change.key, [])
    while waiting and waiting[-1].over:
        waiting[-1].undo()
        waiting.pop()
    if not waiting:
        _OPEN.pop(change.key, None)


def uncompiled() -> Change:
    """Compiled code sees no hook and no forward that came later, so it runs uncompiled (torch 2.6 and later).

    Nothing is to be done where nothing can be compiled yet: importing the compiler takes a second.
    """
    if "torch._dynamo" not in sys.modules or not hasattr(torch.compiler, "set_stance"):
        return Change("stance", lambda: None, lambda: None)
    from torch._dynamo import eval_frame

    before = eval_frame._stance  # not by leaving set_stance: an interrupt on the way into it would keep it for ever
    return Change("stance", lambda: torch.compiler.set_stance("force_eager"), lambda: eval_frame._set_stance(before))
