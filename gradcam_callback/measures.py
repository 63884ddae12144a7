"""Numbers about maps: how much they change, how narrow they are, and how much of them lies where.

They are computed from maps in any unit; of the recording, from its levels. Each is float32 `(T, N)`, and NaN where
there is no map, or a map of zeros. Energy is the sum of a map's values. What each can tell, and when it misleads, is
told in docs/measures.md.

Axes: `T` targets, `N` probes, `S` the space of a map (`h w`; of signals `w`, of volumes `d h w`), `P` that of an image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

BORDER = 1 / 8
"""How wide the border is: a share of the image's side."""


def drift(maps: Array, before: Array) -> Array:
    """How much maps have changed: one minus the cosine between each and the one before, 0..1.

    0 is the same map up to a factor, 1 are maps without a common place.

    Args:
        maps: `(T, N, *S)`, at least 0.
        before: Likewise, of an earlier look.
    """
    one, other = (part.reshape(*part.shape[:2], -1).astype(np.float64) for part in (maps, before))
    lengths = np.linalg.norm(one, axis=2) * np.linalg.norm(other, axis=2)
    return _share(lengths - (one * other).sum(axis=2), lengths)


def focus(maps: Array, shares: Array) -> Array:
    """How narrow maps are: one minus their entropy over the logarithm of the number of cells, 0..1.

    0 is a map that is the same everywhere, 1 one with a single cell.

    Args:
        maps: `(T, N, *S)`, at least 0.
        shares: Which part of each cell belongs to the image, 0..1, as of `cover`: `(N, *S)`.
    """
    flat = (maps * shares).reshape(*maps.shape[:2], -1).astype(np.float64)
    total = flat.sum(axis=2)
    parts = flat / np.where(total > 0, total, 1)[:, :, None]
    entropy = -(parts * np.log(np.where(parts > 0, parts, 1))).sum(axis=2)
    cells = np.log(np.maximum((shares > 0).reshape(len(shares), -1).sum(axis=1), 2))
    return np.where(total > 0, 1 - entropy / cells, np.nan).astype(np.float32)


def border_energy(maps: Array, shares: Array, inner: Array) -> Array:
    """The share of the energy within an eighth of the image's side from its border, 0..1.

    Of a map that is the same everywhere it is 7/16 in an image, where the border has that share of the area.

    Args:
        maps: `(T, N, *S)`, at least 0.
        shares: `(N, *S)`, which part of each cell belongs to the image.
        inner: `(N, *S)`, which part of each cell belongs to the image without its border.
    """
    axes = tuple(range(2, maps.ndim))
    whole = (maps * shares).sum(axis=axes, dtype=np.float64)
    return _share(whole - (maps * inner).sum(axis=axes, dtype=np.float64), whole)


def cover(space: Sequence[int], count: int, extents: Array | None = None, margin: float = 0.0) -> Array:
    """Which part of each cell belongs to the image, 0..1: float32 `(N, *S)`.

    Args:
        space: Of the maps.
        count: How many probes there are.
        extents: `(N, 4)`, which part of its map each image is: top, left, bottom, right in cells; None: all of it.
        margin: How much of each side of the image is left out at either end, as a share.
    """
    sides = _sides(space, count, extents)
    covered = np.ones((count, *space), np.float32)
    for axis, (first, last) in enumerate(sides):
        start, end = first + (last - first) * margin, last - (last - first) * margin
        cells = np.arange(space[axis])
        part = np.clip(np.minimum(cells + 1, end[:, None]) - np.maximum(cells, start[:, None]), 0, 1)
        covered *= part.reshape(count, *(-1 if axis == other else 1 for other in range(len(space))))
    return covered


@dataclass(frozen=True, eq=False)
class Regions:
    """Where the thing is that a probe is of, pixel by pixel.

    Attributes:
        masks: One bool array `P` a probe, of the size of its image; None for a probe without a region.
    """

    masks: tuple[Array | None, ...]

    @property
    def areas(self) -> Array:
        """The share of each image that its region has, `(N,)` float32; NaN without one."""
        return np.array([np.nan if mask is None else mask.mean() for mask in self.masks], np.float32)


