"""pytorch-forecasting, `DeepAR`.

As `RecurrentNetwork`, with a normal distribution; by default validation draws no samples.
"""

from __future__ import annotations

import lightning.pytorch as pl
from common import Results, finish
from pytorch_forecasting import DeepAR, TimeSeriesDataSet
from with_pytorch_forecasting_recurrent import results

REQUIRES = ["lightning", "pytorch-forecasting"]
MINUTES = 4
FAST = False


def deepar(data: TimeSeriesDataSet) -> pl.LightningModule:
    """Two layers with dropout, a normal distribution."""
    return DeepAR.from_dataset(data, learning_rate=0.01, hidden_size=16, rnn_layers=2, dropout=0.1)


def main() -> Results:
    """DeepAR."""
    return results(deepar, ("rnn.l0", "rnn.l1"))


if __name__ == "__main__":
    finish(main())
