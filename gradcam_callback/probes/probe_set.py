"""The images that are explained after every validation, and what is known of them.

Axes: `N` probes, `C` image channels, `H W` the image in pixels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gradcam_callback.engine.inputs import filled
from gradcam_callback.engine.targets import Annotations, Task
from gradcam_callback.errors import BadInputError
from gradcam_callback.probes.dataset_info import all_transforms, find_class_names, find_statistics


@dataclass(frozen=True, eq=False)  # tensors have no one answer to ==
class ProbeSet:
    """The fixed images, as the model gets them; collected once.

    Attributes:
        images: What the model's forward gets: `(N, C, H, W)`, or `(N, H, W)` where the batches hold grey images without
            a channel axis; volumes `(N, C, D, H, W)`, signals `(N, C, W)`. Of a new set they are on the CPU,
            contiguous, and in the batches' dtype.
        labels: `(N,)` int64 on the CPU, or None where the data has no class indices.
        values: `(N,)` or `(N, L)` float32 on the CPU: labels of another kind, several an image or numbers.
        names: One short name a probe: "#3" is position 3; or the name of a file.
        indices: The probes' positions in the order in which validation reads its data, counted from 0 over all
            processes; None where they come from elsewhere.
        class_names: The names of the classes, by index, where the data set tells them.
        mean: One number a channel that the data set's transforms subtract, where they can be found.
        std: One number a channel that the data set's transforms divide by, likewise.
        fingerprint: SHA-256 over images and labels, in hexadecimal.
        notices: What the user should know about the choice, e.g. that there were fewer samples than asked.
        missing: Positions that were asked for and that the validation did not reach.
        masks: `(N, H, W)` int64 on the CPU, the class of each pixel, where the labels are such.
        boxes: A probe's labelled boxes `(n, 4)` (left, top, right, bottom in pixels) and their classes `(n,)`.
        batch: All that the validation's batches hold of the probes, in the structure of a batch, where that was asked
            for.
        sizes: `(h, w)` of each image in pixels, where the batches hold lists of images; each stands at the upper left
            of its row of `images`, with zeros beside and beneath it. None where they hold tensors.
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
    values: Tensor | None = None
    masks: Tensor | None = None
    boxes: tuple[tuple[Tensor, Tensor], ...] | None = None
    batch: Any = None
    sizes: tuple[tuple[int, int], ...] | None = None

    @property
    def annotations(self) -> Annotations:
        """What the data say of the probes, for targets that ask."""
        return Annotations(
            classes=self.labels,
            values=self.values,
            task=self.task,
            outputs=None if self.values is None else self.values[0].numel(),
            masks=self.masks,
            boxes=self.boxes,
            class_names=self.class_names,
            batch=[self.images, self.labels] if self.batch is None else filled(self.batch, self.images, self.sizes),
        )

    @property
    def task(self) -> Task | None:
        """What the labels tell of the task: "multilabel" or "regression"; None where they are classes, or none."""
        if self.values is None:
            return None
        is_flag = (self.values == 0) | (self.values == 1)
        return "multilabel" if self.values.ndim == 2 and bool(is_flag.all()) else "regression"

    def __len__(self) -> int:
        return len(self.images)

    @property
    def image_size(self) -> tuple[int, int]:
        """`(H, W)` in pixels; of different sizes, room for all."""
        return self.images.shape[-2], self.images.shape[-1]

    @property
    def image_space(self) -> tuple[int, ...]:
        """`(H, W)` in pixels; of signals `(W,)`, of volumes `(D, H, W)`."""
        return tuple(self.images.shape[2:] if self.images.ndim > 3 else self.images.shape[-2:])

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


def make_probe_set(
    dataset: Any, images: Tensor, labels: Tensor | None, names: Iterable[str], transforms: Any = None, **more: Any
) -> ProbeSet:
    """Put probes together with what the data set tells of them; `transforms` None takes those of the data set."""
    transforms = all_transforms(dataset) if transforms is None else transforms
    mean, std = find_statistics(transforms, channels=1 if images.ndim == 3 else images.shape[1])
    return ProbeSet(
        images=images,
        labels=labels,
        names=tuple(names),
        indices=more.pop("indices", None),
        class_names=find_class_names(dataset),
        mean=mean,
        std=std,
        fingerprint=fingerprint(images, labels),
        **more,
    )


def stack_images(images: Mapping[str, Tensor]) -> Tensor:
    """Images by name, as one tensor; without any, an empty one.

    Raises:
        ValueError: They differ in shape or dtype; the message names the first of each kind.
    """
    kinds = {f"{tuple(image.shape)} of {image.dtype}": name for name, image in reversed(list(images.items()))}
    if len(kinds) > 1:
        found = ", ".join(f"{name} is {kind}" for kind, name in reversed(list(kinds.items())))
        raise BadInputError(
            f"The probes differ in shape (C, H, W) or dtype: {found}. Put a resize to one height and width into the "
            "transform."
        )
    return torch.stack(list(images.values())) if images else torch.empty(0, 0, 0, 0)


def copy_tensor(tensor: Tensor) -> Tensor:
    """A plain, contiguous tensor with memory of its own, without a graph; torchvision's subclasses are left behind.

    To be called outside of inference mode, or the copy is bound to it.
    """
    return tensor.detach().as_subclass(Tensor).clone(memory_format=torch.contiguous_format)
