"""Digits with a shortcut: a coloured square in the corner gives the class away, in training and validation.

After Decoy-MNIST of Ross, Hughes and Doshi-Velez, "Right for the Right Reasons" (2017), with colours in place of shades
of grey. Because the places of digit and square are known, it can be measured which of them a network looks at. In the
test set the colours say nothing: there a network that has learnt the shortcut fails.
"""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from typing import NamedTuple

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from gradcam_callback.demo.data import (
    HELD_OUT,
    MEAN,
    STD,
    ClutteredDigits,
    digit_loader,
    load_digits,
    scatter_digits,
)

SQUARE = 8  # pixels on a side
GAP = 2  # pixels between the square and the corner
GREY = 0.5  # what a square without contrast looks like, 0..1


class Digit(NamedTuple):
    """A sample, and a batch of them.

    Attributes:
        image: float32 `(3, canvas, canvas)`, normalised.
        label: The digit.
        box: float32 `(4,)`, around the digit's ink: left, top, right, bottom in pixels.
        decoy: float32 `(4,)`, the square likewise; all 0 where there is none.
    """

    image: Tensor
    label: int
    box: Tensor
    decoy: Tensor


class ShortcutDigits(Dataset[Digit]):
    """Digits at fixed places, each with a square in the upper left corner whose colour may tell the class.

    Args:
        digits: uint8 `(N, 28, 28)`.
        labels: int64 `(N,)`.
        canvas: Side of the images in pixels.
        fragments: How many fragments of other digits lie on each image.
        seed: Of places and colours.
        share: How many of the squares tell the class, 0..1; the others have the colour of any class. None: no squares.
        contrast: How far the colours are from grey, 0..1.

    Attributes:
        boxes: float32 `(N, 4)`, around each digit's ink: left, top, right, bottom in pixels.
        decoys: The squares likewise; all 0 without squares.
        targets: The labels.
    """

    classes = ClutteredDigits.classes

    def __init__(
        self,
        digits: Tensor,
        labels: Tensor,
        *,
        canvas: int = 64,
        fragments: int = 2,
        seed: int = 0,
        share: float | None = 1.0,
        contrast: float = 1.0,
    ) -> None:
        generator = torch.Generator().manual_seed(seed)
        canvases, boxes = scatter_digits(digits, digits, canvas=canvas, fragments=fragments, generator=generator)
        self.targets = labels
        self.boxes = boxes[:, [1, 0, 3, 2]].float()
        self.decoys = torch.zeros_like(self.boxes)
        self._canvases, self._colours = canvases, None
        if share is not None:
            told = torch.rand(len(labels), generator=generator) < share
            any_class = torch.randint(len(self.classes), labels.shape, generator=generator)
            self._colours = colours(len(self.classes), contrast)[torch.where(told, labels, any_class)]
            self.decoys += torch.tensor(square_box())

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> Digit:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Digit]:
        """Read a whole batch at once, as a DataLoader does where a data set can."""
        chosen = torch.as_tensor(indices)
        images = self._canvases[chosen].float().div(255).unsqueeze(1).repeat(1, 3, 1, 1)
        if self._colours is not None:
            images[:, :, GAP : GAP + SQUARE, GAP : GAP + SQUARE] = self._colours[chosen][:, :, None, None]
        images = (images - MEAN) / STD
        return list(map(Digit, images, self.targets[chosen].tolist(), self.boxes[chosen], self.decoys[chosen]))


class ShortcutData(LightningDataModule):
    """Digits with a coloured square that gives the class away in training and validation, and not in testing.

    Args:
        decoy: Whether there are squares at all.
        strength: How many of the squares tell the class, 0..1.
        contrast: How far their colours are from grey, 0..1: at 1 they are pure, at 0 all the same.
        batch_size: Images a training step.
        canvas: Side of the images in pixels, at least 28.
        fragments: How many fragments of other digits lie on each image.
        seed: Of places and colours.

    Raises:
        ValueError: `strength` or `contrast` is not in 0..1, or `batch_size` is below 1.
    """

    classes = ClutteredDigits.classes

    def __init__(
        self,
        decoy: bool = True,
        strength: float = 1.0,
        contrast: float = 1.0,
        batch_size: int = 32,
        canvas: int = 64,
        fragments: int = 2,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise ValueError(f"batch_size is at least 1; given: {batch_size}.")
        if not 0 <= strength <= 1 or not 0 <= contrast <= 1:
            raise ValueError(f"strength and contrast are 0 to 1; given: {strength} and {contrast}.")
        self.decoy, self.strength, self.contrast = decoy, strength, contrast
        self.batch_size, self.canvas, self.fragments, self.seed = batch_size, canvas, fragments, seed

    def prepare_data(self) -> None:
        """Read the digits, so that a missing package is noticed before anything else."""
        load_digits()

    def setup(self, stage: str) -> None:
        """Split the digits. In the test set the same digits as in validation have squares of any colour."""
        digits, labels = load_digits()
        learnt, held_out = slice(None, -HELD_OUT), slice(-HELD_OUT, None)
        self.train_set = self._digits(digits[learnt], labels[learnt], self.strength, 3 * self.seed)
        self.validation_set = self._digits(digits[held_out], labels[held_out], self.strength, 3 * self.seed + 1)
        self.test_set = self._digits(digits[held_out], labels[held_out], 0.0, 3 * self.seed + 2)

    def train_dataloader(self) -> DataLoader[Digit]:
        """Batches in random order; an incomplete last one is left out."""
        return digit_loader(self.train_set, self.batch_size, shuffle=True, drop_last=True)

    def val_dataloader(self) -> DataLoader[Digit]:
        """Batches of 250."""
        return digit_loader(self.validation_set, 250)

    def test_dataloader(self) -> DataLoader[Digit]:
        """Batches of 250."""
        return digit_loader(self.test_set, 250)

    def _digits(self, digits: Tensor, labels: Tensor, share: float, seed: int) -> ShortcutDigits:
        return ShortcutDigits(
            digits,
            labels,
            canvas=self.canvas,
            fragments=self.fragments,
            seed=seed,
            share=share if self.decoy else None,
            contrast=self.contrast,
        )


def colours(count: int, contrast: float = 1.0) -> Tensor:
    """So many different colours, float32 `(count, 3)` in 0..1."""
    pure = torch.tensor([colorsys.hsv_to_rgb(number / count, 1.0, 1.0) for number in range(count)])
    return GREY + contrast * (pure - GREY)


def square_box() -> tuple[int, int, int, int]:
    """The box of the square: left, top, right, bottom in pixels."""
    return GAP, GAP, GAP + SQUARE, GAP + SQUARE


class HonestAccuracy(Callback):
    """Measures, once a training is over, the accuracy on the test set, and prints it: there the colours say nothing.

    Attributes:
        accuracy: 0..1; None before.
    """

    def __init__(self) -> None:
        self.accuracy: float | None = None
        self._has_squares = False

    @torch.no_grad()
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Classify the test set."""
        data: ShortcutData = trainer.datamodule  # type: ignore[attr-defined]
        pl_module.eval()
        right = [
            (pl_module(batch.image.to(pl_module.device)).argmax(dim=1).cpu() == batch.label).float()
            for batch in data.test_dataloader()
        ]
        pl_module.train()
        self._has_squares = data.decoy
        self.accuracy = float(torch.cat(right).mean())

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Print it, above the report of the run."""
        if self.accuracy is not None and trainer.is_global_zero:
            remark = ", where the squares say nothing" if self._has_squares else ""
            print(f"\nAccuracy in testing     {self.accuracy:7.1%}{remark}")
