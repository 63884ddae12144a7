"""A vision transformer of transformers in a LightningModule: batches are dictionaries, given by keyword."""

from __future__ import annotations

import lightning as L
import torch
from pictures import Squares
from torch.utils.data import DataLoader
from transformers import ViTConfig, ViTForImageClassification


class Transformer(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.model = ViTForImageClassification(
            ViTConfig(
                image_size=48,
                patch_size=8,
                hidden_size=32,
                num_hidden_layers=2,
                num_attention_heads=2,
                intermediate_size=64,
                num_labels=3,
            )
        )

    def forward(self, **batch):
        return self.model(**batch)

    def training_step(self, batch, batch_idx):
        return self(**batch).loss

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self(**batch).loss)

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.003)


def collate(samples):
    images, labels = zip(*samples, strict=True)
    return {"pixel_values": torch.stack(images), "labels": torch.tensor(labels)}


def batches(count: int):
    return DataLoader(Squares(count, size=48), batch_size=8, collate_fn=collate)


if __name__ == "__main__":
    L.seed_everything(0)
    trainer = L.Trainer(max_epochs=4, accelerator="cpu", enable_progress_bar=False)
    trainer.fit(Transformer(), batches(96), batches(12))
