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
from gradcam_callback.engine.layouts import CHANNELS_FIRST, CHANNELS_LAST, ChannelsFirst, Grid, Layout, Tokens

# What works on the last axis: of a tensor with four axes, the channels are there.
_CHANNELS_LAST = (nn.Linear, nn.LayerNorm, nn.MultiheadAttention)
# What has its channels in the second axis, and space behind it.
_CHANNELS_FIRST = (
    *(nn.Conv2d, nn.ConvTranspose2d, nn.BatchNorm2d, nn.SyncBatchNorm, nn.InstanceNorm2d, nn.GroupNorm, nn.Dropout2d),
    *(nn.MaxPool2d, nn.AvgPool2d, nn.LPPool2d, nn.FractionalMaxPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d),
    *(nn.Upsample, nn.PixelShuffle, nn.PixelUnshuffle, nn.LocalResponseNorm),
)


def is_channels_first(layer: nn.Module) -> bool:
    """Whether a layer's kind alone tells that what it returns is channels first."""
    return isinstance(layer, _CHANNELS_FIRST)


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

    layer: nn.Module
    _shapes: set[tuple[int, ...]] = field(default_factory=set)

    @staticmethod
    def may_be(layer: nn.Module) -> bool:
        """Whether a layer is of such a kind, or has one in it."""
        return any(map(is_channels_first, layer.modules()))

    @classmethod
    def of(cls, layer: nn.Module) -> Layout:
        """The layout to expect of a layer."""
        return CHANNELS_FIRST if is_channels_first(layer) else cls(layer)

    def watching(self) -> AbstractContextManager[None]:
        """A context in which what is in the layer is watched, while the model runs."""
        inner = {str(number): (module, self._see) for number, module in enumerate(self.layer.modules())}
        return hooked({name: pair for name, pair in inner.items() if is_channels_first(pair[0])})

    def _see(self, _module: nn.Module, _args: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.ndim == 4:
            self._shapes.add(tuple(output.shape[1:]))

    def find_activation(self, output: Any) -> Tensor | None:
        """The first floating tensor with four axes, if it is taken for maps."""
        found = super().find_activation(output)
        return None if found is None or not _is_one_of(self._shapes, found) else found


def _is_one_of(shapes: Iterable[tuple[int, ...]], activation: Tensor) -> bool:
    """Whether an activation has the rows and columns of known maps, and cannot have them with its channels last."""
    grids = {shape[1:] for shape in shapes}
    return activation.ndim == 4 and tuple(activation.shape[2:]) in grids and tuple(activation.shape[1:3]) not in grids


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
        image_size: `(H, W)` in pixels.
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
        shape = tuple(activation.shape[1:])
        if len(activation) != 1:
            return Reading(reason="which has more than one entry for an image")
        if len(shape) not in (2, 3):
            return Reading(reason="which has no rows and columns")
        reading = self._read_tokens(layer, *shape) if len(shape) == 2 else self._read_maps(layer, *shape)
        if reading.layout is None:
            return reading
        self._know(reading.layout, activation)
        if is_channels_first(layer) and len(shape) == 3:
            self._told.add(shape)
        told = shape in self._told or (ObservedMaps.may_be(layer) and _is_one_of(self._told, activation))
        return replace(reading, evidence=Evidence.KIND) if told else reading

    def _know(self, layout: Layout, activation: Tensor) -> None:
        height, width = layout.to_maps(activation).shape[2:]
        if height * width > 1:
            grid = (height, width)
            self._grids = [*(known for known in self._grids if known != grid), grid]
        self._shapes[tuple(activation.shape[1:])] = layout

    def _read_maps(self, layer: nn.Module, a: int, b: int, c: int) -> Reading:
        if is_channels_first(layer):
            return Reading(CHANNELS_FIRST, Evidence.KIND)
        first = not is_channels_last(layer) and self._is_grid((b, c))
        last = self._is_grid((a, b))
        if first and last:
            known = self._shapes.get((a, b, c))
            fits_better = CHANNELS_FIRST if self._misfit((b, c)) <= self._misfit((a, b)) else CHANNELS_LAST
            return Reading(known) if known else Reading(fits_better, Evidence.GUESS)
        if first or last:
            return Reading(CHANNELS_FIRST if first else CHANNELS_LAST)
        return Reading(
            reason=f"where neither {b} x {c} nor {a} x {b} is a grid that fits the image and the layers before"
        )

    def _is_grid(self, grid: Grid) -> bool:
        """Whether there are maps of this size: seen before, or the last one made smaller, or, at first, the image."""
        if not self._grids:
            return _is_smaller(grid, self.image_size)
        return grid in self._grids or _is_smaller(grid, self._grids[-1])

    def _misfit(self, grid: Grid) -> float:
        """How far the proportion of a grid is from that of the last, or at first of the image."""
        height, width = self._grids[-1] if self._grids else self.image_size
        return abs(math.log(grid[0] / grid[1] * width / height))

    def _read_tokens(self, layer: nn.Module, count: int, other: int) -> Reading:
        extras = self.extras.get(count, ())
        known = {h * w: (h, w) for h, w in self._grids}
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
        height, width = self._grids[-1] if self._grids else self.image_size
        factors = (2,) if self._grids else range(2, min(height, width) + 1)
        grids = [(-(-height // factor), -(-width // factor)) for factor in factors]
        return next((grid for grid in grids if grid[0] * grid[1] == cells), None)


def _is_smaller(grid: Grid, other: Grid) -> bool:
    """Whether both sides are smaller by the same whole factor, as strides and poolings make them, or the same."""
    (h, w), (height, width) = grid, other
    factors = range(1, max(height, width) + 1)
    return any(_may_become(height, factor, h) and _may_become(width, factor, w) for factor in factors)


def _may_become(side: int, stride: int, smaller: int) -> bool:
    """Whether a stride makes so many cells of a side, with padding or without, which may cost one of many cells."""
    cells = side // stride
    fewest = cells - 1 if stride > 1 and cells > 3 else max(1, cells)
    return fewest <= smaller <= -(-side // stride)
