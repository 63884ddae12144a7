"""All layers that may have rows and columns in their output, which of them "auto" takes, and why not the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from gradcam_callback.engine.auto import (
    choose_layer,
    reason_by_shape,
    reasons_by_graph,
    sample_to_explain,
    score_of_one,
)
from gradcam_callback.engine.forward import prepared
from gradcam_callback.engine.inputs import Inputs, ModelInputs
from gradcam_callback.engine.layers import AUTO
from gradcam_callback.engine.layouts import Grid
from gradcam_callback.engine.references import with_references
from gradcam_callback.engine.replica import Replica, ReplicaOptions, run_in_replica
from gradcam_callback.engine.request import CAMRequest
from gradcam_callback.engine.signal_graph import signal_graph
from gradcam_callback.engine.spaces import with_axes
from gradcam_callback.engine.survey import survey
from gradcam_callback.errors import BadInputError
from gradcam_callback.results import split_call

_NO_OPTIONS = ReplicaOptions()


@dataclass(frozen=True)
class ListedLayer:
    """One call of one layer.

    Attributes:
        name: The dotted name, with the number of the call where the layer runs more than once.
        kind: The name of its class.
        output: What it returned, in words.
        layout: How that lies in space; empty where it does not, or it cannot be told.
        cells: `(h, w)`, or what else the space has; None where there is no layout.
        gradient: The L2 norm of the gradient at its cells, of the first image; None where there is none.
        reason: Why "auto" does not take it; empty where it may.
        chosen: Whether "auto" takes it.
    """

    name: str
    kind: str
    output: str
    layout: str
    cells: Grid | None
    gradient: float | None
    reason: str
    chosen: bool


def list_layers(
    model: nn.Module, inputs: Inputs, request: CAMRequest | None = None, *, options: ReplicaOptions = _NO_OPTIONS
) -> list[ListedLayer]:
    """The calls of all layers that return a tensor with three or four axes, in the order in which they finish.

    Args:
        model: Any module that maps images to what the targets can read.
        inputs: As for `compute_cam`; one sample is enough, if the target finds something in it.
        request: Its first target and its output count.
        options: How the replica is made.
    """
    inputs = with_axes(model, ModelInputs.of(inputs), options)
    asked = with_references(model, inputs, (request or CAMRequest.of()).at(AUTO), options)
    sample = sample_to_explain(model, inputs, asked, options)
    inputs, wanted = inputs[sample], asked.part(sample)

    def job(replica: Replica) -> list[ListedLayer]:
        images = prepared(inputs, replica.model)
        found = survey(replica.model, images, kind=wanted.layout_kind)
        calls = [call for call in found.calls if call.layout is not None or call.reason]
        spatial = [call for call in calls if call.layout is not None]
        graph = signal_graph(replica.model, images, partial(score_of_one, wanted, images))
        by_graph = dict(zip(map(id, spatial), reasons_by_graph(graph, spatial), strict=True))
        norms = dict(zip(map(id, spatial), map(_norm, graph.gradients(spatial)), strict=True))
        often = {call.name for call in calls if call.number}
        return [
            ListedLayer(
                name=f"{call.name}#{call.number}" if call.name in often else call.name,
                kind=call.kind,
                output=call.output,
                layout="" if call.layout is None else str(call.layout),
                cells=call.grid,
                gradient=norms.get(id(call)),
                reason=reason_by_shape(call) or by_graph[id(call)],
                chosen=False,
            )
            for call in calls
        ]

    return _marked(run_in_replica(model, job, options), _chosen(model, inputs, wanted, options))


def _norm(gradient: Tensor | None) -> float | None:
    return None if gradient is None else float(torch.linalg.vector_norm(gradient.float()))


def _chosen(model: nn.Module, inputs: Inputs, request: CAMRequest, options: ReplicaOptions) -> str | None:
    """The layer that "auto" takes; None if it finds none."""
    try:
        [layer] = choose_layer(model, inputs, request, options=options).layers
    except BadInputError:
        return None
    return layer.removesuffix("#-1")


def _marked(listed: Sequence[ListedLayer], chosen: str | None) -> list[ListedLayer]:
    """With a mark at the last call of the chosen layer that has a layout."""
    calls = [layer for layer in listed if layer.layout and split_call(layer.name)[0] == chosen]
    return [replace(layer, chosen=bool(calls) and layer is calls[-1]) for layer in listed]
