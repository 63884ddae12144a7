"""Corridor: why, and where. A second forward pass, traced, run only when health says so.

Note [Blame is shown, not guessed]

A network is full of `detach`, `item` and comparisons that do no harm. So none is blamed for being there:

- What is lost on the way to the score is found by going back from the score (`evidence`).
- A cut that can be crossed is crossed. The next one on the same road is found in the next pass, until the gradient
  arrives; these cuts together are the cause, and the same calls are crossed again to draw the map.
- A value that left torch is blamed if the score changes when that value is disturbed.
"""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from gradcam_callback import evidence, explain, gradients, layers, wording
from gradcam_callback.causes import Cause
from gradcam_callback.evidence import END, Evidence, Flow
from gradcam_callback.explain import Target
from gradcam_callback.isolation import isolated
from gradcam_callback.records import Cut, Diagnosis, GradientState, LayerHealth
from gradcam_callback.targets import OutputSpec
from gradcam_callback.tracing import Frame, Step, Trace, Tracer, Use, Witness, disturbed

# How many cuts in a row are crossed, and how many departures are tried, before the search is given up.
_PATIENCE = 16


def diagnose(
    model: nn.Module, inputs: Tensor, target_layer: str, *, target: Target = "predicted", output: OutputSpec = None
) -> Diagnosis:
    """Find out why samples have no usable gradient at a layer, and where it ends.

    It asks nothing of the caller and leaves the model as it found it, like `compute_cam`.

    Args:
        model: Any module that maps images to logits.
        inputs: `(N, C, H, W)`, as the model takes them.
        target_layer: The dotted name of the layer.
        target: As for `compute_cam`.
        output: As for `compute_cam`.

    Returns:
        The cause and the line; a cause of None where the gradient is there, finite and not zero. A cause without a
        location says that no line is to blame, or that it is not known which.

    Raises:
        TypeError: `inputs`, `target` or `target_layer` is of a wrong type.
        ValueError: There is no such layer or class; no logits were found.
    """
    [layer] = layers.find_layers(model, layers.check_names(target_layer))
    context = _Context.of(model)
    try:
        [result] = explain.explain(model, inputs, [layer], wanted=[target], output=output)
    except Exception as error:
        if not explain.raised_by_model(error):
            raise
        return of_failed_forward(layer, error, len(inputs))
    return _Investigation(model, inputs, layer, target, output, context, result.health[layer]).conclude()


@dataclass(frozen=True)
class _Context:
    """What the caller had switched off, before the wall switched it on.

    Attributes:
        modes: NO_GRAD or INFERENCE_MODE, if the caller is in it.
        frozen: The modules all of whose own parameters require no gradient.
    """

    modes: tuple[Cause, ...]
    frozen: frozenset[str]

    @classmethod
    def of(cls, model: nn.Module) -> _Context:
        if torch.is_inference_mode_enabled():
            modes: tuple[Cause, ...] = (Cause.INFERENCE_MODE,)
        else:
            modes = () if torch.is_grad_enabled() else (Cause.NO_GRAD,)
        own = {name: list(module.parameters(recurse=False)) for name, module in model.named_modules()}
        frozen = (name for name, parameters in own.items() if not any(p.requires_grad for p in parameters))
        return cls(modes, frozenset(frozen))


@dataclass(frozen=True)
class _Run:
    """What one traced pass gave."""

    evidence: Evidence
    scores: Tensor
    gradient: Tensor | None
    failure: str


