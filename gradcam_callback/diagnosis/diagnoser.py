"""Why a gradient is not there, and where it ends. A second forward pass, traced, run only when health says so.

Note [Blame is shown, not guessed]

A network is full of `detach`, `item` and comparisons that do no harm. So none is blamed for being there:

- What is lost on the way to the score is found by going back from the score (`search`).
- A cut that can be crossed is crossed. The next one on the same path is found in the next pass, until the gradient
  arrives; these cuts together are the cause, and the same calls are crossed again to draw the map.
- A value that left torch is blamed if the score changes when that value is perturbed.
"""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from gradcam_callback.causes import Cause
from gradcam_callback.diagnosis import messages, search
from gradcam_callback.diagnosis.blame import Blame, blames_of, crossable, told_once
from gradcam_callback.diagnosis.context import CallerContext, is_closed
from gradcam_callback.diagnosis.passes import Subject, TracedPass
from gradcam_callback.diagnosis.path import path_through
from gradcam_callback.diagnosis.source import frame_of, is_internal, locate, module_of, named_modules
from gradcam_callback.diagnosis.torch_calls import CHOOSING, JOINING
from gradcam_callback.diagnosis.trace import Step
from gradcam_callback.engine import auto, explain, forward, health, layers
from gradcam_callback.engine.device_results import judge
from gradcam_callback.engine.inputs import Inputs, ModelInputs
from gradcam_callback.engine.layouts import CHANNELS_FIRST, Layout, LayoutInput
from gradcam_callback.engine.memory import is_out_of_memory
from gradcam_callback.engine.references import with_references
from gradcam_callback.engine.replica import ReplicaOptions
from gradcam_callback.engine.request import CAMRequest
from gradcam_callback.engine.targets import OutputSpec, TargetInput
from gradcam_callback.engine.transfer import copy_to_host
from gradcam_callback.errors import BadInputError
from gradcam_callback.results import Cut, Diagnosis, GradientState, LayerHealth, split_call

_NO_OPTIONS = ReplicaOptions()
# How many cuts in a row are crossed, and how many torch exits are tried, before the search is given up.
_PATIENCE = 16

_UNDERFLOW = (
    "It is computed in half precision, in which a gradient this small becomes zero; float32 or bfloat16 keep it."
)
_UNKNOWN = "By which line is not known: no torch function was seen to do it."


def diagnose(
    model: nn.Module,
    inputs: Inputs,
    target_layer: str,
    *,
    target: TargetInput = "predicted",
    output: OutputSpec = None,
    layout: LayoutInput = None,
    options: ReplicaOptions = _NO_OPTIONS,
) -> Diagnosis:
    """Find out why samples have no usable gradient at a layer, and where it ends.

    It asks nothing of the caller and leaves the model as it found it, like `compute_cam`.

    Args:
        model: Any module that maps images to logits.
        inputs: As for `compute_cam`.
        target_layer: The dotted name of the layer, with the number of a call if it is about that one, or "auto", as for
            `compute_cam`.
        target: As for `compute_cam`.
        output: As for `compute_cam`.
        layout: As for `compute_cam`.
        options: How the replica is made.

    Returns:
        The cause and the line; a cause of None where the gradient is there, finite and not zero. A cause without a
        location says that no line is to blame, or that it is not known which.

    Raises:
        TypeError: `inputs`, `target` or `target_layer` is of a wrong type.
        ValueError: There is no such layer or class, or "auto" found none; no logits were found.
    """
    inputs = ModelInputs.of(inputs)
    context = CallerContext.of(model, inputs)
    layer, *others = layers.check_names(target_layer)
    if others:
        raise TypeError(f"A diagnosis is of one layer: a dotted name or {layers.AUTO!r}; given: {target_layer!r:.200}.")
    request = CAMRequest.of(layer, [target], output=output, layout=layout)
    try:
        request = with_references(model, inputs, request, options)
        if request.uses_auto:
            request = auto.choose_layer(model, inputs, request, options=options)
        layer, *others = layers.find_layers(model, request.layers)
        if others:
            raise BadInputError(f"A diagnosis is of one layer, and {target_layer!r} stands for {[layer, *others]}.")
        space: Layout = CHANNELS_FIRST
        if is_closed(model, layer):
            missing = {layer: health.missing(None, forward.prepared(inputs, model).images, Cause.HOOK_BYPASSED)}
            verdict = health.judge(missing, *copy_to_host([health.pack(missing.values())]))[layer]
        else:
            results = explain.explain(model, inputs, request, options=options)
            [result] = judge(results, *copy_to_host([results.verdicts]))
            verdict, space = result.health[layer], results.layouts[layer]
    except Exception as error:
        if not forward.raised_by_model(error) or is_out_of_memory(error):
            raise
        return of_failed_forward(layer, error, len(inputs))
    is_chosen = split_call(layer)[1] is not None or (inputs.has_other_images and verdict.calls > 1)
    call = verdict.call if is_chosen else None
    nulls = verdict.null_probes
    subject = Subject(model, inputs, layer, request.targets[0], output, call, space, nulls, options)
    return Diagnoser(subject, context, verdict).run()


