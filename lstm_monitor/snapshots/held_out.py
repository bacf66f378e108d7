"""Held-out data as people give it: a tensor, a tuple, a dict, a packed sequence, or a list of such batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils.data import DataLoader

Forward = Callable[[nn.Module, Any], Any]


def batches_of(held_out: Any) -> list[Any]:
    """The batches of held-out data; ValueError where there is none."""
    batches = held_out if isinstance(held_out, list) else [held_out]
    if not batches:
        raise ValueError("held_out=[] is empty; give at least one batch of sequences")
    return batches


def masks_of(batches: list[Any], listed: bool, lengths: Any, mask: Any) -> list[Tensor | None]:
    """The mask of each batch ``(N, T)``, from `lengths` or `mask`; None where all steps count."""
    if lengths is not None and mask is not None:
        raise ValueError("lengths= and mask= were both given; give one of them")
    name, given = ("mask", mask) if lengths is None else ("lengths", lengths)
    if given is None:
        return [None] * len(batches)
    values = list(given) if listed else [given]
    if len(values) != len(batches):
        raise ValueError(f"{name} has {len(values)} entries for {len(batches)} held-out batches; give one a batch")
    make = _mask_of_lengths if mask is None else _mask_as_given
    return [make(torch.as_tensor(value), batch) for value, batch in zip(values, batches, strict=True)]


def _mask_as_given(mask: Tensor, batch: Any) -> Tensor:
    if mask.dim() != 2:
        raise ValueError(f"mask has shape {tuple(mask.shape)}; give (N, T), True for the steps that count")
    return mask.bool()


def _mask_of_lengths(lengths: Tensor, batch: Any) -> Tensor:
    if lengths.dim() != 1 or lengths.numel() == 0 or lengths.is_floating_point() or int(lengths.min()) < 1:
        raise ValueError(
            f"lengths has shape {tuple(lengths.shape)} and dtype {lengths.dtype}; give one integer of at least 1 a "
            "sequence"
        )
    steps = _steps_of(batch, len(lengths))
    if int(lengths.max()) > steps:
        raise ValueError(f"lengths holds {int(lengths.max())}, but the held-out sequences have {steps} steps")
    return torch.arange(steps, device="cpu") < lengths[:, None].cpu()


def _steps_of(batch: Any, count: int) -> int:
    """T of a batch of `count` sequences: the other one of the first two axes of its first tensor that has them."""
    for tensor in tensors_in(batch):
        if tensor.dim() >= 2 and count in tensor.shape[:2]:
            return tensor.shape[1] if tensor.shape[0] == count else tensor.shape[0]
    shapes = ", ".join(str(tuple(tensor.shape)) for tensor in tensors_in(batch))
    raise ValueError(f"lengths is for {count} sequences, but held_out has shapes {shapes}; give one length a sequence")


def check_batch(batch: Any) -> None:
    """Raise TypeError or ValueError for what cannot be given to a model: no tensors, empty ones, NaN."""
    if type(batch).__module__.split(".")[0] in ("numpy", "pandas") or isinstance(batch, DataLoader):
        raise TypeError(
            f"held_out={type(batch).__name__}: give tensors, such as torch.as_tensor(array, dtype=torch.float32), "
            "or a list of batches of a loader, such as [x for x, y in loader]"
        )
    for tensor in tensors_in(batch):
        if tensor.numel() == 0:
            raise ValueError(f"held_out is empty: it holds a tensor of shape {tuple(tensor.shape)}")
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            bad = int((~torch.isfinite(tensor)).sum())
            raise ValueError(
                f"held_out holds {bad} values that are NaN or infinite (of {tensor.numel()}); "
                "fill or drop them, as for the training itself"
            )


def tensors_in(batch: Any) -> Iterator[Tensor]:
    """Every tensor in a batch."""
    if isinstance(batch, PackedSequence):
        yield batch.data
    elif isinstance(batch, Tensor):
        yield batch
    elif isinstance(batch, Mapping):
        yield from _all_tensors(batch.values())
    elif isinstance(batch, tuple | list):
        yield from _all_tensors(batch)


def _all_tensors(parts: Iterable[Any]) -> Iterator[Tensor]:
    for part in parts:
        yield from tensors_in(part)


def to_device_of(model: nn.Module, batch: Any) -> Any:
    """A batch on the model's device."""
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    if isinstance(batch, PackedSequence):
        return batch.to(device)  # type: ignore[arg-type]  # its stub knows dtypes only
    if isinstance(batch, Tensor):
        return batch.to(device)
    if isinstance(batch, Mapping):
        return {name: to_device_of(model, part) for name, part in batch.items()}
    if isinstance(batch, tuple | list):
        parts = [to_device_of(model, part) for part in batch]
        return type(batch)(*parts) if hasattr(batch, "_fields") else type(batch)(parts)
    return batch
