"""Which layout an activation has, from the shapes that are seen in one forward pass.

Note [What looks like a map]

A tensor with four axes may be maps, with the channels first or last; attention, `(N, heads, T, T)` or
`(N, heads, T, d)`; windows of an image; a table. A tensor with three may be tokens. So a shape is read only by what is
known when it comes up:

- The kind of a layer may tell: a convolution has its channels first, a layer normalisation has them last.
- The grid of another layer is one that was seen before in this pass, or is smaller than the last by the same factor.
- Tokens are as many as a grid has cells that was seen before, or a quarter of the last; and some extra ones, which do
  not come from the image.

What fits no reading is not read; what fits two is a guess, which the test in `survey` has to bear out.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any

from torch import Tensor, nn

from gradcam_callback.engine.forward import hooked
from gradcam_callback.engine.layouts import ChannelsFirst, ChannelsLast, Grid, Layout, Tokens

# What works on the last axis: of a tensor with four axes, the channels are there.
_CHANNELS_LAST = (nn.Linear, nn.LayerNorm, nn.MultiheadAttention)
# What has its channels in the second axis, and space behind it: of any number of axes, and of one, two or three.
_CHANNELS_FIRST = (nn.SyncBatchNorm, nn.GroupNorm, nn.Upsample, nn.LocalResponseNorm)
_BY_AXES: dict[int, tuple[type[nn.Module], ...]] = {
    1: (
        *(nn.Conv1d, nn.ConvTranspose1d, nn.BatchNorm1d, nn.InstanceNorm1d, nn.Dropout1d, nn.MaxPool1d, nn.AvgPool1d),
        *(nn.LPPool1d, nn.AdaptiveAvgPool1d, nn.AdaptiveMaxPool1d),
    ),
    2: (
        *(nn.Conv2d, nn.ConvTranspose2d, nn.BatchNorm2d, nn.InstanceNorm2d, nn.Dropout2d, nn.MaxPool2d, nn.AvgPool2d),
        *(nn.LPPool2d, nn.FractionalMaxPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d),
        *(nn.PixelShuffle, nn.PixelUnshuffle),
    ),
    3: (
        *(nn.Conv3d, nn.ConvTranspose3d, nn.BatchNorm3d, nn.InstanceNorm3d, nn.Dropout3d, nn.MaxPool3d, nn.AvgPool3d),
        *(nn.LPPool3d, nn.FractionalMaxPool3d, nn.AdaptiveAvgPool3d, nn.AdaptiveMaxPool3d),
    ),
}


def is_channels_first(layer: nn.Module, axes: int = 2) -> bool:
    """Whether a layer's kind alone tells that what it returns is channels first, with so many axes of space."""
    return isinstance(layer, (*_CHANNELS_FIRST, *_BY_AXES[axes]))


def is_channels_last(layer: nn.Module) -> bool:
    """Whether a layer's kind alone tells that the channels are its last axis.

    By its very type: subclasses of LayerNorm that turn the axes round, before and behind, are common.
    """
    return type(layer) in _CHANNELS_LAST


