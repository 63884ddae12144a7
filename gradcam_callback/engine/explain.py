"""One batch from the model and the images to maps. It knows no Trainer."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from gradcam_callback.causes import Cause
from gradcam_callback.engine import gradients, health
from gradcam_callback.engine.auto import choose_layer, expect_layouts, find_layouts
from gradcam_callback.engine.capture import Recording
from gradcam_callback.engine.device_results import DeviceResults, TargetResult, judge
from gradcam_callback.engine.extents import find_extents
from gradcam_callback.engine.forward import ForwardObserver, count_calls, forward_pass, prepared
from gradcam_callback.engine.grids import ObservedMaps, watching
from gradcam_callback.engine.image_calls import calls_seeing_images
from gradcam_callback.engine.inputs import Inputs, ModelInputs
from gradcam_callback.engine.layers import AUTO, find_layers
from gradcam_callback.engine.layouts import ChannelsFirst, LayoutInput, Unreadable, describe_output
from gradcam_callback.engine.methods import MethodInput, make_map
from gradcam_callback.engine.output_survey import survey_output
from gradcam_callback.engine.references import with_references
from gradcam_callback.engine.replica import Replica, ReplicaOptions, run_in_replica
from gradcam_callback.engine.request import CAMRequest
from gradcam_callback.engine.rerun import ModelRerun
from gradcam_callback.engine.spaces import with_axes
from gradcam_callback.engine.targets import OutputSpec, Scores, Target, TargetInput
from gradcam_callback.engine.transfer import copy_to_host
from gradcam_callback.errors import BadInputError
from gradcam_callback.results import CAMResult, GradientState, split_call

log = logging.getLogger(__name__)

_NO_OPTIONS = ReplicaOptions()
MODIFIED_REMEDY = "Have forward write to a buffer, or to a copy of them, or in training mode alone."


def compute_cam(
    model: nn.Module,
    inputs: Inputs,
    target_layers: str | Sequence[str] = AUTO,
    *,
    target: TargetInput = "predicted",
    method: MethodInput = "gradcam",
    output: OutputSpec = None,
    layout: LayoutInput = None,
) -> CAMResult:
    """Compute class activation maps of one batch: one forward pass, one partial backward pass.

    It asks nothing of the caller: it works under `no_grad`, under `inference_mode`, in train or eval mode (the maps are
    those of evaluation mode), with any parameter frozen; and it leaves the model as it found it, also when that raises.

    Args:
        model: Any module that maps images to logits.
        inputs: Images `(N, C, H, W)`, as the model takes them; moved to the model's device. For a model that takes
            more, a tuple of arguments by position or a mapping of arguments by keyword: tensors and lists in it with
            as many entries as there are images belong to one each. A list of images `(C, h, w)`, of different sizes or
            not, for a model that takes one.
        target_layers: Dotted names of modules inside the model, in which a `*` stands for any part between two dots; or
            "auto": the last module in forward order that has rows and columns in its output and that the whole signal
            passes. Of a layer that runs more than once in a forward pass, the last call that the score depends on is
            explained, or the one whose number stands at the end of the name, counted from 0: "head#0" is the first
            call, "head#1" the second, "head#-1" the last.
        target: What to explain: "predicted", a class, or N classes (a list or an integer tensor); a short form, as for
            the callback (`{"segmentation": 3}`, `{"detection": "best"}`, `{"similarity": 0}`, "reconstruction", a
            function `target(output, batch) -> (N,)`); or a `Target`.
        method: "gradcam", "gradcam++", "hirescam", "xgradcam" or "layercam".
        output: Where the logits are in what the model returns: a key, an index, a function; None finds them.
        layout: How the layers' outputs lie in space: "nchw", "nhwc", "tokens", a grid of tokens such as
            `{"grid": [14, 14], "extras": 1}`, or a function from a tensor to `(N, K, h, w)`; None finds it.

    Returns:
        Maps, scores, and a judgement on each gradient. A probe without a usable gradient is a row of NaN, and so is
        every probe at a layer, or at a call of it, that the forward pass did not run.

    Raises:
        TypeError: `inputs` is nothing that a model takes, or `target` or `target_layers` is of a wrong type.
        ValueError: There is no such layer, method or class; what follows a `#` is no number; the layer's output has no
            space in it; the number of targets is not that of the samples; no logits were found.

    Warns:
        UserWarning: The model's forward writes in place to weights, which therefore are not what they were.
    """
    results = explain(model, ModelInputs.of(inputs), CAMRequest.of(target_layers, [target], method, output, layout))
    [result] = judge(results, *copy_to_host([results.verdicts]))
    for layer, verdict in result.health.items():
        if verdict.cause is Cause.UNSUPPORTED_OUTPUT:
            raise BadInputError(verdict.detail + f" Choose a layer before {layer!r} that returns maps.")
    if results.modified_weights:
        message = f"{describe_modified(results.modified_weights)} {MODIFIED_REMEDY}"
        warnings.warn(message, UserWarning, stacklevel=2)
    return result


def describe_modified(weights: Sequence[str]) -> str:
    """What to say of weights that a pass has written to: which they are, and in which modules.

    Args:
        weights: Their dotted names, as of `Replica.modified_weights`.
    """
    owners = [name.rpartition(".")[0] for name in weights if "(" not in name]
    modules = dict.fromkeys(repr(owner) if owner else "the model itself" for owner in owners)
    where = f" (in {', '.join(modules)})" if modules else ""
    return (
        f"The model's forward writes in place to weights: {', '.join(map(repr, weights))}{where}. The pass that "
        "computes maps shares the weights, so those of the training have changed."
    )


def explain(
    model: nn.Module,
    inputs: Inputs,
    request: CAMRequest,
    *,
    observer: Callable[[], ForwardObserver] | None = None,
    options: ReplicaOptions = _NO_OPTIONS,
) -> DeviceResults:
    """As `compute_cam`, for several targets at the price of one forward pass; what it gives is still on the device.

    A layer without space in its output is no error here, but a finding with its cause.

    Args:
        model: Any module that maps images to what the targets of the request can read.
        inputs: As for `compute_cam`.
        request: What is asked for.
        observer: Makes an observer of the forward pass that lets the gradient pass the cuts that a diagnosis found for
            the one layer of the request.
        options: How the replica is made.
    """
    inputs, extent = with_axes(model, ModelInputs.of(inputs), options, request.layout), None
    request = with_references(model, inputs, request, options)
    if request.uses_auto:
        request = choose_layer(model, inputs, request, options=options)
        if request.remark:
            log.warning(
                '"auto" takes the layer %r: %s. `target_layers` names another.', *request.layers, request.remark
            )
        seen = survey_output(model, inputs, request, options=options)
        request, extent = replace(request, samples_depend=seen.samples_depend), seen.extent

    def job(replica: Replica) -> DeviceResults:
        images = prepared(inputs, replica.model)
        results = _explained(replica.model, images, expect_layouts(replica.model, images, request), observer)
        if results is None:
            results = _explained(replica.model, images, find_layouts(replica.model, images, request), observer)
        assert results is not None
        return replace(results, modified_weights=replica.modified_weights()).within(extent)

    return run_in_replica(model, job, options)


def _explained(
    model: nn.Module, inputs: ModelInputs, request: CAMRequest, observer: Callable[[], ForwardObserver] | None
) -> DeviceResults | None:
    """What passes give for a request whose layouts are known; None where an expected one turns out to be another."""
    passes = _Pass(model, inputs, request, find_layers(model, request.layers))
    results = passes.run(observer) or passes.run_apart()
    found = results.by_target[0].examinations
    expected = [name for name, layout in request.layouts.items() if isinstance(layout, ObservedMaps)]
    if any(found[name].cause is Cause.UNSUPPORTED_OUTPUT for name in expected):
        return None
    maps = ChannelsFirst(passes.inputs.axes)
    return replace(results, layouts={**request.layouts, **dict.fromkeys(expected, maps)})


class _Pass:
    """The layers of a request on one replica, and the passes that they need."""

    def __init__(
        self, model: nn.Module, inputs: ModelInputs, request: CAMRequest, layers: Mapping[str, nn.Module]
    ) -> None:
        self.model, self.inputs, self.request, self.layers = model, inputs, request, layers

    def run(self, observer: Callable[[], ForwardObserver] | None = None) -> DeviceResults | None:
        """All layers and targets from one forward pass; None where layers, or calls, would disturb each other."""
        request, found = self.request, list[tuple[Target, Scores, Mapping[str, gradients.LayerGradient]]]()
        chosen: Mapping[str, int | None] = calls_seeing_images(self.model, self.inputs, self.layers)
        if observer is not None:
            chosen = self._from_zero(chosen)  # cuts are numbered from that call on
        watch = None if observer is None else observer()

        def read(returned: Any) -> list[Any]:
            return [target.read(returned, request.output, self.inputs.apart) for target in request.targets]

        with (
            watching(request.layouts.values()),
            forward_pass(self.model, self.inputs, self.layers, read, watch, chosen, request.layouts) as (
                taken,
                recordings,
            ),
        ):
            if len(self.layers) > 1 and any(recording.grad_reenabled_calls for recording in recordings.values()):
                return None
            for position, target in enumerate(request.targets):
                scores = target.score(taken[position])
                pairs = gradients.differentiate(
                    scores.values,
                    recordings,
                    keep_graph=position + 1 < len(request.targets),
                    backward=request.method.needs_gradient,
                    one_by_one=request.samples_depend or gradients.uses_batch_statistics(scores.values),
                )
                if any(_is_disturbed(pair, recordings[name]) for name, pair in pairs.items()):
                    return None
                found.append((target, scores.detached(), pairs))
        results = [self._examined(target, scores, pairs) for target, scores, pairs in found]
        given = DeviceResults(tuple(results), self.inputs.size, sizes=self.inputs.sizes)
        is_padded = self.inputs.sizes is not None or any(result.scores.task == "detection" for result in results)
        return given.within(find_extents(self.model, self.inputs)) if is_padded and self.inputs.axes == 2 else given

    def run_apart(self) -> DeviceResults:
        """A pass for each layer, or for each call of the only one, so that none disturbs another."""
        if len(self.layers) == 1:
            return self._run_call_by_call()
        passes = [self._of(name, name) for name in self.layers]
        return DeviceResults.side_by_side([one.run() or one.run_apart() for one in passes])

    def _of(self, layer: str, name: str) -> _Pass:
        """At one layer, under the name of one of its calls."""
        request = self.request.at(name).reading({name: self.request.layouts[layer]})
        return _Pass(self.model, self.inputs, request, {name: self.layers[layer]})

    def _run_call_by_call(self) -> DeviceResults:
        """A pass for each call of one layer, the last one first, until the score depends on the call."""
        [name] = self.layers
        plain, chosen = split_call(name)
        count = count_calls(self.model, self.inputs, self.layers)[name]
        tried: list[DeviceResults] = []
        for call in range(count - 1, -1, -1) if chosen is None else [chosen + count]:
            results = self._of(name, f"{plain}#{call}").run()
            assert results is not None  # a call that is chosen from the start disturbs itself never
            tried.append(results)
            [verdict] = judge(results, *copy_to_host([results.verdicts]))[0].health.values()
            if set(verdict.state) != {GradientState.NONE}:
                return results.renamed(name)
        return tried[0].renamed(name)

    def _from_zero(self, chosen: Mapping[str, int | None]) -> Mapping[str, int | None]:
        """The calls to explain. One that is counted from the end costs a forward pass without gradients."""
        if all(call is None or call >= 0 for call in chosen.values()):
            return chosen
        counts = count_calls(self.model, self.inputs, self.layers)
        return {
            name: call + counts[name] if call is not None and -counts[name] <= call < 0 else call
            for name, call in chosen.items()
        }

    def _examined(self, target: Target, scores: Scores, pairs: Mapping[str, gradients.LayerGradient]) -> TargetResult:
        """The maps and the judgement on them, layer by layer. Methods that run the model again do so here."""
        found = {name: self._examine(name, pair, target, scores) for name, pair in pairs.items()}
        return TargetResult.of(scores, found)

    def _examine(self, name: str, pair: gradients.LayerGradient, target: Target, scores: Scores) -> health.Examination:
        if pair.bypassed:
            detail = f"The layer {name!r} is scripted, and takes no hooks."
            return health.missing(None, scores.values, Cause.HOOK_BYPASSED, detail, axes=self.inputs.axes)
        rerun = self._rerun(name, pair.call, target, scores)
        return replace(self._examine_call(name, pair, scores.values, rerun), calls=pair.calls, call=pair.call)

    def _rerun(self, name: str, call: int, target: Target, scores: Scores) -> ModelRerun:
        layout, output = self.request.layouts[name], self.request.output
        if isinstance(layout, ObservedMaps):  # which it looks for only while the first pass is observed
            layout = ChannelsFirst(self.inputs.axes)
        layer, method = (name, self.layers[name]), self.request.method
        if method.extra_forwards and self.request.samples_depend:
            raise BadInputError(
                f"The method {method.name!r} runs the model on changed samples, and in this model the samples of a "
                "batch depend on each other: what is changed in one changes the scores of the others. Use 'gradcam'."
            )
        return ModelRerun(self.model, self.inputs, layer, layout, call, target, scores, output, method)

    def _examine_call(
        self, name: str, pair: gradients.LayerGradient, scores: Tensor, rerun: ModelRerun
    ) -> health.Examination:
        layout, method = self.request.layouts[name], self.request.method
        if pair.activation is None:
            if not 0 <= pair.call < pair.calls:
                detail = _not_called(name, pair.calls)
                return health.missing(None, scores, Cause.LAYER_NOT_CALLED, detail, axes=self.inputs.axes)
            reason = f", {layout.reason}" if isinstance(layout, Unreadable) and layout.reason else ""
            what = f"{describe_output(pair.unusable_output)}{reason}: no maps (N, K, h, w)."
            return self._unsupported(name, scores, what)
        activation = layout.to_maps(pair.activation)
        if pair.gradient is None and method.needs_gradient:
            return health.missing(activation, scores, _backward_failure(pair.failure), pair.failure)
        if len(activation) != len(scores):
            what = f"{len(activation)} maps for {len(scores)} images: needed is one each."
            return self._unsupported(name, scores, what)
        if activation.ndim - 2 != self.inputs.axes:
            seen = f"{describe_output(activation)}, with {activation.ndim - 2} axes of space"
            return self._unsupported(name, scores, f"{seen}: the inputs have {self.inputs.axes}.")
        gradient = None if pair.gradient is None else layout.to_maps(pair.gradient)
        rerun.channels = activation.shape[1]
        with torch.autocast(scores.device.type, enabled=False):
            cam = make_map(method, activation, gradient, rerun)
            return health.examine(activation, gradient, cam, scores)

    def _unsupported(self, name: str, scores: Tensor, what: str) -> health.Examination:
        detail = f"The layer {name!r} returned {what}"
        return health.missing(None, scores, Cause.UNSUPPORTED_OUTPUT, detail, axes=self.inputs.axes)


def _is_disturbed(pair: gradients.LayerGradient, recording: Recording) -> bool:
    """Whether a later call switched gradients on where the model had them off, on the way from this one."""
    return any(0 <= pair.call < call for call in recording.grad_reenabled_calls)


def _not_called(name: str, calls: int) -> str:
    plain, _ = split_call(name)
    if calls == 0:
        return f"The forward pass never ran {plain!r}."
    often = "once" if calls == 1 else f"{calls} times"
    numbers = "#0 or #-1" if calls == 1 else f"#0 to #{calls - 1}, or from the end #-1 to #-{calls}"
    return f"The forward pass ran {plain!r} {often}, so there is no call {name!r}. Possible: {numbers}."


def _backward_failure(message: str) -> Cause | None:
    """The cause behind a failure to go backward."""
    if "inplace operation" in message:
        return Cause.INPLACE_MODIFIED
    if "is not implemented" in message:
        return Cause.NON_DIFFERENTIABLE
    return Cause.CUSTOM_FUNCTION if message else None
