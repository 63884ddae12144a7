"""Traced forward passes of the model under diagnosis. All that runs the model is here."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge
from torch.utils.hooks import RemovableHandle

from gradcam_callback.diagnosis.search import END, Evidence, GradientStats
from gradcam_callback.diagnosis.source import Frame, module_of
from gradcam_callback.diagnosis.torch_calls import ATTEMPTS, perturbed
from gradcam_callback.diagnosis.trace import Step, Use
from gradcam_callback.diagnosis.tracer import Tracer
from gradcam_callback.diagnosis.watchers import ForwardCallDetector
from gradcam_callback.engine import capture, forward, gradients, layers
from gradcam_callback.engine.inputs import ModelInputs
from gradcam_callback.engine.layouts import Layout, floating_tensors
from gradcam_callback.engine.process_state import inference_as_no_grad
from gradcam_callback.engine.replica import Replica, ReplicaOptions, run_in_replica
from gradcam_callback.engine.targets import OutputSpec, Target

# A gradient in half precision below this may become zero by the next factor, whatever that is: 2^-24 is the smallest.
_TINY = 2.0**-10
# As in `gradients`, so that the way shows what the gradient met.
_HALF_PRECISION_SCALE = 1024.0

_Change = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class TracedPass:
    """What one traced pass gave.

    Attributes:
        evidence: How the pass went.
        scores: `(N,)`.
        gradient: As of `gradients.differentiate`.
        no_backward: The step that torch could not go backward through, if there is one.
    """

    evidence: Evidence
    scores: Tensor
    gradient: Tensor | None
    no_backward: Step | None

    def reaches(self, probes: Sequence[int]) -> bool:
        """Whether a gradient arrives for any of the probes, and is other than zero."""
        return self.gradient is not None and bool((self.gradient[list(probes)] != 0).any())


@dataclass(frozen=True)
class Subject:
    """One layer of a model, and the score that its gradient is of.

    Attributes:
        model: Any module that maps images to logits.
        inputs: What the model gets.
        layer: Its dotted name.
        target: As for `compute_cam`.
        output: As for `compute_cam`.
        call: The number of the call that was chosen, from 0; None where none was.
        layout: How what the layer returns lies in space.
        nulls: The probes without a usable gradient.
        options: How the replica of the model is made.
    """

    model: nn.Module
    inputs: ModelInputs
    layer: str
    target: Target
    output: OutputSpec
    call: int | None
    layout: Layout
    nulls: tuple[int, ...]
    options: ReplicaOptions

    def trace(
        self,
        *,
        bridges: frozenset[int] = frozenset(),
        perturb: Mapping[int, _Change] | None = None,
        perturb_layer: _Change | None = None,
        from_inputs: bool = False,
        check_saved: bool = False,
    ) -> TracedPass:
        """One traced pass; the options are those of `Tracer`, and a change of what the layer returns."""
        tracer = partial(Tracer, bridged=bridges, perturb=perturb, check_saved=check_saved, from_inputs=from_inputs)
        return run_in_replica(self.model, lambda replica: self._trace(replica, tracer(), perturb_layer), self.options)

    def _trace(self, replica: Replica, tracer: Tracer, perturb_layer: _Change | None) -> TracedPass:
        inputs = forward.prepared(self.inputs, replica.model)
        found = layers.find_layers(replica.model, [self.layer])
        calls, read = {self.layer: self.call}, partial(self.target.read, output=self.output, inputs=inputs.apart)
        with ExitStack() as stack:
            if perturb_layer is not None:
                stack.callback(self._perturb(found[self.layer], perturb_layer).remove)
            layouts = {self.layer: self.layout}
            traced = forward.forward_pass(replica.model, inputs, found, read, tracer, calls, layouts)
            taken_out, recordings = stack.enter_context(traced)
            end = next((use for tensor in floating_tensors(taken_out) if (use := tracer.use_of(tensor))), None)
            scores = self.target.score(taken_out).values
            taken = gradients.differentiate(scores, recordings, keep_graph=True)[self.layer]
            steps = tracer.trace.steps
            nulls = list(self.nulls) or slice(None)
            stats = {} if taken.failure else _gradients(scores[nulls], _places(steps, end))
            no_backward = _last_without_backward(scores, steps) if taken.failure else None
            return TracedPass(Evidence(tracer.trace, end, stats), scores.detach(), taken.gradient, no_backward)

    def _perturb(self, layer: nn.Module, change: _Change) -> RemovableHandle:
        """Change what the layer returns, at the call or at every one."""
        calls = itertools.count()

        def hook(_module: nn.Module, _args: Any, output: Any) -> Any:
            activation, number = self.layout.find_activation(output), next(calls)
            if activation is None or self.call not in (None, number):
                return None
            return capture.replaced(output, activation, change(activation))

        # Before the user's hooks, which may be where the activation goes on from.
        return layer.register_forward_hook(hook, prepend=True)

    def score_depends_on(self, exits: Collection[int], plain: TracedPass) -> bool:
        """Whether the null probes' scores change when torch exits are perturbed, or, without any, the layer's output.

        Args:
            exits: The numbers of torch exits.
            plain: A pass in which nothing is perturbed.
        """
        nulls = list(self.nulls)
        for attempt in ATTEMPTS:
            change = partial(perturbed, attempt=attempt)
            try:
                run = self.trace(perturb=dict.fromkeys(exits, change), perturb_layer=None if exits else change)
            except Exception:  # not a possible value (an index out of range), or one that the model refuses
                continue
            if not torch.allclose(run.scores[nulls], plain.scores[nulls], rtol=0, atol=0, equal_nan=True):
                return True
        return False

    def find_direct_call(self) -> tuple[tuple[Frame, ...], str] | None:
        """The lines that ran the layer's `forward` past its hooks, and in which module; None if nothing did."""
        return run_in_replica(self.model, self._find_direct_call, self.options)

    def _find_direct_call(self, replica: Replica) -> tuple[tuple[Frame, ...], str] | None:
        detector = ForwardCallDetector(layers.find_layers(replica.model, [self.layer])[self.layer])
        with detector, inference_as_no_grad():
            forward.call_model(replica.model, forward.prepared(self.inputs, replica.model))
        frames = detector.frames
        return None if frames is None else (frames, module_of(frames, replica.model))


