"""pytorch-forecasting, `TemporalFusionTransformer`.

Two LSTMs: the decoder begins in the last state of the encoder.
"""

from __future__ import annotations

import lightning.pytorch as pl
from common import Results, finish
from pytorch_forecasting import QuantileLoss, TemporalFusionTransformer, TimeSeriesDataSet
from with_pytorch_forecasting_recurrent import results

REQUIRES = ["lightning", "pytorch-forecasting"]
MINUTES = 4
FAST = False


def transformer(data: TimeSeriesDataSet) -> pl.LightningModule:
    """Sixteen units everywhere."""
    return TemporalFusionTransformer.from_dataset(
        data,
        learning_rate=0.01,
        hidden_size=16,
        attention_head_size=2,
        dropout=0.1,
        hidden_continuous_size=8,
        loss=QuantileLoss(),
    )


def main() -> Results:
    """TemporalFusionTransformer."""
    return results(transformer, ("lstm_decoder.l0", "lstm_encoder.l0"))


if __name__ == "__main__":
    finish(main())
