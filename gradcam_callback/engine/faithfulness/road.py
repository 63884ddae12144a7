"""ROAD: what becomes of the score as pixels are removed so that it can hardly be seen which.

Rong, Leemann, Borisov, Kasneci and Kasneci, "A Consistent and Efficient Evaluation Strategy for Attribution Methods",
ICML 2022, section 5 (noisy linear imputation), with its equations solved here by conjugate gradients on the device.

Note [The equations]

Each removed pixel is the weighted mean of its neighbours, 1/6 for the four beside it and 1/12 for the four at its
corners; at the border the weights that are left are scaled to a sum of 1. Known neighbours go to the right-hand side.
What is left is a sparse matrix that is symmetric, because the two pixels of a pair weigh each other alike, and positive
definite if any pixel is known. So conjugate gradients apply. Multiplying by it needs no matrix but sums of shifted
images: the weights are the outer product of (1, 2, 1) with itself, over 12, without its middle.
"""

from __future__ import annotations

from collections.abc import Sequence

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

PERCENTILES = (20, 40, 60, 80)
NOISE = 0.01
"""The standard deviation of the noise on imputed pixels, in the images' own values; as in the authors' code."""

_MOST_ROUNDS = 400
# Of the residual, as a share of the known values' size. In regions of a hundred pixels an error may be a hundred times
# that; measured at 224 pixels it is 0.001, a tenth of the noise.
_TOLERANCE = 1e-5
_ROUNDS_BETWEEN_LOOKS = 8  # each look waits for the device
_COARSEST = 8  # pixels


def road(
    score: Scorer,
    images: Tensor,
    heatmaps: Tensor,
    *,
    percentiles: Sequence[float] = PERCENTILES,
    seed: int = 0,
    portion: int = PORTION,
) -> Tensor:
    """The score without the least relevant pixels, less that without the most relevant ones, halved.

    Higher is better; 0 is a map that tells no more than chance. Both are averaged over the percentiles. Removed pixels
    are imputed from their neighbours, with a little noise, so that the edge of the removed region gives nothing away.
    Equal values are ordered as of `ranks`.

    Args:
        score: As of `Scorer`; run twice for each percentile and probe.
        images: `(N, C, H, W)`, as the model takes them.
        heatmaps: `(N, H, W)` in 0..1; only their order counts.
        percentiles: How many percent of the pixels are removed, each above 0 and below 100. At least one pixel is
            removed, and at least one is kept.
        seed: Of the noise. It is one picture `(C, H, W)` for all probes, so that the figure of a probe does not depend
            on which others there are.
        portion: The most images at once.

    Returns:
        float32 `(N,)`, in -0.5..0.5 if the scores are in 0..1; NaN for a probe with a NaN in its map.

    Raises:
        ValueError: Images and heatmaps do not belong together, a percentile is out of its range, or there is none.
    """
    check_pair(images, heatmaps)
    if not percentiles or not all(0 < percentile < 100 for percentile in percentiles):
        raise BadInputError(f"Percentiles are above 0 and below 100, one at least; given: {list(percentiles)}.")
    places, pixels = ranks(heatmaps), heatmaps.shape[1] * heatmaps.shape[2]
    removed = [min(max(1, round(pixels * percentile / 100)), pixels - 1) for percentile in percentiles]
    counts = torch.tensor(removed, device=images.device)
    noise = _noise(images, seed)

    def change(probes: Tensor, which: Tensor) -> Tensor:
        place, count = places[probes], counts[which // 2][:, None, None]
        least = (which % 2 == 0)[:, None, None]
        gone = torch.where(least, place >= pixels - count, place < count)[:, None]
        return torch.where(gone, impute(images[probes], ~gone) + noise, images[probes])

    scores = score_variants(score, change, usable_rows(heatmaps), 2 * len(counts), len(images), portion)
    least, most = scores.view(len(images), len(counts), 2).unbind(dim=2)
    return (least - most).mean(dim=1) / 2


def _noise(images: Tensor, seed: int) -> Tensor:
    """`(C, H, W)`, drawn on the host so that it is the same for every device."""
    drawn = torch.randn(images.shape[1:], generator=torch.Generator().manual_seed(seed))
    return (NOISE * drawn).to(images)


@torch.no_grad()
def impute(images: Tensor, known: Tensor) -> Tensor:
    """Fill in pixels, each as the weighted mean of its neighbours; see Note [The equations].

    Args:
        images: `(n, C, H, W)`, floating-point.
        known: `(n, 1, H, W)` bool, the pixels that stay; at least one of each image.

    Returns:
        `(n, C, H, W)`, the images with the other pixels imputed, to a few thousandths of the values' size or better.
    """
    if images.dtype in (torch.float16, torch.bfloat16):  # too coarse to sum residuals in
        return impute(images.float(), known).to(images.dtype)
    height, width = images.shape[2:]
    if max(height, width) <= _COARSEST:
        start = _mean_of_known(images, known)
    else:  # The solution for an image of half the size is near: what is far off is slow to reach pixel by pixel.
        weights = F.avg_pool2d(known.to(images), 2, ceil_mode=True)
        means = F.avg_pool2d(torch.where(known, images, 0.0), 2, ceil_mode=True) / weights.clamp(min=1e-6)
        start = F.interpolate(impute(means, weights > 0), (height, width), mode="bilinear", align_corners=False)
    return _solve(images, known, start.expand_as(images))


def _mean_of_known(images: Tensor, known: Tensor) -> Tensor:
    total = torch.where(known, images, 0.0).sum(dim=(2, 3), keepdim=True)
    return total / known.sum(dim=(2, 3), keepdim=True)


def _solve(images: Tensor, known: Tensor, start: Tensor) -> Tensor:
    """The solution by conjugate gradients, for each channel of each image by itself."""
    values = torch.where(known, images, 0.0)
    sums = _neighbours(torch.ones_like(values[:1, :1]))

    def product(unknown: Tensor) -> Tensor:
        return torch.where(known, 0.0, sums * unknown - _neighbours(unknown))

    found = torch.where(known, 0.0, start)
    residual = torch.where(known, 0.0, _neighbours(values)) - product(found)
    direction, size = residual, _inner(residual, residual)
    enough = _TOLERANCE**2 * values.square().mean(dim=(2, 3), keepdim=True)
    for number in range(_MOST_ROUNDS):
        # The largest pixel counts, since the mean over an image hides a small region that is far off.
        if number % _ROUNDS_BETWEEN_LOOKS == 0 and bool((residual.square().amax((2, 3), True) <= enough).all()):
            break
        along = product(direction)
        curvature = _inner(direction, along)
        step = torch.where(curvature > 0, size / curvature, 0.0)
        found, residual = found + step * direction, residual - step * along
        before, size = size, _inner(residual, residual)
        direction = residual + torch.where(before > 0, size / before, 0.0) * direction
    return torch.where(known, images, found)


def _inner(one: Tensor, other: Tensor) -> Tensor:
    return (one * other).sum(dim=(2, 3), keepdim=True)


def _neighbours(values: Tensor) -> Tensor:
    """The weighted sum of each pixel's neighbours. Beyond the border there are none."""
    rows = F.pad(values, (0, 0, 1, 1))
    rows = rows[:, :, :-2] + 2 * rows[:, :, 1:-1] + rows[:, :, 2:]
    columns = F.pad(rows, (1, 1))
    columns = columns[..., :-2] + 2 * columns[..., 1:-1] + columns[..., 2:]
    return (columns - 4 * values) / 12
