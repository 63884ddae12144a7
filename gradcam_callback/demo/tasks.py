"""A small network for each task that is no classification, and what it learns by."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torchvision.models.detection import FCOS
from torchvision.models.detection.anchor_utils import AnchorGenerator

from gradcam_callback.demo.networks import ResidualStages
from gradcam_callback.demo.shapes import SHAPES, SIDE

WIDTHS, STRIDES = (16, 32, 64), (2, 2, 1)  # of the stages: maps of 16 x 16 cells


class Learner(LightningModule):
    """AdamW on one loss, which training and validation log.

    Args:
        learning_rate: That of AdamW.
    """

    def __init__(self, learning_rate: float = 0.003) -> None:
        super().__init__()
        self.learning_rate = learning_rate

    @abstractmethod
    def loss(self, batch: Any) -> Tensor:
        """How wrong the network is on a batch."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the loss of one batch."""
        loss = self.loss(batch)
        self.log("train/loss", loss, prog_bar=True, batch_size=1)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Log the loss of one batch."""
        self.log("val/loss", self.loss(batch), prog_bar=True, batch_size=1)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW."""
        return torch.optim.AdamW(self.parameters(), lr=self.learning_rate)


class Segmenter(Learner):
    """The class of each pixel: stages, a 1 x 1 convolution, and its logits enlarged to the image."""

    def __init__(self, learning_rate: float = 0.003) -> None:
        super().__init__(learning_rate)
        self.stages = ResidualStages(3, WIDTHS, STRIDES)
        self.classifier = nn.Conv2d(WIDTHS[-1], 1 + len(SHAPES), kernel_size=1)

    def forward(self, images: Tensor) -> Tensor:
        """Map images `(N, 3, H, W)` to logits `(N, 4, H, W)`."""
        logits = self.classifier(self.stages(images))
        return F.interpolate(logits, size=images.shape[-2:], mode="bilinear", align_corners=False)

    def loss(self, batch: Any) -> Tensor:
        """Cross-entropy of the pixels."""
        images, masks = batch
        return F.cross_entropy(self(images), masks)


class Detector(Learner):
    """Boxes: torchvision's FCOS (Tian et al., 2019) on one map of 16 x 16 cells."""

    def __init__(self, learning_rate: float = 0.003) -> None:
        super().__init__(learning_rate)
        backbone = ResidualStages(3, WIDTHS, STRIDES)
        backbone.out_channels = WIDTHS[-1]  # type: ignore[assignment]  # FCOS asks for it
        anchors = AnchorGenerator(sizes=((16,),), aspect_ratios=((1.0,),))
        plain = {"image_mean": [0.0] * 3, "image_std": [1.0] * 3, "min_size": SIDE, "max_size": SIDE}
        self.detector = FCOS(backbone, 1 + len(SHAPES), anchor_generator=anchors, score_thresh=0.05, **plain)

    def forward(self, images: Tensor) -> Any:
        """Map images `(N, 3, H, W)` to a list with a mapping for each: `boxes`, `labels` and `scores`."""
        return self.detector(list(images))

    def loss(self, batch: Any) -> Tensor:
        """The sum of what FCOS learns by: classes, boxes, and how near the middle a cell is."""
        images, labels = batch
        mode = self.detector.training
        self.detector.train()  # torchvision's detectors give their losses in training mode alone
        losses = self.detector(list(images), labels)
        self.detector.train(mode)
        return torch.stack(list(losses.values())).sum()


class Pooled(Learner):
    """Stages, the mean over all places, and a linear layer.

    Args:
        outputs: How many numbers an image.
        learning_rate: That of AdamW.
    """

    def __init__(self, outputs: int, learning_rate: float = 0.003) -> None:
        super().__init__(learning_rate)
        self.stages = ResidualStages(3, WIDTHS, STRIDES)
        self.head = nn.Linear(WIDTHS[-1], outputs)

    def forward(self, images: Tensor) -> Tensor:
        """Map images `(N, 3, H, W)` to numbers `(N, outputs)`."""
        numbers: Tensor = self.head(self.stages(images).mean(dim=(2, 3)))
        return numbers


class MultiLabelClassifier(Pooled):
    """Which shapes there are: a logit for each, whose sigmoid is its probability."""

    def __init__(self, learning_rate: float = 0.003) -> None:
        super().__init__(len(SHAPES), learning_rate)

    def loss(self, batch: Any) -> Tensor:
        """Binary cross-entropy of the labels."""
        images, flags = batch
        return F.binary_cross_entropy_with_logits(self(images), flags)


class Regressor(Pooled):
    """How much of the image shapes cover: one number."""

    def __init__(self, learning_rate: float = 0.003) -> None:
        super().__init__(1, learning_rate)

    def loss(self, batch: Any) -> Tensor:
        """Mean squared error."""
        images, values = batch
        return F.mse_loss(self(images), values)


class Embedder(Pooled):
    """Vectors of length 1, near each other where the shapes are of one kind; after Khosla et al., 2020, equation 2.

    Args:
        size: Numbers in a vector.
        temperature: By which cosines are divided.
        learning_rate: That of AdamW.
    """

    def __init__(self, size: int = 16, temperature: float = 0.2, learning_rate: float = 0.003) -> None:
        super().__init__(size, learning_rate)
        self.temperature = temperature

    def forward(self, images: Tensor) -> Tensor:
        """Map images `(N, 3, H, W)` to vectors `(N, size)` of length 1."""
        return F.normalize(super().forward(images), dim=1)

    def loss(self, batch: Any) -> Tensor:
        """Supervised contrastive loss: each image against all others of the batch."""
        images, kinds = batch
        vectors = self(images)
        others = ~torch.eye(len(vectors), dtype=torch.bool, device=vectors.device)
        cosines = (vectors @ vectors.T / self.temperature).masked_fill(~others, -torch.inf)
        same = (kinds[:, None] == kinds) & others
        shares = cosines.log_softmax(dim=1).masked_fill(~same, 0.0)
        loss: Tensor = -(shares.sum(dim=1) / same.sum(dim=1).clamp(min=1)).mean()
        return loss


class Autoencoder(Learner):
    """An image through a map of 16 x 16 cells of 8 channels, and back."""

    def __init__(self, learning_rate: float = 0.003) -> None:
        super().__init__(learning_rate)
        self.encoder = nn.Sequential(ResidualStages(3, WIDTHS, STRIDES), nn.Conv2d(WIDTHS[-1], 8, kernel_size=1))
        self.decoder = nn.Sequential(
            nn.ConvTranspose2d(8, 32, kernel_size=2, stride=2),
            nn.ReLU(),
            nn.ConvTranspose2d(32, 16, kernel_size=2, stride=2),
            nn.ReLU(),
            nn.Conv2d(16, 3, kernel_size=3, padding=1),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Map images `(N, 3, H, W)` to images of the same shape."""
        reconstructed: Tensor = self.decoder(self.encoder(images))
        return reconstructed

    def loss(self, batch: Any) -> Tensor:
        """Mean squared error of the pixels."""
        return F.mse_loss(self(batch), batch)


def mean_brightness(output: Tensor, batch: Any) -> Tensor:
    """A target of one's own: how bright the reconstruction of each image is, `(N,)`."""
    return output.mean(dim=(1, 2, 3))