@dataclass(frozen=True)
class _Investigation:
    """One layer under suspicion."""

    model: nn.Module
    inputs: Tensor
    layer: str
    target: Target
    output: OutputSpec
    context: _Context
    verdict: LayerHealth

    def conclude(self) -> Diagnosis:
        """Choose what to look for by the state of the gradient, the worst first."""
        if self.verdict.cause in (Cause.LAYER_NOT_CALLED, Cause.UNSUPPORTED_OUTPUT):
            return self._layer_itself()
        run = self._run()
        states = self.verdict.state
        if GradientState.NONE in states:
            return self._none(run)
        if GradientState.NON_FINITE in states:
            return self._non_finite(run)
        if GradientState.ZERO in states:
            return self._zero(run)
        return self._told(run, [])

    # What can be wrong

    def _layer_itself(self) -> Diagnosis:
        if self.verdict.cause is Cause.UNSUPPORTED_OUTPUT:
            return self._told(None, [Cut(Cause.UNSUPPORTED_OUTPUT, None, "")])
        if _is_closed(self.model, self.layer):
            return self._told(None, [Cut(Cause.HOOK_BYPASSED, None, "")])
        frames = self._ran_without_hooks()
        if frames is None:
            return self._told(None, [Cut(Cause.LAYER_NOT_CALLED, None, "")])
        return self._told(None, [Cut(Cause.HOOK_BYPASSED, evidence.locate(frames, self.layer), "forward")])

    def _none(self, run: _Run) -> Diagnosis:
        if self.verdict.cause is not None:
            return self._refused(run)
        cuts, bridges = self._cross(run)
        if not cuts:
            cuts = self._departure(run)
        if cuts:
            return self._told(run, _as_cuts(cuts), through=cuts[0], bridges=bridges)
        cause = Cause.LEFT_TORCH if self._moves_score(run) else Cause.NOT_ON_PATH
        return self._told(run, [Cut(cause, None, "")])

    def _cross(self, run: _Run) -> tuple[list[Step], frozenset[int]]:
        """Cross one cut after the other. See Note [Blame is shown, not guessed].

        Returns:
            The steps to blame, in forward order, and the numbers of the calls that were crossed; none where the
            gradient did not arrive.
        """
        cuts: list[Step] = []
        bridges: frozenset[int] = frozenset()
        for _ in range(_PATIENCE):
            end = run.evidence.end
            alive = end is not None and end.alive
            new = evidence.stopped_by(run.evidence, _any) if alive else evidence.lost_by(run.evidence)
            cuts = sorted([*cuts, *new], key=lambda step: step.index)
            events = frozenset(step.event for step in new if step.event is not None) - bridges
            if not events:
                break
            bridges |= events
            run = self._run(bridges=bridges)
            if run.gradient is not None:
                return [step for step in cuts if step.event in bridges], bridges
        # What is left may be a road out of torch, behind the cuts that were crossed.
        return cuts + (self._departure(run) if cuts and run.evidence.end is None else []), frozenset()

    def _departure(self, run: _Run) -> list[Step]:
        """The first value that left torch and that the score depends on, and the cuts before it."""
        for step in run.evidence.trace.departures[:_PATIENCE]:
            if self._moves_score(run, departure=step.index):
                return [*evidence.lost_by(run.evidence, step.uses), step]
        return []

    def _refused(self, run: _Run) -> Diagnosis:
        """Torch would not go backward."""
        if self.verdict.cause is not None and self.verdict.cause is not Cause.INPLACE_MODIFIED:
            return self._told(run, [Cut(self.verdict.cause, None, "")], note=self.verdict.detail)
        steps = run.evidence.trace.steps
        for address, saved_by in run.evidence.trace.saved:
            for step in steps[saved_by + 1 :]:
                if address in step.written:
                    cut = evidence.cut_at(step, Cause.INPLACE_MODIFIED)
                    return self._told(run, [cut], through=step)
        return self._told(run, [Cut(Cause.INPLACE_MODIFIED, None, "")], note=self.verdict.detail)

    def _zero(self, run: _Run) -> Diagnosis:
        crossable = [
            s for s in evidence.ancestors(run.evidence) if s.event is not None and any(u.alive for u in s.uses)
        ]
        attempts = [[step] for step in crossable[:_PATIENCE]] + ([crossable] if len(crossable) > 1 else [])
        for steps in attempts:
            bridges = frozenset(step.event for step in steps if step.event is not None)
            if _reaches(self._run(bridges=bridges).gradient, self.verdict.null_probes):
                return self._told(run, _as_cuts(steps), through=steps[0], bridges=bridges)
        stops = evidence.stopped_by(run.evidence, lambda flow: flow.reaches)
        cuts = [evidence.cut_at(step, Cause.ZERO_GRADIENT) for step in stops] or [Cut(Cause.ZERO_GRADIENT, None, "")]
        return self._told(run, cuts, through=stops[0] if stops else None)

    def _non_finite(self, run: _Run) -> Diagnosis:
        step = evidence.first_not_finite(run.evidence.trace)
        if step is not None and step.index == 0:
            run = self._run(from_inputs=True)
            step = evidence.first_not_finite(run.evidence.trace)
            if step is not None and step.index == 0:
                return self._told(run, [Cut(Cause.NON_FINITE, None, "")], note="The images themselves are not finite.")
        step = step or evidence.first_spoilt(run.evidence)
        if step is None:
            return self._told(run, [Cut(Cause.NON_FINITE, None, "")])
        note = _bad_parameters(self.model, step.module)
        return self._told(run, [evidence.cut_at(step, Cause.NON_FINITE)], through=step, note=note)

    # Experiments

    def _run(
        self, *, bridges: frozenset[int] = frozenset(), departure: int | None = None, from_inputs: bool = False
    ) -> _Run:
        """One traced pass."""
        with isolated(self.model):
            inputs = explain.prepared(self.inputs, self.model)
            found = layers.find_layers(self.model, [self.layer])
            tracer = Tracer(bridged=bridges, disturbed=departure)
            if from_inputs:
                tracer.begin(inputs)
            with explain.forward_pass(self.model, inputs, found, self.output, tracer) as (logits, recordings):
                end = tracer.use_of(logits)
                scores, _ = explain.choose_scores(logits, self.target)
                taken = gradients.differentiate(scores, recordings, keep_graph=True)[self.layer]
                flows = {} if taken.failure else _flows(scores, tracer.trace.steps, end, self.verdict.null_probes)
                return _Run(Evidence(tracer.trace, end, flows), scores.detach(), taken.gradient, taken.failure)

    def _moves_score(self, run: _Run, departure: int | None = None) -> bool:
        """Whether the scores change when a departure is disturbed, or, without one, the layer's output itself."""
        hooks = [] if departure is not None else [_disturb(self.model.get_submodule(self.layer))]
        try:
            changed = self._run(departure=departure).scores
        except Exception:  # a disturbed value may be an index out of range: it is looked at, then
            return True
        finally:
            for hook in hooks:
                hook.remove()
        return not torch.equal(changed, run.scores)

    def _ran_without_hooks(self) -> tuple[Frame, ...] | None:
        """The lines that ran the layer's `forward` past its hooks; None if nothing did."""
        with isolated(self.model):
            layer = layers.find_layers(self.model, [self.layer])[self.layer]
            witness = Witness(layer)
            with witness:
                explain.call_model(self.model, explain.prepared(self.inputs, self.model))
        return witness.frames

    # Words

    def _told(
        self,
        run: _Run | None,
        cuts: Sequence[Cut],
        *,
        through: Step | None = None,
        bridges: frozenset[int] = frozenset(),
        note: str = "",
    ) -> Diagnosis:
        cause = cuts[0].cause if cuts else None
        trace = None if run is None else run.evidence.trace
        return Diagnosis(
            layer=self.layer,
            cause=cause,
            location=cuts[0].location if cuts else None,
            probes=self.verdict.null_probes,
            path=() if run is None else evidence.path_through(run.evidence, through),
            rescued=self._rescued(trace),
            message=wording.message(self.layer, self.verdict, cuts, note),
            remedy=wording.advice(cuts[0]) if cuts else "",
            cuts=tuple(cuts),
            bridges=bridges,
        )

    def _rescued(self, trace: Trace | None) -> tuple[Cause, ...]:
        if trace is None:
            return self.context.modes
        begun_in = () if trace.begun_in is None else (trace.begun_in,)
        frozen = bool(trace.modules) and self.context.frozen.issuperset(trace.modules)
        unneeded = frozen and not self.inputs.requires_grad
        return tuple(dict.fromkeys((*((Cause.FROZEN,) if unneeded else ()), *self.context.modes, *begun_in)))


