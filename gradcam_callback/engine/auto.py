"""The layers and layouts of a request: what "auto" stands for, and how the output of each layer lies in space.

Note [The layer that auto takes]

Of the layers in the order in which they finish, the last

- whose output is one tensor with a layout (see Note [What looks like a map] in `grids`) of more than one cell, which
  lie where they are in the image (see Note [Cells follow the image] in `survey`),
- through which the whole signal passes (see Note [Whether the whole signal passes] in `signal_graph`),
- whose gradient is not zero at the cells: after the last attention only the class token's is not,
- which is not the prediction itself: a channel a class, with a gradient in one alone; or, of an autoencoder, an image.

A pass of its own confirms it, because hooks see what a layer returns, and the score may come from something inside it.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from gradcam_callback.engine import gradients
from gradcam_callback.engine.copying.modules import registered_modules
from gradcam_callback.engine.forward import forward_pass, prepared, run_without_graph
from gradcam_callback.engine.grids import ObservedMaps
from gradcam_callback.engine.in_place import is_sharded
from gradcam_callback.engine.inputs import Inputs, ModelInputs
from gradcam_callback.engine.layers import find_layers
from gradcam_callback.engine.layouts import ChannelsFirst, Layout, Unreadable
from gradcam_callback.engine.memory import is_out_of_memory
from gradcam_callback.engine.replica import Replica, ReplicaOptions, run_in_replica
from gradcam_callback.engine.request import CAMRequest
from gradcam_callback.engine.signal_graph import GradientsKept, SignalGraph, signal_graph
from gradcam_callback.engine.spaces import with_axes
from gradcam_callback.engine.survey import LayerCall, Survey, survey
from gradcam_callback.engine.targets import Scores
from gradcam_callback.errors import BadInputError
from gradcam_callback.results import split_call

log = logging.getLogger(__name__)

_NO_OPTIONS = ReplicaOptions()
# How many layers are tried by a pass of their own. The first one nearly always answers.
_TRIES = 8
# Of at least so many layers with space, one is early that comes in this first share of them.
_FEW, _EARLY = 8, 0.25
EARLY, NOT_ALL = "an early layer", "a part of the signal goes past it"
"""What may be said of the layer: its map shows simple features, or not all that the score comes from."""
# How many samples are looked at for one that has something to explain.
_SAMPLES = 8


def choose_layer(
    model: nn.Module, inputs: Inputs, request: CAMRequest | None = None, *, options: ReplicaOptions = _NO_OPTIONS
) -> CAMRequest:
    """The request at the layer that "auto" stands for, with its layout; see Note [The layer that auto takes].

    Where the score depends on no layer (the feature map is detached, say), it is the last one with space: there the
    question is why.

    Args:
        model: Any module that maps images to what the targets can read.
        inputs: As for `compute_cam`; one sample is enough. Where a target may find nothing in a sample, the first one
            counts in which it finds something.
        request: Its first target, its output and its layout count.
        options: How the replica is made.

    Raises:
        ValueError: No layer has space in its output, or a layout was given that another layer may not have.
    """
    asked, inputs = request or CAMRequest.of(), with_axes(model, ModelInputs.of(inputs), options)
    sample = sample_to_explain(model, inputs, asked, options)
    inputs, wanted = inputs[sample], asked.part(sample)
    if isinstance(wanted.layout, Layout):
        raise BadInputError(
            '`layout` says how the output of a layer lies in space, and "auto" chooses another layer for each model; '
            f"given: {wanted.layout}. Name the layer in `target_layers`."
        )

    def surveyed(replica: Replica) -> Survey:
        return survey(replica.model, prepared(inputs, replica.model), kind=wanted.layout_kind)

    found = run_in_replica(model, surveyed, options)
    spatial = [call for call in found.calls if not reason_by_shape(call)]
    if not spatial:
        raise BadInputError(_nothing_found(model, found))
    best, takes_all = _best(model, inputs, wanted, spatial, options)
    assert best.layout is not None
    log.debug('"auto" chose the layer %r (%s).', best.name, best.layout)
    remark = NOT_ALL if not takes_all else EARLY if _is_early(best, spatial) else ""
    return replace(asked.at(best.full_name).reading({best.full_name: best.layout}), remark=remark)


def find_layouts(model: nn.Module, inputs: ModelInputs, request: CAMRequest) -> CAMRequest:
    """The request with the full names of named layers, and with their layouts. To be used within `isolated`."""
    layers = find_layers(model, request.layers)
    if isinstance(request.layout, Layout):
        return request.at(*layers).reading(dict.fromkeys(layers, request.layout))
    found = survey(model, inputs, {split_call(name)[0] for name in layers}, kind=request.layout_kind)
    return request.at(*layers).reading({name: _layout_of(found, name, inputs.axes) for name in layers})


def expect_layouts(model: nn.Module, inputs: ModelInputs, request: CAMRequest) -> CAMRequest:
    """As `find_layouts`, but that layers which convolutions are in are only looked at in the pass that makes the maps.

    So a network of convolutions costs no pass more. Where that pass finds out that it is not so, `find_layouts` does.
    """
    if request.is_read:
        return request
    layers = find_layers(model, request.layers)
    axes = inputs.axes
    if request.layout is not None or not all(ObservedMaps.may_be(layer, axes) for layer in layers.values()):
        return find_layouts(model, inputs, request)
    return request.at(*layers).reading({name: ObservedMaps.of(layer, axes) for name, layer in layers.items()})


def _layout_of(found: Survey, name: str, axes: int) -> Layout:
    call = found.of(*split_call(name))
    if call is None:
        return ChannelsFirst(axes)  # it never ran, or not so often, which the pass that makes the maps says
    if call.layout is None:
        return Unreadable(call.reason)
    if call.follows is False:
        return Unreadable(f"which may be {call.layout}, if its cells followed the image, but they do not")
    return call.layout


# Auto


def _best(
    model: nn.Module, inputs: ModelInputs, request: CAMRequest, spatial: Sequence[LayerCall], options: ReplicaOptions
) -> tuple[LayerCall, bool]:
    """The layer, and whether the whole signal passes through it."""

    def by_graph(replica: Replica) -> LayerCall | None:
        return _best_call(replica.model, prepared(inputs, replica.model), request, spatial)

    def without_zeros(replica: Replica) -> LayerCall | None:
        _fill_zeros(replica.model)
        return by_graph(replica)

    best = run_in_replica(model, by_graph, options)
    if best is None and not is_sharded(list(registered_modules(model))):
        # Weights that are zero at first, a head's mostly, hide all gradients before them.
        best = run_in_replica(model, without_zeros, replace(options, own_weights=True))
    if best is not None:
        return best, True

    def last(replica: Replica) -> LayerCall:
        return _last_call(replica.model, prepared(inputs, replica.model), request, spatial)

    return run_in_replica(model, last, options), False


def _is_early(call: LayerCall, spatial: Sequence[LayerCall]) -> bool:
    """Whether most layers with space come after a call, and so most of what the network computes."""
    place = next(number for number, other in enumerate(spatial) if other is call)
    return len(spatial) >= _FEW and place < _EARLY * len(spatial)


def _best_call(
    model: nn.Module, inputs: ModelInputs, request: CAMRequest, spatial: Sequence[LayerCall]
) -> LayerCall | None:
    """The call that Note [The layer that auto takes] describes, of those with a layout; None if there is none."""
    try:
        graph = signal_graph(model, inputs, partial(score_of_one, request, inputs))
    except Exception as error:  # the graph is ours: what it breaks may run without it
        if is_out_of_memory(error):
            raise
        return None
    reasons = reasons_by_graph(graph, spatial)
    taken = [call for call, reason in zip(spatial, reasons, strict=True) if not reason]
    tried = taken[: -_TRIES - 1 : -1]
    return next((call for call in tried if _gets_gradient(model, inputs, request, call)), None)


def _last_call(model: nn.Module, inputs: ModelInputs, request: CAMRequest, spatial: Sequence[LayerCall]) -> LayerCall:
    """The last call that a gradient gets to, though a part of the signal goes past it; the last if there is none."""
    tried = spatial[: -_TRIES - 1 : -1]
    return next((call for call in tried if _gets_gradient(model, inputs, request, call)), tried[0])


def sample_to_explain(model: nn.Module, inputs: ModelInputs, request: CAMRequest, options: ReplicaOptions) -> slice:
    """The first sample in which the first target finds something to explain; the very first, if there is none."""
    target, some = request.targets[0], slice(0, _SAMPLES)
    if not getattr(target, "may_be_absent", False):
        return slice(0, 1)

    def job(replica: Replica) -> Scores:
        images = prepared(inputs[some], replica.model)
        part = target.part(some)
        return part.score(part.read(run_without_graph(replica.model, images), request.output, images.apart)).detached()

    present = run_in_replica(model, job, options).present
    first = 0 if present is None or not bool(present.any()) else int(present.int().argmax())
    return slice(first, first + 1)


def score_of_one(request: CAMRequest, inputs: ModelInputs, returned: Any) -> Scores:
    """The score of one image, from what the model returned for it."""
    target = request.targets[0]
    return target.score(target.read(returned, request.output, inputs.images[:1]))


def _fill_zeros(model: nn.Module) -> None:
    """Give weights that are all zero small values, so that a gradient passes; of a replica with weights of its own."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if not name.endswith("bias") and weight.is_floating_point() and not bool(weight.any()):
                weight.normal_(std=0.02)


