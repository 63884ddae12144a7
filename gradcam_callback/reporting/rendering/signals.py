"""Signals as curves, drawn on tiles over the colours of the map, on the device that holds them.

Axes: `N` probes, `C` channels of a signal, `W` its length, `th tw` the tile.

Note [Curve and map lie over each other]

Both cover the tile from edge to edge: sample `i` takes the `W`-th part of the width that begins at `i / W`, and its
value stands in the middle of that part, as the middle of a cell of the map does. Between the samples the curve is
straight. Each column of pixels is filled from the lowest to the highest value that the curve has within it, so that no
spike is lost where a column holds many samples.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gradcam_callback.reporting.rendering.outlines import Colour, fill

SIZE = (96, 256)
"""`(th, tw)` of a tile, in pixels."""
_COLOURS: dict[str, Colour] = {"dark": (20, 24, 28), "red": (176, 28, 46), "blue": (20, 66, 150)}
_MARGIN = 6  # above and below the curves, in pixels


def blank(count: int, device: torch.device) -> Tensor:
    """The white ground that curves are drawn on: `(N, 3, th, tw)` float32."""
    return torch.ones(count, 3, *SIZE, device=device)


def name_curves(count: int, channels: Sequence[int] | None = None) -> str:
    """Say which channel of a signal each curve is: "channels 0 dark, 1 red, 2 blue of 12"; nothing of a single one."""
    shown = range(min(count, len(_COLOURS))) if channels is None else channels
    if count == 1:
        return ""
    curves = ", ".join(f"{channel} {colour}" for channel, colour in zip(shown, _COLOURS, strict=False))
    named = f"channels {curves}" if len(shown) > 1 else f"channel {shown[0]}"
    return named if len(set(shown)) == count else f"{named} of {count}"


def draw_curves(tiles: Tensor, signals: Tensor) -> Tensor:
    """Draw the channels of each signal, the first three of them, on one scale from its lowest to its highest value.

    See Note [Curve and map lie over each other].

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
    lowest, highest = _ranges(levels, width)
    top, bottom = _row(highest, height) - 0.8, _row(lowest, height) + 0.8
    rows = torch.arange(height, device=tiles.device)[:, None]
    for channel, colour in zip(range(shown.shape[1]), _COLOURS.values(), strict=False):
        tiles = fill(tiles, (rows >= top[:, channel, None]) & (rows <= bottom[:, channel, None]), colour)
    return tiles


def _ranges(levels: Tensor, columns: int) -> tuple[Tensor, Tensor]:
    """The lowest and the highest value of curves `(N, C, W)` within each column, `(N, C, tw)` each."""
    edges = _at_edges(levels, columns)
    before, after = edges[..., :-1], edges[..., 1:]
    # Straight between the samples, so that it turns nowhere but at one.
    samples = torch.arange(levels.shape[2], device=levels.device)
    column = ((2 * samples + 1) * columns // (2 * levels.shape[2])).expand_as(levels)
    lowest = torch.minimum(before, after).scatter_reduce(2, column, levels, "amin")
    return lowest, torch.maximum(before, after).scatter_reduce(2, column, levels, "amax")


def _at_edges(levels: Tensor, columns: int) -> Tensor:
    """The values of curves at the edges of the columns, `(N, C, tw + 1)`; beyond the outermost samples, theirs."""
    length = levels.shape[2]
    edges = torch.arange(columns + 1, device=levels.device)
    # In whole numbers, because those of a long signal are too large for the fraction of a float32.
    doubled = (2 * edges * length - columns).clamp(min=0, max=2 * columns * (length - 1))
    left = doubled // (2 * columns)
    share = (doubled - left * 2 * columns).float() / (2 * columns)
    right = (left + 1).clamp(max=length - 1)
    return torch.lerp(levels[..., left], levels[..., right], share.expand(*levels.shape[:2], -1))


def _row(levels: Tensor, height: int) -> Tensor:
    """The row of pixels of a value, from the top."""
    return (height - 1 - _MARGIN) - levels * (height - 1 - 2 * _MARGIN)
