"""What a run reports, with its step and epoch: alerts, notices, panels and scalars under their tags."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch

from gradcam_callback.errors import BadInputError, ForwardFailedError, GradientNullError
from gradcam_callback.execution.probe_pass import ProbePassResult
from gradcam_callback.reporting import findings
from gradcam_callback.reporting.alert_reporter import AlertReporter
from gradcam_callback.reporting.alerts import Finding
from gradcam_callback.reporting.panel import Panel
from gradcam_callback.reporting.panel_schedule import KeptPanels
from gradcam_callback.reporting.pass_renderer import PassRenderer
from gradcam_callback.reporting.recorder import Recorder, SeenProbes
from gradcam_callback.reporting.sinks.registry import OpenedSinks
from gradcam_callback.reporting.tags import Tags
from gradcam_callback.results import CAMResult
from gradcam_callback.run_context import RunContext
from gradcam_callback.settings import Memory, Settings


class RunReporter:
    """Reports what one callback finds in one run.

    Args:
        settings: The options of the callback.
        memory: Its alerts are those that the callback shows.
    """

    def __init__(self, settings: Settings, memory: Memory) -> None:
        self._chosen_sinks = settings.sinks
        self._record_tags = memory.record_tags
        self._alerts = AlertReporter(settings.on_null, source_lines=settings.source_lines, alerts=memory.alerts)

    def load_alerts(self, run: RunContext, records: Sequence[Mapping[str, Any]]) -> None:
        """Go on from the alerts of a checkpoint."""
        with self.guard(run, "The alerts of the checkpoint could not be taken up"):
            self._alerts.tracker.load(records)

    def open(self, run: RunContext, tags: Tags) -> None:
        """Find out where to write. Every process has to call it."""
        opened = OpenedSinks()
        try:
            opened = run.open_sinks(self._chosen_sinks)
        except Exception as error:
            opened.fail("There is no place to write to", error)
        self.record(run, ["sinks"], findings.not_opened(opened.failures))
        recorder = Recorder(tags, self._record_tags)
        silent = not run.is_global_zero
        self._alerts.open(opened.sinks, alerts_tag=tags.alerts, recorder=recorder, silent=silent)
        self.notice(run, opened.notice)

    @property
    def has_news(self) -> bool:
        """Whether there are alerts that are not published yet."""
        return self._alerts.has_news

    def publish(
        self, run: RunContext, panels: Mapping[str, Panel] | None = None, seen: SeenProbes | None = None
    ) -> None:
        """Write panels by their tags and a look at the probes, and say what was found and is new.

        Raises:
            GradientNullError: There is a null, and `on_null` is "raise".
        """
        shown = panels if panels and run.is_global_zero else {}
        own = seen if run.is_global_zero else None
        self._alerts.publish(shown, own, step=run.step, epoch=run.epoch)

    def log_scalars(self, run: RunContext, scalars: Mapping[str, float]) -> None:
        """Log scalars for other callbacks and for every logger."""
        errors = run.log_scalars(dict(scalars))
        self.record(run, ["logging"], [findings.not_logged(error) for error in errors[:1]])

    def close(self, run: RunContext, kept: KeptPanels | None = None) -> None:
        """Bring to the disk what waits, and panels that were kept for the end; end the thread."""
        if kept is not None and run.is_global_zero:
            self._alerts.publish(kept.panels, step=kept.step, epoch=kept.epoch)
        self._alerts.close(step=run.step, epoch=run.epoch)

    @contextmanager
    def guard(self, run: RunContext, what: str) -> Iterator[None]:
        """Make an alert of what goes wrong inside; see Note [Harmless hooks] in `callback`."""
        try:
            yield
        except (BadInputError, GradientNullError):
            raise
        except Exception as error:
            try:
                self.record(run, ["callback"], [findings.failed("callback", what, error)])
            except Exception:  # it is the record of alerts itself that fails
                warn_of(what, error)

    def record(self, run: RunContext, subjects: Sequence[str], found: Sequence[Finding]) -> None:
        """Take in what was found about these subjects."""
        self._alerts.record(subjects, found, step=run.step, epoch=run.epoch)

    def record_health(self, run: RunContext, result: ProbePassResult, titles: Sequence[str]) -> None:
        """Take in what a probe pass says of the gradients, of memory and of weights."""
        found = findings.find_nulls(result.results, titles, result.diagnoses)
        if result.diagnosis_failure is not None:
            found.append(findings.failed("diagnosis", "The cause could not be found", result.diagnosis_failure))
        if result.portion is not None:
            found.append(findings.short_of_memory(result.portion))
        if result.modified_weights:
            found.append(findings.weights_modified(result.modified_weights))
        subjects = ["forward", "diagnosis", "memory", "weights", *result.results[0].health]
        self.record(run, subjects, found)

    def record_doubts(self, run: RunContext, renderer: PassRenderer, result: ProbePassResult) -> bool:
        """Take in what makes it doubtful that the panels show what they seem to; whether they can be drawn."""
        style, channels = renderer.style, renderer.probes.displayed.shape[1]
        is_embedding = result.output.is_embedding
        doubts = findings.classes_in_doubt(style.class_names, result.results[0], is_embedding=is_embedding)
        self.record(run, ["channels", "classes"], findings.hidden_channels(channels, style.channels) + doubts)
        return not doubts

    def record_failure(self, run: RunContext, error: Exception, titles: Sequence[str]) -> None:
        """Take in that a probe pass failed."""
        if isinstance(error, ForwardFailedError):
            finding = Finding.of(error.diagnosis, titles, subject="forward")
        else:
            finding = findings.failed("callback", "The probe pass failed", error)
        self.record(run, ["callback", "forward"], [finding])

    def notice(self, run: RunContext, text: str) -> None:
        """Say once, in the log, what is no alarm; nothing where the text is empty."""
        if text and run.is_global_zero:
            self._alerts.notice(text)


def warn_of(what: str, error: Exception) -> None:
    """Say what cannot even become an alert."""
    message = f"Grad-CAM: {what}: {type(error).__name__}: {error}. The training goes on."
    with suppress(Exception):  # where the user has made errors of warnings
        warnings.warn_explicit(message, UserWarning, "<gradcam_callback>", 1)


def health_scalars(results: Sequence[CAMResult], tags: Tags) -> dict[str, float]:
    """What the gradients of a probe pass are like, by tag."""
    verdicts = [verdict for result in results for verdict in result.health.values()]
    scalars = {
        tags.null_gradients: float(sum(len(verdict.null_probes) for verdict in verdicts)),
        tags.empty_maps: float(sum(sum(verdict.empty) for verdict in verdicts)),
    }
    for layer, verdict in results[0].health.items():
        if verdict.gradient_norm.isnan().all() and not verdict.null_probes:
            continue  # the method needs no gradient
        scalars[tags.gradient_norm(layer)] = float(torch.nanmean(verdict.gradient_norm))
    return scalars
