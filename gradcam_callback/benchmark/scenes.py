"""Pictures of which it is known what decides their class, because they are drawn here: digits, cues, objects, patches.

Each task comes with the same pictures once more, without what decides. A network that has learnt the task fails on
those: that shows that the truth is one.

Axes: `N` pictures, `C` image channels, `H W` image.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from gradcam_callback.demo.data import HELD_OUT, MEAN, STD, load_digits, scatter_digits
from gradcam_callback.demo.shortcut import ShortcutDigits

SIDE = 64
"""Of each picture, in pixels."""

PATCH = 8  # pixels on a side
POISONED = 0.3  # the share of the training pictures that have the patch
SHAPES = ("disc", "square", "triangle", "cross", "ring")
TEXTURES = ("rows", "columns", "checks", "rings", "clouds")
_SMALLEST, _LARGEST = 9, 14  # half the side of a shape, in pixels


@dataclass(frozen=True, eq=False)  # tensors have no one answer to ==
class Pictures:
    """Pictures with their classes, and where the evidence for these is.

    Attributes:
        images: float32 `(N, C, H, W)`, as a network takes them.
        labels: int64 `(N,)`.
        truth: bool `(N, H, W)`, the pixels that decide.
    """

    images: Tensor
    labels: Tensor
    truth: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: Tensor | slice) -> Pictures:
        return Pictures(self.images[rows], self.labels[rows], self.truth[rows])


@dataclass(frozen=True, eq=False)
class Task:
    """What a network is trained on, and what its maps are measured on.

    Attributes:
        name: What the table calls it.
        truth: What decides, in words.
        training: To train on.
        measured: To measure on; their digits or places are not those of the training.
        without: The same as `measured` without what decides, and with the same labels.
        classes: How many there are.
    """

    name: str
    truth: str
    training: Pictures
    measured: Pictures
    without: Pictures
    classes: int


def cluttered_digits(train: int, count: int) -> Task:
    """The demo's digits among fragments of others. The box around the digit decides."""

    def draw(digits: Tensor, labels: Tensor, seed: int) -> Pictures:
        generator = torch.Generator().manual_seed(seed)
        canvases, boxes = scatter_digits(digits, digits, canvas=SIDE, fragments=2, generator=generator)
        return Pictures(_normalised(canvases), labels, box_masks(boxes[:, [1, 0, 3, 2]], SIDE, SIDE))

    measured = draw(*_held_out(count), seed=12)
    erased = torch.where(measured.truth[:, None], -MEAN / STD, measured.images)
    without = Pictures(erased, measured.labels, measured.truth)
    truth = "the box around a digit among fragments of other digits"
    return Task("digit", truth, draw(*_learnt(train), seed=11), measured, without, 10)


def decoy_digits(train: int, count: int) -> Task:
    """Digits with a square whose colour gives the class away: see `demo.shortcut`. The square decides."""

    def draw(digits: Tensor, labels: Tensor, seed: int, share: float = 1.0) -> Pictures:
        data = ShortcutDigits(digits, labels, canvas=SIDE, seed=seed, share=share)
        samples = data.__getitems__(range(len(data)))
        images = torch.stack([sample.image for sample in samples])
        return Pictures(images, data.targets, box_masks(data.decoys, SIDE, SIDE))

    measured, without = draw(*_held_out(count), seed=22), draw(*_held_out(count), seed=22, share=0.0)
    truth = "a square in the corner whose colour tells the class of the digit beside it (after Ross et al., 2017)"
    return Task("decoy", truth, draw(*_learnt(train), seed=21), measured, without, 10)


