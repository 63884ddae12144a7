"""The LightningModule of the demo and of the example configurations: any network, trained as a classifier."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import Tensor, nn

Batch = tuple[Tensor, Tensor]


class ImageClassifier(LightningModule):
    """Cross-entropy, accuracy, and AdamW whose learning rate rises and falls once over the whole training.

    Args:
        network: Maps images `(N, C, H, W)` to logits `(N, L)`.
        learning_rate: The highest one; reached after three tenths of the training.
        weight_decay: That of AdamW.
        label_smoothing: How much of the target is spread over all classes in training, 0..1.
    """

    def __init__(
        self,
        network: nn.Module,
        learning_rate: float = 0.005,
        weight_decay: float = 0.05,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        self.network = network.to(memory_format=torch.channels_last)  # convolutions take a quarter less time
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.label_smoothing = label_smoothing

    def forward(self, images: Tensor) -> Tensor:
        """Map images `(N, C, H, W)` to logits `(N, L)`."""
        logits: Tensor = self.network(images)
        return logits

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of one batch."""
        logits = self._score(batch, batch_idx)
        loss = F.cross_entropy(logits, batch[1], label_smoothing=self.label_smoothing)
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Log loss and accuracy of one batch."""
        self._log_quality("val", batch, batch_idx)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Log loss and accuracy of one batch."""
        self._log_quality("test", batch, batch_idx)

    def configure_optimizers(self) -> Any:
        """One AdamW and one OneCycleLR, stepped after every batch."""
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.learning_rate, weight_decay=self.weight_decay)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.learning_rate, total_steps=steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _log_quality(self, stage: str, batch: Batch, batch_idx: int) -> None:
        logits, labels = self._score(batch, batch_idx), batch[1]
        accuracy = (logits.argmax(dim=1) == labels).float().mean()
        self.log(f"{stage}/loss", F.cross_entropy(logits, labels), batch_size=len(labels))
        self.log(f"{stage}/accuracy", accuracy, prog_bar=True, batch_size=len(labels))

    def _score(self, batch: Batch, batch_idx: int) -> Tensor:
        logits: Tensor = self(batch[0])
        if batch_idx == 0:
            self._check_classes(logits)
        return logits

    def _check_classes(self, logits: Tensor) -> None:
        # Without this, PyTorch says "Target 3 is out of bounds" on a CPU, and ends the process on a GPU.
        classes = getattr(self.trainer.datamodule, "classes", None)  # type: ignore[attr-defined]
        if classes is not None and len(classes) != logits.shape[1]:
            raise ValueError(
                f"The data has {len(classes)} classes ({', '.join(classes)}), and the network tells "
                f"{logits.shape[1]} apart. Set model.init_args.network.init_args.num_classes to {len(classes)}."
            )
