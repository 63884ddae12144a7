"""One map of several layers: the mean of their heatmaps.

Each map is enlarged to the finest grid among them and divided by its own peak, so that layers with large activations do
not drown the others: `F = mean_l (M_l / max M_l)`. A layer at which a probe has no map is left out of that probe's
mean; where no layer has one, the probe has none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from gradcam_callback.results import CAMResult, GradientState, LayerHealth, enlarge, normalise

FUSED = ""
"""What stands for a layer's name; no layer is called so."""


def fuse(cams: Sequence[Tensor]) -> Tensor:
    """The mean of maps.

    Args:
        cams: `(N, h, w)` each, at sizes of their own; NaN for a probe without a usable gradient.

    Returns:
        float32 `(N, h, w)` at the largest of their sizes, 0..1; NaN for a probe without any map.
    """
    finest = tuple(max(sides) for sides in zip(*(cam.shape[1:] for cam in cams), strict=True))
    return torch.stack([normalise(enlarge(cam, finest)) for cam in cams]).nanmean(dim=0)


def fuse_extents(extents: Sequence[Tensor | None], cams: Sequence[Tensor]) -> Tensor | None:
    """Which part of their mean each image is, as of `CAMResult`; of every layer it is the same part."""
    first, shape = extents[0], cams[0].shape
    if first is None:
        return None
    finest = [max(sides) for sides in zip(*(cam.shape[1:] for cam in cams), strict=True)]
    factors = [fine / own for fine, own in zip(finest, shape[1:], strict=True)] * 2
    return torch.stack([side * factor for side, factor in zip(first.unbind(1), factors, strict=True)], dim=1)


def with_fused(result: CAMResult) -> CAMResult:
    """A result with the mean of its maps as one more layer, and a verdict on it."""
    cams: Mapping[str, Tensor] = {**result.cams, FUSED: fuse(list(result.cams.values()))}
    known = fuse_extents([result.extents.get(layer) for layer in result.cams], list(result.cams.values()))
    return replace(
        result,
        cams=cams,
        health={**result.health, FUSED: _verdict(list(result.health.values()))},
        extents=result.extents if known is None else {**result.extents, FUSED: known},
    )


def _verdict(verdicts: Sequence[LayerHealth]) -> LayerHealth:
    """A probe is fine where a layer has a map of it, whatever it is by; else it is what it is at the first layer."""
    drawn = [
        [state is GradientState.OK or drawn for state, drawn in zip(one.state, one.drawn_without_gradient, strict=True)]
        for one in verdicts
    ]
    first = verdicts[0]
    return LayerHealth(
        gradient_norm=torch.full_like(first.gradient_norm, torch.nan),
        state=tuple(
            GradientState.OK if any(column) else state
            for column, state in zip(zip(*drawn, strict=True), first.state, strict=True)
        ),
        empty=tuple(map(all, zip(*(one.empty for one in verdicts), strict=True))),
        cause=first.cause,
    )
