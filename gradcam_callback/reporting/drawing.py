"""The tiles of a panel, on the device that holds the results: images, slices of volumes, or curves of signals.

Axes: `N` probes, `n` those of a page, `M` maps (layers times targets), `th tw` a tile in pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from gradcam_callback.engine.device_results import TargetResult
from gradcam_callback.probes.probe_set import ProbeSet
from gradcam_callback.reporting.fusion import fuse, fuse_extents
from gradcam_callback.reporting.panel import PanelStyle
from gradcam_callback.reporting.rendering import outlines, signals, tiles, volumes
from gradcam_callback.reporting.rendering.colormap import colormap_table


class PanelDrawing:
    """Draws the probes of one pass, page by page. The host does not wait for the device.

    Args:
        probes: The images and what is known of them.
        style: What it should look like.
        results: One a target, of the same layers.
        most: How many probes are drawn at most.

    Attributes:
        slices: `(M, N)` int64, the slice of each volume that is drawn under each map; -1 of what is no volume.

    Raises:
        ValueError: `mean`, `std` or `channels` is for images with other channels.
    """

    def __init__(self, probes: ProbeSet, style: PanelStyle, results: Sequence[TargetResult], most: int) -> None:
        self._probes, self._style, self._results = probes, style, results
        device = results[0].scores.values.device
        self._table = colormap_table(style.colormap).to(device, non_blocking=True)
        self._maps = [result.cams[layer] for layer in results[0].cams for result in results]
        self._extents = [result.extents[layer] for layer in results[0].cams for result in results]
        if style.fuse and len(results[0].cams) > 1:
            self._maps += [fuse(list(result.cams.values())) for result in results]
            self._extents += [
                fuse_extents(list(result.extents.values()), list(result.cams.values())) for result in results
            ]
        # Of each image alone where they differ, and of all otherwise.
        self._sizes = probes.sizes if len(set(probes.sizes or ())) > 1 else None
        self._curves: Tensor | None = None
        axes = self._maps[0].ndim - 1
        if axes == 2:
            self._draw_images(probes.displayed[:most].to(device))
        elif axes == 1:
            self._draw_signals(probes.images[:most].to(device))
        else:
            self._draw_volumes(probes.images[:most].to(device))
        self._size = tiles.tile_size(*self._pictures[0].shape[2:]) if axes != 1 else signals.SIZE
        is_shared = style.shared_scale
        self._shared = [self._highest_peak(number) if is_shared else None for number in range(len(self._maps))]

    def _highest_peak(self, number: int) -> Tensor:
        """The highest value of a map of all probes, once they are enlarged."""
        maps, extents = self._maps[number], self._extents[number]
        if self._sizes is None:
            return tiles.highest_peak(maps, self._size, extents)
        rows = ((slice(probe, probe + 1), tiles.tile_size(*size)) for probe, size in enumerate(self._sizes))
        return torch.stack([tiles.highest_peak(maps[row], size, _rows(extents, row)) for row, size in rows]).amax()

    def _draw_images(self, images: Tensor) -> None:
        style = self._style
        if self._sizes is not None:
            images = tiles.without_padding(images, self._sizes)
        shown = tiles.displayable(images, style.mean, style.std, style.channels)
        self._pictures = [shown] * len(self._maps)
        self.slices = torch.full((len(self._maps), len(self._maps[0])), -1, device=images.device)

    def _draw_signals(self, curves: Tensor) -> None:
        """The map is a band of colours behind the curve."""
        self._curves = tiles.select_channels(curves, self._style.channels)
        self._pictures = [signals.blank(len(curves), curves.device)] * len(self._maps)
        self._maps = [cam.unsqueeze(1) for cam in self._maps]
        self.slices = torch.full((len(self._maps), len(self._maps[0])), -1, device=curves.device)

    def _draw_volumes(self, images: Tensor) -> None:
        """Each map over the slice of the volume in which it has its peak."""
        style, depth = self._style, images.shape[2]
        self.slices = torch.stack([volumes.peak_slices(cam, depth) for cam in self._maps])
        self._pictures = [
            tiles.displayable(volumes.take_slices(images, slices[: len(images)]), style.mean, style.std, style.channels)
            for slices in self.slices
        ]
        self._maps = [volumes.map_slices(cam, own, depth) for cam, own in zip(self._maps, self.slices, strict=True)]

    def page(self, page: slice) -> tuple[Tensor, Tensor]:
        """The tiles of some probes.

        Returns:
            `(1 + M, n, th, tw, 3)` uint8, the inputs and the overlays; and `(M, n)` float32, the peaks of the maps.
        """
        if self._sizes is None:
            return self._drawn(page, self._probes.image_size, self._size)
        apart = []
        for probe, size in list(enumerate(self._sizes))[page]:
            apart.append(self._drawn(slice(probe, probe + 1), size, tiles.tile_size(*size)))
        return tiles.placed([pixels for pixels, _ in apart]), torch.cat([peaks for _, peaks in apart], dim=1)

    def _drawn(self, page: slice, size: tuple[int, int], tile: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """The tiles of some probes, whose images have one size."""
        pictures = self._pictures
        if self._sizes is not None:
            pictures = [picture[..., : size[0], : size[1]] for picture in pictures]
        drawn = [
            tiles.overlays(
                *(picture[page], cam[page], self._table, self._style.opacity, tile),
                peak=peak,
                extents=_rows(extents, page),
            )
            for picture, cam, peak, extents in zip(pictures, self._maps, self._shared, self._extents, strict=True)
        ]
        inputs = self._with_labels(tiles.tiles(pictures[0][page], tile), page, size)
        pixels = [inputs, *self._with_regions([overlay for overlay, _ in drawn], page, size)]
        if self._curves is not None:
            pixels = [signals.draw_curves(one, self._curves[page]) for one in pixels]
        return torch.stack(pixels), torch.stack([peak for _, peak in drawn])

    def _with_labels(self, inputs: Tensor, page: slice, size: tuple[int, int]) -> Tensor:
        """The inputs with the boxes and the edges of the masks that the data give them."""
        probes = self._probes
        if probes.masks is not None:
            inputs = outlines.draw_edges(inputs, probes.masks[page].to(inputs.device), outlines.LABEL)
        if probes.boxes is not None:
            boxes = outlines.pad_boxes([boxes for boxes, _ in probes.boxes[page]]).to(inputs.device)
            inputs = outlines.draw_boxes(inputs, boxes, size, outlines.LABEL)
        return inputs

    def _with_regions(self, overlays: Sequence[Tensor], page: slice, size: tuple[int, int]) -> Iterator[Tensor]:
        """The overlays with the box, or the edge of the region, that the score is of."""
        for number, pixels in enumerate(overlays):
            scores, drawn = self._results[number % len(self._results)].scores, pixels
            if scores.regions is not None:
                drawn = outlines.draw_edges(drawn, scores.regions[page], outlines.EXPLAINED)
            if scores.boxes is not None:
                boxes = scores.boxes[page].unsqueeze(1)
                drawn = outlines.draw_boxes(drawn, boxes, size, outlines.EXPLAINED)
            yield drawn


def _rows(extents: Tensor | None, page: slice) -> Tensor | None:
    return None if extents is None else extents[page]
