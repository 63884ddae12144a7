"""Slices of volumes and videos: of each map the one with its peak.

Axes: `N` probes, `C` channels, `D H W` a volume in voxels (or a video in frames and pixels), `d h w` its map.
"""

from __future__ import annotations

import torch
from torch import Tensor


def peak_slices(maps: Tensor, depth: int) -> Tensor:
    """The slice in the middle of the cells in which each map has its highest value: `(N,)` int64.

    Args:
        maps: `(N, d, h, w)`. Of one that is not finite, or zero, the middle slice is taken.
        depth: `D`, how many slices a volume has.
    """
    highest = maps.flatten(2).amax(dim=2)  # (N, d)
    is_drawn = highest.isfinite().all(dim=1) & (highest.amax(dim=1) > 0)
    cells = highest.nan_to_num(0.0).argmax(dim=1)
    middles = ((cells + 0.5) * (depth / maps.shape[1])).long()
    return torch.where(is_drawn, middles, depth // 2)


def take_slices(volumes: Tensor, slices: Tensor) -> Tensor:
    """One slice of each volume: `(N, C, D, H, W)` to `(N, C, H, W)`, each at its own depth `(N,)`."""
    places = slices.view(-1, 1, 1, 1, 1).expand(-1, volumes.shape[1], 1, *volumes.shape[3:])
    return volumes.gather(2, places).squeeze(2)


def map_slices(maps: Tensor, slices: Tensor, depth: int) -> Tensor:
    """The map in one slice of each volume: `(N, d, h, w)` to `(N, h, w)`, between two cells in proportion."""
    # As a linear interpolation along the depth has it, without the corners aligned.
    place = ((slices + 0.5) * (maps.shape[1] / depth) - 0.5).clamp(0, maps.shape[1] - 1)
    first = place.floor().long()
    second = (first + 1).clamp(max=maps.shape[1] - 1)
    share = (place - first).view(-1, 1, 1)
    rows = torch.arange(len(maps), device=maps.device)
    return torch.lerp(maps[rows, first], maps[rows, second], share.to(maps.dtype))
