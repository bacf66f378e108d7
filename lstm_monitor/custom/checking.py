"""Whether what was registered for a module gives what the module itself puts out."""

from __future__ import annotations

import torch
from torch import Tensor

from lstm_monitor.custom.registry import Registration

_WITHIN = {torch.float64: 1e-6, torch.float32: 2e-3}
_WITHIN_HALF = 5e-2


def check_outputs(registration: Registration, name: str, ours: Tensor, theirs: Tensor, mask: Tensor) -> None:
    """Compare ``ours (N, T, W)`` with the first sequences that the module put out, over the steps in ``mask (N, T)``.

    Where the widths differ, the module does something more with its hidden states, and nothing can be compared.

    Raises:
        ValueError: they differ by more than the precision of the module's outputs explains, with by how much.
    """
    rows, steps, width = theirs.shape
    if width != ours.shape[-1]:
        return
    counted = mask[:rows, :steps].to(ours.device)
    expected = theirs.to(ours)[counted]
    difference = (ours[:rows, :steps][counted] - expected).abs()
    size = float(expected.abs().max()) if len(expected) else 0.0
    largest = float(difference.max()) if len(expected) else 0.0
    if not largest <= _WITHIN.get(theirs.dtype, _WITHIN_HALF) * size + 1e-6:
        given = "weights" if registration.weights is not None else "step"
        raise ValueError(
            f"{name}: {given}= registered for {registration.cls.__name__} does not give what the module puts out on "
            f"the held-out data: they differ by up to {largest:.3g}, of values up to {size:.3g}. Look at the order of "
            "the gates, the biases, the state at the start, and whether sequences are batch_first=; give verify=False "
            "where the module's outputs are not its hidden states"
        )