def of_failed_forward(layer: str, error: Exception, probes: int) -> Diagnosis:
    """The model raised: there is nothing to trace, and the traceback says where.

    Args:
        layer: Its dotted name.
        error: With its traceback, which leads through `forward.call_model`.
        probes: How many there are.
    """
    raw = list(traceback.walk_tb(error.__traceback__))
    call = [frame.f_code for frame, _ in raw].index(forward.call_model.__code__)
    within = [(frame, line) for frame, line in raw[call + 1 :] if not is_internal(frame.f_code.co_filename)]
    frames = [frame_of(frame, line) for frame, line in reversed(within)]
    location = locate(frames, module_of(frames, raw[call][0].f_locals["model"]))
    cut = Cut(Cause.FORWARD_FAILED, location, "")
    return Diagnosis(
        layer=layer,
        cause=Cause.FORWARD_FAILED,
        location=location,
        probes=tuple(range(probes)),
        path=(),
        rescued=(),
        message=messages.failed_forward(error, location),
        remedy=messages.advice(cut),
        cuts=(cut,),
    )


@dataclass(frozen=True)
class Diagnoser:
    """The search for the cause at one layer.

    Attributes:
        subject: The layer, and the score.
        context: How the caller called.
        verdict: What the gradient is like.
    """

    subject: Subject
    context: CallerContext
    verdict: LayerHealth

    def run(self) -> Diagnosis:
        """Choose what to look for by the state of the gradient, the worst first."""
        if self.verdict.cause in (Cause.LAYER_NOT_CALLED, Cause.UNSUPPORTED_OUTPUT, Cause.HOOK_BYPASSED):
            return self._layer_itself(self.verdict.cause)
        run = self.subject.trace()
        states = self.verdict.state
        if GradientState.NONE in states:
            return self._none(run)
        if GradientState.NON_FINITE in states:
            return self._non_finite(run)
        if GradientState.ZERO in states:
            return self._zero(run)
        return self.report(run, [])

    # What can be wrong

    def _layer_itself(self, cause: Cause) -> Diagnosis:
        never = cause is Cause.LAYER_NOT_CALLED and self.verdict.calls == 0
        direct = self.subject.find_direct_call() if never else None
        if direct is None:
            return self.report(None, [Cut(cause, None, "")])
        location = locate(*direct)
        return self.report(None, [Cut(Cause.HOOK_BYPASSED, location, "forward")])

    def _none(self, run: TracedPass) -> Diagnosis:
        if self.verdict.cause is not None:
            return self._no_backward(run, self.verdict.cause)
        blames, bridges = self._cross(run, search.blocking_steps(run.evidence))
        seen = [blame for blame in blames if blame.step.frames]
        if len(seen) < len(blames) or not blames:  # a value that left torch and came back is a step without a call
            blames = _torch_exit(self.subject, run) or seen or blames
        if not blames:
            blames, bridges = self.probe_untraced(run)
        if blames:
            return self.report_steps(run, blames, bridges=bridges)
        if run.reaches(self.subject.nulls):  # what the tracer does for every block, a pass without it does not
            return self.report(run, [Cut(run.evidence.trace.layer_block or Cause.INFERENCE_MODE, None, "")])
        cause = Cause.LEFT_TORCH if self.subject.score_depends_on((), run) else Cause.NOT_ON_PATH
        return self.report(run, [Cut(cause, None, "")], note=_UNKNOWN if cause is Cause.LEFT_TORCH else "")

    def _cross(self, run: TracedPass, first: Sequence[Step]) -> tuple[list[Blame], frozenset[int]]:
        """Cross one cut after the other. See Note [Blame is shown, not guessed].

        Args:
            run: Without bridges.
            first: Where to begin.

        Returns:
            What is to blame; and the numbers of the calls that were crossed, none if that did not help.
        """
        side = {step.cut_id for step in search.side_branch_losses(run.evidence)} - {step.cut_id for step in first}
        steps, new, bridges = list(first), list(first), frozenset[int]()
        for _ in range(_PATIENCE):
            cuts = frozenset(step.cut_id for step in new if step.cut_id is not None)
            if not cuts:
                break
            bridges |= cuts
            run = self.subject.trace(bridges=bridges)
            if run.reaches(self.subject.nulls):
                return blames_of(step for step in steps if step.cut_id in bridges), bridges
            none = run.gradient is None
            later = search.blocking_steps(run.evidence) if none else search.side_branch_losses(run.evidence)
            new = [step for step in later if step.cut_id not in bridges | side]
            steps += new
        blames = blames_of(steps)
        if run.gradient is not None and bridges:
            blames += self._zero_sinks(run)
        elif run.evidence.end is None and bridges:  # after the cuts that were crossed, the path leaves torch
            blames += _torch_exit(self.subject, run)
        return blames, frozenset()

    def probe_untraced(self, run: TracedPass) -> tuple[list[Blame], frozenset[int]]:
        """Where the way from a cut on cannot be seen (scripted code, say): a cut that helps when it is crossed."""
        trace = run.evidence.trace
        candidates = [step for step in trace.steps if any(use.alive for use in step.uses)]
        for step in crossable([*candidates, *trace.blocks])[:_PATIENCE]:
            bridges = frozenset({step.cut_id or 0})
            if self.subject.trace(bridges=bridges).reaches(self.subject.nulls):
                return blames_of([step]), bridges
        return [], frozenset()

    def _no_backward(self, run: TracedPass, cause: Cause) -> Diagnosis:
        """Torch would not go backward."""
        steps = [] if run.no_backward is None else [run.no_backward]
        if cause is Cause.INPLACE_MODIFIED:
            steps = search.writes_after_save(self.subject.trace(check_saved=True).evidence.trace)
        note = self.verdict.detail if cause is Cause.INFERENCE_MODE else f"Torch says: {self.verdict.detail}"
        if not steps:
            return self.report(run, [Cut(cause, None, "")], note=note)
        note = "" if cause is Cause.INPLACE_MODIFIED else note
        return self.report_steps(run, [Blame(step, cause) for step in steps], note=note)

    def _zero(self, run: TracedPass) -> Diagnosis:
        crossed: list[Blame] = []
        bridges: frozenset[int] = frozenset()
        hooks = [step for step in search.ancestors(run.evidence) if step.operation.endswith("register_hook")]
        for step in crossable([*search.side_branch_losses(run.evidence), *hooks])[:_PATIENCE]:
            blames, needed = self._cross(run, [step])
            crossed += blames if needed else []
            bridges |= needed
        by_hook = any(blame.step in hooks for blame in crossed)
        explained = crossed and (by_hook or len(self.subject.nulls) < len(self.verdict.state))
        sources = {blame.step.index for blame in crossed}
        zeros = [
            blame
            for blame in ([] if explained else self._zero_sinks(run))
            if sources.isdisjoint(step.index for step in search.ancestors(run.evidence, blame.step.index))
        ]
        if not zeros and not crossed:
            return self.report(run, [Cut(Cause.ZERO_GRADIENT, None, "")])
        underflow = any(search.receives_tiny_gradient(run.evidence, blame.step) for blame in zeros)
        return self.report_steps(run, [*zeros, *crossed], bridges=bridges, note=_UNDERFLOW if underflow else "")

    def _zero_sinks(self, run: TracedPass) -> list[Blame]:
        """What makes the gradient zero; where samples are put together from several branches, the end of theirs."""
        blames = []
        for step in search.gradient_sinks(run.evidence, lambda gradient: gradient.nonzero):
            joined = step.operation in JOINING
            branches = [use for use in step.uses if use.floating] if joined or step.operation in CHOOSING else []
            lost = blames_of(search.loss_steps(run.evidence, branches))
            lost = lost or (_torch_exit(self.subject, run) if branches else [])
            blames += lost or [Blame(step, Cause.NOT_ON_PATH if joined else Cause.ZERO_GRADIENT)]
        return blames

    def _non_finite(self, run: TracedPass) -> Diagnosis:
        trace = run.evidence.trace
        if trace.steps and not trace.steps[0].finite:
            trace = self.subject.trace(from_inputs=True).evidence.trace
            if not trace.steps[0].finite:
                note = "The images themselves are not finite."
                return self.report(run, [Cut(Cause.NON_FINITE, None, "")], note=note)
            step = search.first_non_finite_before_layer(trace)
        else:
            step = search.first_non_finite(run.evidence) or search.first_non_finite_in_backward(run.evidence)
        if step is None:
            return self.report(run, [Cut(Cause.NON_FINITE, None, "")])
        note = _bad_values(self.subject.model, step.module)
        return self.report_steps(run, [Blame(step, Cause.NON_FINITE)], note=note)

    # What is told

    def report_steps(
        self, run: TracedPass, blames: Sequence[Blame], *, bridges: frozenset[int] = frozenset(), note: str = ""
    ) -> Diagnosis:
        """The diagnosis where steps are to blame: in forward order, each place once."""
        ordered = sorted(blames, key=lambda blame: blame.step.index)
        cuts = told_once(ordered, without_lines=note is _UNDERFLOW)
        # A way that ends before the score is shown up to its end.
        through = ordered[0 if run.evidence.end else -1].step
        return self.report(run, cuts, through=through, bridges=bridges, note=note)

    def report(
        self,
        run: TracedPass | None,
        cuts: Sequence[Cut],
        *,
        through: Step | None = None,
        bridges: frozenset[int] = frozenset(),
        note: str = "",
    ) -> Diagnosis:
        """The diagnosis.

        Args:
            run: Whose path is shown.
            cuts: The places to blame, the first one first; none where all is well.
            through: A step that the path goes through.
            bridges: The numbers of the calls that have to be crossed to get a gradient.
            note: What else was seen.
        """
        return Diagnosis(
            layer=self.subject.layer,
            cause=cuts[0].cause if cuts else None,
            location=cuts[0].location if cuts else None,
            probes=self.subject.nulls,
            path=() if run is None else path_through(run.evidence, through),
            rescued=self.context.rescued(None if run is None else run.evidence.trace),
            message=messages.message(self.subject.layer, self.verdict, cuts, note),
            remedy=messages.advice(cuts[0]) if cuts else "",
            cuts=tuple(cuts),
            bridges=bridges,
        )


def _torch_exit(subject: Subject, run: TracedPass) -> list[Blame]:
    """The first line at which values left torch that the score depends on, and the cuts before it."""
    lines: dict[object, dict[int, Step]] = {}
    for number, step in run.evidence.trace.torch_exits:
        lines.setdefault((step.frames[:1], step.operation), {})[number] = step
    for exits in list(lines.values())[:_PATIENCE]:
        if subject.score_depends_on(exits, run):
            step = next(iter(exits.values()))
            return blames_of([*search.loss_steps(run.evidence, step.uses), step])
    return []


def _bad_values(model: nn.Module, module: str) -> str:
    """What of a module's own weights and statistics is not finite, in a sentence."""
    own = named_modules(model).get(module, model)
    held = (*own.named_parameters(recurse=False), *own.named_buffers(recurse=False))
    bad = [name for name, tensor in held if not bool(tensor.isfinite().all())]
    return f"NaN or infinity is in its own {' and '.join(bad)}" if bad else ""