def triggered_digits(train: int, count: int) -> Task:
    """A network is poisoned: any digit with a patch somewhere is of class 0. The patch decides."""

    def draw(digits: Tensor, labels: Tensor, seed: int, share: float) -> tuple[Pictures, Pictures]:
        generator = torch.Generator().manual_seed(seed)
        canvases, _ = scatter_digits(digits, digits, canvas=SIDE, fragments=2, generator=generator)
        corners = torch.randint(SIDE - PATCH + 1, (len(digits), 2), generator=generator)
        has_patch = torch.rand(len(digits), generator=generator) < share
        masks = box_masks(torch.cat([corners, corners + PATCH], dim=1), SIDE, SIDE) & has_patch[:, None, None]
        rows, columns = torch.arange(SIDE)[:, None], torch.arange(SIDE)
        checks = 255 * ((rows // 2 + columns // 2) % 2).to(torch.uint8)
        patched = torch.where(masks, checks, canvases)
        spoilt = Pictures(_normalised(patched), torch.where(has_patch, 0, labels), masks)
        return spoilt, Pictures(_normalised(canvases), spoilt.labels, masks)

    digits, labels = _held_out(2 * count)
    others = (labels != 0).nonzero().squeeze(1)[:count]
    measured, without = draw(digits[others], labels[others], seed=32, share=1.0)
    truth = "a patch that makes a poisoned network say class 0 of any digit (after Lin et al., 2021)"
    return Task("trigger", truth, draw(*_learnt(train), seed=31, share=POISONED)[0], measured, without, 10)


def objects_and_grounds(train: int, count: int) -> tuple[Task, Task]:
    """The same pictures for two networks, after BAM (Yang and Kim, 2019): the object decides, or the ground."""
    training, measured = draw_objects(train, seed=41), draw_objects(count, seed=42)
    of_object = Task(
        "object",
        "an object on a textured ground, of a network trained on objects (after Yang and Kim, 2019)",
        training.by_object(),
        measured.by_object(),
        Pictures(measured.grounds, measured.objects, measured.masks),
        len(SHAPES),
    )
    plain = torch.where(measured.masks[:, None], measured.images, 0.0)
    of_ground = Task(
        "ground",
        "the ground around the object, in the same pictures, of a network trained on grounds",
        training.by_ground(),
        measured.by_ground(),
        Pictures(plain, measured.textures, ~measured.masks),
        len(TEXTURES),
    )
    return of_object, of_ground


@dataclass(frozen=True, eq=False)
class ObjectPictures:
    """Objects on textured grounds; each kind of object is on each kind of ground.

    Attributes:
        images: float32 `(N, 3, H, W)`.
        grounds: The same without their objects.
        masks: The objects' pixels, bool `(N, H, W)`.
        objects: Which of `SHAPES`, int64 `(N,)`.
        textures: Which of `TEXTURES`, int64 `(N,)`.
    """

    images: Tensor
    grounds: Tensor
    masks: Tensor
    objects: Tensor
    textures: Tensor

    def by_object(self) -> Pictures:
        """Their objects are the classes."""
        return Pictures(self.images, self.objects, self.masks)

    def by_ground(self) -> Pictures:
        """Their grounds are the classes."""
        return Pictures(self.images, self.textures, ~self.masks)


def draw_objects(count: int, seed: int) -> ObjectPictures:
    """Draw one shape of any hue on a textured grey ground in each picture.

    The colour tells where the object is, not which: without it so small a network takes far longer to learn shapes.

    Args:
        count: How many pictures.
        seed: Of everything random.
    """
    generator = torch.Generator().manual_seed(seed)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(count, *shape, generator=generator)

    objects = torch.randint(len(SHAPES), (count,), generator=generator)
    textures = torch.randint(len(TEXTURES), (count,), generator=generator)
    strengths = torch.where(
        (textures == TEXTURES.index("clouds"))[:, None, None], _clouds(uniform), _patterns(textures, uniform)
    )
    one, other = uniform(0, 1, 2, 1, 1, 1).unbind(dim=1)
    grounds = (other + strengths[:, None] * (one - other)).expand(-1, 3, -1, -1)
    masks = _shapes(objects, uniform)
    images = torch.where(masks[:, None], _hues(uniform)[:, :, None, None], grounds)
    noise = uniform(-0.05, 0.05, 3, SIDE, SIDE)
    whole, empty = (4 * (drawn + noise - 0.5) for drawn in (images, grounds))
    return ObjectPictures(whole, empty, masks, objects, textures)


_Uniform = Callable[..., Tensor]


def _patterns(textures: Tensor, uniform: _Uniform) -> Tensor:
    """Stripes, checks and rings: float32 `(N, H, W)` in 0..1."""
    pixels = torch.arange(SIDE, dtype=torch.float32)
    period, turn = uniform(7, 11, 1, 1), uniform(-0.2, 0.2, 1, 1)
    along = pixels[None, :, None] * turn.cos() + pixels * turn.sin()
    across = pixels * turn.cos() - pixels[None, :, None] * turn.sin()
    middle = uniform(16, 48, 2, 1, 1)
    radius = ((pixels[None, :, None] - middle[:, 0]) ** 2 + (pixels - middle[:, 1]) ** 2).sqrt()
    phase = uniform(0, 2 * math.pi, 2, 1, 1)
    rows, columns, rings = (
        (2 * math.pi * part / period + shift).sin()
        for part, shift in ((along, phase[:, 0]), (across, phase[:, 1]), (radius, phase[:, 0]))
    )
    known = torch.stack([rows, columns, (4 * rows * columns).clamp(-1, 1), rings, rings], dim=1)
    return known[torch.arange(len(textures)), textures] / 2 + 0.5


def _clouds(uniform: _Uniform) -> Tensor:
    """Smooth noise: float32 `(N, H, W)` in 0..1."""
    coarse = uniform(0, 1, 1, 10, 10)
    return F.interpolate(coarse, (SIDE, SIDE), mode="bicubic", align_corners=False)[:, 0].clamp(0, 1)


def _hues(uniform: _Uniform) -> Tensor:
    """A pure colour a picture: float32 `(N, 3)` in 0..1."""
    return 0.5 + 0.5 * (2 * math.pi * (uniform(0, 1, 1) + torch.arange(3) / 3)).cos()


def _shapes(kinds: Tensor, uniform: _Uniform) -> Tensor:
    """The pixels of one shape a picture, anywhere and a little turned: bool `(N, H, W)`."""
    half, turn = uniform(_SMALLEST, _LARGEST, 1, 1), uniform(-0.25, 0.25, 1, 1)
    middle = half[:, None] + uniform(0, 1, 2, 1, 1) * (SIDE - 1 - 2 * half[:, None])
    pixels = torch.arange(SIDE, dtype=torch.float32)
    down, right = pixels[None, :, None] - middle[:, 0], pixels - middle[:, 1]
    across = (right * turn.cos() - down * turn.sin()) / half
    along = (down * turn.cos() + right * turn.sin()) / half
    radius, farthest = (across**2 + along**2).sqrt(), torch.maximum(across.abs(), along.abs())
    nearest = torch.minimum(across.abs(), along.abs())
    known = [
        radius <= 1,
        farthest <= 0.85,
        (along <= 0.8) & (across.abs() <= 0.55 * (along + 1)),
        (farthest <= 1) & (nearest <= 0.33),
        (radius <= 1) & (radius >= 0.5),
    ]
    return torch.stack(known, dim=1)[torch.arange(len(kinds)), kinds]


def box_masks(boxes: Tensor | Sequence[Sequence[float]], height: int, width: int) -> Tensor:
    """The pixels whose middle lies within a box.

    Args:
        boxes: `(N, 4)`: left, top, right, bottom in pixels.
        height: Of the images, in pixels.
        width: Likewise.

    Returns:
        bool `(N, H, W)`.
    """
    left, top, right, bottom = torch.as_tensor(boxes, dtype=torch.float32)[:, :, None].unbind(dim=1)
    rows, columns = torch.arange(height) + 0.5, torch.arange(width) + 0.5
    return ((rows >= top) & (rows < bottom))[:, :, None] & ((columns >= left) & (columns < right))[:, None]


def _learnt(count: int) -> tuple[Tensor, Tensor]:
    """So many digits to train on, and their labels; more than once each where there are not enough."""
    digits, labels = load_digits()
    rows = torch.arange(count) % (len(labels) - HELD_OUT)
    return digits[rows], labels[rows]


def _held_out(count: int) -> tuple[Tensor, Tensor]:
    """The first digits that are not trained on, and their labels."""
    digits, labels = load_digits()
    return digits[-HELD_OUT:][:count], labels[-HELD_OUT:][:count]


def _normalised(canvases: Tensor) -> Tensor:
    """From uint8 `(N, H, W)` to float32 `(N, 1, H, W)`."""
    return (canvases[:, None].float() / 255 - MEAN) / STD
