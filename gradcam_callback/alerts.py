"""Raised, changed, cleared: what is wrong is said once, and said again when it changes. A room: it writes nothing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any

from gradcam_callback.causes import Cause, Trouble, meaning, remedy
from gradcam_callback.records import CAMResult, GradientState, LayerHealth


class GradientNullWarning(UserWarning):
    """A probe has no usable gradient at a target layer; there is no heatmap for it."""


class GradientNullError(RuntimeError):
    """The same, with `on_null: raise`."""


class Status(str, Enum):
    """Where an alert is in its life."""

    RAISED = "raised"
    CHANGED = "changed"
    CLEARED = "cleared"

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True)
class Finding:
    """What is wrong now.

    Attributes:
        subject: What it is about: the dotted name of a layer, or "forward", "probes", "callback", "writing".
        cause: Why; None where a gradient is None and the cause is not known.
        probes: Which probes are concerned, by their position.
        targets: Which targets are concerned, e.g. "predicted".
        message: What was seen, in a sentence or two.
        remedy: What to do, in a sentence.
    """

    subject: str
    cause: Cause | Trouble | None
    probes: tuple[int, ...]
    targets: tuple[str, ...]
    message: str
    remedy: str

    @property
    def is_null(self) -> bool:
        """Whether it concerns a gradient, and not the callback's own work."""
        return not isinstance(self.cause, Trouble)

    @property
    def identity(self) -> tuple[Any, ...]:
        """What makes it another finding when it changes. The wording does not."""
        return self.cause, self.probes, self.targets


@dataclass(frozen=True)
class Alert:
    """A moment in the life of a finding.

    Attributes:
        status: Raised, changed or cleared.
        finding: What is wrong; of a cleared alert, what was.
        step: `trainer.global_step` at that moment.
        epoch: `trainer.current_epoch` at that moment.
    """

    status: Status
    finding: Finding
    step: int
    epoch: int

    @property
    def layer(self) -> str | None:
        """The layer concerned; None where the alert is about the whole forward pass or the callback's own work."""
        return self.finding.subject if self.finding.is_null and self.cause is not Cause.FORWARD_FAILED else None

    @property
    def cause(self) -> Cause | Trouble | None:
        """Why; None where it is not known."""
        return self.finding.cause

    @property
    def probes(self) -> tuple[int, ...]:
        """The probes concerned, by their position."""
        return self.finding.probes

    @property
    def message(self) -> str:
        """What was seen, in a sentence or two."""
        return self.finding.message

    @property
    def remedy(self) -> str:
        """What to do, in a sentence."""
        return self.finding.remedy

    def as_record(self) -> dict[str, Any]:
        """For one line of JSON."""
        record = asdict(self.finding)
        return {"status": self.status.value, "step": self.step, "epoch": self.epoch, "layer": self.layer, **record}

    def as_markdown(self) -> str:
        """For TensorBoard's text tab."""
        slug = self.cause or "gradient is None"
        heading = f"**{self.status.value}: {slug}** at `{self.finding.subject}`, epoch {self.epoch}, step {self.step}"
        if self.status is Status.CLEARED:
            return f"{heading}\n\nNo longer so: {self.message}"
        return f"{heading}\n\n{self.message}\n\n{self.remedy}"

    def __str__(self) -> str:
        if self.status is Status.CLEARED:
            return f"Cleared: {self.message}"
        return f"{self.message} {self.remedy}"


class AlertBook:
    """Remembers what is wrong, and says what is new about it.

    Attributes:
        alerts: All alerts so far, in order.
    """

    def __init__(self) -> None:
        self.alerts: list[Alert] = []
        self._open: dict[str, Finding] = {}

    def update(self, subjects: Iterable[str], findings: Iterable[Finding], *, step: int, epoch: int) -> list[Alert]:
        """Take in what was found now.

        Args:
            subjects: What was looked at. A subject that had a finding and has none now is cleared.
            findings: What is wrong with these subjects, one a subject.
            step: `trainer.global_step`.
            epoch: `trainer.current_epoch`.

        Returns:
            The new alerts; none where all is as it was.
        """
        current = {finding.subject: finding for finding in findings}
        new = []
        for subject in dict.fromkeys((*subjects, *current)):
            before, now = self._open.get(subject), current.get(subject)
            if now is None:
                if before is not None:
                    new.append(Alert(Status.CLEARED, before, step, epoch))
                    del self._open[subject]
            elif before is None or before.identity != now.identity:
                new.append(Alert(Status.RAISED if before is None else Status.CHANGED, now, step, epoch))
                self._open[subject] = now
        self.alerts += new
        return new


# The worst first: of two states at one layer, the alert is named for the worse.
_NULLS = (GradientState.NONE, GradientState.NON_FINITE, GradientState.ZERO)
_STATE_CAUSES = {GradientState.NON_FINITE: Cause.NON_FINITE, GradientState.ZERO: Cause.ZERO_GRADIENT}


def find_nulls(results: Sequence[CAMResult], targets: Sequence[str]) -> list[Finding]:
    """What is wrong with the gradients of one validation: at most one finding a layer.

    Args:
        results: One a target, of the same layers and probes.
        targets: What the targets are called, e.g. "predicted".
    """
    layers = results[0].health if results else {}
    return [finding for layer in layers if (finding := _find_at(layer, results, targets)) is not None]


def _find_at(layer: str, results: Sequence[CAMResult], targets: Sequence[str]) -> Finding | None:
    verdicts = {title: result.health[layer] for title, result in zip(targets, results, strict=True)}
    probes_by_state = {
        state: sorted({i for verdict in verdicts.values() for i, seen in enumerate(verdict.state) if seen is state})
        for state in _NULLS
    }
    present = [state for state in _NULLS if probes_by_state[state]]
    if not present:
        return None
    known = next((verdict for verdict in verdicts.values() if verdict.cause is not None), None)
    cause = _STATE_CAUSES.get(present[0]) if known is None else known.cause
    total = len(results[0].targets)
    parts = [_sentence(layer, state, probes_by_state[state], total, known) for state in present]
    return Finding(
        subject=layer,
        cause=cause,
        probes=tuple(sorted({i for probes in probes_by_state.values() for i in probes})),
        targets=tuple(title for title, verdict in verdicts.items() if verdict.null_probes),
        message=" ".join(parts) + " No heatmap is drawn for them.",
        remedy=remedy(cause),
    )


def _sentence(layer: str, state: GradientState, probes: list[int], total: int, known: LayerHealth | None) -> str:
    who = f"all {total} probes" if len(probes) == total else f"{_named(probes)} of {total}"
    if known is not None and known.detail:
        return f"At {layer!r} there is no gradient for {who}: {known.detail.rstrip('.')}."
    cause = _STATE_CAUSES.get(state)
    what = {
        GradientState.NONE: "the gradient is None",
        GradientState.ZERO: "the gradient is zero",
        GradientState.NON_FINITE: "the gradient is not finite",
    }[state]
    return f"At {layer!r} {what} for {who}: {meaning(cause)}."


def _named(probes: Sequence[int]) -> str:
    shown = ", ".join(map(str, probes[:8])) + (", ..." if len(probes) > 8 else "")
    return f"probe {shown}" if len(probes) == 1 else f"probes {shown}"
