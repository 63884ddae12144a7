"""Corridor: one batch through the rooms, from the model and the probes to a CAMResult a target. It knows no Trainer."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from gradcam_callback.causes import Cause
from gradcam_callback.engine import gradients, health, layers, methods, targets
from gradcam_callback.engine.memory import is_out_of_memory
from gradcam_callback.engine.no_grad_fallback import NoGradFallback
from gradcam_callback.engine.process_state import inference_as_no_grad
from gradcam_callback.engine.replica import Replica, run_in_replica
from gradcam_callback.engine.targets import OutputSpec
from gradcam_callback.engine.transfer import Passenger, brought_over
from gradcam_callback.errors import BadInputError
from gradcam_callback.results import CAMResult, GradientState, Target, split_call

log = logging.getLogger(__name__)


class ForwardObserver(Protocol):
    """Follows a forward pass from the activation of the layer on."""

    def watching(self, model: nn.Module) -> AbstractContextManager[Any]:
        """A context in which the model runs."""

    def begin(self, activation: Tensor) -> None:
        """Told of the activation that the rest of the network gets."""


def compute_cam(
    model: nn.Module,
    inputs: Tensor,
    target_layers: str | Sequence[str] = layers.AUTO,
    *,
    target: Target = "predicted",
    method: str = "gradcam",
    output: OutputSpec = None,
) -> CAMResult:
    """Compute class activation maps of one batch: one forward pass, one partial backward pass.

    It asks nothing of the caller: it works under `no_grad`, under `inference_mode`, in train or eval mode (the maps are
    those of evaluation mode), with any parameter frozen; and it leaves the model as it found it, also when that raises.

    Args:
        model: Any module that maps images to logits.
        inputs: `(N, C, H, W)`, as the model takes them; moved to the model's device.
        target_layers: Dotted names of modules inside the model, or "auto": the last module in forward order that
            returns maps of more than one pixel and that the score depends on. Of a layer that runs more than once in a
            forward pass, the last call that the score depends on is explained, or the one whose number stands at the
            end of the name, counted from 0: "head#0" is the first call, "head#1" the second, "head#-1" the last.
        target: The class to explain: "predicted", an int, or N ints (a list or an integer tensor).
        method: "gradcam", "gradcam++", "hirescam", "xgradcam" or "layercam".
        output: Where the logits are in what the model returns: a key, an index, a function; None finds them.

    Returns:
        Maps, scores, and a judgement on each gradient. A probe without a usable gradient is a row of NaN, and so is
        every probe at a layer, or at a call of it, that the forward pass did not run.

    Raises:
        TypeError: `inputs` is no tensor, or `target` or `target_layers` is of a wrong type.
        ValueError: There is no such layer, method or class; what follows a `#` is no number; the layer's output has no
            space in it; the number of targets is not that of the samples; no logits were found.
    """
    [result] = explain(model, inputs, target_layers, wanted=[target], method=method, output=output)
    for layer, verdict in result.health.items():
        if verdict.cause is Cause.UNSUPPORTED_OUTPUT:
            raise BadInputError(verdict.detail + f" Choose a layer before {layer!r} that returns maps.")
    return result


def explain(
    model: nn.Module,
    inputs: Tensor,
    target_layers: str | Sequence[str],
    *,
    wanted: Sequence[Target],
    method: str = "gradcam",
    output: OutputSpec = None,
    bridge: Callable[[], ForwardObserver] | None = None,
    passenger: Passenger | None = None,
) -> list[CAMResult]:
    """As `compute_cam`, for several targets at the price of one forward pass; a result each, in their order.

    A layer without space in its output is no error here, but a judgement with its cause. `bridge` makes an observer
    that lets the gradient pass the cuts that a diagnosis found for one target layer. A `passenger` travels to the host
    with the verdicts, if all layers can be explained in one pass.
    """
    methods.find_method(method)
    for target in wanted:
        targets.check_target(target)
    names = layers.check_names(target_layers)

    def job(replica: Replica) -> tuple[list[CAMResult], list[str]]:
        images, chosen = prepared(inputs, replica.model), names
        if names == (layers.AUTO,):
            chosen = (_auto_layer(replica.model, images, wanted[0], output),)
        found = layers.find_layers(replica.model, chosen)
        together = _explain_together(replica.model, images, found, wanted, method, output, bridge, passenger)
        if not together and len(found) == 1:
            return _explain_call_by_call(replica.model, images, found, wanted, method, output), list(found)
        return together, list(found)

    together, found = run_in_replica(model, job)
    return together or _explain_one_by_one(model, inputs, found, wanted, method, output)


def _explain_together(
    model: nn.Module,
    inputs: Tensor,
    found: Mapping[str, nn.Module],
    wanted: Sequence[Target],
    method: str,
    output: OutputSpec,
    bridge: Callable[[], ForwardObserver] | None = None,
    passenger: Passenger | None = None,
) -> list[CAMResult]:
    """All layers and targets from one forward pass; no result where layers, or calls, would disturb each other."""
    method_of = methods.find_method(method)
    tracer = None if bridge is None else bridge()
    chosen = (
        _counted_from_zero(model, inputs, found) if bridge is not None else None
    )  # cuts are numbered from that call on
    choices: list[tuple[Tensor, ...]] = []
    examinations: dict[tuple[int, str], health.Examination] = {}
    with forward_pass(model, inputs, found, output, tracer, chosen) as (logits, recordings):
        if len(found) > 1 and any(recording.reopened for recording in recordings.values()):
            return []
        for position, target in enumerate(wanted):
            scores, choice = choose_scores(logits, target)
            more = position + 1 < len(wanted)
            taken = gradients.differentiate(scores, recordings, keep_graph=more)
            if any(_is_disturbed(pair, recordings[name]) for name, pair in taken.items()):
                return []
            choices.append((scores.detach(), *choice))
            examinations |= {(position, name): _examine(name, pair, method_of, scores) for name, pair in taken.items()}
    return _results(choices, examinations, inputs, passenger)


def _is_disturbed(pair: gradients.LayerGradient, recording: gradients.Recording) -> bool:
    """Whether a later call switched gradients on where the model had them off, on the way from this one."""
    return any(0 <= pair.call < call for call in recording.reopened)


def _explain_call_by_call(
    model: nn.Module,
    inputs: Tensor,
    found: Mapping[str, nn.Module],
    wanted: Sequence[Target],
    method: str,
    output: OutputSpec,
) -> list[CAMResult]:
    """A pass for each call of one layer, the last one first, where a later call would disturb the one to explain."""
    [(name, layer)] = found.items()
    plain, chosen = split_call(name)
    count = _count_calls(model, inputs, found)[name]
    order = range(count - 1, -1, -1) if chosen is None else [chosen + count]
    tried: list[list[CAMResult]] = []
    for call in order:
        alone = {f"{plain}#{call}": layer}
        tried.append(_explain_together(model, inputs, alone, wanted, method, output))
        [verdict] = tried[-1][0].health.values()
        if set(verdict.state) != {GradientState.NONE}:
            return [_renamed(result, name) for result in tried[-1]]
    return [_renamed(result, name) for result in tried[0]]


def _renamed(result: CAMResult, name: str) -> CAMResult:
    """The result of one layer under another name."""
    [cam], [verdict] = result.cams.values(), result.health.values()
    return replace(result, cams={name: cam}, health={name: verdict})


def _counted_from_zero(model: nn.Module, inputs: Tensor, found: Mapping[str, nn.Module]) -> dict[str, int | None]:
    """The calls that the names choose. One that is counted from the end costs a forward pass without gradients."""
    chosen = {name: split_call(name)[1] for name in found}
    if all(call is None or call >= 0 for call in chosen.values()):
        return chosen
    counts = _count_calls(model, inputs, found)
    return {
        name: call + counts[name] if call is not None and -counts[name] <= call < 0 else call
        for name, call in chosen.items()
    }


def _count_calls(model: nn.Module, inputs: Tensor, found: Mapping[str, nn.Module]) -> dict[str, int]:
    with layers.counted_calls(found) as counts:
        _run_without_graph(model, inputs)
    return counts


def _run_without_graph(model: nn.Module, inputs: Tensor) -> None:
    with torch.no_grad(), inference_as_no_grad():
        call_model(model, inputs)


def _explain_one_by_one(
    model: nn.Module,
    inputs: Tensor,
    names: Iterable[str],
    wanted: Sequence[Target],
    method: str,
    output: OutputSpec,
) -> list[CAMResult]:
    """A pass for each layer, where one pass for all would let the layers disturb each other."""
    alone = [explain(model, inputs, name, wanted=wanted, method=method, output=output) for name in names]
    return [
        replace(
            results[0],
            cams={name: cam for result in results for name, cam in result.cams.items()},
            health={name: verdict for result in results for name, verdict in result.health.items()},
        )
        for results in zip(*alone, strict=True)
    ]


def choose_layer(model: nn.Module, inputs: Tensor, *, target: Target = "predicted", output: OutputSpec = None) -> str:
    """The layer that "auto" stands for.

    It is the last module in forward order whose output has more than one pixel and on which the score depends. Where
    the score depends on none of them (the feature map is detached, say), it is the last: there the question is why.

    Args:
        model: Any module that maps images to logits.
        inputs: `(N, C, H, W)`; one sample is enough.
        target: As for `compute_cam`.
        output: As for `compute_cam`.

    Raises:
        ValueError: No module returns maps of more than one pixel.
    """

    def job(replica: Replica) -> str:
        return _auto_layer(replica.model, prepared(inputs, replica.model), target, output)

    return run_in_replica(model, job)


def prepared(inputs: Any, model: nn.Module) -> Tensor:
    """The inputs on the model's device, without a history.

    Raises:
        TypeError: They are no tensor.
        ValueError: They are no batch of images.
    """
    if not isinstance(inputs, Tensor):
        raise TypeError(f"The inputs are a tensor (N, C, H, W); given: {type(inputs).__name__}.")
    if inputs.ndim != 4 or len(inputs) == 0:
        raise BadInputError(
            f"The inputs are a tensor (N, C, H, W) with at least one image; given: {tuple(inputs.shape)}."
        )
    anchor = next(model.parameters(), next(model.buffers(), inputs))
    return inputs.detach().to(anchor.device)


def _auto_layer(model: nn.Module, inputs: Tensor, target: Target, output: OutputSpec) -> str:
    with layers.spatial_layers(model, len(inputs)) as seen:
        _run_without_graph(model, inputs)
    if not seen:
        raise BadInputError(
            f'"auto" found no layer in {type(model).__name__}: none of its modules returns maps (N, K, h, w) of more '
            "than one pixel. Grad-CAM needs one, such as a convolution; name it in `target_layers`."
        )
    names = list(seen)
    # The last one nearly always answers. Several in one pass cost the memory of the graph between them.
    for count in (1, 8, len(names)):
        candidates = {name: seen[name] for name in names[-count:]}
        with forward_pass(model, inputs, candidates, output) as (logits, recordings):
            scores, _ = choose_scores(logits, target)
            taken = gradients.differentiate(scores, recordings)
        alive = [name for name, pair in taken.items() if pair.gradient is not None]
        if alive:
            log.debug('"auto" chose the layer %r.', alive[-1])
            return alive[-1]
    log.debug('"auto" chose the layer %r, though the score depends on no layer that has space.', names[-1])
    return names[-1]


@contextmanager
def forward_pass(
    model: nn.Module,
    inputs: Tensor,
    found: Mapping[str, nn.Module],
    output: OutputSpec,
    tracer: ForwardObserver | None = None,
    chosen: Mapping[str, int | None] | None = None,
) -> Iterator[tuple[Tensor, dict[str, gradients.Recording]]]:
    """Run the model once, with a graph that begins at the layers. To be used within `isolated`.

    Args:
        model: Any module that maps images to logits.
        inputs: From `prepared`.
        found: Name to layer.
        output: As for `compute_cam`.
        tracer: Follows what forward does with the activations.
        chosen: Name to the call to explain; by default what the names say.

    Yields:
        The logits `(N, L)`, and what was recorded at the layers.
    """
    begun = None if tracer is None else tracer.begin
    calls = {name: split_call(name)[1] for name in found} if chosen is None else chosen
    with gradients.recorded(found, layers.find_activation, begun, calls) as recordings:
        if tracer is not None:
            with tracer.watching(model):
                logits = _logits(model, inputs, output)
        else:
            with inference_as_no_grad():
                logits = _logits_or_lenient(model, inputs, output, recordings)
        for recording in recordings.values():
            recording.closed = True
        yield logits, recordings


def _logits_or_lenient(
    model: nn.Module, inputs: Tensor, output: OutputSpec, recordings: Mapping[str, gradients.Recording]
) -> Tensor:
    try:
        return _logits(model, inputs, output)
    except (RuntimeError, BufferError) as error:
        if is_out_of_memory(error):
            raise
        for recording in recordings.values():
            recording.clear()
        try:
            with NoGradFallback():
                return _logits(model, inputs, output)
        except (RuntimeError, BufferError):
            raise error from None


def _logits(model: nn.Module, inputs: Tensor, output: OutputSpec) -> Tensor:
    logits = targets.find_logits(call_model(model, inputs), output)
    if len(logits) != len(inputs):
        raise BadInputError(
            f"The model returned logits of shape {tuple(logits.shape)} for {len(inputs)} images: needed is one row an "
            "image. If these are not the logits, say with `output` where they are."
        )
    return logits


def call_model(model: nn.Module, inputs: Tensor) -> Any:
    """Call the model. In a traceback, what lies further in than this function is the model's."""
    # A copy, because forward may normalise its input in place.
    return model(inputs.clone())


