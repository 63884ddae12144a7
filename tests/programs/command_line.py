"""A program around a LightningCLI."""

from __future__ import annotations

from classifier import Classifier
from lightning.pytorch import LightningDataModule
from lightning.pytorch.cli import LightningCLI
from pictures import batches


class Pictures(LightningDataModule):
    def __init__(self, count: int = 24) -> None:
        super().__init__()
        self.count = count

    def train_dataloader(self):
        return batches(self.count)

    def val_dataloader(self):
        return batches(12)


if __name__ == "__main__":
    LightningCLI(Classifier, Pictures, seed_everything_default=0)
