"""Changed images scored in portions, and the order of an image's pixels: what every measure of this package needs.

Axes: `N` probes, `C` image channels, `H W` the image, `V` variants of an image, `n` images that are scored at once.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from gradcam_callback.errors import BadInputError

PORTION = 64
"""How many images are made and scored at once."""

Scorer = Callable[[Tensor, Tensor], Tensor]
"""From images `(n, C, H, W)`, and which probe each is made of `(n,)` int64, to scores `(n,)`.

The score is the probability, in 0..1, of the class that is explained for that probe, whatever is predicted now.
"""

Change = Callable[[Tensor, Tensor], Tensor]
"""From probes `(n,)` and numbers of variants `(n,)`, int64 both, to the changed images `(n, C, H, W)`."""


def check_pair(images: Tensor, heatmaps: Tensor) -> None:
    """Refuse images and heatmaps that do not belong together.

    Raises:
        ValueError: The images are not `(N, C, H, W)`, or the heatmaps not `(N, H, W)` of the same `N`, `H` and `W`.
    """
    if images.ndim != 4 or tuple(heatmaps.shape) != (len(images), *images.shape[2:]):
        raise BadInputError(
            "Needed are images (N, C, H, W) and heatmaps (N, H, W) of the same size, one for each image; given: images "
            f"{tuple(images.shape)} and heatmaps {tuple(heatmaps.shape)}. `CAMResult.heatmaps()` enlarges the maps."
        )


def check_portion(portion: int) -> None:
    """Refuse a portion without an image.

    Raises:
        ValueError: It is below 1.
    """
    if portion < 1:
        raise BadInputError(f"A portion has at least one image; given: {portion}.")


def usable_rows(heatmaps: Tensor) -> Tensor:
    """Which probes have a map without a NaN: their numbers, int64 `(M,)`."""
    return (~heatmaps.isnan().flatten(1).any(dim=1)).nonzero().squeeze(1)


def ranks(heatmaps: Tensor) -> Tensor:
    """The place of each pixel in the order of its map: int64 `(N, H, W)`, 0 is the largest value.

    Of equal values the pixel that comes first counts as larger, row by row from the top, left to right. So the order is
    the same on every device.
    """
    order = heatmaps.flatten(1).sort(dim=1, descending=True, stable=True).indices
    places = torch.arange(order.shape[1], device=order.device).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, places).view(heatmaps.shape)


@torch.no_grad()
def score_variants(score: Scorer, change: Change, rows: Tensor, variants: int, count: int, portion: int) -> Tensor:
    """Score variants of some of the probes, at most `portion` images at once.

    Args:
        score: As of `Scorer`.
        change: Makes the images.
        rows: The probes, int64 `(M,)`.
        variants: How many variants of each.
        count: `N`, how many probes there are in all.
        portion: The most images at once.

    Returns:
        float32 `(N, V)`; a probe that is not among the rows is a row of NaN.

    Raises:
        ValueError: The scorer gives other than one number an image, or the portion is below 1.
    """
    check_portion(portion)
    found = torch.full((count, variants), torch.nan, device=rows.device)
    for numbers in torch.split(torch.arange(len(rows) * variants, device=rows.device), portion):
        probes, which = rows[numbers // variants], numbers % variants
        scores = score(change(probes, which), probes)
        if tuple(scores.shape) != (len(probes),):
            raise BadInputError(
                f"A scorer gives one number an image, {(len(probes),)}; this one gave {tuple(scores.shape)}."
            )
        found[probes, which] = scores.float()
    return found
