"""Signals as curves, drawn on tiles over the colours of the map, on the device that holds them.

Axes: `N` probes, `C` channels of a signal, `W` its length, `th tw` the tile.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from gradcam_callback.reporting.rendering.outlines import Colour, fill

SIZE = (96, 256)
"""`(th, tw)` of a tile, in pixels."""
_COLOURS: tuple[Colour, ...] = ((20, 24, 28), (176, 28, 46), (20, 66, 150))
_MARGIN = 6  # above and below the curves, in pixels


def blank(count: int, device: torch.device) -> Tensor:
    """The white ground that curves are drawn on: `(N, 3, th, tw)` float32."""
    return torch.ones(count, 3, *SIZE, device=device)


def draw_curves(tiles: Tensor, signals: Tensor) -> Tensor:
    """Draw the channels of each signal, the first three of them, on one scale from its lowest to its highest value.

    Args:
        tiles: `(N, th, tw, 3)` uint8.
        signals: `(N, C, W)`, on the device of the tiles.

    Returns:
        `(N, th, tw, 3)` uint8; other tiles than those that were given. What is not finite is drawn as zero.
    """
    height, width = tiles.shape[1:3]
    shown = signals[:, : len(_COLOURS)].float().nan_to_num(0.0, 0.0, 0.0)
    low, high = shown.amin(dim=(1, 2), keepdim=True), shown.amax(dim=(1, 2), keepdim=True)
    levels = torch.where(high > low, (shown - low) / (high - low).clamp(min=1e-12), 0.5)  # 0..1
    columns = F.interpolate(levels, size=width, mode="linear", align_corners=True)
    places = (height - 1 - _MARGIN) - columns * (height - 1 - 2 * _MARGIN)  # rows, from the top: (N, C, tw)
    # From each column to the next one, so that steep parts do not fall into dots.
    after = torch.cat([places[..., 1:], places[..., -1:]], dim=2)
    top, bottom = torch.minimum(places, after) - 0.8, torch.maximum(places, after) + 0.8
    rows = torch.arange(height, device=tiles.device)[:, None]
    for channel, colour in zip(range(shown.shape[1]), _COLOURS, strict=False):
        tiles = fill(tiles, (rows >= top[:, channel, None]) & (rows <= bottom[:, channel, None]), colour)
    return tiles
