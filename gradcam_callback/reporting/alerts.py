"""Raised, changed, cleared: what is wrong is said once, and said again when it changes. A room: it writes nothing."""

from __future__ import annotations

import linecache
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import Enum
from types import MappingProxyType
from typing import Any

from gradcam_callback.causes import CallbackIssue, Cause, meaning, remedy
from gradcam_callback.results import CAMResult, Diagnosis, GradientState, LayerHealth, SourceLocation, name_share

DOCS = "docs/why-is-my-gradient-none.md"


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
        location: The line to blame; None where there is none, or it is not known.
        diagnosis: All that is known of a gradient that is not there; None where the finding is about something else.
    """

    subject: str
    cause: Cause | CallbackIssue | None
    probes: tuple[int, ...]
    targets: tuple[str, ...]
    message: str
    remedy: str
    location: SourceLocation | None = None
    diagnosis: Diagnosis | None = None

    @classmethod
    def of(cls, diagnosis: Diagnosis, targets: Sequence[str], subject: str | None = None) -> Finding:
        """What a diagnosis says about a layer, or about another subject."""
        return cls(
            subject or diagnosis.layer,
            diagnosis.cause,
            diagnosis.probes,
            tuple(targets),
            diagnosis.message,
            diagnosis.remedy,
            diagnosis.location,
            diagnosis,
        )

    @property
    def is_null(self) -> bool:
        """Whether it concerns a gradient, and not the callback's own work."""
        return not isinstance(self.cause, CallbackIssue)

    @property
    def identity(self) -> tuple[Any, ...]:
        """What makes it another finding when it changes: of a null not the wording, of a failure that too."""
        place = None if self.location is None else (self.location.file, self.location.line)
        return self.cause, self.probes, self.targets, place, None if self.is_null else self.message


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
    def cause(self) -> Cause | CallbackIssue | None:
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

    @property
    def location(self) -> SourceLocation | None:
        """The line to blame."""
        return self.finding.location

    @property
    def diagnosis(self) -> Diagnosis | None:
        """All that is known of the gradient that is not there."""
        return self.finding.diagnosis

    def as_record(self) -> dict[str, Any]:
        """For one line of JSON, and for a checkpoint."""
        finding = self.finding
        return {
            "status": self.status.value,
            "step": self.step,
            "epoch": self.epoch,
            "subject": finding.subject,
            "layer": self.layer,
            "cause": None if finding.cause is None else finding.cause.value,
            "probes": list(finding.probes),
            "targets": list(finding.targets),
            "message": finding.message,
            "remedy": finding.remedy,
            "location": None if finding.location is None else asdict(finding.location),
        }

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Alert:
        """The alert that a record was made of, without its diagnosis."""
        place = record["location"]
        finding = Finding(
            record["subject"],
            _cause(record["cause"]),
            tuple(record["probes"]),
            tuple(record["targets"]),
            record["message"],
            record["remedy"],
            None if place is None else SourceLocation(**{**place, "detail": tuple(place["detail"])}),
        )
        return cls(Status(record["status"]), finding, record["step"], record["epoch"])

    def as_markdown(self) -> str:
        """For TensorBoard's text tab."""
        finding, slug = self.finding, self.cause or "gradient is None"
        heading = f"### {self.status.value}: {slug}\n\n`{finding.subject}` · epoch {self.epoch} · step {self.step}"
        if self.status is Status.CLEARED:
            return f"{heading}\n\nThis is no longer so: {self.message}"
        parts = [heading, self.message]
        if finding.location is not None:
            parts.append(_code_around(finding.location))
        parts.append(f"**What to do.** {self.remedy}")
        if isinstance(finding.cause, Cause):
            parts.append(f"**More.** `{DOCS}#{finding.cause.value}`")
        return "\n\n".join(parts)

    def __str__(self) -> str:
        if self.status is Status.CLEARED:
            return f"Cleared: {self.message}"
        return f"{self.message} {self.remedy}"


