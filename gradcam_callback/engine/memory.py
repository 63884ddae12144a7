"""When memory runs out: how that is told from other errors, and smaller portions that fit. A leaf."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

T = TypeVar("T")

# The allocators of CPUs have no error of their own, and drivers and libraries fail in ways of theirs.
_SIGNS = ("allocate memory", "out of memory", "not enough memory", "status_alloc_failed")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that there was too little memory, of the device or of the host."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error).lower() for sign in _SIGNS)


class Portions:
    """Takes samples all at once, as long as they fit into memory; then in smaller portions, from then on.

    Attributes:
        size: How many samples are taken at once; None as long as all of them fit.
    """

    def __init__(self) -> None:
        self.size: int | None = None

    def take(self, count: int, job: Callable[[slice], T]) -> list[T]:
        """Do a job for `count` samples.

        Args:
            count: At least 1.
            job: Told which samples to do.

        Returns:
            What the job gave for each portion, in the order of the samples.

        Raises:
            Exception: What the job raised; that memory ran out only if it did so for a single sample.
        """
        while True:
            size = min(self.size or count, count)
            try:
                return [job(slice(start, min(start + size, count))) for start in range(0, count, size)]
            except Exception as error:
                if size == 1 or not is_out_of_memory(error):
                    raise
            # Not in the handler: the error holds the frames of the failed pass, and with them its tensors.
            self.size = (size + 1) // 2
