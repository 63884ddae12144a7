"""What a user may write: type-checked under mypy --strict, and run, against an installed package.

It needs nothing of this repository; see scripts/check_package.py and test_package.py.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from gradcam_callback import (
    CAMResult,
    Cause,
    Diagnosis,
    GradCAMCallback,
    ValidationProbes,
    compute_cam,
    diagnose,
    read_run,
)


class Classifier(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.stage = nn.Conv2d(1, 4, 3)
        self.head = nn.Linear(4, 3)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.stage(images).relu().mean((2, 3)))
        return logits

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        return nn.functional.cross_entropy(self(images), labels)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.log("val/loss", self.training_step(batch, batch_idx))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def wrong() -> GradCAMCallback:
    return GradCAMCallback(every_n_epochs="two")  # type: ignore[arg-type]  # the types of the package are seen


def main(folder: Path) -> None:
    torch.manual_seed(0)
    data = TensorDataset(torch.rand(8, 1, 12, 12), torch.arange(8) % 3)
    gradcam = GradCAMCallback(probes=ValidationProbes(n=4), target=["predicted", "label"])
    trainer = Trainer(
        max_epochs=2,
        accelerator="cpu",
        devices=1,
        logger=TensorBoardLogger(folder, name="user"),
        callbacks=[gradcam],
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
    )
    model = Classifier()
    trainer.fit(model, DataLoader(data, batch_size=4), DataLoader(data, batch_size=4))
    last: CAMResult | None = gradcam.last_result
    assert last is not None
    assert [alert.cause for alert in gradcam.alerts] == []

    again: CAMResult = compute_cam(model, torch.rand(2, 1, 12, 12), "stage", target=1)
    heatmaps: dict[str, Tensor] = again.heatmaps()
    assert heatmaps["stage"].shape == (2, 12, 12)
    found: Diagnosis = diagnose(model, torch.rand(2, 1, 12, 12), "stage")
    cause: Cause | None = found.cause
    assert cause is None

    assert trainer.log_dir is not None
    print(read_run(trainer.log_dir))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
