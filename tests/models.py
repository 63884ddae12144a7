"""Small networks and small data for tests that train. A training of three epochs takes a fraction of a second."""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

CLASSES = ("ant", "bee", "cat")
# ModelCheckpoint keeps objects of its own in a checkpoint; older versions of Lightning load them unasked.
UNPICKLE = {"weights_only": False} if "weights_only" in inspect.signature(Trainer.fit).parameters else {}
STEPS = 3
"""Training batches in an epoch of `loader(24)`."""


class Spots(Dataset[Any]):
    """Noise with a bright spot whose place tells the class. Sample `i` is of class `i % 3`, and always the same."""

    classes = CLASSES

    def __init__(self, length: int = 24, size: int = 16, channels: int = 3, start: int = 0) -> None:
        self.length, self.size, self.channels, self.start = length, size, channels, start

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Any:
        if not 0 <= index < self.length:
            raise IndexError(index)
        generator = torch.Generator().manual_seed(index + self.start)
        image = 0.3 * torch.rand(self.channels, self.size, self.size, generator=generator)
        label = index % len(CLASSES)
        third = self.size // 3
        image[:, label * third : (label + 1) * third, third : 2 * third] += 0.7
        return image, label


class Named(Spots):
    """The same, each sample a dictionary."""

    def __init__(self, image_key: str = "image", label_key: str = "label", **settings: int) -> None:
        super().__init__(**settings)
        self.keys = image_key, label_key

    def __getitem__(self, index: int) -> Any:
        return dict(zip(self.keys, super().__getitem__(index), strict=True))


class Bare(Spots):
    """The same without labels."""

    def __getitem__(self, index: int) -> Any:
        return super().__getitem__(index)[0]


class Augmented(Spots):
    """Draws from every generator for each sample: flips, shifts and noise."""

    def __getitem__(self, index: int) -> Any:
        image, label = super().__getitem__(index)
        image = image.flip(-1) if random.random() < 0.5 else image
        image = image.roll(int(np.random.randint(3)), dims=1)
        return image + 0.1 * torch.randn(image.shape), label


class SpotStream(IterableDataset[Any]):
    """Sixteen samples that can only be read in order; counts how often it was opened."""

    def __init__(self, length: int = 16) -> None:
        self.spots, self.opened = Spots(length), 0

    def __iter__(self) -> Iterator[Any]:
        self.opened += 1
        return (self.spots[index] for index in range(len(self.spots)))


def loader(data: int | Any = 24, shuffle: bool = False) -> DataLoader[Any]:
    """Batches of eight: of so many spots, or of a data set."""
    return DataLoader(Spots(data) if isinstance(data, int) else data, batch_size=8, shuffle=shuffle)


class Network(nn.Module):
    """Two convolutions and a head; `on_map` stands between the last map and the pooling."""

    def __init__(self, on_map: Callable[[Tensor], Tensor] | None = None, channels: int = 3) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, 4, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.stage = nn.Conv2d(4, 6, 3, padding=1)
        self.drop = nn.Dropout(0.2)
        self.fc = nn.Linear(6, len(CLASSES))
        self.spare = nn.Conv2d(3, 4, 1)
        self.on_map = on_map

    def forward(self, images: Tensor) -> Tensor:
        maps = self.stage(F.relu(self.norm(self.stem(images)), inplace=True))
        maps = maps if self.on_map is None else self.on_map(maps)
        logits: Tensor = self.fc(self.drop(F.relu(maps).mean((2, 3))))
        return logits


class Flat(nn.Module):
    """No convolution, no space."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3 * 16 * 16, len(CLASSES))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.fc(images.flatten(1))
        return logits


def split(batch: Any) -> tuple[Tensor, Tensor]:
    """Images and labels of a tuple, of a dictionary, or of images alone, which all belong to class 0."""
    if isinstance(batch, dict):
        image, label = batch.values()
        return image, label
    if isinstance(batch, Tensor):
        return batch, torch.zeros(len(batch), dtype=torch.long, device=batch.device)
    image, label = batch
    return image, label


class Classifier(LightningModule):
    """What a user would write: a network in `self.model`, a loss, two metrics, an optimizer with a state."""

    def __init__(self, model: nn.Module | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.model = Network() if model is None else model

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(images)
        return logits

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        images, labels = split(batch)
        return F.cross_entropy(self(images), labels)

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        images, labels = split(batch)
        logits = self(images)
        self.log("val_loss", F.cross_entropy(logits, labels))
        self.log("val_accuracy", (logits.argmax(1) == labels).float().mean())

    test_step = validation_step

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


class Faulty(Classifier):
    """Loses the gradient of some images, by a plan: in epoch `e` those at the positions `plan[e]` of a batch.

    Training batches are spared, so that the weights stay in order.
    """

    def __init__(self, plan: Sequence[Sequence[int]]) -> None:
        super().__init__()
        self.plan = plan

    def forward(self, images: Tensor) -> Tensor:
        def lose(maps: Tensor) -> Tensor:
            alive = torch.ones(len(maps), 1, 1, 1)
            for position in () if self.training else self.plan[min(self.current_epoch, len(self.plan) - 1)]:
                alive[position] = 0
            return maps * alive

        self.model.on_map = lose
        return super().forward(images)


def detached() -> Classifier:
    """The feature map is cut off from the score: the gradient is None."""
    return Classifier(Network(torch.Tensor.detach))


class ZeroHead(Classifier):
    """The head's weights are zero and stay so: the gradient is zero."""

    def __init__(self, held: bool = True) -> None:
        super().__init__()
        nn.init.zeros_(self.model.fc.weight)
        self.model.fc.weight.requires_grad_(not held)