_Place = tuple[tuple[int, int], GradientEdge]


def _places(steps: Sequence[Step], end: Use | None) -> list[_Place]:
    """Where a gradient can be asked for: each use of a tensor that carries one, and the logits."""
    uses = [((step.index, position), use) for step in steps for position, use in enumerate(step.uses)]
    uses += [] if end is None else [((END, 0), end)]
    return [(place, use.edge) for place, use in uses if use.edge is not None]


def _gradients(scores: Tensor, places: Sequence[_Place]) -> dict[tuple[int, int], GradientStats]:
    """The gradient of the sum of the scores at each place."""
    if not places or not scores.requires_grad:
        return {}
    scale = _HALF_PRECISION_SCALE if scores.dtype == torch.float16 else 1.0
    weight = torch.full_like(scores, scale)
    taken = torch.autograd.grad(scores, [edge for _, edge in places], weight, retain_graph=True, allow_unused=True)
    stats = {}
    for (place, _), gradient in zip(places, taken, strict=True):
        if gradient is not None:
            values = gradient.detach().double()
            tiny = gradient.dtype == torch.float16 and bool(values.abs().amax() < _TINY)
            norm = float(torch.linalg.vector_norm(values)) / scale
            stats[place] = GradientStats(norm, bool(gradient.isfinite().all()), tiny)
    return stats


def _last_without_backward(scores: Tensor, steps: Sequence[Step]) -> Step | None:
    """The last step that the gradient comes to and torch cannot go backward through."""
    for step in reversed(steps):
        try:
            _gradients(scores, _places([step], None))
        except Exception:  # whatever a custom function raises
            return step
    return None
