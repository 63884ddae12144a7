"""What a data set tells of itself: labels, class names, transforms and their statistics. A leaf but for `loaders`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.utils.data import (
    ConcatDataset,
    Subset,
)

from gradcam_callback.probes.batches import class_indices


def first_dataset(loaders: Sequence[Any]) -> Any:
    """The data set of the first loader; None where there is none."""
    return getattr(loaders[0], "dataset", None) if loaders else None


def _nested(dataset: Any) -> Iterator[Any]:
    """A data set and what it wraps, outermost first; of several joined data sets, the first."""
    seen = set[int]()
    while dataset is not None and id(dataset) not in seen:
        seen.add(id(dataset))
        yield dataset
        dataset = _wrapped(dataset)


def _wrapped(dataset: Any) -> Any:
    parts = getattr(dataset, "datasets", None)
    if isinstance(parts, (list, tuple)) and parts:
        return parts[0]
    for name in ("dataset", "data"):
        inner = getattr(dataset, name, None)
        # `data` is often the pixels themselves, as in MNIST.
        if hasattr(inner, "__getitem__") and not isinstance(
            inner, (Tensor, np.ndarray, str, bytes, list, tuple, Mapping)
        ):
            return inner
    return None


def known_labels(dataset: Any) -> list[int] | None:
    """The class of each sample, read from `targets` or `labels` without loading an image; None where there are none."""
    if isinstance(dataset, Subset):
        inner = known_labels(dataset.dataset)
        return None if inner is None else [inner[int(index)] for index in dataset.indices]
    if isinstance(dataset, ConcatDataset):
        parts = [known_labels(part) for part in dataset.datasets]
        known = [part for part in parts if part is not None]
        return [label for part in known for label in part] if len(known) == len(parts) else None
    change = getattr(dataset, "target_transform", None)
    for name in ("targets", "labels"):
        values = getattr(dataset, name, None)
        if isinstance(values, (list, tuple, np.ndarray, Tensor)):
            values = [change(value) for value in values] if callable(change) else values
            labels = class_indices(values, len(dataset))
            return None if labels is None else labels.tolist()
    return None


def find_class_names(dataset: Any) -> tuple[str, ...] | None:
    """The names of the classes, by index, where the data set or one that it wraps has them."""
    for part in _nested(dataset):
        for name in ("classes", "categories"):
            values = getattr(part, name, None)
            if isinstance(values, (list, tuple)) and values:
                # ImageNet gives each class several synonyms; the first one will do.
                return tuple(str(value[0] if isinstance(value, tuple) and value else value) for value in values)
    return None


def image_transforms(dataset: Any) -> list[Callable[..., Any]]:
    """The `transform` of a data set and of what it wraps, in the order in which a sample passes them."""
    found = [getattr(part, "transform", None) for part in _nested(dataset)]
    return [transform for transform in reversed(found) if callable(transform)]


def all_transforms(dataset: Any) -> list[Any]:
    """The transforms of a data set and of those that it wraps, in the order in which they are applied."""
    parts = reversed(list(_nested(dataset)))
    return [getattr(part, name, None) for part in parts for name in ("transform", "transforms")]


def find_statistics(
    transforms: Sequence[Any], channels: int
) -> tuple[tuple[float, ...], tuple[float, ...]] | tuple[None, None]:
    """The mean and standard deviation that the last normalisation works with, one number a channel."""
    found = list(_normalisations(transforms))
    if not found:
        return None, None
    mean, std = (numbers * channels if len(numbers) == 1 else numbers for numbers in found[-1])
    return (mean, std) if len(mean) == channels else (None, None)


def _normalisations(transform: Any) -> Iterator[tuple[tuple[float, ...], tuple[float, ...]]]:
    """Every normalisation inside a transform, in order: known by its `mean` and `std`, whichever library it is from."""
    mean, std = _numbers(getattr(transform, "mean", None)), _numbers(getattr(transform, "std", None))
    if mean and len(mean) == len(std):
        yield mean, std
    if isinstance(transform, (list, tuple)):
        children = list(transform)
    else:
        children = [getattr(transform, name, None) for name in ("transform", "transforms")]
        children += transform.children() if isinstance(transform, nn.Module) else []
    for child in children:
        if child is not None:
            yield from _normalisations(child)


def _numbers(values: Any) -> tuple[float, ...]:
    """The numbers in a list, a tuple, an array or a tensor; none of anything else."""
    if isinstance(values, (Tensor, np.ndarray)):
        values = values.reshape(-1).tolist()
    if isinstance(values, (list, tuple)) and all(isinstance(value, (int, float)) for value in values):
        return tuple(map(float, values))
    return ()