@dataclass(frozen=True, eq=False)
class ObservedMaps(ChannelsFirst):
    """Maps with the channels first, of a layer that has convolutions or the like in it.

    It takes a layer's output for maps if one of them has returned maps of the same size in the same pass, and if these
    cannot be the channels last.

    Attributes:
        layer: The layer.
    """

    layer: nn.Module = field(default_factory=nn.Identity)
    _shapes: set[tuple[int, ...]] = field(default_factory=set)

    @staticmethod
    def may_be(layer: nn.Module, axes: int = 2) -> bool:
        """Whether a layer is of such a kind, or has one in it."""
        return any(is_channels_first(module, axes) for module in layer.modules())

    @classmethod
    def of(cls, layer: nn.Module, axes: int = 2) -> Layout:
        """The layout to expect of a layer."""
        return ChannelsFirst(axes) if is_channels_first(layer, axes) else cls(axes, layer)

    def watching(self) -> AbstractContextManager[None]:
        """A context in which what is in the layer is watched, while the model runs."""
        inner = {str(number): (module, self._see) for number, module in enumerate(self.layer.modules())}
        return hooked({name: pair for name, pair in inner.items() if is_channels_first(pair[0], self.axes)})

    def _see(self, _module: nn.Module, _args: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.ndim == 2 + self.axes:
            self._shapes.add(tuple(output.shape[1:]))

    def find_activation(self, output: Any) -> Tensor | None:
        """The first floating tensor with so many axes, if it is taken for maps."""
        found = super().find_activation(output)
        return None if found is None or not _is_one_of(self._shapes, found) else found


def _is_one_of(shapes: Iterable[tuple[int, ...]], activation: Tensor) -> bool:
    """Whether an activation has the rows and columns of known maps, and cannot have them with its channels last."""
    grids = {shape[1:] for shape in shapes}
    return tuple(activation.shape[2:]) in grids and tuple(activation.shape[1:-1]) not in grids


@contextmanager
def watching(layouts: Iterable[Layout]) -> Iterator[None]:
    """While the model runs, watch what those layouts have to see that are decided in the pass."""
    with ExitStack() as stack:
        for layout in layouts:
            if isinstance(layout, ObservedMaps):
                stack.enter_context(layout.watching())
        yield


class Evidence(Enum):
    """What a layout is read by."""

    KIND = "the kind of a layer"
    SHAPE = "its shape"
    GUESS = "its shape, which another layout would fit as well"


@dataclass(frozen=True)
class Reading:
    """What is read of an activation.

    Attributes:
        layout: How it lies in space; None where it does not, or that cannot be told.
        evidence: What the layout is read by.
        reason: Why there is no layout, in half a sentence after "of shape ..."; empty where there is one.
    """

    layout: Layout | None = None
    evidence: Evidence = Evidence.SHAPE
    reason: str = ""


@dataclass
class GridReader:
    """Reads the layouts of the activations of one forward pass of one image, in order.

    Attributes:
        image_size: `(H, W)` in pixels; of a signal `(W,)`, of a volume `(D, H, W)`.
        extras: How many tokens there are, to the positions of those that do not come from the image.
    """

    image_size: Grid
    extras: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    _grids: list[Grid] = field(default_factory=list)  # the last one seen stands last
    _shapes: dict[tuple[int, ...], Layout] = field(default_factory=dict)
    _told: set[tuple[int, ...]] = field(default_factory=set)  # the shapes of maps of layers whose kind tells

    def read(self, layer: nn.Module, activation: Tensor) -> Reading:
        """The layout of what a layer returned. See Note [What looks like a map].

        Args:
            layer: The layer.
            activation: `(1, ...)`, what it returned for the image.
        """
        shape, axes = tuple(activation.shape[1:]), len(self.image_size)
        if len(activation) != 1:
            return Reading(reason="which has more than one entry for an image")
        if len(shape) not in (2, axes + 1):
            return Reading(reason="which has no rows and columns" if axes == 2 else "which has no space")
        reading = self._read_maps(layer, shape) if len(shape) == axes + 1 else self._read_tokens(layer, *shape)
        if reading.layout is None and axes == 1:
            reading = self._read_tokens(layer, *shape)
        if reading.layout is None:
            return reading
        self._know(reading.layout, activation)
        if is_channels_first(layer, axes) and len(shape) == axes + 1:
            self._told.add(shape)
        told = shape in self._told or (ObservedMaps.may_be(layer, axes) and _is_one_of(self._told, activation))
        return replace(reading, evidence=Evidence.KIND) if told else reading

    def _know(self, layout: Layout, activation: Tensor) -> None:
        grid = tuple(layout.to_maps(activation).shape[2:])
        if math.prod(grid) > 1:
            self._grids = [*(known for known in self._grids if known != grid), grid]
        self._shapes[tuple(activation.shape[1:])] = layout

    def _read_maps(self, layer: nn.Module, shape: tuple[int, ...]) -> Reading:
        axes, behind, before = len(self.image_size), shape[1:], shape[:-1]
        if is_channels_first(layer, axes):
            return Reading(ChannelsFirst(axes), Evidence.KIND)
        first = not is_channels_last(layer) and self._is_grid(behind)
        last = self._is_grid(before)
        if first and last:
            known = self._shapes.get(shape)
            is_first = self._misfit(behind) <= self._misfit(before)
            return Reading(known) if known else Reading(_maps(axes, is_first=is_first), Evidence.GUESS)
        if first or last:
            return Reading(_maps(axes, is_first=first))
        grids = " nor ".join(" x ".join(map(str, grid)) for grid in (behind, before))
        return Reading(reason=f"where neither {grids} is a grid that fits the image and the layers before")

    def _is_grid(self, grid: Grid) -> bool:
        """Whether there are maps of this size: seen before, or the last one made smaller, or, at first, the image."""
        if not self._grids:
            return _is_smaller(grid, self.image_size)
        return grid in self._grids or _is_smaller(grid, self._grids[-1])

    def _misfit(self, grid: Grid) -> float:
        """How far the proportions of a grid are from those of the last, or at first of the image."""
        if len(grid) == 1:  # one side has no proportions
            return float(grid not in self._grids)
        known = self._grids[-1] if self._grids else self.image_size
        ratios = [math.log(side / whole) for side, whole in zip(grid, known, strict=True)]
        return max(ratios) - min(ratios)

    def _read_tokens(self, layer: nn.Module, count: int, other: int) -> Reading:
        extras = self.extras.get(count, ())
        known = {math.prod(grid): grid for grid in self._grids}
        grid, turned = known.get(count - len(extras)), None if is_channels_last(layer) else known.get(other)
        if grid is None and turned is not None:
            return Reading(Tokens(turned, axis=2), Evidence.GUESS)
        grid = grid or self._unknown_grid(count - len(extras))
        if grid is not None:
            is_guess = turned is not None and not extras
            return Reading(Tokens(grid, extras), Evidence.GUESS if is_guess else Evidence.SHAPE)
        of_cells = f"{count - len(extras)} of {count} tokens are cells" if extras else f"{count} tokens"
        return Reading(reason=f"where {of_cells}, and no layer before has as many")

    def _unknown_grid(self, cells: int) -> Grid | None:
        """The grid of so many cells that tokens make which are merged two by two; at first, a grid of the image."""
        whole = self._grids[-1] if self._grids else self.image_size
        factors = (2,) if self._grids else range(2, min(whole[-2:]) + 1)
        # Along the time of a video, or the depth of a volume, the factor may be another.
        depths = range(1, whole[0] + 1) if len(whole) == 3 else (1,)
        found = {
            tuple(-(-side // (depth if place < len(whole) - 2 else factor)) for place, side in enumerate(whole))
            for factor in factors
            for depth in depths
        }
        fitting = [grid for grid in found if math.prod(grid) == cells]
        return fitting[0] if len(fitting) == 1 or (fitting and len(whole) < 3) else None


def _maps(axes: int, *, is_first: bool) -> Layout:
    return ChannelsFirst(axes) if is_first else ChannelsLast(axes)


def _is_smaller(grid: Grid, other: Grid) -> bool:
    """Whether all sides are smaller by the same whole factor, as strides and poolings make them, or the same.

    The first of three axes is time or depth, and may have a factor of its own.
    """
    if len(grid) == 3:
        return _is_smaller(grid[:1], other[:1]) and _is_smaller(grid[1:], other[1:])
    pairs = list(zip(grid, other, strict=True))
    return any(all(_may_become(side, factor, small) for small, side in pairs) for factor in range(1, max(other) + 1))


def _may_become(side: int, stride: int, smaller: int) -> bool:
    """Whether a stride makes so many cells of a side, with padding or without, which may cost one of many cells."""
    cells = side // stride
    fewest = cells - 1 if stride > 1 and cells > 3 else max(1, cells)
    return fewest <= smaller <= -(-side // stride)
