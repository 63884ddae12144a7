"""Options that are checked when a source is made: of a wrong type (TypeError), or impossible (ValueError)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from numbers import Integral
from typing import Any

from gradcam_callback.errors import BadInputError
from gradcam_callback.probes.batches import kind_of


def whole_number(option: str, value: Any, at_least: int) -> int:
    """A whole number of at least so much, as an int."""
    # A bool is an int to Python, and `n: true` in YAML is a slip.
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{option}: expected a whole number of at least {at_least}, got {kind_of(value)}.")
    if value < at_least:
        raise BadInputError(f"{option}: expected a whole number of at least {at_least}, got {value}.")
    return int(value)


def distinct_positions(option: str, positions: Any) -> tuple[int, ...]:
    """At least one whole number, none of them twice, as a tuple."""
    if not isinstance(positions, Sequence) or isinstance(positions, (str, bytes)):
        raise TypeError(f"{option}: expected a list of whole numbers, got {kind_of(positions)}.")
    if not positions:
        raise BadInputError(f"{option}: the list is empty. Give at least one position, counted from 0.")
    wholes = tuple(whole_number(f"{option}[{place}]", position, at_least=0) for place, position in enumerate(positions))
    twice = [position for position, times in Counter(wholes).items() if times > 1]
    if twice:
        raise BadInputError(f"{option}: given more than once: {twice}. Each probe is shown once.")
    return wholes


def batch_key(option: str, key: Any) -> int | str:
    """A key of a batch."""
    if isinstance(key, bool) or not isinstance(key, (int, str)):
        raise TypeError(f"{option}: expected a key, the name of an attribute, or a position, got {kind_of(key)}.")
    return key


def class_labels(labels: Any, count: int, of_what: str) -> tuple[int, ...]:
    """One class index each, as a tuple."""
    if not isinstance(labels, Sequence) or isinstance(labels, (str, bytes)):
        raise TypeError(f"labels: expected a list of class indices, got {kind_of(labels)}.")
    if len(labels) != count:
        raise BadInputError(f"labels: there are {count} {of_what} and {len(labels)} labels; give each one a label.")
    return tuple(whole_number(f"labels[{place}]", label, at_least=0) for place, label in enumerate(labels))
