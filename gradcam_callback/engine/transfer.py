"""From the device to the host in one piece, since each wait for a device holds up what comes after."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


@torch.inference_mode(False)  # or the caller could not go on with what was made here
def copy_to_host(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Tensors of any types, on the host. As bytes they come over in one piece: the device is waited for once."""
    if not tensors:
        return []
    pieces = [tensor.contiguous().view(torch.uint8).flatten() for tensor in tensors]
    arrived = torch.split(torch.cat(pieces).cpu(), [len(piece) for piece in pieces])
    # A copy, because the bytes of a number larger than one have to lie at a multiple of its size.
    return [
        (piece if tensor.dtype == torch.uint8 else piece.clone()).view(tensor.dtype).view(tensor.shape)
        for piece, tensor in zip(arrived, tensors, strict=True)
    ]
