"""What is merely worth knowing of a probe pass, in words: no alarm, and said once."""

from __future__ import annotations

from collections.abc import Iterator

from gradcam_callback.engine import auto
from gradcam_callback.engine.methods import PER_CHANNEL, Method, price
from gradcam_callback.execution.probe_pass import ProbePassResult
from gradcam_callback.prober import Prober
from gradcam_callback.probes import ProbeSet
from gradcam_callback.results import CAMResult, name_call, split_call

DEPENDENT_SAMPLES = (
    "In evaluation mode the samples of a batch depend on each other in this model (a mean over the batch, or a batch "
    "normalisation without running statistics). Each probe is explained by its own score, in the batch of all probes."
)
SEVERAL_OUTPUTS = (
    "The model returns {count} outputs of one shape, and Grad-CAM explains the first of them; choose another with "
    "`output`: a key or a position, counted from 0."
)
STACKED = (
    "The batches hold a list of images, which the model does not take. It takes them as one tensor, and Grad-CAM gives "
    "it that."
)
_OF_REMARK = {
    auto.EARLY: (
        "It is an early layer, because the whole signal passes through no later one: its map shows simple features. "
        "Another layer can be named in `target_layers`."
    ),
    auto.NOT_ALL: (
        "A part of the signal goes past it: the map does not show all that the score comes from. Another layer can be "
        "named in `target_layers`."
    ),
}


def notices_of(prober: Prober, probes: ProbeSet, result: ProbePassResult, *, chosen_now: bool) -> Iterator[str]:
    """What is worth knowing of a probe pass.

    Args:
        prober: It has made the pass.
        probes: At these images.
        result: What it gave.
        chosen_now: Whether "auto" has chosen the layer in this pass.
    """
    first = result.results[0]
    if chosen_now:
        text = f"Grad-CAM explains the layer {prober.layers[0]!r}, which `target_layers: auto` chose."
        yield f"{text} {_OF_REMARK.get(prober.remark, '')}".strip()
    if prober.stacks_lists:
        yield STACKED
    yield from _of_calls(first)
    yield prober.task_notice(probes, first)
    if result.output.alternatives > 1:
        yield SEVERAL_OUTPUTS.format(count=result.output.alternatives)
    if result.output.samples_depend:
        yield DEPENDENT_SAMPLES
    yield from _of_price(prober.method, first, len(probes), len(result.results))
    if prober.faithfulness_price:
        passes = prober.faithfulness_price * len(first.health) * len(result.results)
        yield f"The measures of faithfulness cost {passes} more forward passes for each of {len(probes)} probes."


def _of_calls(result: CAMResult) -> Iterator[str]:
    """Which call is explained, of a layer that runs more than once and was named without a number."""
    for layer, verdict in result.health.items():
        if verdict.calls > 1 and split_call(layer)[1] is None:
            explained = name_call(layer, verdict.calls, verdict.call)
            yield (
                f"The layer {layer!r} runs {verdict.calls} times in a forward pass, and Grad-CAM explains {explained}. "
                f"Choose another by its number: {layer + '#0'!r} is the first."
            )


def _of_price(method: Method, result: CAMResult, probes: int, targets: int) -> Iterator[str]:
    """What a method costs that runs the model more often than once."""
    passes = sum(price(method, verdict.channels) for verdict in result.health.values()) * targets
    if passes:
        each = ", one for each channel of the layer" if method.extra_forwards == PER_CHANNEL else ""
        yield (
            f"The method {method.name!r} costs {passes} more forward passes{each}, for each of {probes} probes in "
            "every look."
        )
