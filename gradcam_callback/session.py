"""One run: the dry run, the capture of the probes, the probe passes, and what is reported of them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from gradcam_callback.errors import BadInputError, UnknownSpaceError
from gradcam_callback.looking import Looking, LookResult
from gradcam_callback.probe_capture import ProbeCapture
from gradcam_callback.prober import Prober
from gradcam_callback.probes import ProbeSet
from gradcam_callback.probes.regions import check_entry
from gradcam_callback.reporting import findings
from gradcam_callback.reporting.tags import Tags
from gradcam_callback.run_context import RunContext
from gradcam_callback.run_reporter import RunReporter
from gradcam_callback.settings import Memory, Settings


class Session:
    """What one callback does in one run (`fit`, `validate` or `test`), or a watch in a loop of the user's own.

    Args:
        settings: The options of the callback.
        memory: What outlives the run. Its alerts and results are what the callback shows.
        earlier: The sessions of the callbacks of this kind that come before this one in the trainer.
        refuses: Whether an option that turns out impossible ends the run; otherwise the run goes on without maps.

    Attributes:
        awaits_dry_run: Whether nothing was explained yet, and a training is about to begin.
        prober: It runs the model.
        reporter: Of what is found.
    """

    def __init__(
        self, settings: Settings, memory: Memory, earlier: Sequence[Session] = (), *, refuses: bool = True
    ) -> None:
        self.awaits_dry_run = False
        self.reporter = RunReporter(settings, memory)
        self._settings = settings
        self._memory = memory
        self._earlier = earlier
        self._refuses = refuses
        self.prober = Prober(settings)
        self._capture = ProbeCapture(settings.source, self.prober.capture_options)
        self._probes: ProbeSet | None = None
        self._looking = Looking(settings, self.prober, self.reporter)
        self._is_open = False
        self._has_given_up = False
        self._held = 0.0  # seconds of this validation

    @contextmanager
    def guard(self, run: RunContext, what: str) -> Iterator[None]:
        """Make an alert of what goes wrong inside, and publish it; see Note [Harmless hooks] in `callback`."""
        has_failed = True
        with self.reporter.guard(run, what):
            try:
                yield
                has_failed = False
            except BadInputError as error:
                if not self._accepts(run, error):
                    raise
        if has_failed and self._is_open:  # before it is known where alerts are written, they wait
            with self.reporter.guard(run, "The alerts could not be published"):
                self.reporter.publish(run)

    def _accepts(self, run: RunContext, error: Exception) -> bool:
        """Whether an error says why there are no maps, and the run goes on without."""
        if self._refuses or not isinstance(error, BadInputError):
            return False
        self._give_up(run, str(error))
        return True

    def _give_up(self, run: RunContext, reason: str) -> None:
        """Go on without maps."""
        self._has_given_up, self.awaits_dry_run, self._probes = True, False, None
        self._capture.drop()
        self.reporter.record(run, ["run"], [findings.no_maps(reason)])

    # Before the first step

    def bind_model(self, run: RunContext) -> None:
        """Find the layers in the model.

        Raises:
            BadInputError: There is no such layer, or no such method.
        """
        self._capture.processes = run.processes
        self.prober.bind_model(run.model, self._capture.processes)

    def open(self, run: RunContext) -> None:
        """Find out where to write, and take up what a checkpoint holds of the training that goes on."""
        if self._is_open:
            return
        self._is_open = True
        fits = run.stage == "fit"
        if fits:
            self._memory.resume()
            self.reporter.load_alerts(run, self._memory.training.get("alerts", []))
        self.reporter.open(run, self._tags(run))
        reason = run.unsupported_reason
        if reason is not None:
            self.reporter.record(run, ["strategy"], [findings.unsupported_strategy(reason)])
        elif fits and not run.has_validation:
            self._give_up(run, findings.NO_VALIDATION)
        self.awaits_dry_run = fits and reason is None and not self._has_given_up
        self.reporter.publish(run)

    def preview(self, run: RunContext, batch: Any, dataloader_idx: int | None) -> None:
        """Copy images for the dry run out of a batch."""
        self._capture.preview(run, batch, dataloader_idx)

    def dry_run(self, run: RunContext) -> None:
        """Explain the images of the first batch there is, before anything is trained, and write nothing of it.

        Raises:
            BadInputError: An option turns out impossible: there are no images where the options say, no such class,
                no logits that can be found, no such labels or regions, statistics for other channels.
            GradientNullError: There is a null, and `on_null` is "raise".
        """
        probes = self._capture.take_preview(run) if self.awaits_dry_run else None
        if probes is None:
            return
        self.awaits_dry_run = False
        self.prober.check_faithfulness(probes)
        if self._capture.is_of_validation:
            check_entry(self._settings.regions, probes)
        try:
            self._looking.dry_run(run, probes)
        except Exception as error:
            if isinstance(error, BadInputError) and not isinstance(error, UnknownSpaceError):
                raise
            if not self._accepts(run, error):
                self.reporter.record_failure(run, error, self.prober.titles(probes))
        self.reporter.publish(run)

    # Probes

    @property
    def wants_batches(self) -> bool:
        """Whether the capture has been begun and is not complete."""
        return self._capture.wants_batches

    def start_collecting(self, run: RunContext) -> None:
        """Begin to capture the probes, where there are none yet."""
        self._held = 0.0
        if self._probes is None and not self._has_given_up and run.unsupported_reason is None:
            resumes = run.stage == "fit"
            self._capture.start(run, self._memory.training.get("indices") if resumes else None)

    def collect(self, batch: Any, dataloader_idx: int) -> None:
        """Copy the samples that are wanted out of a batch."""
        started = time.perf_counter()
        self._capture.add(batch, dataloader_idx)
        self._held += time.perf_counter() - started

    def _finish_capture(self, run: RunContext) -> None:
        """Take what was captured. What cannot be used is an alert: it is too late to refuse it."""
        if not self._capture.is_collecting:
            return
        try:
            probes = self._capture.finish(run)
            if len(probes):
                self.prober.targets(probes)
        except Exception as error:
            if not self._accepts(run, error):
                failed = findings.failed("probes", "There are no probes", error)
                self.reporter.record(run, ["probes"], [failed])
            return
        if len(probes) == 0 and not probes.missing:
            return self.reporter.notice(run, "No sample passed in the validation, so there are no probes yet.")
        found = [findings.probes_missing(probes.missing)] if probes.missing else []
        if len(probes):
            self._probes = self._memory.probes = probes
            if run.stage == "fit" and not self._memory.keep_probes(probes):
                found = [findings.probes_changed()]
            self._looking.begin(run, probes)
        self.reporter.record(run, ["probes"], found)
        for notice in probes.notices:
            self.reporter.notice(run, notice)

    # Probe passes

    def probe(self, run: RunContext) -> None:
        """End a validation: explain the probes if it is time, and write panels, scalars and alerts.

        Whatever goes wrong becomes an alert; the training goes on.

        Raises:
            GradientNullError: There is a null, and `on_null` is "raise".
        """
        started = time.perf_counter()
        self.open(run)
        self._finish_capture(run)
        if self._has_given_up or not self._is_due(run):
            return self.reporter.publish(run)
        maps = len(self.layers) * len(self.prober.titles(self._probes))
        if self._probes is None:
            # For other callbacks that watch it and would end the run without; no logger is told.
            run.show_scalars({self._tags(run).null_gradients: float(maps)})
            return self.reporter.publish(run)
        look = LookResult(
            {self._tags(run).null_gradients: float(len(self._probes) * maps), self._tags(run).empty_maps: 0.0}
        )
        try:
            self._looking.look(run, self._probes, look, lambda: self._tags(run))
        except Exception as error:
            if self._accepts(run, error):
                return self.reporter.publish(run)
            self.reporter.record_failure(run, error, self.prober.titles(self._probes))
        self._memory.last_result = look.result or self._memory.last_result
        look.scalars[self._tags(run).seconds] = self._held + time.perf_counter() - started
        self.reporter.log_scalars(run, look.scalars)
        panels = self._looking.due_panels(run, self._tags(run).panels(look.panels))
        self.reporter.publish(run, panels, look.seen)

    def close(self, run: RunContext) -> None:
        """Bring to the disk what waits, and end the thread."""
        self.reporter.close(run, self._looking.kept_panels())

    def captured(self, run: RunContext) -> ProbeSet:
        """The probes, to ask the prober about them without a look.

        Raises:
            BadInputError: There are none, or there is no such layer.
        """
        self.bind_model(run)
        self._finish_capture(run)
        if self._probes is None:
            last = [str(alert) for alert in self._memory.alerts[-1:]]
            raise BadInputError(*(last or ["No sample passed in the validation to take probes from."]))
        return self._probes

    def _is_due(self, run: RunContext) -> bool:
        """Whether this validation has a probe pass: each one of an epoch that is due, and outside of `fit` always."""
        if run.stage != "fit":
            return True
        epoch, last = run.epoch, self._memory.training.get("epoch")
        if last is not None and last != epoch and abs(epoch - last) < self._settings.every_n_epochs:
            return False
        self._memory.training["epoch"] = epoch
        return True

    @property
    def layers(self) -> tuple[str, ...]:
        """The full names of the layers; before "auto" has chosen, "auto"."""
        return self.prober.layers

    def _tags(self, run: RunContext) -> Tags:
        earlier = [session.layers for session in self._earlier]
        return Tags(self.layers, earlier, run.stage)
