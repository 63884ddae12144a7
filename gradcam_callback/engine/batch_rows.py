"""Some samples of a batch, in the batch's own structure, whatever that is.

A tensor with as many rows as there are samples holds one a sample. So does a list within the batch; the batch itself,
tuples and mappings are structure. Everything else belongs to the batch as a whole.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


class Placeholder:
    """Stands in a batch for a tensor that is kept apart."""


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


def repeat_rows(batch: Any, times: int, count: int) -> Any:
    """A batch of `count` samples several times, one after the other."""

    def repeated(value: Any) -> Any:
        if isinstance(value, Tensor):
            is_column = value.ndim and len(value) == count
            return value.repeat(times, *[1] * (value.ndim - 1)) if is_column else value
        if isinstance(value, list) and len(value) == count:
            return value * times
        return _mapped(value, repeated)

    return repeated(batch) if isinstance(batch, Tensor) else _mapped(batch, repeated)


def take_rows(batch: Any, rows: Tensor, count: int) -> Any:
    """Some samples of a batch of `count`, in any order and as often as they are named: `rows` are their positions."""

    def taken(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value[rows.to(value.device)] if value.ndim and len(value) == count else value
        if isinstance(value, list) and len(value) == count:
            return [value[row] for row in rows.tolist()]
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
        if is_record(first):
            return _with_attributes(first, structured([vars(value) for value in values]))
        if isinstance(first, (tuple, list)):
            columns = [joined(column) for column in zip(*values, strict=True)]
            return type(first)(*columns) if hasattr(first, "_fields") else type(first)(columns)
        return first

    return joined(parts) if isinstance(parts[0], Tensor) else structured(parts)


def map_tensors(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The same structure with each tensor changed; lists, tuples and mappings are new ones."""
    return map_leaves(value, lambda leaf: change(leaf) if isinstance(leaf, Tensor) else leaf)


def replace_entry(value: Any, entry: Any, other: Any) -> Any:
    """The same structure with one object in it exchanged."""
    return other if value is entry else _mapped(value, lambda inner: replace_entry(inner, entry, other))


def map_leaves(value: Any, change: Callable[[Any], Any]) -> Any:
    """The same structure with everything changed that is no list, tuple or mapping."""
    if isinstance(value, (Mapping, tuple, list)) or is_record(value):
        return _mapped(value, lambda entry: map_leaves(entry, change))
    return change(value)


def leaves(value: Any) -> Iterator[Any]:
    """Everything in nested containers that is no list, tuple or mapping, in order."""
    entries = entries_of(value)
    if entries is None:
        yield value
    else:
        for entry in entries:
            yield from leaves(entry)


def _mapped(value: Any, change: Callable[[Any], Any]) -> Any:
    """A container of the same kind with changed entries; an object with tensors for attributes is one, too."""
    if isinstance(value, Mapping):
        return {key: change(entry) for key, entry in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*map(change, value))
    if isinstance(value, (tuple, list)):
        return type(value)(map(change, value))
    if is_record(value):
        return _with_attributes(value, {name: change(entry) for name, entry in vars(value).items()})
    return value


def _with_attributes(value: Any, attributes: Mapping[str, Any]) -> Any:
    changed = copy.copy(value)
    for name, entry in attributes.items():
        object.__setattr__(changed, name, entry)  # also of a frozen dataclass
    return changed


def entries_of(value: Any) -> Sequence[Any] | None:
    """What is in a container; None of anything else."""
    if isinstance(value, Mapping):
        return list(value.values())
    if isinstance(value, (tuple, list)):
        return value
    return list(vars(value).values()) if is_record(value) else None


def is_record(value: Any) -> bool:
    """Whether something is an object whose attributes are the entries of a batch."""
    held = getattr(value, "__dict__", None)
    is_plain = isinstance(held, dict) and not isinstance(value, (Tensor, type, torch.nn.Module))
    return is_plain and any(isinstance(entry, (Tensor, Placeholder)) for entry in vars(value).values())


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
    for entry in entries_of(batch) or ():
        if isinstance(entry, list) and entry and isinstance(entry[0], (Tensor, Mapping)):
            return len(entry)
        if found := _count(entry):
            return found
    return 0
