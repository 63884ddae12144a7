"""From the trace of one forward pass to the steps that are to blame. It runs no model.

The steps of a trace form a graph: each step knows which earlier steps made the tensors that it used. All searches here
walk it from the score back to the layer, so that only what the score depends on is ever blamed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import dataclass

from gradcam_callback.causes import Cause
from gradcam_callback.diagnosis.trace import Step, Trace, Use

# The end of every path: what used the logits.
END = -1


@dataclass(frozen=True)
class GradientStats:
    """The gradient at one use of a tensor.

    Attributes:
        norm: L2.
        finite: Whether all of it is finite.
        tiny: Whether it is so small, in half precision, that the next factor may make it zero.
    """

    norm: float
    finite: bool
    tiny: bool

    @property
    def nonzero(self) -> bool:
        """Whether it is other than zero."""
        return self.norm != 0


@dataclass(frozen=True)
class Evidence:
    """A trace, how it ended, and the gradient at each use.

    Attributes:
        trace: The steps from the layer on.
        end: The logits; None if they do not depend on the layer through anything that torch did.
        gradients: `(step, position of the use)` to gradient, where there is one; `(END, 0)` is the logits.
    """

    trace: Trace
    end: Use | None
    gradients: Mapping[tuple[int, int], GradientStats]

    def uses(self, step: int) -> tuple[Use, ...]:
        """What a step used; of `END`, the logits."""
        if step == END:
            return () if self.end is None else (self.end,)
        return self.trace.steps[step].uses

    def gradient(self, step: int, position: int) -> GradientStats | None:
        """The gradient at a use; None where there is none."""
        return self.gradients.get((step, position))


def loss_steps(evidence: Evidence, start: Iterable[Use] | None = None) -> list[Step]:
    """The steps at which the gradient is lost: after them no tensor on the way to the score carries one.

    Args:
        evidence: Of a forward pass.
        start: Where to begin going back; None begins at the logits.

    Returns:
        In forward order. Empty if what is begun at is alive, or does not depend on the layer.
    """
    waiting = [use.producer for use in (evidence.uses(END) if start is None else start) if not use.alive]
    found: dict[int, Step] = {}
    seen = set()
    while waiting:
        index = waiting.pop()
        if index in seen or index == 0:
            continue
        seen.add(index)
        step = evidence.trace.steps[index]
        if any(use.alive for use in step.uses):
            first = _first_of_block(evidence, step)
            found[first.index] = first
        else:
            waiting += [use.producer for use in step.uses]
    return [found[index] for index in sorted(found)]


def _first_of_block(evidence: Evidence, step: Step) -> Step:
    """The first step on the way to this one that was lost in the same block; the step itself, if it is in none."""
    before = ancestors(evidence, step.index) if step.cut_id is not None else []
    return next((s for s in before if s.cut_id == step.cut_id and any(use.alive for use in s.uses)), step)


def gradient_sinks(evidence: Evidence, passes: Callable[[GradientStats], bool]) -> list[Step]:
    """The steps that a gradient enters from the score, and does not leave towards the layer.

    Args:
        evidence: Of a forward pass whose logits carry a gradient.
        passes: Whether a gradient counts as one, e.g. one that is not zero.

    Returns:
        In forward order, without those that all paths from the layer come to through another one: mending them alone
        would not help, and mending the other one does.
    """
    sinks = {}
    for index in _reached(evidence, passes):
        entries = _entries(evidence, index)
        if index != END and not any(_passes(evidence, entry, passes) for entry in entries):
            first = min([index, *(inner for inner, _, _ in entries)])
            sinks[first] = evidence.trace.steps[first]
    open_ones = [index for index in sorted(sinks) if _is_reachable(evidence, index, sinks.keys() - {index})]
    return [sinks[index] for index in open_ones or sorted(sinks)]


def _is_reachable(evidence: Evidence, step: int, without: Set[int]) -> bool:
    """Whether a path from the layer comes to a step past none of the others."""
    waiting = [use.producer for use in evidence.uses(step)]
    seen = set(without)
    while waiting:
        index = waiting.pop()
        if index == 0:
            return True
        if index not in seen:
            seen.add(index)
            waiting += [use.producer for use in evidence.uses(index)]
    return False


def blocking_steps(evidence: Evidence) -> list[Step]:
    """The steps to blame for a gradient that does not arrive at all, in forward order."""
    end = evidence.end
    if end is None or not end.alive:
        return loss_steps(evidence)
    found: dict[int, Step] = {}
    for sink in gradient_sinks(evidence, lambda _gradient: True):
        lost = loss_steps(evidence, [use for _, _, use in _entries(evidence, sink.index)])
        found |= {step.index: step for step in lost or [sink]}
    return [found[index] for index in sorted(found)]


def side_branch_losses(evidence: Evidence) -> list[Step]:
    """The steps at which a gradient that is not zero is lost on side branches, in forward order."""
    reached = _reached(evidence, lambda gradient: gradient.nonzero)
    return loss_steps(evidence, [use for index in reached for _, _, use in _entries(evidence, index)])


_Entry = tuple[int, int, Use]


def _reached(evidence: Evidence, passes: Callable[[GradientStats], bool]) -> list[int]:
    """Where a gradient comes to on its way back from the score, the layer left out."""
    waiting, seen = [END], [END]
    while waiting:
        for entry in _entries(evidence, waiting.pop()):
            producer = entry[2].producer
            if producer > 0 and producer not in seen and _passes(evidence, entry, passes):
                waiting.append(producer)
                seen.append(producer)
    return seen


def _passes(evidence: Evidence, entry: _Entry, passes: Callable[[GradientStats], bool]) -> bool:
    gradient = evidence.gradient(entry[0], entry[1])
    return gradient is not None and passes(gradient)


def _entries(evidence: Evidence, index: int) -> list[_Entry]:
    """What a step used: the step, the position of the use, the use.

    A custom function is one thing, though its inside was recorded: what counts is what came into it.
    """
    entries, waiting, seen = [], [index], {index}
    while waiting:
        current = waiting.pop()
        custom = current != END and evidence.trace.steps[current].inherent_cause is Cause.CUSTOM_FUNCTION
        for position, use in enumerate(evidence.uses(current)):
            producer = evidence.trace.steps[use.producer]
            if custom and not use.alive and producer.inherent_cause is Cause.CUSTOM_FUNCTION:
                if use.producer not in seen:
                    seen.add(use.producer)
                    waiting.append(use.producer)
            else:
                entries.append((current, position, use))
    return entries


def ancestors(evidence: Evidence, of: int = END) -> list[Step]:
    """All steps that a step depends on, or the logits do, in forward order; the layer left out."""
    waiting = [use.producer for use in evidence.uses(of)]
    seen: set[int] = set()
    while waiting:
        index = waiting.pop()
        if index not in seen:
            seen.add(index)
            waiting += [use.producer for use in evidence.trace.steps[index].uses]
    return [evidence.trace.steps[index] for index in sorted(seen) if index > 0]


def first_non_finite(evidence: Evidence, start: int = END) -> Step | None:
    """The first step, of those that a step's inputs that are not finite come from, whose own inputs all were finite.

    So minus infinity under a softmax, which is finite again after it, is not found.
    """
    waiting = [use.producer for use in evidence.uses(start) if not use.finite]
    seen: set[int] = set()
    while waiting:
        index = waiting.pop()
        if index not in seen:
            seen.add(index)
            waiting += [use.producer for use in evidence.uses(index) if not use.finite]
    return evidence.trace.steps[min(seen)] if seen else None


def first_non_finite_before_layer(trace: Trace) -> Step | None:
    """The same for the layer's own output, of a trace that began at the images."""
    if trace.steps_before_layer == 0 or trace.steps[trace.steps_before_layer - 1].finite:
        return None
    last = trace.steps[trace.steps_before_layer - 1]
    return last if all(use.finite for use in last.uses) else first_non_finite(Evidence(trace, None, {}), last.index)


