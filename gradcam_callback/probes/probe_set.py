"""The images that are explained after every validation, and what is known of them.

Axes: `N` probes, `C` image channels, `H W` the image in pixels.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)  # tensors have no one answer to ==
class ProbeSet:
    """The fixed images, as the model gets them; collected once.

    Attributes:
        images: What the model's forward gets: `(N, C, H, W)`, or `(N, H, W)` where the batches hold grey images without
            a channel axis. Of a new set they are on the CPU, contiguous, and in the batches' dtype.
        labels: `(N,)` int64 on the CPU, or None where the data has none.
        names: One short name a probe: "#3" is position 3; or the name of a file.
        indices: The probes' positions in the order in which validation reads its data, counted from 0 over all
            processes; None where they come from elsewhere.
        class_names: The names of the classes, by index, where the data set tells them.
        mean: One number a channel that the data set's transforms subtract, where they can be found.
        std: One number a channel that the data set's transforms divide by, likewise.
        fingerprint: SHA-256 over images and labels, in hexadecimal.
        notices: What the user should know about the choice, e.g. that there were fewer samples than asked.
        missing: Positions that were asked for and that the validation did not reach.
    """

    images: Tensor
    labels: Tensor | None
    names: tuple[str, ...]
    indices: tuple[int, ...] | None
    class_names: tuple[str, ...] | None
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    fingerprint: str
    notices: tuple[str, ...] = ()
    missing: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.images)

    @property
    def displayed(self) -> Tensor:
        """The images for a panel: `(N, C, H, W)`, with one channel where they have no channel axis."""
        return self.images.unsqueeze(1) if self.images.ndim == 3 else self.images


def fingerprint(images: Tensor, labels: Tensor | None) -> str:
    """SHA-256 over shape, dtype and bytes of images and labels, in hexadecimal; the same on every device."""
    digest = hashlib.sha256()
    for tensor in (images, labels):
        if tensor is None:
            digest.update(b"none")
            continue
        digest.update(f"{tuple(tensor.shape)} {tensor.dtype}".encode())
        # NumPy has no bfloat16; as bytes every dtype passes.
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
