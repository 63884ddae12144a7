"""Corridor: why, and where. A second forward pass, traced, run only when health says so.

Note [Blame is shown, not guessed]

A network is full of `detach`, `item` and comparisons that do no harm. So none is blamed for being there:

- What is lost on the way to the score is found by going back from the score (`evidence`).
- A cut that can be crossed is crossed. The next one on the same road is found in the next pass, until the gradient
  arrives; these cuts together are the cause, and the same calls are crossed again to draw the map.
- A value that left torch is blamed if the score changes when that value is disturbed.
"""

from __future__ import annotations

import itertools
import traceback
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge
from torch.jit._trace import TracedModule
from torch.utils.hooks import RemovableHandle

from gradcam_callback.causes import Cause
from gradcam_callback.diagnosis import messages as wording
from gradcam_callback.diagnosis import search as evidence
from gradcam_callback.diagnosis.search import END, Evidence, Flow
from gradcam_callback.diagnosis.trace import Frame, Step, Trace, Use, frame_of
from gradcam_callback.diagnosis.tracer import ATTEMPTS, ForwardCallDetector, Tracer, disturbed, plain_name
from gradcam_callback.engine import explain, gradients, health, layers
from gradcam_callback.engine.memory import is_out_of_memory
from gradcam_callback.engine.process_state import inference_as_no_grad
from gradcam_callback.engine.replica import Replica, run_in_replica
from gradcam_callback.engine.targets import OutputSpec
from gradcam_callback.results import Cut, Diagnosis, GradientState, LayerHealth, Target, split_call

# How many cuts in a row are crossed, and how many departures are tried, before the search is given up.
_PATIENCE = 16

# What puts tensors side by side: where a gradient gets this far and not to the layer, the score looks at other parts.
_JOINING = {"cat", "concat", "concatenate", "stack", "hstack", "vstack", "dstack", "column_stack", "nn.functional.pad"}
# What chooses between tensors, sample by sample or pixel by pixel.
_CHOOSING = {"where", "Tensor.where", "Tensor.__setitem__", "Tensor.copy_", "Tensor.index_copy", "Tensor.index_copy_"}
_CHOOSING |= {"Tensor.index_put", "Tensor.index_put_", "Tensor.masked_scatter", "Tensor.masked_scatter_", "index_copy"}
_CHOOSING |= {"Tensor.scatter", "Tensor.scatter_", "scatter", "masked_scatter", "index_put"}
# A gradient in half precision below this may become zero by the next factor, whatever that is: 2^-24 is the smallest.
_TINY = 2.0**-10
# As in `gradients`, so that the way shows what the gradient met.
_HALF_PRECISION_SCALE = 1024.0
_UNDERFLOW = (
    "It is computed in half precision, in which a gradient this small becomes zero; float32 or bfloat16 keep it."
)
_UNKNOWN = "By which line is not known: no torch function was seen to do it."


