"""Every test starts from the same random states, whatever ran before it."""

import random

import numpy as np
import pytest
import torch


@pytest.fixture(autouse=True)
def _same_random_states() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
