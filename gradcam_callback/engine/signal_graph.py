"""How the score depends on each layer: one forward pass over an image with a graph that begins at the image.

Note [Whether the whole signal passes]

A map of a layer shows all that the score comes from only if no way of the graph from the score back to the image goes
past that layer: not a branch beside it, not a shortcut around it. What forward detaches, or computes without gradients,
stays on this graph: whether a gradient arrives is another question, which the pass that makes the map answers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge

from gradcam_callback.engine.forward import call_model
from gradcam_callback.engine.inputs import ModelInputs
from gradcam_callback.engine.layouts import floating_tensors
from gradcam_callback.engine.no_grad_fallback import NoGradFallback, disables_grad
from gradcam_callback.engine.process_state import inference_as_no_grad
from gradcam_callback.engine.survey import CallKey, LayerCall, main_activation, watched
from gradcam_callback.engine.targets import Scores


@dataclass(frozen=True, eq=False)
class SignalGraph:
    """The graph between the image, the layers and the score.

    Attributes:
        scores: The score of the image.
        image: The node at which the graph begins.
        edges: Call to where its output is in the graph.
        alone: The calls that returned nothing else that carries a graph.
        image_shape: `(C, H, W)`.
    """

    scores: Scores
    image: Node
    edges: dict[CallKey, GradientEdge]
    alone: set[CallKey]
    image_shape: torch.Size

    def takes_all(self, call: LayerCall) -> bool:
        """Whether every way from the score to the image goes through this call.

        See Note [Whether the whole signal passes].
        """
        edge, start = self.edges.get(call.key), self.scores.values.grad_fn
        if edge is None or start is None:
            return False
        waiting, seen, is_reached = [start], set[Node](), False
        while waiting:
            node = waiting.pop()
            if node is edge.node:
                is_reached = True
            elif node is self.image:
                return False
            elif node not in seen:
                seen.add(node)
                waiting += [inner for inner, _ in node.next_functions if inner is not None]
        return is_reached

    def gradients(self, calls: Sequence[LayerCall]) -> list[Tensor | None]:
        """The gradient of the score at each of some calls, as maps `(1, K, h, w)`; None where there is none."""
        edges = [self.edges.get(call.key) for call in calls]
        known = [edge for edge in edges if edge is not None]
        if not known or not self.scores.values.requires_grad:
            return [None] * len(calls)
        taken = iter(torch.autograd.grad(self.scores.values.sum(), known, retain_graph=True, allow_unused=True))
        found = [None if edge is None else next(taken) for edge in edges]
        return [
            None if gradient is None or call.layout is None else call.layout.to_maps(gradient)
            for call, gradient in zip(calls, found, strict=True)
        ]


def signal_graph(model: nn.Module, inputs: ModelInputs, score: Callable[[Any], Scores]) -> SignalGraph:
    """Run the model once with a graph. To be used within `isolated`.

    Args:
        model: The replica's.
        inputs: From `prepared`; the first sample counts.
        score: From what the model returned to the score of one image.

    Raises:
        Exception: Whatever the model raises because there is a graph; images of whole numbers can have none.
    """
    image = inputs.images[:1].detach().clone().requires_grad_()
    edges, alone = dict[CallKey, GradientEdge](), set[CallKey]()

    def see(key: CallKey, _layer: nn.Module, output: Any) -> None:
        activation = main_activation(output)
        if activation is not None and activation.requires_grad:
            edges[key] = get_gradient_edge(activation)
            if not any(other is not activation and other.requires_grad for other in floating_tensors(output)):
                alone.add(key)

    with watched(model, see), GradientsKept().watching(model):
        scores = score(call_model(model, inputs[:1].with_images(image)))
    return SignalGraph(scores, get_gradient_edge(image).node, edges, alone, image.shape[1:])


class GradientsKept(NoGradFallback):
    """An observer of a forward pass: detached values stay on the graph, and gradients are not switched off."""

    @contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        """A context in which the model runs."""
        with torch.enable_grad(), inference_as_no_grad(), self:
            yield

    def begin(self, activation: Tensor) -> None:
        """Told of the activation that the rest of the network gets."""

    def _call(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if func in (Tensor.detach, Tensor.data.__get__):  # type: ignore[attr-defined]
            return args[0].view_as(args[0])
        if func is torch._C._set_grad_enabled:
            return None
        if func is Tensor.detach_ or disables_grad(func, args, kwargs):
            return args[0]
        return super()._call(func, args, kwargs)
