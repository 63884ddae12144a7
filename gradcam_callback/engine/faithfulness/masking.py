"""Average drop and increase in confidence: the score of what a map leaves of the image.

Chattopadhay, Sarkar, Howlader and Balasubramanian, "Grad-CAM++: Generalized Gradient-Based Visual Explanations for Deep
Convolutional Networks", WACV 2018, section 4.1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gradcam_callback.engine.faithfulness.scoring import PORTION, Scorer, check_pair, score_variants, usable_rows


def average_drop(score: Scorer, images: Tensor, heatmaps: Tensor, *, portion: int = PORTION) -> Tensor:
    """The share of the score that is lost where the image is multiplied by its map: `max(0, Y - O) / Y`.

    Lower is better. `Y` is the score of the image, `O` that of image times map. The paper gives the mean over a data
    set, in percent; this is the figure of each probe, as a share. Where `Y` is 0 there is nothing to lose: 0. A
    map of zeros leaves 0 of each pixel: black, or the mean colour of normalised images.

    Args:
        score: As of `Scorer`; run twice a probe.
        images: `(N, C, H, W)`, as the model takes them.
        heatmaps: `(N, H, W)` in 0..1.
        portion: The most images at once.

    Returns:
        float32 `(N,)` in 0..1; NaN for a probe with a NaN in its map.

    Raises:
        ValueError: Images and heatmaps do not belong together.
    """
    return drop_and_increase(score, images, heatmaps, portion=portion)[0]


def increase(score: Scorer, images: Tensor, heatmaps: Tensor, *, portion: int = PORTION) -> Tensor:
    """Whether the score is higher where the image is multiplied by its map: 1 if `Y < O`, else 0.

    Higher is better. The mean over probes, in percent, is the paper's "increase in confidence".

    Args:
        score: As of `Scorer`; run twice a probe.
        images: `(N, C, H, W)`, as the model takes them.
        heatmaps: `(N, H, W)` in 0..1.
        portion: The most images at once.

    Returns:
        float32 `(N,)`, 0 or 1; NaN for a probe with a NaN in its map.

    Raises:
        ValueError: Images and heatmaps do not belong together.
    """
    return drop_and_increase(score, images, heatmaps, portion=portion)[1]


def drop_and_increase(
    score: Scorer, images: Tensor, heatmaps: Tensor, *, portion: int = PORTION
) -> tuple[Tensor, Tensor]:
    """Both at the price of one; see `average_drop` and `increase`."""
    check_pair(images, heatmaps)

    def change(probes: Tensor, which: Tensor) -> Tensor:
        maps = torch.where((which == 1)[:, None, None], heatmaps[probes], 1.0)
        return images[probes] * maps[:, None].to(images.dtype)

    whole, masked = score_variants(score, change, usable_rows(heatmaps), 2, len(images), portion).unbind(dim=1)
    lost = (whole - masked).clamp(min=0)
    drop = torch.where(whole == 0, 0.0, lost / whole)
    return drop, torch.where(whole.isnan(), torch.nan, (masked > whole).float())
