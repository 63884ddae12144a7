"""Tensors of any types come to the host in one piece, and come out as they went in."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gradcam_callback.engine.transfer import copy_to_host


def test_types_shapes_and_values_stay() -> None:
    tensors = [
        torch.arange(5, dtype=torch.uint8),
        torch.tensor([[1.5, float("nan")], [float("inf"), -0.0]]),
        torch.tensor([True, False, True]),
        torch.arange(3, dtype=torch.int64).expand(2, 3),
        torch.randn(3, 1, 2, dtype=torch.float64).transpose(0, 2),
        torch.tensor([2.0], dtype=torch.bfloat16),
        torch.empty(0, 4),
    ]
    for arrived, tensor in zip(copy_to_host(tensors), tensors, strict=True):
        assert (arrived.dtype, arrived.shape) == (tensor.dtype, tensor.shape)
        torch.testing.assert_close(arrived, tensor, rtol=0, atol=0, equal_nan=True)


def test_there_is_one_transfer(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    original = Tensor.cpu

    def counted(self: Tensor) -> Tensor:
        calls.append(self.numel())
        return original(self)

    monkeypatch.setattr(Tensor, "cpu", counted)
    copy_to_host([torch.ones(2), torch.ones(3, dtype=torch.uint8)])
    assert copy_to_host([]) == []
    assert calls == [11]
