"""What is wrong, in words: gradients that are not usable, and the callback's own work where it failed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

from gradcam_callback.causes import CallbackIssue, Cause, meaning, remedy
from gradcam_callback.engine.explain import MODIFIED_REMEDY, describe_modified
from gradcam_callback.reporting.alerts import Finding
from gradcam_callback.reporting.sinks.disk_space import NoSpaceError
from gradcam_callback.results import CAMResult, Diagnosis, GradientState, LayerHealth, name_probes, name_share

_STATES = {
    GradientState.NONE: "the gradient is None",
    GradientState.NON_FINITE: "the gradient is not finite",
    GradientState.ZERO: "the gradient is zero",
}
SUBSTITUTES = "A map that needs no gradient is drawn with `method_on_null: scorecam`, or eigencam, which is quicker."
NO_VALIDATION = "the trainer validates nothing, and maps are made of what it validates."
_WITHOUT_ACTIVATION = (Cause.LAYER_NOT_CALLED, Cause.UNSUPPORTED_OUTPUT, Cause.HOOK_BYPASSED, Cause.FORWARD_FAILED)
_STATE_CAUSES = {GradientState.NON_FINITE: Cause.NON_FINITE, GradientState.ZERO: Cause.ZERO_GRADIENT}


def find_nulls(
    results: Sequence[CAMResult],
    targets: Sequence[str],
    diagnoses: Mapping[str, Diagnosis] = MappingProxyType({}),
) -> list[Finding]:
    """What is wrong with the gradients of one validation: at most one finding a layer.

    Args:
        results: One a target, of the same layers and probes.
        targets: What the targets are called, e.g. "predicted".
        diagnoses: Layer to the reason, where it was found.
    """
    findings = []
    for layer in results[0].health if results else ():
        verdicts = [result.health[layer] for result in results]
        concerned = [title for title, verdict in zip(targets, verdicts, strict=True) if verdict.null_probes]
        if not concerned:
            continue
        worst = next(verdict for verdict in verdicts if verdict.null_probes)
        known = diagnoses.get(layer)
        finding = _undiagnosed(layer, worst, concerned) if known is None else Finding.of(known, concerned)
        if _may_be_substituted(worst):
            finding = replace(finding, alternative=SUBSTITUTES)
        findings.append(replace(finding, concerns_all=len(finding.probes) == len(worst.state)))
    return findings


def weights_modified(weights: Sequence[str]) -> Finding:
    """What is wrong where a forward pass wrote into weights, which the replica shares with the model that trains.

    Args:
        weights: Their dotted names.
    """
    return Finding("weights", CallbackIssue.WEIGHTS_MODIFIED, (), (), describe_modified(weights), MODIFIED_REMEDY)


def probes_missing(positions: Sequence[int]) -> Finding:
    """What is wrong where samples that were asked for by their position never passed.

    Args:
        positions: Those that are missing.
    """
    named = name_probes(positions).replace("probe", "position", 1)
    message = f"There are no probes for {named}: the validation did not get that far."
    advice = "Choose lower positions, or read more validation batches. The run goes on with the others."
    return Finding("probes", CallbackIssue.PROBES_MISSING, (), (), message, advice)


def probes_changed() -> Finding:
    """What is wrong where a run was resumed and the probes are not what they were."""
    message = "The probes have the same positions as in the run that is resumed, and other pixels or labels."
    advice = "Maps before and after the resume show different images; look for a changed data set or transform."
    return Finding("probes", CallbackIssue.PROBES_CHANGED, (), (), message, advice)


def hidden_channels(count: int, channels: Sequence[int] | None = None) -> list[Finding]:
    """What is wrong where images seem to be several stacked ones, of which a panel shows one; empty where they do not.

    Args:
        count: How many channels the images have.
        channels: Which are shown, if that was chosen.
    """
    if channels is not None or count <= 3 or count % 3:
        return []
    message = (
        f"The images have {count} channels, as if {count // 3} were stacked, and the panels show channels 0, 1, 2. "
        "A map that belongs to another image lies over the wrong one."
    )
    advice = "Choose the channels to show: `channels: [3, 4, 5]`."
    return [Finding("channels", CallbackIssue.CHANNELS_HIDDEN, (), (), message, advice)]


def classes_in_doubt(names: Sequence[str] | None, result: CAMResult, *, is_embedding: bool = False) -> list[Finding]:
    """What is wrong where the model's numbers seem to be no scores of the classes; empty where nothing is.

    Args:
        names: Those of the classes; None where none are known, empty where there are to be none.
        result: For one target.
        is_embedding: Whether what is taken for scores of classes are vectors of length 1.
    """
    count = result.probabilities.shape[1]
    is_known = not is_embedding if names is None else len(names) in (0, count)
    if is_known or result.task not in ("classification", "multilabel"):
        return []
    seen = f"The model returns {count} numbers an image, "
    if names is None:
        seen += "and they are vectors of length 1, as an embedding is"
    else:
        seen += f"and there are the names of {len(names)} classes"
    message = f"{seen}. What they mean is not known, so no maps of classes are drawn."
    advice = (
        "Say with `output` where the scores of the classes are, or give the right `class_names`; an empty list of them "
        "takes the numbers for classes without names. To explain an embedding, use `target: {similarity: 0}`."
    )
    return [Finding("classes", CallbackIssue.CLASSES_DIFFER, (), (), message, advice)]


def not_written(failures: Sequence[str]) -> Finding:
    """What is wrong where panels or alerts could not be written.

    Args:
        failures: What, where and why, a sentence each.
    """
    advice = (
        "Look for a full disk, a log directory that is gone or cannot be written to, or a service that cannot be "
        "reached. The training goes on."
    )
    return Finding("writing", CallbackIssue.WRITING_FAILED, (), (), " ".join(dict.fromkeys(failures)), advice)


def not_opened(failures: Sequence[str]) -> list[Finding]:
    """What is wrong where some of the places to write to could not be opened; empty where all could.

    Args:
        failures: What, where and why, a sentence each.
    """
    return [replace(not_written(failures), subject="sinks")] if failures else []


def not_logged(error: Exception) -> Finding:
    """What is wrong where a logger did not take the scalars."""
    if isinstance(error, NoSpaceError):
        return replace(not_written([f"The scalars could not be logged: {error}."]), subject="logging")
    return failed("logging", "The scalars could not be logged", error)


def failed(subject: str, what: str, error: Exception) -> Finding:
    """What is wrong where the callback's own work failed."""
    message = f"{what}: {type(error).__name__}: {str(error).rstrip('.')}."
    advice = "The training goes on as if the callback were not there."
    return Finding(subject, CallbackIssue.CALLBACK_FAILED, (), (), message, advice)


