"""One run of a Trainer: the dry run, the capture of the probes, the probe passes, and what is reported of them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn

from gradcam_callback import trainer_context
from gradcam_callback.diagnosis.diagnoser import diagnose
from gradcam_callback.engine.replica import ReplicaOptions
from gradcam_callback.engine.request import CAMRequest
from gradcam_callback.errors import BadInputError
from gradcam_callback.execution.probe_pass import ProbePass, ProbePassResult
from gradcam_callback.probe_capture import ProbeCapture
from gradcam_callback.probes import ProbeSet
from gradcam_callback.reporting import findings
from gradcam_callback.reporting.panels import PanelRenderer, class_name
from gradcam_callback.reporting.tags import Tags
from gradcam_callback.results import Diagnosis, Panel
from gradcam_callback.run_reporter import RunReporter, health_scalars
from gradcam_callback.settings import Memory, Settings


class Session:
    """What one callback does in one run of a Trainer (`fit`, `validate` or `test`).

    Args:
        settings: The options of the callback.
        memory: What outlives the run. Its alerts and results are what the callback shows.
        earlier: The sessions of the callbacks of this kind that come before this one in the trainer.

    Attributes:
        awaits_dry_run: Whether nothing was explained yet, and a training is about to begin.
        reporter: Of what is found.
    """

    def __init__(self, settings: Settings, memory: Memory, earlier: Sequence[Session] = ()) -> None:
        self.awaits_dry_run = False
        self._settings = settings
        self._memory = memory
        self._earlier = earlier
        self._probes: ProbeSet | None = None
        self._capture = ProbeCapture(settings.source)
        # Labels are known when the probes are; until then the first class stands in for them.
        stand_in = [0 if target == "label" else target for target in settings.targets]
        request = CAMRequest.of(settings.target_layers, stand_in, settings.method, settings.output)
        self._pass = ProbePass(request, bridge=settings.bridge)
        self.reporter = RunReporter(settings, memory)
        self._is_open = False
        self._held = 0.0  # seconds of this validation

    @property
    def layers(self) -> tuple[str, ...]:
        """The full names of the layers; before "auto" has chosen, "auto"."""
        return self._pass.layers

    # Before the first step

    def bind_model(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the layers in the model.

        Raises:
            BadInputError: There is no such layer.
        """
        self._pass.processes = self._capture.processes = trainer_context.processes_of(trainer)
        self._pass.resolve(pl_module)

    def open(self, trainer: Trainer) -> None:
        """Find out where to write, and take up what a checkpoint holds of the training that goes on."""
        if self._is_open:
            return
        self._is_open = True
        fits = trainer.state.fn == TrainerFn.FITTING
        if fits:
            self._memory.resume()
            self.reporter.load_alerts(trainer, self._memory.training.get("alerts", []))
        self.reporter.open(trainer, self._tags(trainer))
        reason = trainer_context.unsupported_reason(trainer)
        if reason is not None:
            self.reporter.record(trainer, ["strategy"], [findings.unsupported_strategy(reason)])
        self.awaits_dry_run = fits and reason is None and trainer.enable_validation
        self.reporter.publish(trainer)

    def preview(self, trainer: Trainer, pl_module: LightningModule, batch: Any, dataloader_idx: int | None) -> None:
        """Copy images for the dry run out of a batch.

        Raises:
            BadInputError: There are no images where the options say, in a batch of a validation loader.
        """
        self._capture.preview(trainer, pl_module, batch, dataloader_idx)

    def dry_run(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Explain the images of the first batch there is, before anything is trained, and draw nothing.

        Raises:
            BadInputError: An option turns out impossible: a class that does not exist, logits that cannot be found,
                labels that are not there, statistics for other channels.
            GradientNullError: There is a null, and `on_null` is "raise".
        """
        if not self.awaits_dry_run:
            return
        probes = self._capture.take_preview(trainer)
        if probes is None:
            return
        self.awaits_dry_run = False
        try:
            self._explain(trainer, pl_module, probes)
        except BadInputError:
            raise
        except Exception as error:
            self.reporter.record_failure(trainer, error, self._titles(self._probes))
        self.reporter.publish(trainer)

    # Probes

    def start_collecting(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to capture the probes, where there are none yet."""
        self._held = 0.0
        if self._probes is None and trainer_context.unsupported_reason(trainer) is None:
            resumes = trainer.state.fn == TrainerFn.FITTING
            self._capture.start(trainer, pl_module, self._memory.training.get("indices") if resumes else None)

    def collect(self, batch: Any, dataloader_idx: int) -> None:
        """Copy the samples that are wanted out of a batch."""
        started = time.perf_counter()
        self._capture.add(batch, dataloader_idx)
        self._held += time.perf_counter() - started

    @property
    def wants_batches(self) -> bool:
        """Whether the capture has been begun and is not complete."""
        return self._capture.wants_batches

    def _finish_capture(self, trainer: Trainer) -> None:
        """Take what was captured. What cannot be used is an alert: it is too late to refuse it."""
        if not self._capture.is_collecting:
            return
        try:
            probes = self._capture.finish(trainer)
            self._check_labels(probes)
        except Exception as error:
            return self.reporter.record(trainer, ["probes"], [findings.failed("probes", "There are no probes", error)])
        if len(probes) == 0:
            return self.reporter.notice(trainer, "No sample passed in the validation, so there are no probes yet.")
        self._probes = self._memory.probes = probes
        found = []
        if probes.missing:
            found = [findings.probes_missing(probes.missing)]
        elif trainer.state.fn == TrainerFn.FITTING and not self._memory.keep_probes(probes):
            found = [findings.probes_changed()]
        self.reporter.record(trainer, ["probes"], found)
        for notice in probes.notices:
            self.reporter.notice(trainer, notice)

    def _check_labels(self, probes: ProbeSet) -> None:
        if "label" in self._settings.targets and probes.labels is None and len(probes):
            raise BadInputError(
                "There is `target: label`, and the probes have no labels. Use `target: predicted` or a class index, or "
                "say where the labels are, with `label_key` of ValidationProbes or `labels` of the other sources."
            )

    # Probe passes

    def probe(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End a validation: explain the probes if it is time, and write panels, scalars and alerts.

        Whatever goes wrong becomes an alert; the training goes on.

        Raises:
            GradientNullError: There is a null, and `on_null` is "raise".
        """
        started = time.perf_counter()
        self.open(trainer)
        self._finish_capture(trainer)
        if not self._is_due(trainer):
            return self.reporter.publish(trainer)
        if self._probes is None:
            # For other callbacks that watch it and would end the run without; no logger is told.
            missing = {self._tags(trainer).null_gradients: float(len(self.layers) * len(self._settings.targets))}
            pl_module.log_dict(missing, logger=False, sync_dist=trainer.world_size > 1)
            return self.reporter.publish(trainer)
        drawn: dict[str, list[Panel]] = {}
        count = len(self._probes) * len(self.layers) * len(self._settings.targets)
        scalars = {self._tags(trainer).null_gradients: float(count), self._tags(trainer).empty_maps: 0.0}
        try:
            result, drawn = self._explain(trainer, pl_module, self._probes)
            self._memory.last_result = result.results[0]
            scalars = health_scalars(result.results, self._tags(trainer))  # under other tags if "auto" has chosen
            self.reporter.record(trainer, ["callback"], [])
        except Exception as error:
            self.reporter.record_failure(trainer, error, self._titles(self._probes))
        scalars[self._tags(trainer).seconds] = self._held + time.perf_counter() - started
        self.reporter.log_scalars(trainer, pl_module, scalars)
        self.reporter.publish(trainer, self._tags(trainer).panels(drawn))

    def _explain(
        self, trainer: Trainer, pl_module: LightningModule, probes: ProbeSet
    ) -> tuple[ProbePassResult, dict[str, list[Panel]]]:
        """One probe pass: its result, and the panels by layer."""
        self._check_labels(probes)
        renderer = PanelRenderer(probes, self._settings.style_for(probes))
        with self._running(trainer):
            chosen = self._pass.select_auto(pl_module, probes.images)
            if chosen is not None:
                self.reporter.notice(
                    trainer, f"Grad-CAM explains the layer {chosen!r}, which `target_layers: auto` chose."
                )
            targets, titles = self._targets(probes), self._titles(probes)
            result = self._pass.run(pl_module, probes.images, targets, lambda found: renderer.render(found.by_target))
        self.reporter.notice_calls(trainer, result.results[0])
        self.reporter.record_health(trainer, result, titles)
        self.reporter.record_doubts(trainer, probes, renderer.style, result.results[0])
        if result.render_failure is not None:
            raise result.render_failure
        heading = f"{self._settings.method} · epoch {trainer.current_epoch} · step {trainer.global_step}"
        return result, renderer.panels(result.rendered, result.results, titles, heading)

    def diagnose(self, trainer: Trainer, pl_module: LightningModule) -> list[tuple[str, Diagnosis]]:
        """Diagnose each layer for each target; see `GradCAMCallback.diagnose`."""
        self.bind_model(trainer, pl_module)
        self._finish_capture(trainer)
        probes = self._probes
        if probes is None:
            alerts = self._memory.alerts
            raise BadInputError(
                str(alerts[-1]) if alerts else "No sample passed in the validation to take probes from."
            )
        self._check_labels(probes)
        with self._running(trainer):
            options, output = self._pass.replica_options, self._settings.output
            self._pass.select_auto(pl_module, probes.images)
            return [
                (title, diagnose(pl_module, probes.images, layer, target=target, output=output, options=options))
                for layer in self.layers
                for title, target in zip(self._titles(probes), self._targets(probes), strict=True)
            ]

    @contextmanager
    def _running(self, trainer: Trainer) -> Iterator[None]:
        """As in a validation of the trainer; outside of it nothing of ours holds trainer or model."""
        self._pass.replica_options = trainer_context.replica_options(trainer)
        try:
            with trainer.precision_plugin.forward_context():
                yield
        finally:
            self._pass.replica_options = ReplicaOptions()

    def _is_due(self, trainer: Trainer) -> bool:
        """Whether this validation has a probe pass: each one of an epoch that is due, and outside of `fit` always."""
        if trainer.state.fn != TrainerFn.FITTING:
            return True
        epoch, last = trainer.current_epoch, self._memory.training.get("epoch")
        if last is not None and last != epoch and epoch - last < self._settings.every_n_epochs:
            return False
        self._memory.training["epoch"] = epoch
        return True

    def _targets(self, probes: ProbeSet) -> list[Any]:
        labels = [] if probes.labels is None else probes.labels.tolist()
        return [labels if target == "label" else target for target in self._settings.targets]

    def _titles(self, probes: ProbeSet | None) -> list[str]:
        names = self._settings.class_names or (None if probes is None else probes.class_names)
        return [target if isinstance(target, str) else class_name(target, names) for target in self._settings.targets]

    def _tags(self, trainer: Trainer) -> Tags:
        earlier = [session.layers for session in self._earlier]
        return Tags(self.layers, earlier, trainer_context.stage_of(trainer))
