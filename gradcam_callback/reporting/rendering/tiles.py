"""Tiles and overlays: the part of a panel that is drawn in torch, on the device that holds the images.

The host is never made to wait for the device. Axes: `N` probes, `C` image channels, `H W` the image, `h w` the map,
`th tw` the tile. All lengths are in pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from gradcam_callback.errors import BadInputError
from gradcam_callback.results import enlarge

# The longest side of a tile lies between the first two; no side is thinner than the third.
SMALL_TILE = 168
LARGE_TILE = 256
THIN_TILE = 16


def tile_size(height: int, width: int) -> tuple[int, int]:
    """Choose the size at which an image is shown.

    A small image grows by a whole factor, so that no pixel has to be blurred; a large one shrinks to a longest side of
    256; the others stay as they are. The aspect is kept, unless a side would be thinner than 16 pixels.

    Args:
        height: Height of the image.
        width: Width of the image.

    Returns:
        `(th, tw)`.
    """
    longest = max(height, width)
    if longest > LARGE_TILE:
        scale = LARGE_TILE / longest
        return max(THIN_TILE, round(height * scale)), max(THIN_TILE, round(width * scale))
    factor = max(1, min(math.ceil(SMALL_TILE / longest), LARGE_TILE // longest))
    return height * max(factor, math.ceil(THIN_TILE / height)), width * max(factor, math.ceil(THIN_TILE / width))


def name_channels(count: int, channels: Sequence[int] | None = None) -> str:
    """Say which of an image's channels are shown: "channels 0, 1, 2 of 6"; nothing where these are all of them."""
    if channels is None and count == 2:
        return "mean of 2 channels"
    shown = range(min(count, 3)) if channels is None else channels
    if sorted(shown) == list(range(count)):
        return ""
    return f"channel{'s' * (len(shown) > 1)} {', '.join(map(str, shown))} of {count}"


def displayable(
    images: Tensor,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    channels: Sequence[int] | None = None,
) -> Tensor:
    """Turn what the model sees back into images that people can look at.

    Where `mean` or `std` is given, the normalisation is undone. Without them, images within 0..1 are shown as they
    are, and otherwise each image is scaled by its own range; a flat one becomes grey. uint8 images are divided by 255.
    Pixels that are not finite do not touch the others: NaN and -inf are black, inf is white.

    Args:
        images: `(N, C, H, W)`, of any number type.
        mean: What was subtracted from each channel: C numbers, or one for all.
        std: What each channel was divided by: C numbers, or one for all.
        channels: Which to show: one as grey, three as red, green and blue. By default one as grey, of two their mean,
            else the first three.

    Returns:
        `(N, 3, H, W)` float32 in 0..1, on the device of the images.

    Raises:
        ValueError: If `images` has another number of axes, `mean` or `std` another length than there are channels, or
            one of `channels` does not exist.
    """
    if images.ndim != 4:
        raise BadInputError(f"images must have the axes (N, C, H, W), but their shape is {tuple(images.shape)}")
    means = _per_channel("mean", mean, images.shape[1], missing=0.0)
    stds = _per_channel("std", std, images.shape[1], missing=1.0)
    images = select_channels(images, channels)
    if channels is not None:
        means, stds = [means[channel] for channel in channels], [stds[channel] for channel in channels]
    if images.dtype == torch.uint8:
        return _as_rgb(images.float() / 255)
    images = images.float()
    if mean is None and std is None:
        return _within_range(_as_rgb(images))
    # Channel by channel, because a tensor made of the numbers would have to be copied to the device.
    planes = [plane * s + m for plane, m, s in zip(images.unbind(1), means, stds, strict=True)]
    return _clean(_as_rgb(torch.stack(planes, dim=1)))


def without_padding(images: Tensor, sizes: Sequence[tuple[int, int]]) -> Tensor:
    """Images `(N, C, H, W)` with a pixel of their own beside and beneath them, so that zeros do not touch their range.

    Args:
        images: Each at the upper left, with zeros beside and beneath it.
        sizes: `(h, w)` of each image.
    """
    filled = images.clone()
    for image, (height, width) in zip(filled, sizes, strict=False):
        image[..., height:, :] = image[..., :1, :1]
        image[..., width:] = image[..., :1, :1]
    return filled


