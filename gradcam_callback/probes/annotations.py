"""Labels of the probes, of whatever kind: classes, flags and numbers, a class of each pixel, boxes.

Axes: `N` samples, `H W` the image in pixels, `n` boxes of a sample.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torchvision.ops import box_convert

from gradcam_callback.probes.batches import as_column, class_indices, kind_of
from gradcam_callback.probes.source import ProbeSample

Boxes = tuple[Tensor, Tensor]
"""Of one sample: `(n, 4)` float32, left, top, right, bottom in pixels; and `(n,)` int64, their classes."""


def as_rows(entry: Any, count: int) -> Sequence[Any] | None:
    """Labels one by one, as they can be used; None for what can be none.

    Args:
        entry: What a batch has for its labels.
        count: How many samples the batch has.
    """
    column = as_column(entry, count)
    if column is not None:
        return list(column)
    if isinstance(entry, Tensor) and len(entry) == count and not entry.is_complex():
        is_mask = entry.ndim == 3 or (entry.ndim == 4 and entry.shape[1] == 1)
        return list(entry.flatten(1, -3) if is_mask and entry.ndim == 4 else entry) if is_mask else None
    is_list = isinstance(entry, (list, tuple)) and len(entry) == count
    if is_list and all(isinstance(one, Mapping) and _has_boxes(one) for one in entry):
        return [{key: one[key] for key in ("boxes", "labels", "class_labels") if key in one} for one in entry]
    if is_list and all(isinstance(one, Tensor) and one.ndim == 2 for one in entry):
        return list(entry)
    return None


def _has_boxes(label: Mapping[str, Any]) -> bool:
    classes = label.get("labels", label.get("class_labels"))
    return isinstance(label.get("boxes"), Tensor) and isinstance(classes, Tensor)


def join_labels(samples: Sequence[ProbeSample]) -> tuple[dict[str, Any], str]:
    """The labels of the probes: `labels`, `values`, `masks` or `boxes`, as of `ProbeSet`.

    Returns:
        At most one of them; and what to tell the user where they are none.
    """
    given = [sample.label for sample in samples if sample.label is not None]
    if not given or len(given) < len(samples):
        return {}, ""
    if isinstance(given[0], Mapping):
        return {"boxes": tuple(_boxes(sample.label, sample.image) for sample in samples)}, ""
    if given[0].ndim >= 2:
        masks = _masks(given)
        return ({}, not_classes(given)) if masks is None else ({"masks": masks}, "")
    column = as_column(given, len(samples))
    if column is None:
        return {}, not_classes(given)
    indices = class_indices(column)
    if indices is not None:
        return {"labels": indices}, ""
    if column.is_floating_point() or column.ndim == 2:
        return {"values": column.float().cpu()}, ""
    return {}, not_classes(column)


def not_classes(labels: Any) -> str:
    """What to say of labels that are of no known kind."""
    return f"The labels are no class indices ({kind_of(labels)}), so the probes have none."


def _masks(labels: Sequence[Tensor]) -> Tensor | None:
    """The class of each pixel `(N, H, W)`; None where the numbers are no classes, or the sizes differ."""
    if len({label.shape for label in labels}) > 1:
        return None
    masks = torch.stack([label.reshape(label.shape[-2:]) for label in labels]).cpu()
    if masks.is_floating_point() and not bool(((masks == 0) | (masks == 1)).all()):
        return None
    return masks.long()


def _boxes(label: Mapping[str, Tensor], image: Tensor) -> Boxes:
    """The boxes of one sample. Beside `class_labels`, as transformers' detectors want them, they are shares of it."""
    boxes = label["boxes"].float().reshape(-1, 4).cpu()
    if "class_labels" not in label:
        return boxes, label["labels"].reshape(-1).long().cpu()
    height, width = image.shape[-2:]
    pixels = box_convert(boxes, "cxcywh", "xyxy") * torch.tensor([width, height, width, height])
    return pixels, label["class_labels"].reshape(-1).long().cpu()
