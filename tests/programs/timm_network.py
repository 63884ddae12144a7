"""A network of timm, fine-tuned: its body is frozen at first."""

from __future__ import annotations

import lightning as L
import timm
import torch
from pictures import batches
from torch.nn import functional as F


class FineTuned(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.model = timm.create_model("resnet10t", pretrained=False, num_classes=3)
        self.model.requires_grad_(False)
        self.model.get_classifier().requires_grad_(True)

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.model(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", F.cross_entropy(self.model(batch[0]), batch[1]))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.model(images)

    def configure_optimizers(self):
        return torch.optim.AdamW(self.model.get_classifier().parameters(), lr=0.01)


if __name__ == "__main__":
    L.seed_everything(0)
    trainer = L.Trainer(max_epochs=2, accelerator="cpu", enable_progress_bar=False)
    trainer.fit(FineTuned(), batches(24, size=66), batches(12, size=66))