@dataclass(frozen=True, eq=False)
class RegionWeights:
    """What turns maps of one size into the energy of their enlarged pictures, within regions and in all.

    A map is enlarged linearly, so the energy of its picture within a region is a sum of its cells with weights.

    Attributes:
        inside: `(N, *S)` float32, the weights within the region; NaN without one.
        whole: `(N, *S)` float32, of the whole image.
    """

    inside: Array
    whole: Array
    _regions: Regions
    _extents: Array | None

    @classmethod
    def of(cls, regions: Regions, space: Sequence[int], extents: Array | None = None) -> RegionWeights:
        """For maps of a size.

        Args:
            regions: One a probe.
            space: Of the maps.
            extents: As for `cover`.
        """
        count = len(regions.masks)
        regions = Regions(tuple(_of_axes(mask, len(space)) for mask in regions.masks))
        sides = _sides(space, count, extents)
        inside, whole = np.full((2, count, *space), np.nan, np.float32)
        for probe, mask in enumerate(regions.masks):
            if mask is None:
                continue
            linear = [
                _interpolation(mask.shape[axis], space[axis], first[probe], last[probe])
                for axis, (first, last) in enumerate(sides)
            ]
            inside[probe], whole[probe] = _folded(mask, linear), _folded(np.ones_like(mask), linear)
        return cls(inside, whole, regions, extents)

    def energy_inside(self, maps: Array) -> Array:
        """The share of the energy within the region, 0..1, of the maps as they are drawn, enlarged to the image.

        Wang et al., "Score-CAM", 2020, section 4.3 (energy-based pointing game).

        Args:
            maps: `(T, N, *S)`, at least 0.
        """
        axes = tuple(range(2, maps.ndim))
        inside = (maps * self.inside).sum(axis=axes, dtype=np.float64)
        return _share(inside, (maps * self.whole).sum(axis=axes, dtype=np.float64))

    def pointing_game(self, maps: Array) -> Array:
        """Whether the largest value lies within the region: 1 if so, else 0. It counts at the middle of its cell.

        Zhang et al., "Top-down Neural Attention by Excitation Backprop", IJCV 2018, section 5.1, without a margin. Of
        several cells with the largest value, e.g. where an enlarged map is level at the border of the image, the one
        in their middle counts.

        Args:
            maps: `(T, N, *S)`, at least 0.
        """
        space, count = maps.shape[2:], maps.shape[1]
        sides, shares = _sides(space, count, self._extents), cover(space, count, self._extents)
        own = np.where(shares > 0.5, maps, -1).reshape(*maps.shape[:2], -1)
        hits = np.full(maps.shape[:2], np.nan, np.float32)
        for target, probe in np.ndindex(*hits.shape):
            mask, cells = self._regions.masks[probe], own[target, probe]
            if mask is None or not cells.max() > 0:
                continue
            cell = _middle_one(np.argwhere(cells.reshape(space) == cells.max()))
            own_sides = [(first[probe], last[probe]) for first, last in sides]
            hits[target, probe] = mask[_pixel_of(cell, own_sides, mask.shape)]
        return hits


def _of_axes(mask: Array | None, axes: int) -> Array | None:
    """A mask with so many axes of space: of channels before them, the pixels that are in any."""
    if mask is None or mask.ndim == axes:
        return mask
    return np.asarray(mask.any(axis=tuple(range(mask.ndim - axes))))


def _sides(space: Sequence[int], count: int, extents: Array | None) -> list[tuple[Array, Array]]:
    """Of each axis where each image begins and ends, in cells: `(N,)` each."""
    if extents is None:
        return [(np.zeros(count), np.full(count, float(cells))) for cells in space]
    top, left, bottom, right = extents.astype(np.float64).T
    return [(top, bottom), (left, right)]


def _middle_one(cells: Array) -> Array:
    """Of some cells, `(M, axes)`, the one that is nearest to their mean; of several such the first."""
    chosen: Array = cells[((cells - cells.mean(axis=0)) ** 2).sum(axis=1).argmin()]
    return chosen


def _pixel_of(cell: Array, sides: Sequence[tuple[float, float]], size: Sequence[int]) -> tuple[int, ...]:
    """The pixel in the middle of a cell, in an image that lies between these sides of its map."""
    parts = [(at + 0.5 - first) / (last - first) for at, (first, last) in zip(cell, sides, strict=True)]
    return tuple(min(max(int(part * pixels), 0), pixels - 1) for part, pixels in zip(parts, size, strict=True))


def _interpolation(pixels: int, cells: int, first: float, last: float) -> Array:
    """What each cell gives to each pixel in a linear enlargement: `(pixels, cells)`; rows sum to 1."""
    places = first + (last - first) * (np.arange(pixels) + 0.5) / pixels - 0.5
    places = places.clip(0, cells - 1)
    lower = np.floor(places).astype(np.int64)
    upper, part = np.minimum(lower + 1, cells - 1), places - lower
    given = np.zeros((pixels, cells))
    np.add.at(given, (np.arange(pixels), lower), 1 - part)
    np.add.at(given, (np.arange(pixels), upper), part)
    return given


def _folded(mask: Array, linear: Sequence[Array]) -> Array:
    """Numbers of pixels summed into the cells that give to them, axis by axis."""
    folded = mask.astype(np.float64)
    for matrix in linear:  # each takes the first axis and puts its cells behind
        folded = np.tensordot(folded, matrix, axes=(0, 0))
    return folded


def _share(part: Array, whole: Array) -> Array:
    """A share, 0..1; NaN where the whole is nothing."""
    share: Array = np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0)
    return share.clip(0, 1).astype(np.float32)
