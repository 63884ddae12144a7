"""Raised, changed, cleared: what is wrong is said once, and said again when it changes. Nothing is written here."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Any

from gradcam_callback import pages
from gradcam_callback.causes import CallbackIssue, Cause
from gradcam_callback.results import Diagnosis, SourceLocation
from gradcam_callback.source_lines import mask_secrets, source_line


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
        subject: What it is about: the dotted name of a layer, or "forward", "probes", "callback", "writing", "sinks".
        cause: Why; None where a gradient is None and the cause is not known.
        probes: Which probes are concerned, by their position.
        targets: Which targets are concerned, e.g. "predicted".
        message: What was seen, in a sentence or two.
        remedy: What to do, in a sentence.
        location: The line to blame; None where there is none, or it is not known.
        diagnosis: All that is known of a gradient that is not there; None where the finding is about something else.
        concerns_all: Whether `probes` are all there are.
        alternative: What else would draw a map, in a sentence; empty where nothing would, or does already.
    """

    subject: str
    cause: Cause | CallbackIssue | None
    probes: tuple[int, ...]
    targets: tuple[str, ...]
    message: str
    remedy: str
    location: SourceLocation | None = None
    diagnosis: Diagnosis | None = None
    concerns_all: bool = False
    alternative: str = ""

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

    def discreet(self, *, source_lines: bool) -> Finding:
        """The finding as it may be written down: a line that looks like a secret is masked.

        Args:
            source_lines: Whether it may hold lines of code and absolute paths.
        """
        cuts = () if self.diagnosis is None else self.diagnosis.cuts
        message, location = self.message, self.location
        for place in (location, *(cut.location for cut in cuts)):
            if place is not None:
                message = _discreet_message(message, place, source_lines)
        if location is not None:
            code, file, detail = mask_secrets(location.code), location.file, location.detail
            if not source_lines:
                code, file, detail = "", short_path(file), ()
            location = replace(location, code=code, file=file, detail=detail)
        return replace(self, message=message, location=location)

    @property
    def is_null(self) -> bool:
        """Whether it concerns a gradient, and not the callback's own work."""
        return not isinstance(self.cause, CallbackIssue)

    @property
    def identity(self) -> tuple[Any, ...]:
        """What makes it another finding when it changes: of a null not the wording, of a failure that too."""
        place = None if self.location is None else (self.location.file, self.location.line)
        if self.cause is CallbackIssue.LOOKS_ELSEWHERE:  # its numbers are others in every look
            return self.cause, self.targets
        if self.cause is CallbackIssue.WRITING_FAILED:
            return self.cause, wording(self.message)
        probes = "all" if self.concerns_all else self.probes  # a dry run may have fewer of them
        return self.cause, probes, self.targets, place, None if self.is_null else self.message


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
        alternative = {"alternative": finding.alternative} if finding.alternative else {}
        return {
            "status": self.status.value,
            "step": self.step,
            "epoch": self.epoch,
            "subject": finding.subject,
            "layer": self.layer,
            "cause": None if finding.cause is None else finding.cause.value,
            "probes": list(finding.probes),
            "concerns_all": finding.concerns_all,
            "targets": list(finding.targets),
            "message": finding.message,
            "remedy": finding.remedy,
            **alternative,
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
            concerns_all=record.get("concerns_all", False),
            alternative=record.get("alternative", ""),
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
            parts.append(_quoted(finding.location))
        parts.append(f"**What to do.** {self.remedy}")
        parts += [f"**Meanwhile.** {finding.alternative}"] if finding.alternative else []
        if isinstance(finding.cause, Cause):
            slug = finding.cause.value
            parts.append(f"**More.** [{slug}]({pages.url(slug)}), or `gradcam-callback explain-cause {slug}`")
        return "\n\n".join(parts)

    def __str__(self) -> str:
        if self.status is Status.CLEARED:
            return f"Cleared: {self.message}"
        return f"{self.message} {self.remedy} {self.finding.alternative}".rstrip()


class AlertTracker:
    """Remembers what is wrong, and says what is new about it.

    Args:
        alerts: Those of earlier runs, in order; new ones are appended to this list.

    Attributes:
        alerts: All alerts so far, in order.
    """

    def __init__(self, alerts: list[Alert] | None = None) -> None:
        self.alerts: list[Alert] = [] if alerts is None else alerts
        self._open: dict[str, Finding] = {}

    def state(self) -> list[dict[str, Any]]:
        """For a checkpoint: all alerts so far."""
        return [alert.as_record() for alert in self.alerts]

    def load(self, state: Sequence[Mapping[str, Any]]) -> None:
        """Go on from a checkpoint: what was said is not said again."""
        loaded = list(map(Alert.from_record, state))
        if not self.alerts:
            self.alerts += loaded
        self._open = {}
        for alert in loaded:
            self._open[alert.finding.subject] = alert.finding
            if alert.status is Status.CLEARED:
                del self._open[alert.finding.subject]

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


def wording(text: str) -> str:
    """A text without what holds digits: the path of one file, the address of one connection."""
    return re.sub(r"\S*\d\S*", "", text)


def _cause(slug: str | None) -> Cause | CallbackIssue | None:
    if slug is None:
        return None
    return Cause(slug) if slug in {cause.value for cause in Cause} else CallbackIssue(slug)


def code_around(location: SourceLocation, reach: int = 2) -> Iterator[tuple[int, str]]:
    """The number and the text of the line and of its neighbours; none where no code may be quoted."""
    if location.code:
        for number in range(max(1, location.line - reach), location.line + reach + 1):
            yield number, source_line(location.file, number)


def _quoted(location: SourceLocation) -> str:
    """The line with its neighbours, as a block of code, with an arrow at it."""
    inside = f", in the module `{location.module}`" if location.module else ""
    place = f"`{location.file}:{location.line}` in `{location.function}`{inside}"
    lines = [
        f"{'->' if number == location.line else '  '} {number:4d}  {line}" for number, line in code_around(location)
    ]
    return "\n".join([f"{place}\n\n```", *lines, "```"]) if lines else place


def _discreet_message(message: str, place: SourceLocation, source_lines: bool) -> str:
    if not source_lines:
        return message.replace(f": `{place.code}`", "").replace(place.file, short_path(place.file))
    return message.replace(place.code, mask_secrets(place.code)) if place.code else message


def short_path(file: str) -> str:
    """The path of a file below the working directory; of another one its name."""
    path = Path(os.path.relpath(file)) if os.path.isabs(file) and _is_on_drive(file) else Path(file)
    return path.name if path.is_absolute() or ".." in path.parts else path.as_posix()


def _is_on_drive(file: str) -> bool:
    """Whether there can be a relative path: on Windows there is none from one drive to another."""
    return os.path.splitdrive(file)[0] == os.path.splitdrive(os.getcwd())[0]