def short_of_memory(portion: int) -> Finding:
    """What is wrong where the probes have to be taken in portions."""
    message = f"There is too little memory for all probes at once: they are taken {portion} at a time from now on."
    advice = "The maps are the same, and take a little longer. Use fewer probes, or a smaller batch in validation."
    return Finding("memory", CallbackIssue.SHORT_OF_MEMORY, (), (), message, advice)


def unsupported_strategy(reason: str) -> Finding:
    """What is wrong where no map can be computed under the trainer's strategy."""
    message = f"There are no Grad-CAM maps under this strategy: {reason}."
    advice = "Use DDP, or ModelParallelStrategy with fully_shard (FSDP2). The training goes on without maps."
    return Finding("strategy", CallbackIssue.UNSUPPORTED_STRATEGY, (), (), message, advice)


def no_maps(reason: str) -> Finding:
    """What is wrong where a run goes on without maps.

    Args:
        reason: Why, in a sentence or several.
    """
    advice = "The training goes on as if the callback were not there."
    return Finding("run", CallbackIssue.NO_MAPS, (), (), f"There are no Grad-CAM maps in this run: {reason}", advice)


def _may_be_substituted(verdict: LayerHealth) -> bool:
    """Whether a method without a gradient could draw what is missing."""
    is_finite = GradientState.NON_FINITE not in verdict.state
    return is_finite and verdict.cause not in _WITHOUT_ACTIVATION and not any(verdict.drawn_without_gradient)


def _undiagnosed(layer: str, verdict: LayerHealth, targets: Sequence[str]) -> Finding:
    state = next(state for state in _STATES if state in verdict.state)
    cause = verdict.cause or _STATE_CAUSES.get(state)
    reason = (verdict.detail or meaning(cause)).rstrip(".")
    concerned = [probe for probe, seen in enumerate(verdict.state) if seen is state]
    message = f"At {layer!r} {_STATES[state]} for {name_share(concerned, len(verdict.state))}: {reason}."
    return Finding(layer, cause, verdict.null_probes, tuple(targets), message, remedy(cause))