def diagnose(
    model: nn.Module, inputs: Tensor, target_layer: str, *, target: Target = "predicted", output: OutputSpec = None
) -> Diagnosis:
    """Find out why samples have no usable gradient at a layer, and where it ends.

    It asks nothing of the caller and leaves the model as it found it, like `compute_cam`.

    Args:
        model: Any module that maps images to logits.
        inputs: `(N, C, H, W)`, as the model takes them.
        target_layer: The dotted name of the layer, with the number of a call if it is about that one, as for
            `compute_cam`.
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
    if _is_closed(model, layer):
        missing = health.missing(None, explain.prepared(inputs, model), Cause.HOOK_BYPASSED)
        verdict = health.judge({layer: missing})[layer]
        return _Investigation(model, inputs, layer, target, output, context, verdict).conclude()
    try:
        [result] = explain.explain(model, inputs, [layer], wanted=[target], output=output)
    except Exception as error:
        if not explain.raised_by_model(error) or is_out_of_memory(error):
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
        own = {name: list(module.parameters(recurse=False)) for name, module in _named_modules(model).items()}
        frozen = (name for name, parameters in own.items() if not any(p.requires_grad for p in parameters))
        return cls(modes, frozenset(frozen))


@dataclass(frozen=True)
class _Run:
    """What one traced pass gave.

    Attributes:
        evidence: How the pass went.
        scores: `(N,)`.
        gradient: As of `gradients.differentiate`.
        unpassable: The step that torch could not go backward through, if there is one.
    """

    evidence: Evidence
    scores: Tensor
    gradient: Tensor | None
    unpassable: Step | None

    def reaches(self, probes: Sequence[int]) -> bool:
        """Whether a gradient arrives for any of the probes, and is other than zero."""
        return self.gradient is not None and bool((self.gradient[list(probes)] != 0).any())


@dataclass(frozen=True)
class _Blame:
    """A step that is to blame, and for what."""

    step: Step
    cause: Cause

    @property
    def cut(self) -> Cut:
        return Cut(self.cause, evidence.locate(self.step.frames, self.step.module), self.step.operation)


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
        if self.verdict.cause in (Cause.LAYER_NOT_CALLED, Cause.UNSUPPORTED_OUTPUT, Cause.HOOK_BYPASSED):
            return self._layer_itself(self.verdict.cause)
        run = self._run()
        states = self.verdict.state
        if GradientState.NONE in states:
            return self._none(run)
        if GradientState.NON_FINITE in states:
            return self._non_finite(run)
        if GradientState.ZERO in states:
            return self._zero(run)
        return self._told(run, [])

    @property
    def _call(self) -> int | None:
        """The number of the call that was chosen, counted from 0."""
        return None if split_call(self.layer)[1] is None else self.verdict.call

    # What can be wrong

    def _layer_itself(self, cause: Cause) -> Diagnosis:
        never = cause is Cause.LAYER_NOT_CALLED and self.verdict.calls == 0
        frames = self._ran_without_hooks() if never else None
        if frames is None:
            return self._told(None, [Cut(cause, None, "")])
        location = evidence.locate(*frames)
        return self._told(None, [Cut(Cause.HOOK_BYPASSED, location, "forward")])

    def _none(self, run: _Run) -> Diagnosis:
        if self.verdict.cause is not None:
            return self._refused(run, self.verdict.cause)
        blames, bridges = self._cross(run, evidence.blocked_at(run.evidence))
        seen = [blame for blame in blames if blame.step.frames]
        if len(seen) < len(blames) or not blames:  # a way out of torch, and in again, looks like a step without a call
            blames = self._departure(run) or seen or blames
        if not blames:
            blames, bridges = self._hidden(run)
        if blames:
            return self._blamed(run, blames, bridges=bridges)
        if run.reaches(self.verdict.null_probes):  # what the tracer does for every block, the wall does not
            return self._told(run, [Cut(run.evidence.trace.begun_in or Cause.INFERENCE_MODE, None, "")])
        cause = Cause.LEFT_TORCH if self._moves_score(run) else Cause.NOT_ON_PATH
        return self._told(run, [Cut(cause, None, "")], note=_UNKNOWN if cause is Cause.LEFT_TORCH else "")

    def _cross(self, run: _Run, first: Sequence[Step]) -> tuple[list[_Blame], frozenset[int]]:
        """Cross one cut after the other. See Note [Blame is shown, not guessed].

        Args:
            run: Without bridges.
            first: Where to begin.

        Returns:
            What is to blame; and the numbers of the calls that were crossed, none if that did not help.
        """
        side_roads = {step.event for step in evidence.beside(run.evidence)} - {step.event for step in first}
        steps, new, bridges = list(first), list(first), frozenset[int]()
        for _ in range(_PATIENCE):
            events = frozenset(step.event for step in new if step.event is not None)
            if not events:
                break
            bridges |= events
            run = self._run(bridges=bridges)
            if run.reaches(self.verdict.null_probes):
                return _blames(step for step in steps if step.event in bridges), bridges
            behind = evidence.blocked_at(run.evidence) if run.gradient is None else evidence.beside(run.evidence)
            new = [step for step in behind if step.event not in bridges | side_roads]
            steps += new
        blames = _blames(steps)
        if run.gradient is not None and bridges:
            blames += self._zeros(run)
        elif run.evidence.end is None and bridges:  # behind the cuts that were crossed, the road leaves torch
            blames += self._departure(run)
        return blames, frozenset()

    def _hidden(self, run: _Run) -> tuple[list[_Blame], frozenset[int]]:
        """Where the way from a cut on cannot be seen (scripted code, say): a cut that helps when it is crossed."""
        trace = run.evidence.trace
        for step in _crossable([*(step for step in trace.steps if any(use.alive for use in step.uses)), *trace.blocks]):
            bridges = frozenset({step.event or 0})
            if self._run(bridges=bridges).reaches(self.verdict.null_probes):
                return _blames([step]), bridges
        return [], frozenset()

    def _departure(self, run: _Run) -> list[_Blame]:
        """The first line at which values left torch that the score depends on, and the cuts before it."""
        lines: dict[object, dict[int, Step]] = {}
        for number, step in run.evidence.trace.departures:
            lines.setdefault((step.frames[:1], step.operation), {})[number] = step
        for departures in list(lines.values())[:_PATIENCE]:
            if self._moves_score(run, departures):
                step = next(iter(departures.values()))
                return _blames([*evidence.lost_by(run.evidence, step.uses), step])
        return []

    def _refused(self, run: _Run, cause: Cause) -> Diagnosis:
        """Torch would not go backward."""
        steps = [] if run.unpassable is None else [run.unpassable]
        if cause is Cause.INPLACE_MODIFIED:
            trace = self._run(noting_saved=True).evidence.trace
            writers = (
                next((step for step in trace.steps[saved_by + 1 :] if address in step.written), None)
                for address, saved_by in trace.spoilt
            )
            steps = [step for step in writers if step is not None]
        note = self.verdict.detail if cause is Cause.INFERENCE_MODE else f"Torch says: {self.verdict.detail}"
        if not steps:
            return self._told(run, [Cut(cause, None, "")], note=note)
        note = "" if cause is Cause.INPLACE_MODIFIED else note
        return self._blamed(run, [_Blame(step, cause) for step in steps], note=note)

    def _zero(self, run: _Run) -> Diagnosis:
        crossed: list[_Blame] = []
        bridges: frozenset[int] = frozenset()
        listening = [step for step in evidence.ancestors(run.evidence) if step.operation.endswith("register_hook")]
        for step in _crossable([*evidence.beside(run.evidence), *listening]):
            blames, needed = self._cross(run, [step])
            crossed += blames if needed else []
            bridges |= needed
        heard = any(blame.step in listening for blame in crossed)
        routed = crossed and (heard or len(self.verdict.null_probes) < len(self.verdict.state))
        behind = {blame.step.index for blame in crossed}
        zeros = [
            blame
            for blame in ([] if routed else self._zeros(run))
            if behind.isdisjoint(step.index for step in evidence.ancestors(run.evidence, blame.step.index))
        ]
        if not zeros and not crossed:
            return self._told(run, [Cut(Cause.ZERO_GRADIENT, None, "")])
        underflow = any(evidence.entered_tiny(run.evidence, blame.step) for blame in zeros)
        note = _UNDERFLOW if underflow else ""
        return self._blamed(run, [*zeros, *crossed], bridges=bridges, note=note)

    def _zeros(self, run: _Run) -> list[_Blame]:
        """What makes the gradient zero; where samples are put together from several roads, the end of their road."""
        blames = []
        for step in evidence.stopped_by(run.evidence, lambda flow: flow.reaches):
            joined = step.operation in _JOINING
            roads = [use for use in step.uses if use.floating] if joined or step.operation in _CHOOSING else []
            lost = _blames(evidence.lost_by(run.evidence, roads))
            lost = lost or (self._departure(run) if roads else [])
            blames += lost or [_Blame(step, Cause.NOT_ON_PATH if joined else Cause.ZERO_GRADIENT)]
        return blames

    def _non_finite(self, run: _Run) -> Diagnosis:
        trace = run.evidence.trace
        if trace.steps and not trace.steps[0].finite:
            trace = self._run(from_inputs=True).evidence.trace
            if not trace.steps[0].finite:
                return self._told(run, [Cut(Cause.NON_FINITE, None, "")], note="The images themselves are not finite.")
            step = evidence.spoilt_before(trace)
        else:
            step = evidence.spoilt_at(run.evidence) or evidence.spoilt_in_backward(run.evidence)
        if step is None:
            return self._told(run, [Cut(Cause.NON_FINITE, None, "")])
        return self._blamed(run, [_Blame(step, Cause.NON_FINITE)], note=_bad_values(self.model, step.module))

    # Experiments

    def _run(
        self,
        *,
        bridges: frozenset[int] = frozenset(),
        disturb: Mapping[int, Callable[[Tensor], Tensor]] | None = None,
        from_inputs: bool = False,
        noting_saved: bool = False,
        change: Callable[[Tensor], Tensor] | None = None,
    ) -> _Run:
        """One traced pass."""

        def job(replica: Replica) -> _Run:
            model = replica.model
            inputs = explain.prepared(self.inputs, model)
            found = layers.find_layers(model, [self.layer])
            if change is not None:
                _disturb(found[self.layer], change, self._call)
            tracer = Tracer(bridged=bridges, disturb=disturb, noting_saved=noting_saved, from_inputs=from_inputs)
            calls = {self.layer: self._call}
            with explain.forward_pass(model, inputs, found, self.output, tracer, calls) as (logits, recordings):
                end = tracer.use_of(logits)
                scores, _ = explain.choose_scores(logits, self.target)
                taken = gradients.differentiate(scores, recordings, keep_graph=True)[self.layer]
                nulls = list(self.verdict.null_probes) or slice(None)
                places = _places(tracer.trace.steps, end)
                flows = {} if taken.failure else _flows(scores[nulls], places)
                unpassable = _unpassable(scores, tracer.trace.steps) if taken.failure else None
                return _Run(Evidence(tracer.trace, end, flows), scores.detach(), taken.gradient, unpassable)

        return run_in_replica(self.model, job)

    def _moves_score(self, run: _Run, departures: Collection[int] = ()) -> bool:
        """Whether the null probes' scores change when departures are disturbed, or, without any, the layer's output."""
        for attempt in ATTEMPTS:
            change = partial(disturbed, attempt=attempt)
            try:
                changed = self._run(
                    disturb=dict.fromkeys(departures, change), change=None if departures else change
                ).scores
            except Exception:  # not a possible value (an index out of range), or one that the model refuses
                continue
            nulls = list(self.verdict.null_probes)
            if not torch.allclose(changed[nulls], run.scores[nulls], rtol=0, atol=0, equal_nan=True):
                return True
        return False

    def _ran_without_hooks(self) -> tuple[tuple[Frame, ...], str] | None:
        """The lines that ran the layer's `forward` past its hooks, and the module they belong to; None if none did."""

        def job(replica: Replica) -> tuple[tuple[Frame, ...], str] | None:
            layer = layers.find_layers(replica.model, [self.layer])[self.layer]
            witness = ForwardCallDetector(layer)
            with witness, inference_as_no_grad():
                explain.call_model(replica.model, explain.prepared(self.inputs, replica.model))
            return None if witness.frames is None else (witness.frames, _module_of(witness.frames, replica.model))

        return run_in_replica(self.model, job)

    # Words

    def _blamed(
        self, run: _Run, blames: Sequence[_Blame], *, bridges: frozenset[int] = frozenset(), note: str = ""
    ) -> Diagnosis:
        """The diagnosis, where steps are to blame: in forward order, each place once."""
        ordered = sorted(blames, key=lambda blame: blame.step.index)
        leaving = {_line(blame) for blame in ordered if blame.cause is Cause.LEFT_TORCH}
        cuts = [
            Cut(blame.cause, None, "") if blame.cause is Cause.NOT_ON_PATH or note is _UNDERFLOW else blame.cut
            for blame in ordered
            # A `detach` on the very line where the value leaves torch is a part of leaving it.
            if blame.cause is Cause.LEFT_TORCH or _line(blame) is None or _line(blame) not in leaving
        ]
        once = list({(cut.cause, cut.location and str(cut.location)): cut for cut in reversed(cuts)}.values())[::-1]
        # A way that ends before the score is shown up to its end.
        through = ordered[0 if run.evidence.end else -1].step
        return self._told(run, once, through=through, bridges=bridges, note=note)

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


