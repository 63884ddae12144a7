"""Pure: from the trace of one forward pass to the steps that are to blame. A room: it runs no model.

The steps of a trace form a graph: each step knows which earlier steps made the tensors that it used. All searches here
walk it from the score back to the layer, so that only what the score depends on is ever blamed.
"""

from __future__ import annotations

import linecache
import os
import re
import site
import sysconfig
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from gradcam_callback.causes import Cause
from gradcam_callback.diagnosis.trace import Frame, Step, Trace, Use
from gradcam_callback.results import PathStep, SourceLocation

# The end of every road: what used the logits.
END = -1


@dataclass(frozen=True)
class Flow:
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
    def reaches(self) -> bool:
        """Whether it is other than zero."""
        return self.norm != 0


@dataclass(frozen=True)
class Evidence:
    """A trace, how it ended, and the gradient at each use.

    Attributes:
        trace: The steps from the layer on.
        end: The logits; None if they do not depend on the layer through anything that torch did.
        flows: `(step, position of the use)` to gradient, where there is one; `(END, 0)` is the logits.
    """

    trace: Trace
    end: Use | None
    flows: Mapping[tuple[int, int], Flow]

    def uses(self, step: int) -> tuple[Use, ...]:
        """What a step used; of `END`, the logits."""
        if step == END:
            return () if self.end is None else (self.end,)
        return self.trace.steps[step].uses

    def flow(self, step: int, position: int) -> Flow | None:
        """The gradient at a use; None where there is none."""
        return self.flows.get((step, position))


def lost_by(evidence: Evidence, start: Iterable[Use] | None = None) -> list[Step]:
    """The steps at which the gradient is lost: behind them no tensor on the way to the score carries one.

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
        waiting += [use.producer for use in step.uses if not use.alive and not any(u.alive for u in step.uses)]
    return [found[index] for index in sorted(found)]


def _first_of_block(evidence: Evidence, step: Step) -> Step:
    """The first step on the way to this one that was lost in the same block; the step itself, if it is in none."""
    before = ancestors(evidence, step.index) if step.event is not None else []
    return next((s for s in before if s.event == step.event and any(use.alive for use in s.uses)), step)


def stopped_by(evidence: Evidence, passes: Callable[[Flow], bool]) -> list[Step]:
    """The steps that a gradient enters from the score, and does not leave towards the layer.

    Args:
        evidence: Of a forward pass whose logits carry a gradient.
        passes: Whether a gradient counts as one, e.g. one that is not zero.

    Returns:
        In forward order.
    """
    stops = {}
    for index in _reached(evidence, passes):
        entries = _entries(evidence, index)
        if index != END and not any(_passes(evidence, entry, passes) for entry in entries):
            first = min([index, *(inner for inner, _, _ in entries)])
            stops[first] = evidence.trace.steps[first]
    return [stops[index] for index in sorted(stops)]


def blocked_at(evidence: Evidence) -> list[Step]:
    """The steps to blame for a gradient that does not arrive at all, in forward order."""
    end = evidence.end
    if end is None or not end.alive:
        return lost_by(evidence)
    found: dict[int, Step] = {}
    for stop in stopped_by(evidence, lambda _flow: True):
        lost = lost_by(evidence, [use for _, _, use in _entries(evidence, stop.index)])
        found |= {step.index: step for step in lost or [stop]}
    return [found[index] for index in sorted(found)]


def beside(evidence: Evidence) -> list[Step]:
    """The steps at which a gradient that is not zero is lost on side roads, in forward order."""
    reached = _reached(evidence, lambda flow: flow.reaches)
    return lost_by(evidence, [use for index in reached for _, _, use in _entries(evidence, index)])


def _reached(evidence: Evidence, passes: Callable[[Flow], bool]) -> list[int]:
    """Where a gradient comes to on its way back from the score, the layer left out."""
    waiting, seen = [END], [END]
    while waiting:
        for entry in _entries(evidence, waiting.pop()):
            producer = entry[2].producer
            if producer > 0 and producer not in seen and _passes(evidence, entry, passes):
                waiting.append(producer)
                seen.append(producer)
    return seen


def _passes(evidence: Evidence, entry: tuple[int, int, Use], passes: Callable[[Flow], bool]) -> bool:
    flow = evidence.flow(entry[0], entry[1])
    return flow is not None and passes(flow)


def _entries(evidence: Evidence, index: int) -> list[tuple[int, int, Use]]:
    """What a step used: the step, the position of the use, the use.

    A custom function is one thing, though its inside was recorded: what counts is what came into it.
    """
    entries, waiting, seen = [], [index], {index}
    while waiting:
        current = waiting.pop()
        custom = current != END and evidence.trace.steps[current].nature is Cause.CUSTOM_FUNCTION
        for position, use in enumerate(evidence.uses(current)):
            producer = evidence.trace.steps[use.producer]
            if custom and not use.alive and producer.nature is Cause.CUSTOM_FUNCTION:
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


def spoilt_at(evidence: Evidence, start: int = END) -> Step | None:
    """The first step, of those that a step's inputs that are not finite come from, whose own inputs all were finite.

    So minus infinity under a softmax, which is finite again behind it, is not found.
    """
    waiting = [use.producer for use in evidence.uses(start) if not use.finite]
    seen: set[int] = set()
    found = []
    while waiting:
        index = waiting.pop()
        if index in seen:
            continue
        seen.add(index)
        onward = [use.producer for use in evidence.uses(index) if not use.finite]
        waiting += onward
        if not onward:
            found.append(index)
    return evidence.trace.steps[min(found)] if found else None


def spoilt_before(trace: Trace) -> Step | None:
    """The same for the layer's own output, of a trace that began at the images."""
    if trace.begun_at == 0 or trace.steps[trace.begun_at - 1].finite:
        return None
    last = trace.steps[trace.begun_at - 1]
    return last if all(use.finite for use in last.uses) else spoilt_at(Evidence(trace, None, {}), last.index)