def raised_by_model(error: BaseException) -> bool:
    """Whether an error that came out of this module was raised in the model's own forward pass."""
    return any(frame.f_code is call_model.__code__ for frame, _ in traceback.walk_tb(error.__traceback__))


def choose_scores(logits: Tensor, target: Target) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
    """The scores `(N,)`, and what was chosen: targets, predictions, probabilities."""
    predictions, probabilities = targets.predict(logits)
    chosen = targets.choose_targets(target, predictions, targets.class_count(logits))
    return targets.score(logits, chosen), (chosen, predictions, probabilities)


def _examine(name: str, pair: gradients.LayerGradient, method_of: methods.Method, scores: Tensor) -> health.Examination:
    if pair.bypassed:
        return health.missing(None, scores, Cause.HOOK_BYPASSED, f"The layer {name!r} is scripted, and takes no hooks.")
    found = _examine_call(name, pair, method_of, scores)
    return replace(found, calls=pair.calls, call=pair.call)


def _examine_call(
    name: str, pair: gradients.LayerGradient, method_of: methods.Method, scores: Tensor
) -> health.Examination:
    if pair.activation is None:
        if not 0 <= pair.call < pair.calls:
            return health.missing(None, scores, Cause.LAYER_NOT_CALLED, _not_called(name, pair.calls))
        returned = layers.describe_output(pair.refused)
        detail = f"The layer {name!r} returned {returned}: no maps (N, K, h, w) with space in them."
        return health.missing(None, scores, Cause.UNSUPPORTED_OUTPUT, detail)
    if pair.gradient is None:
        return health.missing(pair.activation, scores, _backward_failure(pair.failure), pair.failure)
    if len(pair.activation) != len(scores):
        detail = (
            f"The layer {name!r} returned {len(pair.activation)} maps for {len(scores)} images: needed is one each."
        )
        return health.missing(None, scores, Cause.UNSUPPORTED_OUTPUT, detail)
    with torch.autocast(scores.device.type, enabled=False):
        cam = method_of(pair.activation, pair.gradient)
        return health.examine(pair.activation, pair.gradient, cam, scores.detach())


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