def _blames(steps: Iterable[Step]) -> list[_Blame]:
    """Each step for what it is by nature; of a block, the first operation that is lost in it."""
    ordered = sorted(steps, key=lambda step: step.index)
    first = {step.event: step for step in reversed(ordered) if step.event is not None}
    kept = [step for step in ordered if step.event is None or step is first[step.event]]
    return [_Blame(step, step.nature or _default_cause(step)) for step in kept]


def _default_cause(step: Step) -> Cause:
    return Cause.ZERO_GRADIENT if step.operation.endswith("register_hook") else Cause.NON_DIFFERENTIABLE


def _crossable(steps: Iterable[Step]) -> list[Step]:
    """The first step of each call that can be crossed; not more than are tried."""
    first = {step.event: step for step in sorted(steps, key=lambda step: -step.index) if step.event is not None}
    return sorted(first.values(), key=lambda step: step.index)[:_PATIENCE]


def _line(blame: _Blame) -> str | None:
    location = blame.cut.location
    return None if location is None else str(location)


_Place = tuple[tuple[int, int], GradientEdge]


def _places(steps: Sequence[Step], end: Use | None) -> list[_Place]:
    """Where a gradient can be asked for: each use of a tensor that carries one, and the logits."""
    uses = [((step.index, position), use) for step in steps for position, use in enumerate(step.uses)]
    uses += [] if end is None else [((END, 0), end)]
    return [(place, use.edge) for place, use in uses if use.edge is not None]