def reason_by_shape(call: LayerCall) -> str:
    """Why "auto" does not take a call whatever the score depends on; empty where it may."""
    if call.grid is None:
        return call.reason or "no rows and columns"
    if math.prod(call.grid) == 1:
        return "a single cell"
    return "the cells do not follow the image" if call.follows is False else ""


def reasons_by_graph(graph: SignalGraph, calls: Sequence[LayerCall]) -> list[str]:
    """Of each call, why "auto" does not take it by the graph; empty where it may."""
    reasons = ["" if graph.takes_all(call) else "a part of the signal goes past it" for call in calls]
    reasons = [
        reason or ("" if call.key in graph.alone else "it returns more than one tensor")
        for call, reason in zip(calls, reasons, strict=True)
    ]
    open_ones = [number for number, reason in enumerate(reasons) if not reason]
    for number, gradient in zip(open_ones, graph.gradients([calls[number] for number in open_ones]), strict=True):
        if gradient is None or not bool((gradient != 0).any()):
            reasons[number] = "no gradient arrives at its cells"
        elif _is_prediction(gradient, graph):
            reasons[number] = "it is the prediction itself"
    return reasons


def _is_prediction(gradient: Tensor, graph: SignalGraph) -> bool:
    """Whether maps are the prediction itself: a channel a class, with a gradient in one alone; or another image."""
    if graph.scores.task == "value":
        return gradient.shape[1:] == graph.image_shape
    used = (gradient != 0).flatten(2).any(2).sum(1)
    return gradient.shape[1] == graph.scores.probabilities.shape[1] and bool((used <= 1).all())


def _gets_gradient(model: nn.Module, inputs: ModelInputs, request: CAMRequest, call: LayerCall) -> bool:
    """Whether a gradient gets to a layer's cells if a graph begins there, whatever forward detaches."""
    assert call.layout is not None
    name, read = call.full_name, partial(score_of_one, request, inputs)
    layers, layouts = find_layers(model, [name]), {name: call.layout}
    with forward_pass(model, inputs[:1], layers, read, GradientsKept(), layouts=layouts) as (scores, recordings):
        gradient = gradients.differentiate(scores.values, recordings)[name].gradient
    return gradient is not None and bool((call.layout.to_maps(gradient) != 0).any())


def _nothing_found(model: nn.Module, found: Survey) -> str:
    seen = [f"{call.name!r} returned {call.output}, {call.reason}" for call in reversed(found.calls) if call.reason]
    examples = f" Seen, from the last: {'; '.join(seen[:3])}." if seen else ""
    return (
        f'"auto" found no layer in {type(model).__name__}: none of its modules returns maps (N, K, h, w), or tokens of '
        "a grid, of more than one cell. Grad-CAM needs one, such as a convolution; name it in `target_layers`."
        f"{examples}"
    )
