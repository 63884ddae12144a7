"""The way from the layer to the score, as it is shown: through the step that is to blame, with the gradient on it."""

from __future__ import annotations

from dataclasses import replace

from gradcam_callback.diagnosis.search import END, Evidence
from gradcam_callback.diagnosis.trace import Step
from gradcam_callback.results import PathStep


def path_through(evidence: Evidence, step: Step | None) -> tuple[PathStep, ...]:
    """A shortest way from the layer to the score, through a step where one is given.

    Where a value leaves torch, the way ends.
    """
    steps = evidence.trace.steps
    if not steps:
        return ()
    if step is None or not step.uses:
        return _described(evidence, shortest_path(evidence, END, 0))
    if step.index < len(steps) and steps[step.index] is step:
        return _described(
            evidence, shortest_path(evidence, step.index, 0) + shortest_path(evidence, END, step.index)[1:]
        )
    [*before, last] = _described(evidence, shortest_path(evidence, step.uses[0].producer, 0))
    leaving = PathStep(step.module, step.operation, step.shape, False, None)
    return (*before, replace(last, alive=step.uses[0].alive), leaving)


def shortest_path(evidence: Evidence, start: int, goal: int) -> list[int]:
    """The indices from `goal` forward to `start`, both in it but for END; only `goal` where there is no way."""
    came_from = {start: start}
    waiting = [start]
    while waiting and goal not in came_from:
        index = waiting.pop(0)
        for use in evidence.uses(index):
            if use.producer not in came_from:
                came_from[use.producer] = index
                waiting.append(use.producer)
    path = [goal]
    while path[-1] in came_from and path[-1] != start:
        path.append(came_from[path[-1]])
    return [index for index in path if index != END]


def _described(evidence: Evidence, path: list[int]) -> tuple[PathStep, ...]:
    return tuple(_path_step(evidence, index, after) for index, after in zip(path, [*path[1:], END], strict=True))


def _path_step(evidence: Evidence, index: int, after: int) -> PathStep:
    step = evidence.trace.steps[index]
    uses = [(position, use) for position, use in enumerate(evidence.uses(after)) if use.producer == index]
    gradient = evidence.gradient(after, uses[0][0]) if uses else None
    alive = any(use.alive for _, use in uses)
    return PathStep(step.module, step.operation, step.shape, alive, None if gradient is None else gradient.norm)