def _flows(scores: Tensor, places: Sequence[_Place]) -> dict[tuple[int, int], Flow]:
    """The gradient of the sum of the scores at each place."""
    if not places or not scores.requires_grad:
        return {}
    half = scores.dtype == torch.float16
    scale = _HALF_PRECISION_SCALE if half else 1.0
    weight = torch.full_like(scores, scale)
    taken = torch.autograd.grad(scores, [edge for _, edge in places], weight, retain_graph=True, allow_unused=True)
    flows = {}
    for (place, _), gradient in zip(places, taken, strict=True):
        if gradient is not None:
            values = gradient.detach().double()
            tiny = gradient.dtype == torch.float16 and bool(values.abs().amax() < _TINY)
            norm = float(torch.linalg.vector_norm(values)) / scale
            flows[place] = Flow(norm, bool(gradient.isfinite().all()), tiny)
    return flows


def _unpassable(scores: Tensor, steps: Sequence[Step]) -> Step | None:
    """The last step that the gradient comes to and torch cannot go backward through."""
    for step in reversed(steps):
        try:
            _flows(scores, _places([step], None))
        except Exception:  # whatever a custom function raises
            return step
    return None


def _named_modules(model: nn.Module) -> dict[str, nn.Module]:
    """All modules by the names that people know them by."""
    return {plain_name(name): module for name, module in model.named_modules()}


