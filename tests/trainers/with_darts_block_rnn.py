"""darts, `BlockRNNModel`.

As `RNNModel`; a batch of the validation is a tuple whose past covariates may be None.
"""

from __future__ import annotations

from typing import Any

from common import Results, finish
from darts.models import BlockRNNModel
from with_darts_rnn import OPTIONS, results

REQUIRES = ["darts", "pytorch-lightning"]
MINUTES = 3
FAST = False


def block_rnn(trainer: dict[str, Any], name: str) -> BlockRNNModel:
    """Two layers with dropout, and a layer between them and the forecast."""
    return BlockRNNModel(
        input_chunk_length=24,
        output_chunk_length=6,
        model="LSTM",
        hidden_dim=16,
        n_rnn_layers=2,
        hidden_fc_sizes=[8],
        dropout=0.1,
        model_name=name,
        log_tensorboard=True,
        pl_trainer_kwargs=trainer,
        **OPTIONS,
    )


def main() -> Results:
    """BlockRNNModel."""
    return results(block_rnn, ("rnn.l0", "rnn.l1"))


if __name__ == "__main__":
    finish(main())
