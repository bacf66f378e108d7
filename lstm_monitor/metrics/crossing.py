"""The first and the last sample outside a band, by block extremes and one gathered block.

Reductions over blocks read the response once at memory speed; a search along time follows in one block a cell only.
Time comes first inside this file, as the engines lay their traces out.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

BLOCK = 32


@dataclass(frozen=True, eq=False)
class Blocks:
    """A response with the extremes of its blocks: ``y (T, ...)``, ``top`` and ``bottom (B, ...)``, of `size` samples.

    The last block ends at T and may overlap the one before.
    """

    y: Tensor
    top: Tensor
    bottom: Tensor
    size: int


def blocks_of(y: Tensor) -> Blocks:
    """The blocks of a response ``y (..., T)``."""
    first = y.movedim(-1, 0)
    size = min(BLOCK, len(first))
    whole = len(first) // size * size
    parts = [first[:whole].unflatten(0, (-1, size))] + ([first[None, -size:]] if whole < len(first) else [])
    top = torch.cat([part.amax(1) for part in parts])
    bottom = torch.cat([part.amin(1) for part in parts])
    return Blocks(first, top, bottom, size)


def last_outside(blocks: Blocks, low: Tensor, high: Tensor) -> Tensor:
    """Index (...) of the last sample with y < low or y > high; -1 if there is none."""
    block = _last((blocks.top > high) | (blocks.bottom < low))
    samples, start = _gather(blocks, block.clamp(min=0))
    inside = _last((samples > high) | (samples < low))
    return torch.where(block < 0, -1, start + inside).to(blocks.y.dtype)


def first_outside(blocks: Blocks, low: Tensor, high: Tensor) -> Tensor:
    """Index (...) of the first sample with y <= low or y >= high; T if there is none."""
    block = _first((blocks.top >= high) | (blocks.bottom <= low))
    samples, start = _gather(blocks, block.clamp(max=len(blocks.top) - 1))
    inside = _first((samples >= high) | (samples <= low))
    return torch.where(block == len(blocks.top), len(blocks.y), start + inside).to(blocks.y.dtype)


def _gather(blocks: Blocks, block: Tensor) -> tuple[Tensor, Tensor]:
    start = (block * blocks.size).clamp(max=len(blocks.y) - blocks.size)
    offsets = torch.arange(blocks.size, device=start.device).reshape(-1, *(1,) * start.dim())
    return blocks.y.gather(0, start + offsets), start


def _last(flags: Tensor) -> Tensor:
    """Index of the last True along the first axis, -1 if none."""
    order = torch.arange(1, len(flags) + 1, device=flags.device)
    return (flags * order.reshape(-1, *(1,) * (flags.dim() - 1))).amax(0) - 1


def _first(flags: Tensor) -> Tensor:
    """Index of the first True along the first axis, its length if none."""
    order = torch.arange(len(flags), 0, -1, device=flags.device)
    return len(flags) - (flags * order.reshape(-1, *(1,) * (flags.dim() - 1))).amax(0)