def _results(
    choices: Sequence[tuple[Tensor, ...]],
    examinations: Mapping[tuple[int, str], health.Examination],
    inputs: Tensor,
    passenger: Passenger | None,
) -> list[CAMResult]:
    """A result a target: of each its scores, classes, predictions and probabilities, and its number with each layer."""
    height, width = inputs.shape[2:]
    unjudged = [
        CAMResult(
            cams={name: found.cam for (number, name), found in examinations.items() if number == position},
            targets=chosen,
            scores=scores.float(),
            predictions=predictions,
            probabilities=probabilities,
            health={},
            input_size=(height, width),
        )
        for position, (scores, chosen, predictions, probabilities) in enumerate(choices)
    ]
    verdicts = health.judge(examinations, partial(_fetched, passenger=passenger, results=unjudged))
    return [
        replace(result, health={name: verdict for (number, name), verdict in verdicts.items() if number == position})
        for position, result in enumerate(unjudged)
    ]


def _fetched(verdicts: Tensor, passenger: Passenger | None, results: Sequence[CAMResult]) -> Tensor:
    """The verdicts of all targets on the host. It is here, and only here, that the device is waited for."""
    if passenger is None:
        return verdicts.cpu()
    on_host, *luggage = brought_over([verdicts, *passenger.board(results)])
    passenger.arrive(luggage)
    return on_host
