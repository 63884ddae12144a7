"""From a probe pass to a record of it: maps in 256 levels, made on the device, and what was known of the probes.

Axes: `T` targets, `N` probes, `S` the space of a map, `L` classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gradcam_callback.engine.device_results import TargetResult
from gradcam_callback.recording.records import BRIDGED, EMPTY, STATES, SUBSTITUTED, LayerMaps, Look, Origin
from gradcam_callback.results import CAMResult

_WITHOUT_CLASSES = ("regression", "value")
_WITHOUT_PROBABILITIES = (*_WITHOUT_CLASSES, "segmentation")  # the numbers of a segmentation are shares of the pixels


def quantise(cams: Tensor) -> tuple[Tensor, Tensor]:
    """Maps in 256 levels between zero and their own maximum.

    Args:
        cams: `(N, *S)` float32, at least 0; NaN for a probe without a usable gradient.

    Returns:
        `(N, *S)` uint8 levels, and `(N,)` float32 peaks, NaN where there is no map: `cam = level / 255 * peak`.
    """
    beside = (-1,) + (1,) * (cams.ndim - 1)
    drawn = cams.flatten(1).isfinite().all(dim=1)
    maps = torch.where(drawn.view(beside), cams.float(), 0.0)
    peaks = maps.flatten(1).amax(dim=1)
    levels = maps / torch.where(peaks > 0, peaks, 1.0).view(beside) * 255
    return levels.round().to(torch.uint8), torch.where(drawn, peaks, torch.nan)


def render_look(results: Sequence[TargetResult], labels: Tensor | None) -> list[Tensor]:
    """What a record needs from the device; the host does not wait for it.

    Args:
        results: One a target, of the same layers.
        labels: `(N,)` int64, the class of each probe; None where there is none.

    Returns:
        Of each layer `(T, N, *S)` uint8 levels and `(T, N)` float32 peaks; then `(T, N, 4)` float32, the numbers of
        each target: class, score, probability of it and of the prediction; `(2, N)` float32, the predictions and the
        probability of the label; and whatever boxes and extents there are.
    """
    tensors: list[Tensor] = []
    for layer in results[0].cams:
        levels, peaks = zip(*(quantise(result.cams[layer]) for result in results), strict=True)
        tensors += [torch.stack(levels), torch.stack(peaks)]
    first = results[0].scores
    tensors.append(torch.stack([_numbers(result) for result in results]))
    tensors.append(torch.stack([first.predictions.float(), _of_labels(results[0], labels)]))
    tensors += [result.scores.boxes.float() for result in results if result.scores.boxes is not None]
    tensors += [extents.float() for extents in results[0].extents.values() if extents is not None]
    return tensors


def _numbers(result: TargetResult) -> Tensor:
    scores = result.scores
    return torch.cat([torch.stack([scores.targets.float(), scores.values.float()], dim=1), scores.numbers], dim=1)


def _of_labels(result: TargetResult, labels: Tensor | None) -> Tensor:
    """The probability of each probe's label, `(N,)`; NaN where there is none."""
    probabilities = result.scores.probabilities
    if labels is None or result.scores.task not in ("classification", "multilabel"):
        return torch.full_like(probabilities[:, 0], torch.nan)
    labels = labels.to(probabilities.device, non_blocking=True)
    known = (labels >= 0) & (labels < probabilities.shape[1])
    own = probabilities.gather(1, labels.clamp(0, probabilities.shape[1] - 1).unsqueeze(1)).squeeze(1)
    return torch.where(known, own, torch.nan)


def make_look(
    tensors: Sequence[Tensor],
    results: Sequence[CAMResult],
    *,
    method: str,
    titles: Sequence[str],
    probe_set: str,
) -> Look:
    """The record of a pass, which has no origin yet.

    Args:
        tensors: What `render_look` returned, on the host.
        results: Those that it was made of, one a target, with their health.
        method: How the maps were computed.
        titles: What the targets are called.
        probe_set: The fingerprint of the probes.
    """
    arrays = iter([tensor.numpy() for tensor in tensors])
    maps = {layer: (next(arrays), next(arrays)) for layer in results[0].cams}
    numbers, (predictions, of_labels) = next(arrays), next(arrays)
    boxes = _boxes(results, arrays)
    extents = {layer: next(arrays) for layer in results[0].cams if layer in results[0].extents}
    classes, scores, of_targets, of_predictions = (numbers[..., item] for item in range(4))
    plain = [result.task in _WITHOUT_PROBABILITIES for result in results]
    is_unclassed = results[0].task in _WITHOUT_CLASSES
    single = [result.task == "value" or result.probabilities.shape[1] == 1 for result in results]
    return Look(
        origin=Origin.unknown(),
        method=method,
        substitute=next((one.substitute for result in results for one in result.health.values() if one.substitute), ""),
        task=results[0].task,
        targets=tuple(titles),
        probe_set=probe_set,
        layers=tuple(_layer(name, results, *maps[name], extents.get(name)) for name in maps),
        classes=np.where(np.array(single)[:, None], -1, classes).astype(np.int32),
        scores=scores.copy(),
        target_probabilities=np.where(np.array(plain)[:, None], np.nan, of_targets).astype(np.float32),
        predictions=np.where(is_unclassed | np.isnan(of_predictions[0]), -1, predictions).astype(np.int32),
        prediction_probabilities=np.where(plain[0], np.nan, of_predictions[0]).astype(np.float32),
        label_probabilities=of_labels.copy(),
        boxes=boxes,
    )


def _boxes(results: Sequence[CAMResult], arrays: Any) -> Any:
    """`(T, N, 4)` float32, NaN where a target is no box; None where none is."""
    if all(result.boxes is None for result in results):
        return None
    missing = np.full((len(results[0].targets), 4), np.nan, np.float32)
    return np.stack([missing if result.boxes is None else next(arrays) for result in results])


def _layer(name: str, results: Sequence[CAMResult], levels: Any, peaks: Any, extents: Any) -> LayerMaps:
    verdicts = [result.health[name] for result in results]
    states = [[STATES.index(state.value) for state in verdict.state] for verdict in verdicts]
    empty = np.array([verdict.empty for verdict in verdicts])
    none = (False,) * len(results[0].targets)
    bridged = np.array([verdict.bridged or none for verdict in verdicts])
    substituted = np.array([verdict.substituted or none for verdict in verdicts])
    return LayerMaps(
        name=name,
        layout=results[0].layouts.get(name, ""),
        levels=levels,
        peaks=peaks,
        states=np.array(states, np.uint8),
        flags=(EMPTY * empty + BRIDGED * bridged + SUBSTITUTED * substituted).astype(np.uint8),
        norms=torch.stack([verdict.gradient_norm for verdict in verdicts]).float().numpy(),
        extents=extents,
    )
