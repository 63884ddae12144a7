"""Whether maps depend on the weights: these are randomised, from the score backwards, and the maps compared.

Adebayo, Gilmer, Muelly, Goodfellow, Hardt and Kim, "Sanity Checks for Saliency Maps", NeurIPS 2018, section 3.1
(cascading randomization), with Spearman's rank correlation as there. A map that stays the same although the weights
are gone shows something of the image, such as its edges, and nothing of the model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from gradcam_callback.causes import Cause
from gradcam_callback.engine.auto import choose_layer
from gradcam_callback.engine.copying.modules import registered_modules
from gradcam_callback.engine.device_results import DeviceResults
from gradcam_callback.engine.explain import explain
from gradcam_callback.engine.forward import prepared
from gradcam_callback.engine.in_place import is_sharded
from gradcam_callback.engine.inputs import Inputs, ModelInputs
from gradcam_callback.engine.layers import AUTO, find_layers
from gradcam_callback.engine.layouts import LayoutInput
from gradcam_callback.engine.methods import MethodInput
from gradcam_callback.engine.output_survey import survey_output
from gradcam_callback.engine.references import with_references
from gradcam_callback.engine.replica import Replica, ReplicaOptions, run_in_replica
from gradcam_callback.engine.request import CAMRequest
from gradcam_callback.engine.sanity.randomisation import Cascade, plan_cascade, randomise
from gradcam_callback.engine.sanity.rank_correlation import rank_correlation
from gradcam_callback.engine.sanity.result import LayerSanity, SanityResult, Stage
from gradcam_callback.engine.spaces import with_axes
from gradcam_callback.engine.targets import (
    FunctionTarget,
    OutputSpec,
    ReconstructionTarget,
    Scores,
    Target,
    TargetInput,
)
from gradcam_callback.engine.targets.target import repeat_target
from gradcam_callback.engine.transfer import copy_to_host
from gradcam_callback.errors import BadInputError

Progress = Callable[[int, int], None]
"""Told how many of the groups are done, and how many there are."""

_NO_OPTIONS = ReplicaOptions()


def sanity_check(
    model: nn.Module,
    inputs: Inputs,
    target_layers: str | Sequence[str] = AUTO,
    *,
    target: TargetInput = "predicted",
    method: MethodInput = "gradcam",
    output: OutputSpec = None,
    layout: LayoutInput = None,
    seed: int = 0,
) -> SanityResult:
    """Randomise a model's weights from the score backwards, and see how the maps change.

    The model is not touched: a replica with other weights is run for each group of modules, and dropped. What is
    explained stays the class, or the pixels, of the model as it is. It costs two passes, and one more for each group,
    of which there are about twelve at most; and in the last ones the memory of the weights once more.

    Args:
        model: As for `compute_cam`; in a single piece, not sharded over processes.
        inputs: As for `compute_cam`. Some eight images tell enough.
        target_layers: As for `compute_cam`.
        target: As for `compute_cam`, but no detection: its box would be another one with other weights.
        method: As for `compute_cam`.
        output: As for `compute_cam`.
        layout: As for `compute_cam`.
        seed: Of the values that are drawn.

    Returns:
        For each layer, group by group, the rank correlation of each image's map with that of the model as it is, and a
        verdict.

    Raises:
        TypeError: As for `compute_cam`.
        ValueError: As for `compute_cam`; the target is a detection; the model is sharded, or has no weights.
    """
    request = CAMRequest.of(target_layers, [target], method, output, layout)
    return check_weights(model, ModelInputs.of(inputs), request, seed=seed)[0]


def check_weights(
    model: nn.Module,
    inputs: ModelInputs,
    request: CAMRequest,
    *,
    options: ReplicaOptions = _NO_OPTIONS,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[SanityResult]:
    """As `sanity_check`, for several targets at the price of one; a result for each.

    Args:
        model: As for `sanity_check`.
        inputs: As for `compute_cam`.
        request: What is asked for.
        options: How the replicas are made.
        seed: Of the values that are drawn.
        progress: Told after each group.

    Raises:
        ValueError: As for `sanity_check`.
    """
    if is_sharded(list(registered_modules(model))):
        raise BadInputError(
            "The weights of this model are spread over processes, and a replica with other weights cannot be made of "
            "it. Check a model that is in one piece."
        )
    inputs, request = _settled(model, inputs, request, options)
    original = explain(model, inputs, request, options=options)
    _check_maps(original)
    fixed = request.at(*original.by_target[0].examinations).reading(original.layouts)
    fixed = replace(fixed, targets=tuple(map(_fixed, request.targets, [one.scores for one in original.by_target])))
    cascade = _plan(model, inputs, fixed, original, options)
    stages = list[Tensor]()
    for number in range(1, len(cascade.groups) + 1):
        done = [name for group in cascade.groups[:number] for name in group]
        other = explain(model, inputs, fixed, options=_randomised(options, done, seed))
        stages.append(_correlations(original, other))
        if progress is not None:
            progress(number, len(cascade.groups))
    [correlations] = copy_to_host([torch.stack(stages, dim=2)])
    cells = [cam[0].numel() for cam in original.by_target[0].cams.values()]
    return [
        SanityResult(_by_layer(fixed.layers, cells, cascade, found), target.title, request.method.name)
        for target, found in zip(request.targets, correlations, strict=True)
    ]


def _settled(
    model: nn.Module, inputs: ModelInputs, request: CAMRequest, options: ReplicaOptions
) -> tuple[ModelInputs, CAMRequest]:
    """Inputs and request with all that is found out once: axes, references, the layer of "auto"."""
    inputs = with_axes(model, inputs, options, request.layout)
    request = with_references(model, inputs, request, options)
    if request.uses_auto:
        request = choose_layer(model, inputs, request, options=options)
    seen = survey_output(model, inputs, request, options=options)
    return inputs, replace(request, samples_depend=seen.samples_depend)


def _check_maps(results: DeviceResults) -> None:
    """Refuse what `compute_cam` refuses, and boxes."""
    for result in results.by_target:
        if result.scores.task == "detection":
            raise BadInputError(
                "The box of a detection is found in what the model returns, and with other weights it would be another "
                "one. Possible are classes, labels, values, pixels of a class, similarities and functions."
            )
        for layer, found in result.examinations.items():
            if found.cause is Cause.UNSUPPORTED_OUTPUT:
                raise BadInputError(found.detail + f" Choose a layer before {layer!r} that returns maps.")


def _fixed(target: Target, scores: Scores) -> Target:
    """The target of what the model as it is was explained for."""
    if isinstance(target, (FunctionTarget, ReconstructionTarget)):
        return target  # there is nothing in it that is chosen by the model
    return repeat_target(target, scores, 1)


def _plan(
    model: nn.Module, inputs: ModelInputs, request: CAMRequest, original: DeviceResults, options: ReplicaOptions
) -> Cascade:
    calls = {layer: found.call for layer, found in original.by_target[0].examinations.items()}

    def job(replica: Replica) -> Cascade:
        layers = find_layers(replica.model, request.layers)
        return plan_cascade(replica.model, prepared(inputs, replica.model), layers, calls)

    cascade = run_in_replica(model, job, options)
    if not cascade.groups:
        raise BadInputError(f"{type(model).__name__} uses no weights in its forward pass, so none can be randomised.")
    return cascade


def _randomised(options: ReplicaOptions, modules: Sequence[str], seed: int) -> ReplicaOptions:
    def prepare(model: nn.Module) -> None:
        if options.prepare is not None:
            options.prepare(model)
        randomise(model, modules, seed)

    return replace(options, prepare=prepare)


def _correlations(original: DeviceResults, other: DeviceResults) -> Tensor:
    """Of each target and layer: `(targets, layers, N)`."""
    return torch.stack(
        [
            torch.stack([_compared(cam, second.cams[layer]) for layer, cam in first.cams.items()])
            for first, second in zip(original.by_target, other.by_target, strict=True)
        ]
    )


def _compared(one: Tensor, other: Tensor) -> Tensor:
    """The correlation of each pair of maps; NaN where the layer has other maps than before, or none."""
    if one.shape != other.shape:
        return torch.full((len(one),), torch.nan, device=one.device)
    return rank_correlation(one, other)


def _by_layer(
    layers: Sequence[str], cells: Sequence[int], cascade: Cascade, correlations: Tensor
) -> dict[str, LayerSanity]:
    """Of one target, whose correlations are `(layers, stages, N)`."""
    return {
        layer: LayerSanity(tuple(map(Stage, cascade.groups, found)), cascade.later[layer], count)
        for layer, count, found in zip(layers, cells, correlations, strict=True)
    }