class AlertTracker:
    """Remembers what is wrong, and says what is new about it.

    Attributes:
        alerts: All alerts so far, in order.
    """

    def __init__(self) -> None:
        self.alerts: list[Alert] = []
        self._open: dict[str, Finding] = {}

    def state(self) -> list[dict[str, Any]]:
        """For a checkpoint: all alerts so far."""
        return [alert.as_record() for alert in self.alerts]

    def load(self, state: Sequence[Mapping[str, Any]]) -> None:
        """Go on from a checkpoint: what was said is not said again."""
        self.alerts[:] = map(Alert.from_record, state)
        self._open = {}
        for alert in self.alerts:
            self._open[alert.finding.subject] = alert.finding
            if alert.status is Status.CLEARED:
                del self._open[alert.finding.subject]

    def forget(self) -> None:
        """Begin another training: what was wrong in the one before is no longer open. The alerts stay on record."""
        self._open.clear()

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


_STATES = {
    GradientState.NONE: "the gradient is None",
    GradientState.NON_FINITE: "the gradient is not finite",
    GradientState.ZERO: "the gradient is zero",
}
_STATE_CAUSES = {GradientState.NON_FINITE: Cause.NON_FINITE, GradientState.ZERO: Cause.ZERO_GRADIENT}


def find_nulls(
    results: Sequence[CAMResult],
    targets: Sequence[str],
    diagnoses: Mapping[str, Diagnosis] = MappingProxyType({}),
) -> list[Finding]:
    """What is wrong with the gradients of one validation: at most one finding a layer.

    Args:
        results: One a target, of the same layers and probes.
        targets: What the targets are called, e.g. "predicted".
        diagnoses: Layer to the reason, where it was found.
    """
    findings = []
    for layer in results[0].health if results else ():
        verdicts = [result.health[layer] for result in results]
        concerned = [title for title, verdict in zip(targets, verdicts, strict=True) if verdict.null_probes]
        if layer in diagnoses:
            findings.append(Finding.of(diagnoses[layer], concerned))
        elif concerned:
            worst = next(verdict for verdict in verdicts if verdict.null_probes)
            findings.append(_undiagnosed(layer, worst, concerned))
    return findings


def failed(subject: str, what: str, error: Exception) -> Finding:
    """What is wrong where the callback's own work failed."""
    message = f"{what}: {type(error).__name__}: {str(error).rstrip('.')}."
    advice = "The training goes on as if the callback were not there."
    return Finding(subject, CallbackIssue.CALLBACK_FAILED, (), (), message, advice)


def short_of_memory(portion: int) -> Finding:
    """What is wrong where the probes have to be taken in portions."""
    message = f"There is too little memory for all probes at once: they are taken {portion} at a time from now on."
    advice = "The maps are the same, and take a little longer. Use fewer probes, or a smaller batch in validation."
    return Finding("memory", CallbackIssue.SHORT_OF_MEMORY, (), (), message, advice)


def unsupported_strategy(reason: str) -> Finding:
    """What is wrong where no map can be computed under the trainer's strategy."""
    message = f"There are no Grad-CAM maps under this strategy: {reason}."
    advice = "Use DDP, or ModelParallelStrategy with fully_shard (FSDP2). The training goes on without maps."
    return Finding("strategy", CallbackIssue.UNSUPPORTED_STRATEGY, (), (), message, advice)


def _undiagnosed(layer: str, verdict: LayerHealth, targets: Sequence[str]) -> Finding:
    state = next(state for state in _STATES if state in verdict.state)
    cause = verdict.cause or _STATE_CAUSES.get(state)
    reason = (verdict.detail or meaning(cause)).rstrip(".")
    concerned = [probe for probe, seen in enumerate(verdict.state) if seen is state]
    message = f"At {layer!r} {_STATES[state]} for {name_share(concerned, len(verdict.state))}: {reason}."
    return Finding(layer, cause, verdict.null_probes, tuple(targets), message, remedy(cause))


def _cause(slug: str | None) -> Cause | CallbackIssue | None:
    if slug is None:
        return None
    return Cause(slug) if slug in {cause.value for cause in Cause} else CallbackIssue(slug)


def _code_around(location: SourceLocation, reach: int = 2) -> str:
    """The line with its neighbours, as a block of code, with an arrow at it."""
    numbers = range(max(1, location.line - reach), location.line + reach + 1)
    lines = [(number, linecache.getline(location.file, number).rstrip()) for number in numbers]
    shown = "\n".join(f"{'->' if number == location.line else '  '} {number:4d}  {line}" for number, line in lines)
    inside = f", in the module `{location.module}`" if location.module else ""
    return f"`{location.file}:{location.line}` in `{location.function}`{inside}\n\n```\n{shown}\n```"
