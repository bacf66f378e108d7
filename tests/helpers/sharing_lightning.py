"""A training by Lightning in two processes: run as ``python sharing_lightning.py OUT``; what is found goes to OUT."""

import sys

import lightning
import torch
import torchmetrics
from lightning.pytorch.callbacks import EarlyStopping
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

import lstm_monitor as lm
from lstm_monitor.integrations import LSTMMonitorCallback

KEY = "lstm_monitor/rnn.l0/step/settling_time/p50"


class Net(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.rnn, self.head = nn.LSTM(2, 8, batch_first=True), nn.Linear(8, 2)
        self.accuracy = torchmetrics.Accuracy("multiclass", num_classes=2)

    def forward(self, x):
        return self.head(self.rnn(x)[0][:, -1])

    def training_step(self, batch, number):
        return cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch, number):
        scores = self(batch[0])
        self.accuracy(scores, batch[1])
        self.log("val_accuracy", self.accuracy)
        self.log("val_loss", cross_entropy(scores, batch[1]), sync_dist=True)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 0.01)


class Seen(lightning.Callback):
    """What another callback would stop the training by."""

    def __init__(self):
        self.values = []

    def on_train_epoch_end(self, trainer, pl_module):
        self.values.append(float(trainer.callback_metrics[KEY]))


def main():
    torch.manual_seed(0)
    x = torch.randn(48, 10, 2)
    y = (x.sum((1, 2)) > 0).long()
    check = lm.AblationCheck(
        score="val_loss", rankings=["measured"], random_orders=1, points=3, sequences=32, seconds=None
    )
    options = {"budget": None, "history": False, "horizon": 64, "on_error": "raise"}
    callback, seen, net = LSTMMonitorCallback(ablation=check, **options), Seen(), Net()
    sink = lm.MemorySink()
    callback.sinks.append(sink)
    trainer = lightning.Trainer(
        max_epochs=2,
        accelerator="cpu",
        devices=2,
        strategy="ddp",
        logger=False,
        callbacks=[callback, seen, EarlyStopping(KEY, patience=9)],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(net, DataLoader(TensorDataset(x, y), 8), DataLoader(TensorDataset(x[:40], y[:40]), 8))
    found = {"report": callback.report, "seen": seen.values, "written": len(sink.reports)}
    if trainer.is_global_zero:

        def loss(model, batch):
            return cross_entropy(model(batch[0]), batch[1], reduction="none")

        more = {"rankings": ["auto", "measured"], "random_orders": 1, "points": 3}
        found["alone"] = lm.ablation_study(net, loss=loss, held_out=[(x[:32], y[:32])], **more)
    torch.save(found, f"{sys.argv[1]}.{trainer.global_rank}")


if __name__ == "__main__":
    main()
