"""Samples in slices that fit into memory."""

from __future__ import annotations

import weakref

import pytest
import torch
from torch import Tensor

from gradcam_callback.execution.slices import SliceRunner


def test_slices_are_halved_until_they_fit() -> None:
    runner, taken = SliceRunner(), []

    def job(part: slice) -> list[int]:
        samples = list(range(10))[part]
        taken.append(len(samples))
        if len(samples) > 3:
            raise torch.OutOfMemoryError
        return samples

    assert runner.run(10, job) == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9]]
    assert (taken, runner.size) == ([10, 5, 3, 3, 3, 1], 3)
    assert runner.run(2, job) == [[0, 1]]


def test_no_tensor_of_a_failed_try_lives_on() -> None:
    made: list[weakref.ref[Tensor]] = []
    alive_at_start: list[int] = []

    def job(part: slice) -> int:
        alive_at_start.append(sum(reference() is not None for reference in made))
        mine = torch.ones(part.stop - part.start)
        made.append(weakref.ref(mine))
        if len(mine) > 1:
            raise torch.OutOfMemoryError
        return len(mine)

    assert SliceRunner().run(4, job) == [1, 1, 1, 1]
    assert alive_at_start == [0] * 6


def test_another_error_is_raised_at_once() -> None:
    tried = []

    def job(part: slice) -> None:
        tried.append(part)
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        SliceRunner().run(4, job)
    assert len(tried) == 1