def entered_tiny(evidence: Evidence, step: Step) -> bool:
    """Whether the gradient that comes to a step from the score is of half precision and tiny; see `Flow`."""
    flows = [evidence.flow(*place) for place in _consumers(evidence, step.index)]
    return any(flow is not None and flow.tiny for flow in flows)


def spoilt_in_backward(evidence: Evidence) -> Step | None:
    """On the way back from the score, the first step that makes a gradient that is not finite of one that is."""
    for step in reversed(ancestors(evidence)):
        given = [flow for place in _consumers(evidence, step.index) if (flow := evidence.flow(*place)) is not None]
        made = [flow for position in range(len(step.uses)) if (flow := evidence.flow(step.index, position)) is not None]
        if given and all(flow.finite for flow in given) and not all(flow.finite for flow in made):
            return step
    return None


def _consumers(evidence: Evidence, index: int) -> list[tuple[int, int]]:
    """Where the result of a step was used: the step, and the position of the use."""
    return [
        (consumer, position)
        for consumer in (*(step.index for step in evidence.trace.steps), END)
        for position, use in enumerate(evidence.uses(consumer))
        if use.producer == index
    ]


def path_through(evidence: Evidence, step: Step | None) -> tuple[PathStep, ...]:
    """A shortest way from the layer to the score, through a step where one is given.

    Where a value leaves torch, the way ends.
    """
    steps = evidence.trace.steps
    if not steps:
        return ()
    if step is None or not step.uses:
        indices = _way(evidence, END, 0)
    elif step.index < len(steps) and steps[step.index] is step:
        indices = _way(evidence, step.index, 0) + _way(evidence, END, step.index)[1:]
    else:
        [*before, last] = _path_steps(evidence, _way(evidence, step.uses[0].producer, 0))
        leaving = PathStep(step.module, step.operation, step.shape, False, None)
        return (*before, replace(last, alive=step.uses[0].alive), leaving)
    return _path_steps(evidence, indices)


def _path_steps(evidence: Evidence, indices: list[int]) -> tuple[PathStep, ...]:
    return tuple(_path_step(evidence, index, after) for index, after in zip(indices, [*indices[1:], END], strict=True))


def _way(evidence: Evidence, start: int, goal: int) -> list[int]:
    """The indices from `goal` forward to `start`, both in it but for END; only `goal` where there is no way."""
    came_from = {start: start}
    waiting = [start]
    while waiting and goal not in came_from:
        index = waiting.pop(0)
        for use in evidence.uses(index):
            if use.producer not in came_from:
                came_from[use.producer] = index
                waiting.append(use.producer)
    way = [goal]
    while way[-1] in came_from and way[-1] != start:
        way.append(came_from[way[-1]])
    return [index for index in way if index != END]


def _path_step(evidence: Evidence, index: int, after: int) -> PathStep:
    step = evidence.trace.steps[index]
    uses = [(position, use) for position, use in enumerate(evidence.uses(after)) if use.producer == index]
    flow = evidence.flow(after, uses[0][0]) if uses else None
    alive = any(use.alive for _, use in uses)
    return PathStep(step.module, step.operation, step.shape, alive, None if flow is None else flow.norm)


def locate(frames: Iterable[Frame], module: str) -> SourceLocation | None:
    """The line of the user's code among these: the innermost one that is in no library.

    Where all of them are in libraries, the innermost one outside torch and Lightning: then it is there that it happens.
    """
    frames = list(frames)
    for trusted in (_is_users, _is_above_torch):
        for position, frame in enumerate(frames):
            if trusted(frame.file):
                code = linecache.getline(frame.file, frame.line).strip()
                detail = tuple(f"{inner.file}:{inner.line} in {inner.function}" for inner in frames[:position])
                return SourceLocation(frame.file, frame.line, frame.function, code, module, detail)
    return None


def _folders() -> Iterator[str]:
    paths = sysconfig.get_paths()
    yield from (paths["stdlib"], paths["platstdlib"], paths["purelib"], paths["platlib"])
    yield from site.getsitepackages()
    yield site.getusersitepackages()


_LIBRARIES = tuple(os.path.realpath(folder) + os.sep for folder in dict.fromkeys(_folders()))
_MACHINERY = ("torch", "lightning", "lightning_fabric", "pytorch_lightning")
_PACKAGES = re.compile(r"[/\\](?:site|dist)-packages[/\\]([^/\\]+)")


def _is_users(file: str) -> bool:
    return not _is_generated(file) and not os.path.realpath(file).startswith(_LIBRARIES) and not _PACKAGES.search(file)


def _is_above_torch(file: str) -> bool:
    package = _PACKAGES.search(file)
    return package is not None and package.group(1) not in _MACHINERY


def _is_generated(file: str) -> bool:
    """Code that nobody wrote: of Python's own start, of `torch.fx`."""
    return file.startswith(("<frozen", "<eval_with_key"))
