"""Insertion and deletion: how the score goes as the pixels that matter most come, or go, first.

Petsiuk, Das and Saenko, "RISE: Randomized Input Sampling for Explanation of Black-box Models", BMVC 2018, section 4.3.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from gradcam_callback.engine.faithfulness.scoring import (
    PORTION,
    Scorer,
    check_pair,
    ranks,
    score_variants,
    usable_rows,
)
from gradcam_callback.errors import BadInputError

STEPS = 32
BLUR = 5 / 224
"""The standard deviation of the blur, as a share of the image's shorter side: RISE blurs 224 pixels with 5."""

Fill = float | Literal["mean"]
"""What stands in place of a deleted pixel: a number, or the mean of each channel of the same image."""


def insertion(
    score: Scorer, images: Tensor, heatmaps: Tensor, *, steps: int = STEPS, blur: float = BLUR, portion: int = PORTION
) -> Tensor:
    """The area under the score as pixels are put into a blurred image, those with the largest values first.

    Higher is better. The image to start from is blurred, as in the paper, because a constant one would give the edges
    of what is put in as new evidence. After step `k` of `K` the first `k H W // K` pixels are sharp. The area is that
    of the trapezoids over `K + 1` scores, divided by the width. Equal values are ordered as of `ranks`.

    Args:
        score: As of `Scorer`; run `steps + 1` times a probe.
        images: `(N, C, H, W)`, as the model takes them.
        heatmaps: `(N, H, W)` in 0..1; only their order counts.
        steps: `K`, at least 1. The paper's code puts in one row's worth of pixels at a time: 224.
        blur: The standard deviation of the Gaussian, as a share of the shorter side; 0 does not blur. It is cut off at
            three standard deviations, and the border is repeated outwards. The paper's code cuts it off at one.
        portion: The most images at once.

    Returns:
        float32 `(N,)`, in 0..1 if the scores are; NaN for a probe with a NaN in its map.

    Raises:
        ValueError: Images and heatmaps do not belong together, or an option is out of its range.
    """
    check_pair(images, heatmaps)
    blurred = blurred_images(images, blur)
    return _area(score, images, blurred, images, heatmaps, steps, portion)


def deletion(
    score: Scorer, images: Tensor, heatmaps: Tensor, *, steps: int = STEPS, fill: Fill = 0.0, portion: int = PORTION
) -> Tensor:
    """The area under the score as pixels are taken out of the image, those with the largest values first.

    Lower is better. A pixel is replaced by a constant, as in the paper: by default 0, which is the mean colour of
    normalised images, and black of others. After step `k` of `K` the first `k H W // K` pixels are gone. The area is as
    of `insertion`.

    Args:
        score: As of `Scorer`; run `steps + 1` times a probe.
        images: `(N, C, H, W)`, as the model takes them.
        heatmaps: `(N, H, W)` in 0..1; only their order counts.
        steps: `K`, at least 1.
        fill: What stands in place of a deleted pixel, in the images' own values; "mean" is the mean of each channel of
            the same image.
        portion: The most images at once.

    Returns:
        float32 `(N,)`, in 0..1 if the scores are; NaN for a probe with a NaN in its map.

    Raises:
        ValueError: Images and heatmaps do not belong together, or an option is out of its range.
    """
    check_pair(images, heatmaps)
    if isinstance(fill, str) and fill != "mean":
        raise BadInputError(f'What stands in place of a deleted pixel is a number or "mean"; given: {fill!r}.')
    constant = images.mean(dim=(2, 3), keepdim=True) if isinstance(fill, str) else images.new_tensor(fill)
    return _area(score, images, images, constant.expand_as(images), heatmaps, steps, portion)


def _area(
    score: Scorer, images: Tensor, start: Tensor, end: Tensor, heatmaps: Tensor, steps: int, portion: int
) -> Tensor:
    """The area under the score as the pixels of one image are replaced by those of another, in the map's order."""
    if steps < 1:
        raise BadInputError(f"A curve has at least one step; given: {steps}.")
    places, pixels = ranks(heatmaps), heatmaps[0].numel() if len(heatmaps) else 0

    def change(probes: Tensor, which: Tensor) -> Tensor:
        replaced = places[probes] < (which * pixels // steps)[:, None, None]
        return torch.where(replaced[:, None], end[probes], start[probes])

    scores = score_variants(score, change, usable_rows(heatmaps), steps + 1, len(images), portion)
    return torch.trapezoid(scores, dim=1) / steps


def blurred_images(images: Tensor, blur: float) -> Tensor:
    """The images, blurred by a Gaussian; see `insertion` for its width and its border.

    Args:
        images: `(N, C, H, W)`.
        blur: The standard deviation as a share of the shorter side, at least 0.

    Raises:
        ValueError: `blur` is below 0, or not finite.
    """
    if not 0 <= blur < math.inf:
        raise BadInputError(f"`blur` is a share of the image's shorter side, at least 0; given: {blur}.")
    sigma = blur * min(images.shape[2:])
    reach = math.ceil(3 * sigma)
    if reach == 0:
        return images
    offsets = torch.arange(-reach, reach + 1, device=images.device, dtype=images.dtype)
    weights = torch.exp(-0.5 * (offsets / sigma) ** 2)
    weights = weights / weights.sum()
    channels = images.shape[1]
    widened = F.pad(images, (reach, reach, reach, reach), mode="replicate")
    for kernel in (weights.view(1, 1, -1, 1), weights.view(1, 1, 1, -1)):
        widened = F.conv2d(widened, kernel.expand(channels, 1, *kernel.shape[2:]), groups=channels)
    return widened