def _flows(
    scores: Tensor, steps: Sequence[Step], end: Use | None, probes: Sequence[int]
) -> dict[tuple[int, int], Flow]:
    """The gradient of the sum of the scores at each use of a tensor, and whether it reaches any of the probes there."""
    places = [((step.index, position), use) for step in steps for position, use in enumerate(step.uses)]
    places += [] if end is None else [((END, 0), end)]
    alive = [(place, use.edge) for place, use in places if use.edge is not None]
    if not alive or not scores.requires_grad:
        return {}
    taken = torch.autograd.grad(scores.sum(), [edge for _, edge in alive], allow_unused=True)
    flows = {}
    for (place, _), gradient in zip(alive, taken, strict=True):
        if gradient is not None:
            norm = float(torch.linalg.vector_norm(gradient.double()))
            own = gradient[list(probes)] if gradient.shape[:1] == scores.shape and probes else gradient
            flows[place] = Flow(norm, bool((own != 0).any()), bool(gradient.isfinite().all()))
    return flows


def _any(_flow: Flow) -> bool:
    return True


def _reaches(gradient: Tensor | None, probes: Sequence[int]) -> bool:
    return gradient is not None and bool((gradient[list(probes)] != 0).any())


def _as_cuts(steps: Sequence[Step]) -> list[Cut]:
    """The steps as cuts; a `detach` on the very line where the value leaves torch is a part of leaving it."""
    cuts = [evidence.cut_at(step) for step in steps]
    lines = {(cut.location.file, cut.location.line) for cut in cuts if cut.cause is Cause.LEFT_TORCH and cut.location}
    return [
        cut
        for cut in cuts
        if cut.cause is Cause.LEFT_TORCH or cut.location is None or (cut.location.file, cut.location.line) not in lines
    ]


