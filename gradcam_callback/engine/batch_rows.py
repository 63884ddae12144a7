"""Some samples of a batch, in the batch's own structure, whatever that is.

A tensor with as many rows as there are samples holds one a sample. So does a list within the batch; the batch itself,
tuples and mappings are structure. Everything else belongs to the batch as a whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


def rows_of(batch: Any, samples: slice, count: int | None = None) -> Any:
    """Some samples of a batch.

    Args:
        batch: Nested containers of tensors.
        samples: Which.
        count: How many samples the batch has; None: as many as the first that holds one a sample.
    """
    count = _count(batch) if count is None else count

    def taken(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value[samples] if value.ndim and len(value) == count else value
        if isinstance(value, list) and len(value) == count:
            return value[samples]
        return _mapped(value, taken)

    return taken(batch) if isinstance(batch, Tensor) else _mapped(batch, taken)


def join_rows(parts: Sequence[Any]) -> Any:
    """One batch of single samples, each as `rows_of` gave it; tensors of different shapes become a list."""

    def joined(values: Sequence[Any]) -> Any:
        first = values[0]
        if isinstance(first, Tensor):
            return _concatenated(values)
        if isinstance(first, list) and all(len(value) == 1 for value in values):
            return [entry for value in values for entry in value]
        return structured(values)

    def structured(values: Sequence[Any]) -> Any:
        first = values[0]
        if isinstance(first, Mapping):
            return {key: joined([value[key] for value in values]) for key in first}
        if isinstance(first, (tuple, list)):
            columns = [joined(column) for column in zip(*values, strict=True)]
            return type(first)(*columns) if hasattr(first, "_fields") else type(first)(columns)
        return first

    return joined(parts) if isinstance(parts[0], Tensor) else structured(parts)


def map_tensors(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The same structure with each tensor changed; lists, tuples and mappings are new ones."""
    return map_leaves(value, lambda leaf: change(leaf) if isinstance(leaf, Tensor) else leaf)


def map_leaves(value: Any, change: Callable[[Any], Any]) -> Any:
    """The same structure with everything changed that is no list, tuple or mapping."""
    if isinstance(value, (Mapping, tuple, list)):
        return _mapped(value, lambda entry: map_leaves(entry, change))
    return change(value)


def leaves(value: Any) -> Iterator[Any]:
    """Everything in nested containers that is no list, tuple or mapping, in order."""
    if isinstance(value, (Mapping, tuple, list)):
        for entry in value.values() if isinstance(value, Mapping) else value:
            yield from leaves(entry)
    else:
        yield value


def _mapped(value: Any, change: Callable[[Any], Any]) -> Any:
    if isinstance(value, Mapping):
        return {key: change(entry) for key, entry in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*map(change, value))
    return type(value)(map(change, value)) if isinstance(value, (tuple, list)) else value


def _concatenated(tensors: Sequence[Tensor]) -> Any:
    if any(tensor.ndim == 0 or len(tensor) != 1 for tensor in tensors):
        return tensors[0]  # of the batch as a whole
    if len({tensor.shape for tensor in tensors}) > 1:
        return [tensor[0] for tensor in tensors]
    return torch.cat(list(tensors))


def _count(batch: Any) -> int:
    """How many samples a batch has."""
    if isinstance(batch, Tensor):
        return len(batch) if batch.ndim else 0
    entries = list(batch.values()) if isinstance(batch, Mapping) else batch if isinstance(batch, (list, tuple)) else ()
    for entry in entries:
        if isinstance(entry, list) and entry and isinstance(entry[0], (Tensor, Mapping)):
            return len(entry)
        if found := _count(entry):
            return found
    return 0
