"""Probes from a tensor, and what all images of the user's own go through: batch-transfer hooks and a fixed seed."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from gradcam_callback.errors import BadInputError
from gradcam_callback.probes.batches import kind_of, locate_images
from gradcam_callback.probes.checks import class_labels
from gradcam_callback.probes.probe_set import copy_tensor, fingerprint, make_probe_set
from gradcam_callback.probes.source import CaptureContext, FixedCollector, ProbeCollector, ProbeSource


class TensorProbes(ProbeSource):
    """Images that are already what the model gets. From Python only; YAML has no tensors.

    Args:
        images: `(N, C, H, W)`, floating point or uint8; volumes are `(N, C, D, H, W)`, signals `(N, C, W)`. A copy is
            kept.
        labels: One class index an image.
        names: One short name an image. None numbers them.
        through_hooks: Whether the images pass through the model's batch-transfer hooks, as a batch `[images, labels]`.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor | Sequence[int] | None = None,
        names: Sequence[str] | None = None,
        through_hooks: bool = False,
    ) -> None:
        if not isinstance(images, Tensor) or images.ndim not in (3, 4, 5) or images.numel() == 0:
            raise BadInputError(
                f"images: expected a tensor (N, C, H, W) with at least one image, got {kind_of(images)}."
            )
        if not images.is_floating_point() and images.dtype != torch.uint8:
            raise BadInputError(f"images: expected floating point or uint8, got {images.dtype}.")
        with torch.inference_mode(False):
            self.images = copy_tensor(images)
        given = labels.tolist() if isinstance(labels, Tensor) else labels
        self.labels = None if given is None else class_labels(given, len(images), "images")
        if names is not None and len(names) != len(images):
            raise BadInputError(f"names: there are {len(images)} images and {len(names)} names; give one a name each.")
        self.names = tuple(f"#{i}" for i in range(len(images))) if names is None else tuple(map(str, names))
        self.through_hooks = through_hooks

    def start(self, context: CaptureContext) -> ProbeCollector:
        """Hand out a copy of the images; see `ProbeSource.start`."""
        with fixed_seed():
            labels = None if self.labels is None else torch.tensor(self.labels)
            images, notices = pass_batch_hooks(copy_tensor(self.images).cpu(), labels, context, self.through_hooks)
            # Bytes have not passed the data set's normalisation.
            transforms = None if images.is_floating_point() else ()
            dataset = context.datasets[0] if context.datasets else None
            probes = make_probe_set(dataset, images, labels, self.names, transforms, notices=notices)
        return FixedCollector(probes)

    def describe(self) -> str:
        """The configuration as a text, with the fingerprint in place of the pixels."""
        labels = None if self.labels is None else torch.tensor(self.labels)
        text = f"TensorProbes(fingerprint={fingerprint(self.images, labels)}, names={self.names!r}"
        return text + (", through_hooks=True)" if self.through_hooks else ")")


def pass_batch_hooks(
    images: Tensor, labels: Tensor | None, context: CaptureContext, is_wanted: bool
) -> tuple[Tensor, tuple[str, ...]]:
    """The images, through the model's batch-transfer hooks if that is wanted, and what to tell the user about it.

    The hooks get a batch `[images, labels]`, with zeros where there are no labels. ValueError: they fail on it, or give
    another number of images.
    """
    hooks = context.apply_batch_hooks
    if hooks is None:
        return images, ()
    if not is_wanted:
        notice = "The model has batch-transfer hooks of its own, and the probes do not pass them. If they should, as "
        return images, (notice + "where the hooks normalise, set `through_hooks: true`.",)
    given = torch.zeros(len(images), dtype=torch.int64) if labels is None else labels.clone()
    try:
        _, found = locate_images(hooks([images, given]))
        passed = found if isinstance(found, Tensor) else torch.stack(list(found))
    except Exception as error:  # they are the user's
        raise BadInputError(
            "through_hooks: the batch-transfer hooks do not give images for a batch [images, labels] "
            f"({type(error).__name__}: {error}). Apply them yourself and give the result to TensorProbes."
        ) from error
    if len(passed) != len(images):
        raise BadInputError(
            f"through_hooks: the batch-transfer hooks made {len(passed)} images of {len(images)}. Give the images as "
            "the model gets them, with `through_hooks: false`."
        )
    return copy_tensor(passed).cpu(), ()


@contextmanager
def fixed_seed(seed: int = 0) -> Iterator[None]:
    """Seed the process's random generators for the moment, and put them back on the way out.

    These are the generators of Python, NumPy and torch, those of the accelerator if it is in use. Nothing made inside
    needs a gradient or is bound to inference mode.
    """
    python, numpy, (kind, devices) = random.getstate(), np.random.get_state(legacy=False), _device_in_use()
    with torch.inference_mode(False), torch.no_grad(), torch.random.fork_rng(devices, device_type=kind):
        random.seed(seed)
        np.random.seed(seed)
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reach devices that are not in use yet
        for _ in devices:
            torch.get_device_module(kind).manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


def _device_in_use() -> tuple[str, list[int]]:
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if accelerator is None:
        return "cuda", []
    is_initialized = getattr(torch.get_device_module(accelerator.type), "is_initialized", lambda: True)
    return accelerator.type, [torch.accelerator.current_device_index()] if is_initialized() else []
