"""From scores back to the layers: one partial backward pass for activation and gradient at each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import Node

from gradcam_callback.engine.capture import Recording
from gradcam_callback.engine.memory import is_out_of_memory

# Half precision has no number between 0 and 6e-8. Gradients of a score are small, so they are computed this much
# larger and divided afterwards; a power of two loses nothing.
_HALF_PRECISION_SCALE = 1024.0


@dataclass(frozen=True)
class LayerGradient:
    """One layer's activation and the gradient of the scores with respect to it.

    Attributes:
        activation: `(N, K, h, w)`, float32 or float64; None where the call did not happen or has no space in it.
        gradient: The same shape; None where there is none.
        unusable_output: What the call returned instead of an activation.
        failure: What torch said when it would not go backward, or why we do not take its word.
        bypassed: Whether the layer takes no hooks, so that nothing is known of it.
        calls: How often the layer ran.
        call: Which call this is, counted from 0; not below `calls` where it did not happen.
    """

    activation: Tensor | None
    gradient: Tensor | None
    unusable_output: Any = None
    failure: str = ""
    bypassed: bool = False
    calls: int = 0
    call: int = 0


def differentiate(
    scores: Tensor,
    recordings: Mapping[str, Recording],
    *,
    keep_graph: bool = False,
    backward: bool = True,
    one_by_one: bool = False,
) -> dict[str, LayerGradient]:
    """The gradient of each sample's score with respect to each layer's activation.

    The samples of a batch do not depend on each other in evaluation mode, mostly, so one backward pass over the sum of
    the scores gives each sample its own gradient. It stops at the layers.

    Args:
        scores: `(N,)`, computed while the recordings were made.
        recordings: From `capture.recorded`.
        keep_graph: Whether other scores of the same forward pass will follow.
        backward: Whether the gradient is wanted; without it, the activations alone are given.
        one_by_one: Whether samples do depend on each other. Then each needs a backward pass of its own.

    Returns:
        Layer to activation and gradient. Of a layer that ran more than once, the call that was chosen; if none was, the
        last that the score depends on.

    Raises:
        RuntimeError: There is too little memory to go backward, which says nothing about the graph.
    """
    # As they are now: backward may run a checkpointed block again, and the layer's hook with it.
    recordings = {name: replace(recording, calls=list(recording.calls)) for name, recording in recordings.items()}
    points = [call for recording in recordings.values() for call in recording.calls if call is not None]
    taken: list[Tensor | None] = [None] * len(points)
    failure = ""
    try:
        taken = _gradients(scores, points, keep_graph, one_by_one) if backward else taken
    except Exception as error:  # the model ran, and its graph cannot be gone back: that is a finding, not an end
        if is_out_of_memory(error):
            raise
        failure = str(error) or type(error).__name__  # of any type, out of the backward of a custom function
    found = {id(point): (gradient, failure) for point, gradient in zip(points, taken, strict=True)}
    return {name: _layer_gradient(recording, found) for name, recording in recordings.items()}


def uses_batch_statistics(scores: Tensor) -> bool:
    """Whether samples depend on each other by a batch normalisation that takes its statistics from the batch.

    Of the graph between the layers and the scores, which is where that matters.
    """
    waiting, seen = [scores.grad_fn], set[Node]()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        # An instance normalisation is one of a batch with a single entry.
        if getattr(node, "_saved_training", False) and node._input_metadata[0].shape[0] > 1:
            return True
        waiting += [inner for inner, _ in node.next_functions]
    return False


def _layer_gradient(recording: Recording, found: Mapping[int, tuple[Tensor | None, str]]) -> LayerGradient:
    number, count = recording.selected_call(lambda call: found[id(call)][0] is not None), len(recording.calls)
    activation = recording.calls[number] if 0 <= number < count else None
    if activation is None:
        unusable = recording.unusable_outputs.get(number)
        return LayerGradient(None, None, unusable, bypassed=recording.bypassed, calls=count, call=number)
    gradient, failure = found[id(activation)]
    precise = None if gradient is None else at_least_fp32(gradient)
    return LayerGradient(at_least_fp32(activation.detach()), precise, failure=failure, calls=count, call=number)


def _gradients(scores: Tensor, points: list[Tensor], keep_graph: bool, one_by_one: bool) -> list[Tensor | None]:
    if not points or not scores.requires_grad:
        return [None] * len(points)
    backward = _backward_one_by_one if one_by_one else _backward
    if torch.float16 not in {tensor.dtype for tensor in (scores, *points)}:
        return backward(scores, points, torch.ones_like(scores), keep_graph)
    weights = torch.full_like(scores, _HALF_PRECISION_SCALE)
    scaled = backward(scores, points, weights, True)
    fine = [None if gradient is None else at_least_fp32(gradient) / _HALF_PRECISION_SCALE for gradient in scaled]
    finite = [gradient.isfinite().all() for gradient in fine if gradient is not None]
    if not finite or bool(torch.stack(finite).all()):  # in one piece: it waits for the device
        return fine
    return list(map(_joined, fine, backward(scores, points, torch.ones_like(scores), keep_graph)))


def _joined(fine: Tensor | None, coarse: Tensor | None) -> Tensor | None:
    """Of each sample the fine gradient, and only where that overflowed the coarse one."""
    if fine is None or coarse is None:
        return None
    finite = fine.flatten(1).isfinite().all(1)
    return torch.where(finite.view(-1, *[1] * (fine.ndim - 1)), fine, at_least_fp32(coarse))


def _backward(scores: Tensor, points: list[Tensor], weights: Tensor, keep_graph: bool) -> list[Tensor | None]:
    return list(torch.autograd.grad(scores, points, weights, retain_graph=keep_graph, allow_unused=True))


def _backward_one_by_one(
    scores: Tensor, points: list[Tensor], weights: Tensor, keep_graph: bool
) -> list[Tensor | None]:
    """Of each sample's score the gradient at its own row."""
    if any(len(point) != len(scores) for point in points):
        return _backward(scores, points, weights, keep_graph)
    taken = [_backward(score, points, weight, True) for score, weight in zip(scores, weights, strict=True)]
    own: list[Tensor | None] = []
    for gradients in zip(*taken, strict=True):
        rows = [gradient[row] for row, gradient in enumerate(gradients) if gradient is not None]
        own.append(torch.stack(rows) if len(rows) == len(scores) else None)
    return own


def at_least_fp32(tensor: Tensor) -> Tensor:
    """The tensor in float32; one in float64 as it is."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()
