"""Samples in slices that fit into memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from gradcam_callback.engine.memory import is_out_of_memory

T = TypeVar("T")


class SliceRunner:
    """Does a job for all samples at once, as long as they fit into memory; then for slices of them, from then on.

    Attributes:
        size: How many samples are taken at once; None as long as all of them fit.
    """

    def __init__(self) -> None:
        self.size: int | None = None

    def run(self, count: int, job: Callable[[slice], T]) -> list[T]:
        """Do a job for `count` samples.

        Args:
            count: At least 1.
            job: Told which samples to do.

        Returns:
            What the job gave for each slice, in the order of the samples.

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
