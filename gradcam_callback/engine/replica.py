"""Copies of structures that must not be moved."""

from __future__ import annotations

import copy
from typing import TypeVar

T = TypeVar("T")


def copy_structure(value: T) -> T:
    """A deep copy, or the value itself where it cannot be copied."""
    try:
        return copy.deepcopy(value)
    except Exception:  # locks, open files, generators: whatever it holds
        return value
