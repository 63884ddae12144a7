"""What is said in one run, and to whom: alerts and panels to the sinks, warnings and notices to the user."""

from __future__ import annotations

import linecache
import logging
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from types import MappingProxyType

from gradcam_callback.errors import GradientNullError, GradientNullWarning
from gradcam_callback.reporting.alerts import Alert, AlertTracker, Finding, Status, wording
from gradcam_callback.reporting.findings import not_written
from gradcam_callback.reporting.panel import Panel
from gradcam_callback.reporting.recorder import Recorder, SeenProbes
from gradcam_callback.reporting.report import Report
from gradcam_callback.reporting.sinks.sink import Sink
from gradcam_callback.reporting.writer import BackgroundWriter, WritingFailure
from gradcam_callback.results import SourceLocation
from gradcam_callback.source_lines import mask_secrets

_NOTICES = logging.getLogger("gradcam_callback")
_LONG_WAIT = 3.0  # seconds; what holds the run for longer says so before it begins


class AlertReporter:
    """Takes in what was found, and publishes what is new about it.

    Args:
        on_null: "warn", "raise" or "ignore", about a probe without a usable gradient.
        source_lines: Whether alerts may hold lines of the user's code and absolute paths.
        alerts: Those of earlier runs, in order; new ones are appended to this list.

    Attributes:
        tracker: All alerts so far, and which of them are open.
    """

    def __init__(self, on_null: str, *, source_lines: bool = True, alerts: list[Alert] | None = None) -> None:
        self.tracker = AlertTracker(alerts)
        self._on_null = on_null
        self._source_lines = source_lines
        self._writer: BackgroundWriter | None = None
        self._alerts_tag = "gradcam/alerts"
        self._recorder: Recorder | None = None
        self._silent = True
        self._unpublished: list[Alert] = []
        self._nulls: list[Finding] = []
        self._notices: set[str] = set()

    def open(
        self,
        sinks: Sequence[Sink],
        *,
        alerts_tag: str = "gradcam/alerts",
        recorder: Recorder | None = None,
        silent: bool = False,
    ) -> None:
        """Begin a run.

        Args:
            sinks: Where panels, alerts and records go; none where this process writes nothing.
            alerts_tag: Under which tag the alerts become a text.
            recorder: Makes records of looks and alerts; None where nothing is recorded.
            silent: Whether to warn of nothing, because another process of the run does.
        """
        self._writer = BackgroundWriter(sinks) if sinks else None
        self._recorder = recorder
        self._alerts_tag = alerts_tag
        self._silent = silent

    def record(self, subjects: Sequence[str], findings: Sequence[Finding], *, step: int, epoch: int) -> None:
        """Take in what was found about these subjects; see `AlertTracker.update`."""
        findings = [finding.discreet(source_lines=self._source_lines) for finding in findings]
        self._unpublished += self.tracker.update(subjects, findings, step=step, epoch=epoch)
        self._nulls += [finding for finding in findings if finding.is_null]

    @property
    def has_news(self) -> bool:
        """Whether there are alerts that are not published yet."""
        return bool(self._unpublished)

    def publish(
        self,
        panels: Mapping[str, Panel] = MappingProxyType({}),
        seen: SeenProbes | None = None,
        *,
        step: int,
        epoch: int,
    ) -> None:
        """Write panels, a look, and what was found and is new; warn of it.

        The panels are composed and written behind the training loop; it waits only where several reports wait already.

        Args:
            panels: By their tags.
            seen: A look at the probes, for the recording.
            step: `trainer.global_step`.
            epoch: `trainer.current_epoch`.

        Raises:
            GradientNullError: There is a null now, new or not, and `on_null` is "raise".
        """
        self._record_writing(step, epoch)
        alerts, self._unpublished = self._unpublished, []
        nulls, self._nulls = self._nulls, []
        if self._writer is not None and (panels or alerts or seen):
            records = () if self._recorder is None else self._recorder.records(seen, alerts, step=step, epoch=epoch)
            if self._writer.is_full:
                self.notice("Grad-CAM's panels are written more slowly than they come: the training waits for them.")
            try:
                self._writer.submit(Report(step, epoch, panels, tuple(alerts), self._alerts_tag, tuple(records)))
            except Exception as error:  # the alerts are in the tracker and in the warnings all the same
                finding = not_written([f"Panels and alerts could not be written: {_told(error)}."])
                alerts += self.tracker.update([finding.subject], [finding], step=step, epoch=epoch)
        if nulls and self._on_null == "raise":
            raise GradientNullError("\n\n".join(f"{finding.message} {finding.remedy}" for finding in nulls))
        for alert in alerts:
            if alert.status is not Status.CLEARED and not self._silent:
                self._warn(alert)

    def notice(self, text: str) -> None:
        """Say something that is no alarm: once, to the log. Whether this process is to say it, the caller decides."""
        if text in self._notices:
            return
        self._notices.add(text)
        if _NOTICES.level == logging.NOTSET:
            _NOTICES.setLevel(logging.INFO)
        if not _NOTICES.hasHandlers():  # Lightning shows its own notices in this way, too
            _NOTICES.addHandler(logging.StreamHandler())
        _NOTICES.info(text)

    def close(self, *, step: int, epoch: int) -> None:
        """Bring to the disk what waits, and end the thread."""
        self._nulls = []
        try:
            self.publish(step=step, epoch=epoch)
        finally:
            self._end_writer()
        # What the last reports came to is said without them.
        self._record_writing(step, epoch)
        try:
            self.publish(step=step, epoch=epoch)
        finally:
            self._end_writer()
            self._writer = None

    def __getstate__(self) -> dict[str, object]:
        """What copies and pickles take along: all but the thread."""
        return {**vars(self), "_writer": None}

    def _end_writer(self) -> None:
        if self._writer is not None:
            if self._writer.backlog > _LONG_WAIT:
                self.notice(f"Grad-CAM is writing its last panels; that takes about {self._writer.backlog:.0f} s.")
            self._writer.close()

    def _record_writing(self, step: int, epoch: int) -> None:
        failures = None if self._writer is None else self._writer.take_failures()
        if failures is not None:
            texts = {wording(text): text for text in map(_failure_text, failures)}
            findings = [not_written(sorted(texts.values()))] if failures else []
            self.record(["writing"], findings, step=step, epoch=epoch)

    def _warn(self, alert: Alert) -> None:
        """A warning that points at the user's line, where one is to blame, and never at a line of ours."""
        if alert.finding.is_null and self._on_null != "warn":
            return
        category = GradientNullWarning if alert.finding.is_null else UserWarning
        file, line = _place_of_warning(alert.finding.location)
        with suppress(category):  # where the user has made errors of warnings, the alert is on record all the same
            warnings.warn_explicit(str(alert), category, file, line, module="gradcam_callback")


def _place_of_warning(location: SourceLocation | None) -> tuple[str, int]:
    """The file and the line to name. Of a file in angle brackets Python prints no line."""
    if location is None:
        return "<gradcam_callback>", 1
    line = linecache.getline(location.file, location.line)
    if not location.code or mask_secrets(line) != line:
        return f"<{location.file}>", location.line
    return location.file, location.line


def _failure_text(failure: WritingFailure) -> str:
    """The same for panels and alerts: their failures come and go, and each change would be an alert."""
    return f"Panels or alerts could not be written to {failure.sink}: {_told(failure.error)}."


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).rstrip('.')}"
