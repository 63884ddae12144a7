"""A look in several parts: targets cut up, results put together again. A room: records in, records out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from gradcam_callback.results import CAMResult, LayerHealth, Target


def part_of(target: Target, part: slice) -> Target:
    """What a target is for some of the samples."""
    if isinstance(target, (str, int)) or (isinstance(target, Tensor) and target.ndim == 0):
        return target
    return target[part]


def moved(result: CAMResult, device: torch.device | str) -> CAMResult:
    """The result on a device. The norms of the gradients are on the CPU and stay there."""
    return replace(
        result,
        cams={layer: cam.to(device) for layer, cam in result.cams.items()},
        targets=result.targets.to(device),
        scores=result.scores.to(device),
        predictions=result.predictions.to(device),
        probabilities=result.probabilities.to(device),
    )


def join(parts: Sequence[Sequence[CAMResult]]) -> list[CAMResult]:
    """The results for all samples, a target each.

    Args:
        parts: At least one; each holds the results for its samples, a target each, for the same layers.
    """
    return [_joined(results) for results in zip(*parts, strict=True)]


def _joined(results: Sequence[CAMResult]) -> CAMResult:
    if len(results) == 1:
        return results[0]
    layers = list(results[0].cams)
    return CAMResult(
        cams={layer: torch.cat(_of_one_size([result.cams[layer] for result in results])) for layer in layers},
        targets=torch.cat([result.targets for result in results]),
        scores=torch.cat([result.scores for result in results]),
        predictions=torch.cat([result.predictions for result in results]),
        probabilities=torch.cat([result.probabilities for result in results]),
        health={layer: _joined_health([result.health[layer] for result in results]) for layer in layers},
        input_size=results[0].input_size,
    )


def _of_one_size(maps: Sequence[Tensor]) -> list[Tensor]:
    """A part in which the layer never ran has maps of one pixel, which is NaN: it gets the space of the others."""
    space = max((cam.shape[1:] for cam in maps), key=lambda shape: shape.numel())
    return [cam.expand(-1, *space) if cam.shape[1:].numel() == 1 else cam for cam in maps]


def _joined_health(verdicts: Sequence[LayerHealth]) -> LayerHealth:
    told = next((verdict for verdict in verdicts if verdict.cause is not None), verdicts[0])
    return replace(
        told,
        gradient_norm=torch.cat([verdict.gradient_norm for verdict in verdicts]),
        state=tuple(state for verdict in verdicts for state in verdict.state),
        empty=tuple(flag for verdict in verdicts for flag in verdict.empty),
    )