def tiles(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Bring images to the size of a tile: enlarged by a whole factor without blur, otherwise smoothly.

    Args:
        images: `(N, 3, H, W)` float32 in 0..1, as `displayable` makes them.
        size: `(th, tw)`, as `tile_size` chooses it.

    Returns:
        `(N, th, tw, 3)` uint8, on the device of the images.
    """
    return _as_bytes(_resized(images, size))


def placed(parts: Sequence[Tensor]) -> Tensor:
    """Tiles of different sizes as tiles of one, each in the middle of white.

    Args:
        parts: `(..., 1, th, tw, 3)` uint8 each.

    Returns:
        `(..., N, height, width, 3)` uint8, as large as the largest side of any.
    """
    height, width = (max(part.shape[axis] for part in parts) for axis in (-3, -2))
    framed = []
    for part in parts:
        rows, columns = height - part.shape[-3], width - part.shape[-2]
        top, left = rows // 2, columns // 2
        framed.append(F.pad(part, (0, 0, left, columns - left, top, rows - top), value=255))
    return torch.cat(framed, dim=-4)


def overlays(
    images: Tensor,
    maps: Tensor,
    table: Tensor,
    opacity: float,
    size: tuple[int, int],
    *,
    peak: Tensor | None = None,
    extents: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Colour each map and blend it with its image.

    A map is enlarged bilinearly and divided by its peak. An all-zero map stays zero. A map with a value that is not
    finite is not drawn: its tile is the plain image, its peak is NaN, and the other maps do not notice it.

    Args:
        images: `(N, 3, H, W)` float32 in 0..1, as `displayable` makes them.
        maps: `(N, h, w)` float32, at least 0, on the device of the images.
        table: `(256, 3)` uint8, as `colormap_table` makes it; on the device of the images it need not be copied.
        opacity: How strongly the map covers the image, from 0 to 1.
        size: `(th, tw)`, as `tile_size` chooses it.
        peak: What all maps are divided by, as `highest_peak` finds it; None divides each by its own peak.
        extents: `(N, 4)`, which part of its map each image is, as of `results.enlarge`; None: all of it.

    Returns:
        `(N, th, tw, 3)` uint8 tiles, and `(N,)` float32 peaks: the value that the end of the colour bar stands for.

    Raises:
        ValueError: If `opacity` lies outside 0..1, or there is not one map an image.
    """
    if not 0 <= opacity <= 1:
        raise BadInputError(f"opacity must lie between 0 (only the image) and 1 (only the map), but is {opacity}")
    if len(maps) != len(images):
        raise BadInputError(f"there must be one map an image, but there are {len(maps)} maps and {len(images)} images")
    maps, drawn = _enlarged(maps, size, extents)
    peaks = maps.amax(dim=(1, 2), keepdim=True)
    if peak is not None:
        peaks = peak.expand_as(peaks)
    levels = torch.where(peaks > 0, maps / peaks, 0.0)  # (N, th, tw), 0..1
    table = table.to(maps.device, torch.float32, non_blocking=True) / 255
    colours = F.embedding((levels * 255).round().int(), table)  # (N, th, tw, 3)
    blended = torch.lerp(_resized(images, size), colours, drawn.float().unsqueeze(-1) * opacity)
    return _as_bytes(blended), torch.where(drawn, peaks, torch.nan).flatten()


def highest_peak(maps: Tensor, size: tuple[int, int], extents: Tensor | None = None) -> Tensor:
    """The highest value of all maps `(N, h, w)` once they are enlarged, as a scalar on their device."""
    return _enlarged(maps, size, extents)[0].amax()


def _enlarged(maps: Tensor, size: tuple[int, int], extents: Tensor | None) -> tuple[Tensor, Tensor]:
    """Enlarged maps `(N, th, tw)`, and which of them are drawn, `(N, 1, 1)`; those that are not are zero."""
    drawn = maps.isfinite().flatten(1).all(dim=1)[:, None, None]
    maps = torch.where(drawn, maps.float(), 0.0)
    return enlarge(maps, size, extents), drawn


def select_channels(images: Tensor, channels: Sequence[int] | None) -> Tensor:
    """The channels to show of images `(N, C, ...)`; None: all of them.

    Raises:
        ValueError: One of them does not exist, or they are neither one nor three.
    """
    if channels is None:
        return images
    if len(channels) not in (1, 3) or not all(0 <= channel < images.shape[1] for channel in channels):
        raise BadInputError(
            f"the channels to show are one or three of 0 to {images.shape[1] - 1}, but {list(channels)} were given"
        )
    # One by one, because a list of indices would have to be copied to the device.
    return torch.stack([images[:, channel] for channel in channels], dim=1)


def _per_channel(name: str, numbers: Sequence[float] | None, channels: int, missing: float) -> Sequence[float]:
    if numbers is None or len(numbers) == 1:
        return [missing if numbers is None else numbers[0]] * channels
    if len(numbers) != channels:
        raise BadInputError(
            f"{name} has {len(numbers)} numbers, but the images have {channels} channels; "
            f"give {channels} numbers, one a channel, or a single one for all"
        )
    return numbers


def _as_rgb(images: Tensor) -> Tensor:
    if images.shape[1] < 3:
        return images.mean(dim=1, keepdim=True).expand(-1, 3, -1, -1)
    return images[:, :3]


def _within_range(images: Tensor) -> Tensor:
    low = images.nan_to_num(math.inf, math.inf, math.inf).amin(dim=(1, 2, 3), keepdim=True)
    high = images.nan_to_num(-math.inf, -math.inf, -math.inf).amax(dim=(1, 2, 3), keepdim=True)
    # One answer for all probes: they come from one pipeline, and a dim image among normalised ones proves nothing.
    shown_as_is = (low.amin() >= 0) & (high.amax() <= 1)
    flat = high <= low
    start = torch.where(shown_as_is, 0.0, low)
    span = torch.where(shown_as_is | flat, 1.0, high - low)
    lift = torch.where(flat & ~shown_as_is, 0.5, 0.0)
    return _clean((images - start).div_(span).add_(lift))


def _clean(images: Tensor) -> Tensor:
    return images.nan_to_num(nan=0.0, posinf=1.0, neginf=0.0).clamp_(0, 1)


def _resized(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize `(N, 3, H, W)` and put the colours last, as pictures have them: `(N, th, tw, 3)`, contiguous."""
    height, width = images.shape[-2:]
    if size[0] % height == 0 and size[1] % width == 0:
        resized = F.interpolate(images, size=size, mode="nearest-exact")
    else:
        resized = F.interpolate(images, size=size, mode="bilinear", align_corners=False, antialias=True)
    return resized.permute(0, 2, 3, 1).contiguous()


def _as_bytes(images: Tensor) -> Tensor:
    return (images * 255).round_().to(torch.uint8)
