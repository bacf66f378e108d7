"""Where these tests run: on the GPU; or in a dry run of `make gpu` on the CPU, small, to see that they run."""

import os

import pytest
import torch

DRY = os.environ.get("LSTM_MONITOR_DRY") == "1"
DEVICE = torch.device("cpu") if DRY else torch.device("cuda", 0)


def sized(real, tiny):
    """What is computed on the GPU, and in a dry run."""
    return tiny if DRY else real


def there(value):
    """A tensor, a module, or a tuple of them, on the device."""
    return tuple(map(there, value)) if isinstance(value, tuple) else value.to(DEVICE)


def seen(value):
    """A figure that only a GPU can show."""
    return "needs a GPU" if DRY else value


def wait():
    """Until the device has done all that it was asked for; errors of kernels come here."""
    if not DRY:
        torch.cuda.synchronize()


def allocated():
    """Bytes of tensors on the device; 0 in a dry run."""
    return 0 if DRY else torch.cuda.memory_allocated()


MARKS = [
    pytest.mark.cuda,
    # Warnings of other versions are no errors here; weights in many pieces, which cuDNN copies at every call, are.
    pytest.mark.filterwarnings("default", "error:.*single contiguous chunk.*"),
]