def first_non_finite_in_backward(evidence: Evidence) -> Step | None:
    """On the way back from the score, the first step that makes a gradient that is not finite of one that is."""
    for step in reversed(ancestors(evidence)):
        given = _gradients_into(evidence, step)
        made = [evidence.gradient(step.index, position) for position in range(len(step.uses))]
        broken = any(gradient is not None and not gradient.finite for gradient in made)
        if given and all(gradient.finite for gradient in given) and broken:
            return step
    return None


def writes_after_save(trace: Trace) -> list[Step]:
    """The steps that changed in place what autograd had saved for backward."""
    writers = (
        next((step for step in trace.steps[saved_by + 1 :] if address in step.written), None)
        for address, saved_by in trace.modified_after_save
    )
    return [step for step in writers if step is not None]


def receives_tiny_gradient(evidence: Evidence, step: Step) -> bool:
    """Whether the gradient that comes to a step from the score is of half precision and tiny; see `GradientStats`."""
    return any(gradient.tiny for gradient in _gradients_into(evidence, step))


def _gradients_into(evidence: Evidence, step: Step) -> list[GradientStats]:
    """The gradients at all uses of a step's result."""
    places = [
        (consumer, position)
        for consumer in (*(other.index for other in evidence.trace.steps), END)
        for position, use in enumerate(evidence.uses(consumer))
        if use.producer == step.index
    ]
    return [gradient for place in places if (gradient := evidence.gradient(*place)) is not None]
