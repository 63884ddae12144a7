"""Made signals and volumes, and a small network for each: what is looked for lies at a known place."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, Literal

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningDataModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from gradcam_callback.demo.tasks import Learner

LENGTH = 256  # of a signal, in samples
SIDES = (16, 32, 32)  # depth, height and width of a volume, in voxels


class Made(Dataset[Any]):
    """Samples that are made as they are read: float32, and a class.

    Args:
        length: How many there are.
        seed: Of everything random. Sample `i` is always the same.
    """

    classes: tuple[str, ...]

    def __init__(self, length: int, seed: int) -> None:
        self.length, self.seed = length, seed

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        kind = index % len(self.classes)
        return self.draw(kind, torch.Generator().manual_seed(self.seed * 1_000_003 + index)), kind

    @abstractmethod
    def draw(self, kind: int, generator: torch.Generator) -> Tensor:
        """Make a sample of a class."""


class Pulses(Made):
    """Noise `(1, 256)` with one pulse at a random place: smooth, square, or a burst of waves."""

    classes = ("smooth", "square", "burst")

    def draw(self, kind: int, generator: torch.Generator) -> Tensor:
        """A signal `(1, 256)`."""
        middle = int(torch.randint(30, LENGTH - 30, (), generator=generator))
        place = torch.arange(LENGTH) - middle
        near = torch.exp(-((place / 10) ** 2))
        shapes = (near, (place.abs() < 14).float(), near * torch.sin(place * 1.2))
        noise = 0.3 * torch.randn(LENGTH, generator=generator)
        return (2 * shapes[kind] + noise).unsqueeze(0)


class Blobs(Made):
    """Noise `(1, 16, 32, 32)` with one body at a random place: a ball, a cube, or a disc."""

    classes = ("ball", "cube", "disc")

    def draw(self, kind: int, generator: torch.Generator) -> Tensor:
        """A volume `(1, 16, 32, 32)`."""
        middle = [int(torch.randint(5, side - 5, (), generator=generator)) for side in SIDES]
        away = torch.meshgrid(
            *(torch.arange(side) - start for side, start in zip(SIDES, middle, strict=True)), indexing="ij"
        )
        squared = torch.stack(away).square()
        bodies = (squared.sum(0) <= 25, squared.amax(0) <= 16, (squared[1:].sum(0) <= 36) & (squared[0] <= 1))
        noise = 0.3 * torch.rand(SIDES, generator=generator)
        return (bodies[kind].float() * 0.7 + noise).unsqueeze(0)


class SpacesData(LightningDataModule):
    """Signals or volumes, made as they are read.

    Args:
        kind: Which.
        train: How many to train on.
        validation: How many to validate on.
        batch_size: How many in a batch.
    """

    def __init__(
        self, kind: Literal["signals", "volumes"], train: int = 768, validation: int = 96, batch_size: int = 32
    ) -> None:
        super().__init__()
        self.batch_size = batch_size
        make = {"signals": Pulses, "volumes": Blobs}[kind]
        self.train_set, self.validation_set = make(train, seed=0), make(validation, seed=1)

    def train_dataloader(self) -> DataLoader[Any]:
        """Batches in random order."""
        return DataLoader(self.train_set, self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader[Any]:
        """Batches in order."""
        return DataLoader(self.validation_set, self.batch_size)


class SpaceClassifier(Learner):
    """Three convolutions, two of them with a stride of two, the mean over all places, and a linear layer.

    Args:
        axes: Of space: 1 for signals, 3 for volumes.
        learning_rate: That of AdamW.
    """

    def __init__(self, axes: Literal[1, 3], learning_rate: float = 0.003) -> None:
        super().__init__(learning_rate)
        conv, norm = {1: (nn.Conv1d, nn.BatchNorm1d), 3: (nn.Conv3d, nn.BatchNorm3d)}[axes]
        layers: list[nn.Module] = []
        for inputs, outputs, stride in ((1, 8, 2), (8, 16, 2), (16, 32, 1)):
            layers += [conv(inputs, outputs, 5, stride=stride, padding=2, bias=False), norm(outputs), nn.ReLU()]
        self.stages, self.head = nn.Sequential(*layers), nn.Linear(32, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        """Map signals `(N, 1, W)`, or volumes `(N, 1, D, H, W)`, to logits `(N, 3)`."""
        logits: Tensor = self.head(self.stages(inputs).flatten(2).mean(2))
        return logits

    def loss(self, batch: Any) -> Tensor:
        """Cross-entropy."""
        inputs, labels = batch
        return F.cross_entropy(self(inputs), labels)
