"""Boxes and the edges of regions, drawn on tiles, on the device that holds them.

Axes: `N` probes, `h w` a mask, `H W` the image, `th tw` the tile. The host is never made to wait for the device.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

Colour = tuple[int, int, int]

LABEL: Colour = (46, 204, 113)
"""What the data say."""
EXPLAINED: Colour = (255, 255, 255)
"""What the score is of."""
_HALO: Colour = (20, 24, 28)  # around the line, so that it can be seen on any ground
_MOST_BOXES = 16  # of an image


def draw_edges(tiles: Tensor, regions: Tensor, colour: Colour) -> Tensor:
    """Draw where a region, or a class of pixels, meets another.

    Args:
        tiles: `(N, th, tw, 3)` uint8.
        regions: `(N, h, w)` bool or int64, on the device of the tiles.
        colour: Of the line.

    Returns:
        `(N, th, tw, 3)` uint8; other tiles than those that were given.
    """
    enlarged = F.interpolate(regions.unsqueeze(1).float(), size=tiles.shape[1:3], mode="nearest-exact")
    highest, lowest = _grown(enlarged), -_grown(-enlarged)
    return _drawn(tiles, highest != lowest, colour)


def draw_boxes(tiles: Tensor, boxes: Tensor, size: tuple[int, int], colour: Colour) -> Tensor:
    """Draw the frames of boxes.

    Args:
        tiles: `(N, th, tw, 3)` uint8.
        boxes: `(N, n, 4)` float32: left, top, right, bottom in pixels of the image; NaN for no box.
        size: `(H, W)` of the images.
        colour: Of the line.

    Returns:
        `(N, th, tw, 3)` uint8; other tiles than those that were given.
    """
    height, width = tiles.shape[1:3]
    rows = torch.arange(height, device=tiles.device)[:, None]
    columns = torch.arange(width, device=tiles.device)[None]
    lines = torch.zeros(tiles.shape[0], 1, height, width, dtype=torch.bool, device=tiles.device)
    for box in boxes.unbind(1):
        # At least two pixels in from the edge of the tile, where a line could not be seen.
        left, right = (_place(box[:, side], width / size[1], width) for side in (0, 2))
        top, bottom = (_place(box[:, side], height / size[0], height) for side in (1, 3))
        inside = (rows >= top) & (rows <= bottom) & (columns >= left) & (columns <= right)
        within = (rows > top) & (rows < bottom) & (columns > left) & (columns < right)
        lines |= (inside & ~within).unsqueeze(1)
    return _drawn(tiles, lines, colour)


def pad_boxes(boxes: Sequence[Tensor]) -> Tensor:
    """Boxes `(n, 4)` of each probe as one tensor `(N, n, 4)` with NaN where a probe has fewer; at most 16 of each."""
    count = max(1, min(_MOST_BOXES, max(map(len, boxes), default=1)))
    padded = torch.full((len(boxes), count, 4), torch.nan)
    for row, own in zip(padded, boxes, strict=True):
        row[: len(own)] = own[:count]
    return padded


def _place(side: Tensor, scale: float, length: int) -> Tensor:
    """Where a side of each box lies in the tile: `(N, 1, 1)`, NaN where there is no box."""
    return (side * scale).round().clamp(2, length - 3)[:, None, None]


def _drawn(tiles: Tensor, lines: Tensor, colour: Colour) -> Tensor:
    """Tiles with lines `(N, 1, th, tw)` bool on them, and a halo around each line."""
    halo = _grown(lines.float()).squeeze(1) > 0
    drawn = fill(tiles, halo, _HALO)
    return fill(drawn, lines.squeeze(1), colour)


def fill(tiles: Tensor, where: Tensor, colour: Colour) -> Tensor:
    """Give pixels `(N, th, tw)` bool of tiles `(N, th, tw, 3)` a colour."""
    # Channel by channel, because a tensor made of the numbers would have to be copied to the device.
    planes = [plane.masked_fill(where, value) for plane, value in zip(tiles.unbind(3), colour, strict=True)]
    return torch.stack(planes, dim=3)


def _grown(planes: Tensor) -> Tensor:
    """The highest of each pixel and its neighbours."""
    return F.max_pool2d(planes, 3, stride=1, padding=1)
