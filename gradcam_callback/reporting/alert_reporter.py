"""Corridor: what is said in one run, and to whom. Alerts and panels to their places on the disk, and to the user."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from gradcam_callback.causes import CallbackIssue
from gradcam_callback.errors import GradientNullError, GradientNullWarning
from gradcam_callback.reporting import rendering as picture
from gradcam_callback.reporting import sinks as events
from gradcam_callback.reporting.alerts import Alert, AlertTracker, Finding, Status
from gradcam_callback.results import Panel

_FULL_DISK = "Look for a full disk, or a log directory that cannot be written to. The training goes on."


class AlertReporter:
    """Notes what was found, and says at the end of each look what is new.

    Args:
        on_null: "warn", "raise" or "ignore", about a probe without a usable gradient.

    Attributes:
        book: All alerts so far.
    """

    def __init__(self, on_null: str) -> None:
        self.book = AlertTracker()
        self._on_null = on_null
        self._writer: events.BackgroundWriter | None = None
        self._folder: Path | None = None
        self._alerts_tag = "gradcam/alerts"
        self._silent = True
        self._unsaid: list[Alert] = []
        self._nulls: list[Finding] = []

    def open(
        self,
        sink: events.Sink | None,
        folder: Path | None,
        *,
        alerts_tag: str = "gradcam/alerts",
        silent: bool = False,
    ) -> None:
        """Begin a run.

        Args:
            sink: Where panels and texts go; None writes none.
            folder: The log directory, for `gradcam/alerts.jsonl`; None writes none.
            alerts_tag: Under which name the alerts become a text.
            silent: Whether to warn of nothing, because another process of the run does.
        """
        self._writer = None if sink is None else events.BackgroundWriter(sink)
        self._folder = folder
        self._alerts_tag = alerts_tag
        self._silent = silent

    def panels(self, drawn: Mapping[str, Panel], step: int) -> None:
        """Compose and write the panels of a look, by their tags, behind the training loop."""
        if self._writer is not None:
            for tag, panel in drawn.items():
                self._writer.image(tag, partial(picture.compose, panel), step)

    def note(self, subjects: Sequence[str], findings: Sequence[Finding], *, step: int, epoch: int) -> None:
        """Take in what was found about these subjects; see `AlertTracker.update`."""
        self._unsaid += self.book.update(subjects, findings, step=step, epoch=epoch)
        self._nulls += [finding for finding in findings if finding.is_null]

    def say(self, *, step: int, epoch: int) -> None:
        """Say what was noted and is new: on record, in TensorBoard, as warnings.

        Raises:
            GradientNullError: There is a null now, new or not, and `on_null` is "raise".
        """
        self._note_writing(step, epoch)
        unsaid, self._unsaid = self._unsaid, []
        nulls, self._nulls = self._nulls, []
        if unsaid:
            unsaid += self._record(unsaid, step, epoch)
        if nulls and self._on_null == "raise":
            raise GradientNullError("\n\n".join(f"{finding.message} {finding.remedy}" for finding in nulls))
        for alert in unsaid:
            if alert.status is not Status.CLEARED and not self._silent:
                self._warn(alert)

    def close(self, *, step: int, epoch: int) -> None:
        """Bring to the disk what waits, and end the thread."""
        self._nulls = []
        try:
            self.say(step=step, epoch=epoch)
        finally:
            if self._writer is not None:
                self._writer.close()
        # What the last jobs of the writer came to is said without it.
        self._note_writing(step, epoch)
        self._writer = None
        self.say(step=step, epoch=epoch)

    def __getstate__(self) -> dict[str, object]:
        """What copies and pickles take along: all but the thread."""
        return {**vars(self), "_writer": None}

    def _note_writing(self, step: int, epoch: int) -> None:
        if self._writer is None:
            return
        written, failures = self._writer.take_outcome()
        if failures:
            message = f"A panel or an alert could not be written: {failures[0]!r}."
            findings = [Finding("writing", CallbackIssue.WRITING_FAILED, (), (), message, _FULL_DISK)]
            self.note(["writing"], findings, step=step, epoch=epoch)
        elif written:
            self.note(["writing"], [], step=step, epoch=epoch)

    def _record(self, alerts: Sequence[Alert], step: int, epoch: int) -> list[Alert]:
        """Put alerts on record; a new alert where that cannot be done."""
        findings = []
        for write in (self._write_text, self._append):
            try:
                write(alerts, step)
            except Exception as error:  # they are in the book and in the warnings, whatever became of the record
                message = f"The alerts could not be written to {self._folder}: {type(error).__name__}: {error}."
                findings = [Finding("record", CallbackIssue.WRITING_FAILED, (), (), message, _FULL_DISK)]
        return self.book.update(["record"], findings, step=step, epoch=epoch)

    def _write_text(self, alerts: Sequence[Alert], step: int) -> None:
        if self._writer is not None:
            # One text a moment: of two records with one tag and one step, TensorBoard shows only the last.
            self._writer.text(self._alerts_tag, "\n\n---\n\n".join(map(Alert.as_markdown, alerts)), step)

    def _append(self, alerts: Sequence[Alert], _step: int) -> None:
        if self._folder is not None:
            events.append_records(self._folder / "gradcam" / "alerts.jsonl", map(Alert.as_record, alerts))

    def _warn(self, alert: Alert) -> None:
        """A warning that points at the user's line, where one is to blame."""
        if alert.finding.is_null and self._on_null != "warn":
            return
        category = GradientNullWarning if alert.finding.is_null else UserWarning
        location = alert.finding.location
        with suppress(category):  # where the user has made errors of warnings, the alert is on record all the same
            if location is None:
                warnings.warn(str(alert), category, stacklevel=4)
            else:
                warnings.warn_explicit(str(alert), category, location.file, location.line)