def _is_closed(model: nn.Module, layer: str) -> bool:
    """Whether the layer is inside a scripted or traced module, which runs no hooks of its parts."""
    parents = [layer.rpartition(".")[0]]
    while parents[-1]:
        parents.append(parents[-1].rpartition(".")[0])
    modules = dict(model.named_modules())
    return any(isinstance(modules.get(parent), torch.jit.ScriptModule) for parent in parents)


def _disturb(layer: nn.Module) -> RemovableHandle:
    def hook(_module: nn.Module, _args: Any, output: Any) -> Any:
        activation = layers.find_activation(output)
        return None if activation is None else gradients.replaced(output, activation, disturbed(activation))

    return layer.register_forward_hook(hook)


def _bad_parameters(model: nn.Module, module: str) -> str:
    own = dict(model.named_modules()).get(module, model).named_parameters(recurse=False)
    bad = [name for name, parameter in own if not bool(parameter.isfinite().all())]
    return f"Its own {' and '.join(bad)} hold NaN or infinity" if bad else ""


def of_failed_forward(layer: str, error: Exception, probes: int) -> Diagnosis:
    """The model raised: there is nothing to trace, and the traceback says where."""
    frames = [
        Frame(frame.f_code.co_filename, line, frame.f_code.co_name)
        for frame, line in traceback.walk_tb(error.__traceback__)
    ]
    names = [frame.function for frame in frames]
    inner = frames[names.index(explain.call_model.__name__) + 1 :]
    location = evidence.locate(reversed(inner), "")
    cut = Cut(Cause.FORWARD_FAILED, location, "")
    where = "" if location is None else f" at {location}: `{location.code}`"
    return Diagnosis(
        layer=layer,
        cause=Cause.FORWARD_FAILED,
        location=location,
        probes=tuple(range(probes)),
        path=(),
        rescued=(),
        message=f"The model raised {type(error).__name__}{where}: {error}",
        remedy=wording.advice(cut),
        cuts=(cut,),
    )
