"""Pure: from the trace of one forward pass to the steps that are to blame. A room: it runs no model.

The steps of a trace form a graph: each step knows which earlier steps made the tensors that it used. All searches here
walk it from the score back to the layer, so that only what the score depends on is ever blamed.
"""

from __future__ import annotations

import linecache
import os
import site
import sysconfig
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from gradcam_callback.causes import Cause
from gradcam_callback.records import Cut, PathStep, SourceLocation
from gradcam_callback.tracing import Frame, Step, Trace, Use

# The end of every road: what used the logits.
END = -1


@dataclass(frozen=True)
class Flow:
    """The gradient at one use of a tensor.

    Attributes:
        norm: L2.
        reaches: Whether it is other than zero for any of the probes in question.
        finite: Whether all of it is finite.
    """

    norm: float
    reaches: bool
    finite: bool


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
            found[index] = step
        waiting += [use.producer for use in step.uses if not use.alive and not any(u.alive for u in step.uses)]
    return [found[index] for index in sorted(found)]


def stopped_by(evidence: Evidence, passes: Callable[[Flow], bool]) -> list[Step]:
    """The steps that a gradient enters from the score, and does not leave towards the layer.

    Args:
        evidence: Of a forward pass whose logits carry a gradient.
        passes: Whether a gradient counts as one, e.g. one that is not zero.

    Returns:
        In forward order.
    """
    found: dict[int, Step] = {}
    waiting, seen = [END], set()
    while waiting:
        index = waiting.pop()
        if index in seen or index == 0:
            continue
        seen.add(index)
        onward = [
            use.producer
            for position, use in enumerate(evidence.uses(index))
            if (flow := evidence.flow(index, position)) is not None and passes(flow)
        ]
        if onward:
            waiting += onward
        elif index != END:
            step = _outermost(evidence, evidence.trace.steps[index])
            found[step.index] = step
    return [found[index] for index in sorted(found)]


def _outermost(evidence: Evidence, step: Step) -> Step:
    """The step itself, or the first step of the custom function that it is inside of."""
    while step.nature is Cause.CUSTOM_FUNCTION:
        inner = [evidence.trace.steps[use.producer] for use in step.uses if not use.alive and use.producer > 0]
        same = [other for other in inner if other.nature is Cause.CUSTOM_FUNCTION]
        if not same:
            break
        step = same[0]
    return step


def ancestors(evidence: Evidence) -> list[Step]:
    """All steps that the logits depend on, in forward order, the layer left out."""
    waiting = [use.producer for use in evidence.uses(END)]
    seen: set[int] = set()
    while waiting:
        index = waiting.pop()
        if index not in seen:
            seen.add(index)
            waiting += [use.producer for use in evidence.trace.steps[index].uses]
    return [evidence.trace.steps[index] for index in sorted(seen) if index > 0]


def first_not_finite(trace: Trace) -> Step | None:
    """The first step whose result is not finite although everything it used was."""
    return next((step for step in trace.steps if not step.finite and all(use.finite for use in step.uses)), None)


def first_spoilt(evidence: Evidence) -> Step | None:
    """On the way back from the score, the first step that makes a gradient that is not finite of one that is."""
    for step in reversed(ancestors(evidence)):
        given = [evidence.flow(*place) for place in _consumers(evidence, step.index)]
        made = [evidence.flow(step.index, position) for position in range(len(step.uses))]
        if all(flow is None or flow.finite for flow in given) and any(flow and not flow.finite for flow in made):
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
    """A shortest way from the layer to the score, through a step where one is given."""
    if not evidence.trace.steps:
        return ()
    if step is None:
        indices = _way(evidence, END, 0)
    else:
        before = _way(evidence, step.index, 0)
        indices = before + _way(evidence, END, step.index)[1:]
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


def cut_at(step: Step, cause: Cause | None = None) -> Cut:
    """A step as a place where the gradient ends."""
    return Cut(cause or step.nature or Cause.NON_DIFFERENTIABLE, locate(step.frames, step.module), step.operation)


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


def _is_users(file: str) -> bool:
    if file.startswith("<frozen"):
        return False
    path = os.path.realpath(file)
    return not path.startswith(_LIBRARIES) and f"{os.sep}site-packages{os.sep}" not in path


def _is_above_torch(file: str) -> bool:
    packages = file.rpartition(f"site-packages{os.sep}")[2].split(os.sep)
    return not file.startswith("<frozen") and "site-packages" in file and packages[0] not in _MACHINERY
