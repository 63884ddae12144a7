"""The probes as pictures for the recording, made behind the training loop."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from gradcam_callback.probes.probe_set import ProbeSet
from gradcam_callback.recording.records import Origin, ProbeImage, ProbePictures
from gradcam_callback.reporting.panel import PanelStyle
from gradcam_callback.reporting.rendering import signals, tiles

DRAWN_BY_PIXEL = 64  # pixels; up to this size each pixel of an image is seen, so none may change
LARGEST_SIDE = 512  # pixels; a larger image is recorded smaller
LARGEST_SLICE = 256  # likewise; all slices of a volume are one picture, and browsers limit its height
MOST_SLICES = 64  # of a volume
JPEG_QUALITY = 92


@torch.no_grad()
def encode_probes(
    probes: ProbeSet, style: PanelStyle, texts: Sequence[str], space: int, origin: Origin
) -> ProbePictures:
    """The record of the probes.

    Args:
        probes: On any device; the images are copied to the host, which no training loop waits for here.
        style: Its `mean`, `std` and `channels` say how the images are shown, and its `class_names` are recorded.
        texts: What the data say of each probe, in words.
        space: The axes of space: 1 of signals, 2 of images, 3 of volumes.
        origin: Which record it is.

    Raises:
        ValueError: `mean`, `std` or `channels` is for images with other channels.
    """
    probes = replace(probes, images=probes.images.cpu())
    labels = [None] * len(probes) if probes.labels is None else probes.labels.tolist()
    return ProbePictures(
        origin=origin,
        fingerprint=probes.fingerprint,
        names=probes.names,
        labels=tuple(labels),
        label_texts=tuple(texts),
        images=tuple(_pictures(probes, style, space)),
        class_names=None if style.class_names is None else tuple(style.class_names),
    )


def _pictures(probes: ProbeSet, style: PanelStyle, space: int) -> Iterator[ProbeImage]:
    images = probes.displayed
    if space == 1:
        images = probes.images
        curves = tiles.select_channels(images, style.channels)
        blank = tiles.tiles(signals.blank(len(images), images.device), signals.SIZE)
        for pixels in signals.draw_curves(blank, curves):
            yield _picture(pixels.permute(2, 0, 1) / 255, 1)
        return
    slices = 1
    if space == 3:
        images = _fewer_slices(images)
        slices = images.shape[2]
        images = images.flatten(2, 3)  # the slices under one another
    sizes = probes.sizes or [tuple(images.shape[-2:])] * len(images)
    if probes.sizes is not None:
        images = tiles.without_padding(images, probes.sizes)
    shown = tiles.displayable(images, style.mean, style.std, style.channels)
    for picture, (height, width) in zip(shown, sizes, strict=True):
        yield _picture(picture[:, :height, :width], slices)


def _fewer_slices(volumes: Tensor) -> Tensor:
    """At most so many slices of each volume, evenly from its depth."""
    depth = volumes.shape[2]
    count = min(depth, MOST_SLICES)
    return volumes[:, :, ((torch.arange(count) + 0.5) * depth / count).long()]


def _picture(pixels: Tensor, slices: int) -> ProbeImage:
    """One image `(3, H, W)` in 0..1 as a file: lossless where each pixel is seen, else as a photograph."""
    height, width = pixels.shape[1] // slices, pixels.shape[2]
    longest = max(height, width)
    largest = LARGEST_SIDE if slices == 1 else LARGEST_SLICE
    if longest > largest:
        scale = largest / longest
        size = max(1, round(height * scale)) * slices, max(1, round(width * scale))
        pixels = F.interpolate(pixels[None], size=size, mode="bilinear", align_corners=False, antialias=True)[0]
    picture = Image.fromarray((pixels * 255).round().byte().permute(1, 2, 0).contiguous().numpy())
    buffer = io.BytesIO()
    if longest <= DRAWN_BY_PIXEL:
        picture.save(buffer, "png", optimize=True)
    else:
        picture.save(buffer, "jpeg", quality=JPEG_QUALITY, subsampling=0)  # colours as fine as the rest
    return ProbeImage(buffer.getvalue(), width, height, slices)
