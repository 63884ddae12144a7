"""What a data set tells of itself without giving a sample: class names, transforms and their statistics.

Only plain attributes are read: a property may open a file or count its calls. Class names are the exception, for they
are asked of nothing else.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import FunctionType, MemberDescriptorType
from typing import Any

import numpy as np
from torch import Tensor, nn

_HARMLESS = (FunctionType, staticmethod, classmethod, MemberDescriptorType)  # descriptors that only bind, or slots


def _nested(dataset: Any) -> Iterator[Any]:
    """A data set and what it wraps, outermost first; of several joined data sets, the first."""
    seen = set[int]()
    while dataset is not None and id(dataset) not in seen:
        seen.add(id(dataset))
        yield dataset
        dataset = _wrapped(dataset)


def _plain(owner: Any, name: str) -> Any:
    """An attribute that can be read without running anybody's code; None for any other."""
    value = inspect.getattr_static(owner, name, None)
    if hasattr(type(value), "__get__") and not isinstance(value, _HARMLESS):
        return None
    return getattr(owner, name, None)


def _wrapped(dataset: Any) -> Any:
    parts = _plain(dataset, "datasets")
    if isinstance(parts, (list, tuple)) and parts:
        return parts[0]
    for name in ("dataset", "data"):
        inner = _plain(dataset, name)
        # `data` is often the pixels themselves, as in MNIST.
        if hasattr(type(inner), "__getitem__") and not isinstance(
            inner, (Tensor, np.ndarray, str, bytes, list, tuple, Mapping)
        ):
            return inner
    return None


def find_class_names(dataset: Any) -> tuple[str, ...] | None:
    """The names of the classes, by index, where the data set or one that it wraps has them."""
    for part in _nested(dataset):
        for name in ("classes", "categories"):
            try:
                values = getattr(part, name, None)
            except Exception:  # a property of the user's
                continue
            if isinstance(values, (list, tuple)) and values:
                # ImageNet gives each class several synonyms; the first one will do.
                return tuple(str(value[0] if isinstance(value, tuple) and value else value) for value in values)
    return None


def image_transforms(dataset: Any) -> list[Callable[..., Any]]:
    """The `transform` of a data set and of what it wraps, in the order in which a sample passes them."""
    found = [_plain(part, "transform") for part in _nested(dataset)]
    return [transform for transform in reversed(found) if callable(transform)]


def all_transforms(dataset: Any) -> list[Any]:
    """The transforms of a data set and of those that it wraps, in the order in which they are applied."""
    parts = reversed(list(_nested(dataset)))
    return [_plain(part, name) for part in parts for name in ("transform", "transforms")]


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
