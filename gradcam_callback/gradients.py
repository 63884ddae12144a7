"""One forward, one partial backward: activation and gradient per layer. A room: layers and scores are given to it.

Note [Cut at the layer]

The model runs inside `isolation`: gradients are on and nothing requires one, so the forward pass stores nothing. At a
target layer a hook makes the output a leaf and hands a clone of it on. From there on a graph is recorded, and it is
recorded only there: what comes before the layer costs what it costs without gradients. The clone matters: an in-place
operation after the layer (a ReLU, mostly) changes the clone, and not the activation that the map is made of.

An output that already depends on an earlier leaf is not cut off from it, or the earlier layer would lose its gradient.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

# Half precision has no number between 0 and 6e-8. Gradients of a score are small, so they are computed this much
# larger and divided afterwards; a power of two loses nothing.
_HALF_PRECISION_SCALE = 1024.0


@dataclass
class Recording:
    """What one forward pass left at one layer.

    Attributes:
        calls: The activations, one a call of the layer, that gradients are taken with respect to.
        refused: The last output without space in it, where that is all the layer returned.
        reopened: Whether the layer ran where the model had switched gradients off, behind another layer of the pass.
            Switching them on there gives that other layer a part of a gradient that it has not.
        closed: Whether the forward pass is over. A checkpointed block runs the layer again during backward.
    """

    calls: list[Tensor] = field(default_factory=list)
    refused: Any = None
    reopened: bool = False
    closed: bool = False

    def clear(self) -> None:
        """Forget the pass, to begin another."""
        self.calls.clear()
        self.refused = None
        self.reopened = False


@contextmanager
def recorded(
    layers: Mapping[str, nn.Module],
    find_activation: Callable[[Any], Tensor | None],
    begun: Callable[[Tensor], None] | None = None,
) -> Iterator[dict[str, Recording]]:
    """Record the activations of layers while the model runs, each the beginning of a graph.

    See Note [Cut at the layer].

    Args:
        layers: Name to module.
        find_activation: From what a layer returned to its activation `(N, K, h, w)`, or None.
        begun: Told of each activation that is handed on to the rest of the network.

    Yields:
        Name to recording, filled while the model runs; emptied on the way out, so that no tensor outlives the pass.
    """
    recordings = {name: Recording() for name in layers}

    def attach(name: str) -> Any:
        def hook(_module: nn.Module, _args: Any, output: Any) -> Any:
            activation = find_activation(output)
            if activation is None:
                recordings[name].refused = output
                return None
            others = any(recording.calls for recording in recordings.values())
            recordings[name].reopened |= others and not torch.is_grad_enabled()
            leaf, handed_on = _begin_graph(activation)
            if not recordings[name].closed:
                recordings[name].calls.append(leaf)
                if begun is not None:
                    begun(handed_on)
            return replaced(output, activation, handed_on)

        return hook

    # First in line: a hook of the user's (one that detaches the feature map, say) is on the way to the score.
    handles = [module.register_forward_hook(attach(name), prepend=True) for name, module in layers.items()]
    try:
        yield recordings
    finally:
        for handle in handles:
            handle.remove()
        recordings.clear()


def _begin_graph(activation: Tensor) -> tuple[Tensor, Tensor]:
    """The activation as a point to differentiate at, and the clone that the rest of the network gets."""
    # The layer may lie in a `no_grad` block of the model. Gradients stay on from here to the end of that block; then
    # the block restores what was on before it.
    torch.set_grad_enabled(True)
    if activation.requires_grad:
        return activation, activation.clone()
    with torch.inference_mode(False):
        plain = activation.clone() if activation.is_inference() else activation.detach()
        leaf = plain.requires_grad_()
        return leaf, leaf.clone()


def replaced(output: Any, old: Tensor, new: Tensor) -> Any:
    """The same structure with one tensor exchanged."""
    if output is old:
        return new
    if isinstance(output, tuple) and hasattr(output, "_fields"):
        return type(output)(*(replaced(value, old, new) for value in output))
    if isinstance(output, (tuple, list)):
        return type(output)(replaced(value, old, new) for value in output)
    if isinstance(output, Mapping):
        changed: Any = copy.copy(output)
        for key, value in output.items():
            changed[key] = replaced(value, old, new)
        return changed
    return output


@dataclass(frozen=True)
class LayerGradient:
    """One layer's activation and the gradient of the scores with respect to it.

    Attributes:
        activation: `(N, K, h, w)`, float32 or float64; None where the layer was not called or has no space in it.
        gradient: The same shape; None where there is none.
        refused: What the layer returned instead of an activation.
        failure: What torch said when it would not go backward.
    """

    activation: Tensor | None
    gradient: Tensor | None
    refused: Any = None
    failure: str = ""


def differentiate(
    scores: Tensor, recordings: Mapping[str, Recording], *, keep_graph: bool = False
) -> dict[str, LayerGradient]:
    """The gradient of each sample's score with respect to each layer's activation.

    The samples of a batch do not depend on each other in evaluation mode, so one backward pass over the sum of the
    scores gives each sample its own gradient. It stops at the layers.

    Args:
        scores: `(N,)`, computed while the recordings were made.
        recordings: From `recorded`.
        keep_graph: Whether other scores of the same forward pass will follow.

    Returns:
        Layer to activation and gradient. Of a layer that ran more than once, its last call that the score depends on.
    """
    points = [call for recording in recordings.values() for call in recording.calls]
    failure = ""
    try:
        gradients = iter(_gradients(scores, points, keep_graph))
    except RuntimeError as error:  # the model ran, and its graph cannot be gone back: that is a finding, not an end
        failure, gradients = str(error), iter([None] * len(points))
    result = {}
    for name, recording in recordings.items():
        pairs: list[tuple[Tensor | None, Tensor | None]] = [(call, next(gradients)) for call in recording.calls]
        alive = [pair for pair in pairs if pair[1] is not None]
        activation, gradient = (alive or pairs or [(None, None)])[-1]
        refused = None if pairs else recording.refused
        result[name] = LayerGradient(_widened(activation), _widened(gradient), refused, failure)
    return result


def _gradients(scores: Tensor, points: list[Tensor], keep_graph: bool) -> list[Tensor | None]:
    if not points or not scores.requires_grad:
        return [None] * len(points)
    if torch.float16 not in {tensor.dtype for tensor in (scores, *points)}:
        return _backward(scores, points, 1.0, keep_graph)
    scaled = _backward(scores, points, _HALF_PRECISION_SCALE, True)
    if all(gradient is None or bool(gradient.isfinite().all()) for gradient in scaled):
        return [None if gradient is None else _wide(gradient) / _HALF_PRECISION_SCALE for gradient in scaled]
    return _backward(scores, points, 1.0, keep_graph)


def _backward(scores: Tensor, points: list[Tensor], scale: float, keep_graph: bool) -> list[Tensor | None]:
    weight = torch.full_like(scores, scale)
    return list(torch.autograd.grad(scores, points, weight, retain_graph=keep_graph, allow_unused=True))


def _widened(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else _wide(tensor.detach())


def _wide(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()
