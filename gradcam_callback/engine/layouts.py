"""How an activation lies in space: from what a layer returned to `N K h w`, and whether that reading can be right."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor, nn

# What works on the last axis: of a tensor with four axes, the channels are there.
_CHANNELS_LAST = (nn.Linear, nn.LayerNorm, nn.MultiheadAttention)
# What has its channels in the second axis, and space behind it.
_CHANNELS_FIRST = (
    *(nn.Conv2d, nn.ConvTranspose2d, nn.BatchNorm2d, nn.SyncBatchNorm, nn.InstanceNorm2d, nn.GroupNorm, nn.Dropout2d),
    *(nn.MaxPool2d, nn.AvgPool2d, nn.LPPool2d, nn.FractionalMaxPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d),
    *(nn.Upsample, nn.PixelShuffle, nn.PixelUnshuffle, nn.LocalResponseNorm),
)
# A map whose sides are more than so many times off the sides of the image is looked at twice.
_FAR_OFF = 1.5


class Layout(Protocol):
    """The place where other layouts (channels last, tokens) plug in."""

    def find_activation(self, output: Any) -> Tensor | None:
        """The tensor with space in it in what a layer returned; None if there is none."""

    def to_maps(self, activation: Tensor) -> Tensor:
        """An activation, or its gradient, as `(N, K, h, w)`."""

    def doubt(self, layer: nn.Module, maps: Tensor, image_size: tuple[int, int]) -> str:
        """Why `(N, K, h, w)` is not what the tensor is, in half a sentence after "of shape ..."; empty if it may be."""


class ChannelsFirst:
    """`N K h w`, as convolutions return it."""

    def find_activation(self, output: Any) -> Tensor | None:
        """The first floating tensor with four axes, in nested containers too."""
        if isinstance(output, Tensor):
            return output if output.ndim == 4 and output.is_floating_point() else None
        if isinstance(output, Mapping):
            output = list(output.values())
        if isinstance(output, (tuple, list)):
            return next((tensor for value in output if (tensor := self.find_activation(value)) is not None), None)
        return None

    def to_maps(self, activation: Tensor) -> Tensor:
        """The same tensor."""
        return activation

    def doubt(self, layer: nn.Module, maps: Tensor, image_size: tuple[int, int]) -> str:
        """Whether the layer's kind, or the sides of the map beside those of the image, speak for channels last."""
        if isinstance(layer, _CHANNELS_FIRST):
            return ""
        # By its very type: subclasses of LayerNorm that turn the axes round, before and behind, are common.
        if type(layer) in _CHANNELS_LAST:
            return f"whose last axis is that of the channels, as always behind {type(layer).__name__}"
        first, second, third = (max(side, 1) for side in maps.shape[1:])
        height, width = image_size
        as_read, as_channels_last = (
            abs(math.log(h / w * width / height)) for h, w in ((second, third), (first, second))
        )
        if as_read > math.log(_FAR_OFF) and as_channels_last < as_read and as_channels_last < math.log(_FAR_OFF):
            return "which fits the image only if the channels are its last axis"
        return ""


CHANNELS_FIRST = ChannelsFirst()


def is_channels_first(layer: nn.Module) -> bool:
    """Whether a layer's kind alone tells that what it returns is channels first."""
    return isinstance(layer, _CHANNELS_FIRST)


def describe_output(output: Any) -> str:
    """What a layer returned, in words, for a message."""
    if isinstance(output, Tensor):
        return f"a tensor of shape {tuple(output.shape)}"
    if isinstance(output, (tuple, list)):
        return f"{type(output).__name__} of {', '.join(describe_output(value) for value in output) or 'nothing'}"
    return f"an object of type {type(output).__name__}"
