"""A step that is to blame, and for what."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from gradcam_callback.causes import Cause
from gradcam_callback.diagnosis.source import locate
from gradcam_callback.diagnosis.trace import Step
from gradcam_callback.results import Cut


@dataclass(frozen=True)
class Blame:
    """A step that is to blame, and for what."""

    step: Step
    cause: Cause

    @cached_property
    def cut(self) -> Cut:
        """As it is told."""
        return Cut(self.cause, locate(self.step.frames, self.step.module), self.step.operation)

    @property
    def line(self) -> str | None:
        """The file and the line."""
        return None if self.cut.location is None else str(self.cut.location)


def blames_of(steps: Iterable[Step]) -> list[Blame]:
    """Each step for its inherent cause; of a block, the first operation that is lost in it."""
    ordered = sorted(steps, key=lambda step: step.index)
    first = {step.cut_id: step for step in reversed(ordered) if step.cut_id is not None}
    kept = [step for step in ordered if step.cut_id is None or step is first[step.cut_id]]
    return [Blame(step, step.inherent_cause or _default_cause(step)) for step in kept]


def crossable(steps: Iterable[Step]) -> list[Step]:
    """The first step of each call that can be crossed, in forward order."""
    first = {step.cut_id: step for step in sorted(steps, key=lambda step: -step.index) if step.cut_id is not None}
    return sorted(first.values(), key=lambda step: step.index)


def told_once(blames: Iterable[Blame], *, without_lines: bool = False) -> list[Cut]:
    """What is told of them: each place once, in the order given.

    Args:
        blames: In forward order.
        without_lines: Whether no line is to blame.
    """
    blames = list(blames)
    leaving = {blame.line for blame in blames if blame.cause is Cause.LEFT_TORCH}
    cuts = [
        Cut(blame.cause, None, "") if without_lines or blame.cause is Cause.NOT_ON_PATH else blame.cut
        for blame in blames
        # A `detach` on the very line where the value leaves torch is a part of leaving it.
        if blame.cause is Cause.LEFT_TORCH or blame.line is None or blame.line not in leaving
    ]
    return list({(cut.cause, cut.location and str(cut.location)): cut for cut in reversed(cuts)}.values())[::-1]


def _default_cause(step: Step) -> Cause:
    return Cause.ZERO_GRADIENT if step.operation.endswith("register_hook") else Cause.NON_DIFFERENTIABLE
