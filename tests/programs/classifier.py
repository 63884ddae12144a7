"""A classifier, as many write it; prints the number of its process, and ends with the status that it is given."""

from __future__ import annotations

import argparse
import os
import sys

import lightning as L
import torch
from pictures import batches
from torch import nn
from torch.nn import functional as F


class Classifier(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(
            *(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Flatten(), nn.Linear(16 * 8 * 8, 3)),
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.network(images)

    def training_step(self, batch, batch_idx):
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val_accuracy", (self(batch[0]).argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.005)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--status", type=int, default=0)
    parser.add_argument("--devices", type=int, default=1)
    options = parser.parse_args()
    L.seed_everything(0)
    trainer = L.Trainer(max_epochs=6, accelerator="cpu", devices=options.devices, enable_progress_bar=False)
    trainer.fit(Classifier(), batches(48), batches(12))
    print(os.getpid())
    sys.exit(options.status)
