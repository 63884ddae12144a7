"""Samples of a batch, whatever its structure, taken one by one and put together again."""

from __future__ import annotations

from collections import namedtuple
from typing import Any

import pytest
import torch
from torch import Tensor

from gradcam_callback.engine.batch_rows import join_rows, map_tensors, rows_of

Pair = namedtuple("Pair", "image label")
IMAGES = torch.arange(3 * 3 * 2 * 2.0).reshape(3, 3, 2, 2)  # as many channels as samples
LABELS = torch.tensor([4, 5, 6])
BOXES = [{"boxes": torch.ones(n, 4), "labels": torch.full((n,), n)} for n in (1, 0, 2)]
BATCHES: dict[str, Any] = {
    "tensor": IMAGES,
    "list": [IMAGES, LABELS],
    "tuple": (IMAGES, LABELS),
    "named": Pair(IMAGES, LABELS),
    "mapping": {"view": {"image": IMAGES}, "label": LABELS, "names": ["a", "b", "c"]},
    "as many entries as samples": [IMAGES, LABELS, LABELS + 1],
    "boxes": (IMAGES, BOXES),
    "images of their own size": ([torch.ones(3, n, 2) for n in (4, 5, 4)], BOXES),
    "of the whole batch": {"image": IMAGES, "temperature": torch.tensor(2.0), "unit": "px"},
}


def same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return type(one) is type(other) and len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


@pytest.mark.parametrize("name", BATCHES)
def test_single_samples_make_the_batch_again(name: str) -> None:
    batch = BATCHES[name]
    assert same(join_rows([rows_of(batch, slice(i, i + 1), 3) for i in range(3)]), batch)


@pytest.mark.parametrize("name", BATCHES)
def test_the_number_of_samples_is_found(name: str) -> None:
    assert same(rows_of(BATCHES[name], slice(1, 3)), rows_of(BATCHES[name], slice(1, 3), 3))


def test_some_samples_of_each_entry() -> None:
    part = rows_of((IMAGES, BOXES), slice(1, 3))
    assert torch.equal(part[0], IMAGES[1:])
    assert part[1] == BOXES[1:]


def test_texts_of_different_lengths_become_a_list() -> None:
    rows = [{"tokens": torch.ones(1, length)} for length in (2, 3)]
    assert [len(row) for row in join_rows(rows)["tokens"]] == [2, 3]


def test_tensors_are_changed_wherever_they_are() -> None:
    changed = map_tensors(BATCHES["boxes"], lambda tensor: tensor + 1)
    assert torch.equal(changed[0], IMAGES + 1)
    assert changed[1][2]["labels"].tolist() == [3, 3]
    assert BOXES[2]["labels"].tolist() == [2, 2]