def _is_closed(model: nn.Module, layer: str) -> bool:
    """Whether the layer is scripted or inside a scripted or traced module, which runs no hooks of its parts."""
    modules = _named_modules(model)
    layer, _ = split_call(layer)
    parts = layer.split(".")
    parents = [modules.get(".".join(parts[:count])) for count in range(len(parts))]
    own = modules.get(layer)
    scripted = isinstance(own, torch.jit.ScriptModule) and not isinstance(own, TracedModule)
    return scripted or any(isinstance(parent, torch.jit.ScriptModule) for parent in parents)


def _disturb(layer: nn.Module, change: Callable[[Tensor], Tensor], call: int | None) -> RemovableHandle:
    """Change what the layer returns, at one call or at every one."""
    calls = itertools.count()

    def hook(_module: nn.Module, _args: Any, output: Any) -> Any:
        activation, number = layers.find_activation(output), next(calls)
        if activation is None or call not in (None, number):
            return None
        return gradients.replaced(output, activation, change(activation))

    # Before the user's hooks, which may be where the activation goes on from.
    return layer.register_forward_hook(hook, prepend=True)


def _bad_values(model: nn.Module, module: str) -> str:
    """What of a module's own weights and statistics is not finite, in a sentence."""
    own = _named_modules(model).get(module, model)
    held = (*own.named_parameters(recurse=False), *own.named_buffers(recurse=False))
    bad = [name for name, tensor in held if not bool(tensor.isfinite().all())]
    return f"NaN or infinity is in its own {' and '.join(bad)}" if bad else ""


def _module_of(frames: Sequence[Frame], model: nn.Module) -> str:
    """The dotted name of the innermost module that these lines were run by; "" if it is the model itself."""
    names = {id(module): name for name, module in _named_modules(model).items()}
    return next((names[frame.module] for frame in frames if frame.module in names), "")


def of_failed_forward(layer: str, error: Exception, probes: int) -> Diagnosis:
    """The model raised: there is nothing to trace, and the traceback says where."""
    raw = list(traceback.walk_tb(error.__traceback__))
    call = [frame.f_code for frame, _ in raw].index(explain.call_model.__code__)
    frames = [frame_of(frame, line) for frame, line in reversed(raw[call + 1 :])]
    location = evidence.locate(frames, _module_of(frames, raw[call][0].f_locals["model"]))
    cut = Cut(Cause.FORWARD_FAILED, location, "")
    where = "" if location is None else f" at {location}: `{location.code}`"
    return Diagnosis(
        layer=layer,
        cause=Cause.FORWARD_FAILED,
        location=location,
        probes=tuple(range(probes)),
        path=(),
        rescued=(),
        message=f"The model raised {type(error).__name__}{where}: {str(error).rstrip('.')}.",
        remedy=wording.advice(cut),
        cuts=(cut,),
    )
