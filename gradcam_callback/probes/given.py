"""Probes that are given at once: a tensor, a batch, or a source that waits for no validation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from gradcam_callback.engine.batch_rows import map_tensors
from gradcam_callback.errors import BadInputError
from gradcam_callback.probes.batches import kind_of, locate_images
from gradcam_callback.probes.probe_set import copy_tensor
from gradcam_callback.probes.source import CaptureContext, FixedCollector, ProbeCollector, ProbeSource
from gradcam_callback.probes.tensors import TensorProbes
from gradcam_callback.probes.validation import ValidationProbes


class BatchProbes(ProbeSource):
    """All samples of one batch, whatever it holds of them: read as `ValidationProbes` reads those of a validation.

    Args:
        batch: As a loader gives it, with images somewhere. A copy is kept, on the CPU.
    """

    def __init__(self, batch: Any) -> None:
        with torch.inference_mode(False):
            self._batch = map_tensors(batch, lambda tensor: copy_tensor(tensor).cpu())

    def start(self, context: CaptureContext) -> ProbeCollector:
        """Read the batch; see `ProbeSource.start`."""
        _, images = locate_images(self._batch, given=context.given, by_option=context.by_option)
        collector = ValidationProbes(n=len(images)).start(context)
        collector.add(self._batch, 0)
        return FixedCollector(collector.finish(collector.samples()))


def as_given(probes: Any) -> ProbeSource:
    """What a loop gives, as a source.

    Args:
        probes: Images `(N, C, H, W)`, a batch with images and what else a loader gives, or a source.

    Raises:
        ValueError: It has no images in it, or is a source that waits for the batches of a validation.
    """
    if isinstance(probes, Tensor):
        return TensorProbes(probes)
    if isinstance(probes, ProbeSource) and not isinstance(probes, ValidationProbes):
        return probes
    is_plain = probes is None or isinstance(probes, (str, bytes, int, float, ValidationProbes))
    if is_plain or (isinstance(probes, (Mapping, Sequence)) and not probes):
        raise BadInputError(
            f"probes: expected images (N, C, H, W), a batch such as (images, labels), ImageProbes or TensorProbes, got "
            f"{kind_of(probes)}. There is no validation to take samples from: give what one of your loaders gives."
        )
    return BatchProbes(probes)
