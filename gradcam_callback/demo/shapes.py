"""Coloured shapes on a noisy ground, made on the spot: pictures whose classes, masks, boxes and numbers are known.

One data set for all tasks; which of these a sample comes with is the task's.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

ShapeTask = Literal["segmentation", "detection", "multilabel", "regression", "similarity", "reconstruction"]

SHAPES = ("disc", "square", "cross")
SIDE = 64  # of an image, in pixels
_MOST = 3  # shapes in an image
_SMALLEST, _LARGEST = 7, 12  # half the side of a shape, in pixels


def draw_scene(generator: torch.Generator, count: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Draw shapes at random places, each of another kind.

    Args:
        generator: Where everything random comes from.
        count: How many shapes, 1 to 3.

    Returns:
        The image, float32 `(3, 64, 64)` in 0..1; its mask, int64 `(64, 64)`: 0 the ground, 1 + the index in `SHAPES`;
        the kinds, int64 `(count,)`; and the boxes, float32 `(count, 4)`: left, top, right, bottom in pixels.
    """

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=generator))

    image = 0.25 + 0.15 * torch.rand(3, SIDE, SIDE, generator=generator)
    mask = torch.zeros(SIDE, SIDE, dtype=torch.int64)
    kinds = torch.randperm(len(SHAPES), generator=generator)[:count]
    boxes = []
    for kind in kinds.tolist():
        half = draw(_SMALLEST, _LARGEST)
        middle = draw(half, SIDE - 1 - half), draw(half, SIDE - 1 - half)
        inside = _inside(kind, middle, half)
        colour = 0.4 + 0.6 * torch.rand(3, generator=generator)
        image = torch.where(inside, colour[:, None, None], image)
        mask = torch.where(inside, kind + 1, mask)
        boxes.append([middle[1] - half, middle[0] - half, middle[1] + half + 1, middle[0] + half + 1])
    return image, mask, kinds, torch.tensor(boxes, dtype=torch.float32)


def _inside(kind: int, middle: tuple[int, int], half: int) -> Tensor:
    """The pixels of a shape: `(64, 64)` bool."""
    down = (torch.arange(SIDE) - middle[0])[:, None]
    across = (torch.arange(SIDE) - middle[1])[None]
    within = (down.abs() <= half) & (across.abs() <= half)
    if SHAPES[kind] == "disc":
        return down**2 + across**2 <= half**2
    return within if SHAPES[kind] == "square" else within & ((down.abs() <= half // 3) | (across.abs() <= half // 3))


class Shapes(Dataset[Any]):
    """Images of one to three shapes; in what a sample holds beside its image the tasks differ.

    - segmentation: the mask, int64 `(64, 64)`.
    - detection: a mapping with `boxes` and `labels`, which begin with 1, as torchvision's detectors want them.
    - multilabel: float32 `(3,)`, 1 for each kind of shape that is there.
    - regression: float32 `(1,)`, the share of the image that shapes cover.
    - similarity: the kind of the only shape.
    - reconstruction: nothing; the image alone.

    Args:
        task: What the samples are for.
        length: How many there are.
        seed: Of everything random. Sample `i` is always the same.

    Raises:
        ValueError: There is no such task.
    """

    def __init__(self, task: ShapeTask, length: int, seed: int) -> None:
        if task not in get_args(ShapeTask):
            raise ValueError(f"task is one of {', '.join(get_args(ShapeTask))}; given: {task!r}.")
        self.task, self.length, self.seed = task, length, seed
        self.classes = {
            "multilabel": SHAPES,
            "similarity": SHAPES,
            "segmentation": ("ground", *SHAPES),
            "detection": ("nothing", *SHAPES),
        }.get(task)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Any:
        if not 0 <= index < self.length:
            raise IndexError(index)
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + index)
        most = 1 if self.task == "similarity" else _MOST
        count = int(torch.randint(1, most + 1, (), generator=generator))
        image, mask, kinds, boxes = draw_scene(generator, count)
        if self.task == "reconstruction":
            return image
        labels: dict[str, Any] = {
            "segmentation": mask,
            "detection": {"boxes": boxes, "labels": kinds + 1},
            "multilabel": torch.zeros(len(SHAPES)).scatter(0, kinds, 1.0),
            "regression": (mask > 0).float().mean().reshape(1),
            "similarity": int(kinds[0]),
        }
        return image, labels[self.task]


def collate_boxes(samples: list[Any]) -> tuple[Tensor, list[dict[str, Tensor]]]:
    """A batch of images, and a list of what they hold: their numbers of boxes differ."""
    images, labels = zip(*samples, strict=True)
    return torch.stack(images), list(labels)


class ShapesData(LightningDataModule):
    """Images of shapes, made as they are read: nothing is downloaded.

    Args:
        task: What the samples hold; see `Shapes`.
        train: Images to train on.
        validation: Images to validate on.
        batch_size: Images a batch.
    """

    def __init__(self, task: ShapeTask, train: int = 1024, validation: int = 128, batch_size: int = 32) -> None:
        super().__init__()
        self.batch_size = batch_size
        self.train_set, self.validation_set = Shapes(task, train, seed=0), Shapes(task, validation, seed=1)

    def train_dataloader(self) -> DataLoader[Any]:
        """Batches in random order."""
        return self._loader(self.train_set, shuffle=True)

    def val_dataloader(self) -> DataLoader[Any]:
        """Batches in order."""
        return self._loader(self.validation_set)

    def _loader(self, data: Shapes, *, shuffle: bool = False) -> DataLoader[Any]:
        collate = collate_boxes if data.task == "detection" else default_collate
        return DataLoader(data, self.batch_size, shuffle=shuffle, collate_fn=collate)
