"""From the device to the host in one piece, since each wait for a device holds up what comes after. A leaf."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor


class Passenger(Protocol):
    """What comes along to the host when the verdicts do, so that the device is waited for only once a look."""

    def board(self, results: Sequence[Any]) -> Sequence[Tensor]:
        """Tensors on the device, made of the results of a pass (`CAMResult`), which are not judged yet."""

    def arrive(self, tensors: Sequence[Tensor]) -> None:
        """The same tensors, on the host."""


def brought_over(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Tensors of any types, on the host: as bytes they come over in one piece."""
    if not tensors:
        return []
    pieces = [tensor.contiguous().view(torch.uint8).flatten() for tensor in tensors]
    arrived = torch.split(torch.cat(pieces).cpu(), [len(piece) for piece in pieces])
    # A copy, because the bytes of a number larger than one have to lie at a multiple of its size.
    return [
        (piece if tensor.dtype == torch.uint8 else piece.clone()).view(tensor.dtype).view(tensor.shape)
        for piece, tensor in zip(arrived, tensors, strict=True)
    ]
