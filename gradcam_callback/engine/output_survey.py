"""What a model returns, seen in three forward passes of two images, without a graph.

Note [Samples that depend on each other]

In evaluation mode the samples of a batch do not depend on each other, mostly, and one backward pass gives each its own
gradient. Where they do (a batch normalisation without running statistics, a mean over the batch), that gradient would
be one of all scores. So the second of two images is changed: if what is returned for the first one is another, each
probe gets a backward pass of its own. The same two images are run twice before, because a model that counts or samples
returns something else each time. What the first module with weights gets of the changed image tells, too, which part
of a padded batch an image is: see Note [Images within a padded batch] in `extents`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gradcam_callback.engine.extents import altered_part, entry_kept, find_extents
from gradcam_callback.engine.forward import prepared, run_without_graph
from gradcam_callback.engine.inputs import Inputs, ModelInputs
from gradcam_callback.engine.layouts import floating_tensors
from gradcam_callback.engine.memory import is_out_of_memory
from gradcam_callback.engine.process_state import generators_kept
from gradcam_callback.engine.replica import Replica, ReplicaOptions, run_in_replica
from gradcam_callback.engine.request import CAMRequest
from gradcam_callback.engine.survey import altered
from gradcam_callback.engine.targets import ClassTarget, count_alternatives, find_logits

_NO_OPTIONS = ReplicaOptions()
# By how much, as a share of the largest, numbers of one sample change if the samples depend on each other. The same
# kernels run on the same shapes, so that rounding alone changes nothing.
_DEPENDS = 1e-3
# How far the length of an embedding that was normalised is from 1.
_UNIT = 1e-3


@dataclass(frozen=True)
class OutputSurvey:
    """What the passes showed.

    Attributes:
        samples_depend: Whether the samples of a batch depend on each other in evaluation mode.
        extent: Which part of what the layers see an image is, as of `find_extents`; None where it is all of it. Of a
            list of images that is looked for in each pass, because each may have a size of its own.
        alternatives: How many matrices of one shape may be the logits, of which the first was taken.
        is_embedding: Whether the rows that are taken for logits are vectors of length 1, and so no scores of classes.
    """

    samples_depend: bool = False
    is_embedding: bool = False
    alternatives: int = 1
    extent: tuple[float, ...] | None = None


def survey_output(
    model: nn.Module, inputs: Inputs, request: CAMRequest, *, options: ReplicaOptions = _NO_OPTIONS
) -> OutputSurvey:
    """Look at what a model returns. See Note [Samples that depend on each other].

    Args:
        model: Any module that maps images to what the targets can read.
        inputs: As for `compute_cam`; the first two samples count.
        request: Its targets and its output count.
        options: How the replica is made.

    Returns:
        What was seen; nothing special where memory is too short for two images.

    Raises:
        Exception: What the model raises.
    """
    of_classes = any(isinstance(target, ClassTarget) for target in request.targets)

    def job(replica: Replica) -> OutputSurvey:
        images = prepared(ModelInputs.of(inputs)[:2], replica.model)
        first, entry = _run(replica.model, images)
        depend, other = _change_one(replica.model, images, first) if len(images) > 1 else (False, None)
        return OutputSurvey(
            samples_depend=depend,
            is_embedding=of_classes and _has_unit_rows(find_logits(first, request.output)),
            alternatives=count_alternatives(first, request.output) if of_classes else 1,
            extent=_extent(replica.model, images, entry, other),
        )

    try:
        return run_in_replica(model, job, options)
    except Exception as error:
        if is_out_of_memory(error):
            return OutputSurvey()
        raise


def _run(model: nn.Module, images: ModelInputs) -> tuple[Any, Tensor | None]:
    """What the model returns, and what its layers see of the images."""
    with generators_kept(), entry_kept(model) as seen:  # a model that samples draws the same in each pass
        returned = run_without_graph(model, images)
    return returned, seen[0] if seen else None


def _change_one(model: nn.Module, images: ModelInputs, first: Any) -> tuple[bool, Tensor | None]:
    """Whether what is returned for the first image changes with the second, and not by itself; and what layers see."""
    changed = images.with_images(torch.cat([images.images[:1], altered(images.images[1:])]))
    again, _ = _run(model, images)
    try:
        beside, entry = _run(model, changed)
    except Exception as error:  # a model may refuse an image that is none
        if is_out_of_memory(error):
            raise
        return False, None
    return _differ(again, beside) and not _differ(first, again), entry


def _extent(
    model: nn.Module, images: ModelInputs, entry: Tensor | None, other: Tensor | None
) -> tuple[float, ...] | None:
    """Which part of what the layers see an image is, from what they saw before and after the second one was changed."""
    if images.sizes is not None or images.axes != 2:  # of a list, each has its own
        return None
    if entry is None or len(entry) != len(images) or tuple(entry.shape[2:]) == images.size:
        return None
    if len(images) > 1:
        return altered_part(entry, other, sample=1)
    extents = find_extents(model, images)  # an image alone has passes of its own
    return None if extents is None else tuple(extents[0].tolist())


def _differ(returned: Any, other: Any) -> bool:
    """Whether two passes returned different numbers for the first of two samples."""
    pairs = zip(_of_first_sample(returned), _of_first_sample(other), strict=False)
    return any(one.shape != two.shape or _differs(one.float(), two.float()) for one, two in pairs)


def _differs(one: Tensor, other: Tensor) -> bool:
    return one.numel() > 0 and bool((one - other).abs().max() > _DEPENDS * one.abs().max())


def _of_first_sample(returned: Any) -> Iterator[Tensor]:
    """The floating tensors that belong to the first of two samples: rows of tensors, and entries of lists."""
    if isinstance(returned, Tensor):
        if returned.is_floating_point() and returned.ndim > 0 and len(returned) == 2:
            yield returned[0]
    elif isinstance(returned, Mapping):
        for value in returned.values():
            yield from _of_first_sample(value)
    elif isinstance(returned, Sequence) and not isinstance(returned, str):
        is_a_sample_each = len(returned) == 2 and all(isinstance(value, Mapping) for value in returned)
        if is_a_sample_each:
            yield from floating_tensors(returned[0])
        else:
            for value in returned:
                yield from _of_first_sample(value)


def _has_unit_rows(logits: Tensor) -> bool:
    """Whether all rows have length 1, and are no probabilities."""
    lengths = torch.linalg.vector_norm(logits.float(), dim=1)
    return logits.shape[1] > 1 and bool(((lengths - 1).abs() < _UNIT).all() & (logits < 0).any())
