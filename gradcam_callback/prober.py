"""Probe passes as the options of the callback ask for them, and the panels of what they give."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

from lightning.pytorch import LightningModule, Trainer

from gradcam_callback import entry_point, trainer_context
from gradcam_callback.diagnosis.diagnoser import diagnose
from gradcam_callback.engine.layer_listing import ListedLayer, list_layers
from gradcam_callback.engine.replica import ReplicaOptions
from gradcam_callback.engine.request import CAMRequest
from gradcam_callback.engine.targets import ClassTarget, Task
from gradcam_callback.errors import BadInputError
from gradcam_callback.execution.probe_pass import ProbePass, ProbePassResult
from gradcam_callback.execution.processes import ProcessGroup
from gradcam_callback.probes import ProbeSet
from gradcam_callback.reporting.panel import Panel
from gradcam_callback.reporting.panels import PanelRenderer, class_name
from gradcam_callback.results import CAMResult, Diagnosis
from gradcam_callback.settings import Settings


class Prober:
    """Explains and diagnoses a LightningModule on probes, and draws panels.

    Args:
        settings: The options of the callback.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        # Labels are known when the probes are; until then the first class stands in for them.
        stand_in = [0 if target == "label" else target for target in settings.targets]
        request = CAMRequest.of(settings.target_layers, stand_in, settings.method, settings.output, settings.layout)
        self._pass = ProbePass(request, bridge=settings.bridge)

    @property
    def layers(self) -> tuple[str, ...]:
        """The full names of the layers; before "auto" has chosen, "auto"."""
        return self._pass.layers

    def bind_model(self, pl_module: LightningModule, processes: ProcessGroup) -> None:
        """Find the layers in the model, and know the processes that take part.

        Raises:
            BadInputError: There is no such layer, or no such method.
        """
        entry_point.check_method(pl_module, self._settings.forward)
        self._pass.processes = processes
        self._pass.resolve(pl_module)

    def explain(
        self, trainer: Trainer, pl_module: LightningModule, probes: ProbeSet, renderer: PanelRenderer
    ) -> ProbePassResult:
        """One probe pass.

        Raises:
            BadInputError: An option turns out impossible, or "auto" found no layer.
            ForwardFailedError: The model raised.
        """
        with self._running(trainer):
            self._pass.select_auto(pl_module, probes.images)
            return self._pass.run(
                pl_module, probes.images, self._targets(probes), lambda found: renderer.render(found.by_target)
            )

    def panels(self, trainer: Trainer, result: ProbePassResult, renderer: PanelRenderer) -> dict[str, list[Panel]]:
        """The pages of each layer's panel.

        Raises:
            Exception: They could not be drawn.
        """
        if result.render_failure is not None:
            raise result.render_failure
        heading = f"{self._settings.method} · epoch {trainer.current_epoch} · step {trainer.global_step}"
        return renderer.panels(result.rendered, result.results, self.titles(renderer.probes), heading)

    def diagnose(self, trainer: Trainer, pl_module: LightningModule, probes: ProbeSet) -> list[tuple[str, Diagnosis]]:
        """Diagnose each layer for each target; see `GradCAMCallback.diagnose`."""
        with self._running(trainer):
            self._pass.select_auto(pl_module, probes.images)
            ask = partial(
                diagnose, pl_module, probes.images, output=self._settings.output, options=self._pass.replica_options
            )
            return [
                (title, ask(layer, target=target, layout=self._pass.layouts.get(layer, self._settings.layout)))
                for layer in self.layers
                for title, target in zip(self.titles(probes), self._targets(probes), strict=True)
            ]

    def list_layers(self, trainer: Trainer, pl_module: LightningModule, probes: ProbeSet) -> list[ListedLayer]:
        """List the layers of the model; see `GradCAMCallback.list_layers`."""
        with self._running(trainer):
            options = self._pass.replica_options
            return list_layers(pl_module, probes.images, self._pass.request, options=options)

    def titles(self, probes: ProbeSet | None) -> list[str]:
        """What the targets are called."""
        names = self._settings.class_names
        if names is None and probes is not None:
            names = probes.class_names
        return [target if isinstance(target, str) else class_name(target, names) for target in self._settings.targets]

    def check_labels(self, probes: ProbeSet) -> None:
        """Make sure that there are labels where they are a target.

        Raises:
            BadInputError: There are none.
        """
        if "label" in self._settings.targets and probes.labels is None and len(probes):
            raise BadInputError(
                "There is `target: label`, and the probes have no labels. Use `target: predicted` or a class index, or "
                "say where the labels are, with `label_key` of ValidationProbes or `labels` of the other sources."
            )

    def _targets(self, probes: ProbeSet) -> list[Any]:
        labels = [] if probes.labels is None else probes.labels.tolist()
        task, outputs = self._settings.task, None
        if task is None and probes.values is not None:  # by the labels, if there is one for each number of the output
            task, outputs = cast(Task, probes.task), probes.values[0].numel()
        classes = [labels if target == "label" else target for target in self._settings.targets]
        return [ClassTarget(chosen, task=task or "classification", outputs=outputs) for chosen in classes]

    def task_notice(self, probes: ProbeSet, result: CAMResult) -> str:
        """What to say where the labels have told the task; empty where they have not."""
        if self._settings.task is not None or probes.values is None:
            return ""
        if result.task != probes.task:
            shape = tuple(probes.values.shape[1:])
            return f"The labels are no class indices (of shape {shape} each), and the probes have none."
        what = "several labels an image" if result.task == "multilabel" else "numbers that are no classes"
        return (
            f"The data have {what}, so Grad-CAM takes the model's outputs for a {result.task}; `task` says otherwise."
        )

    @contextmanager
    def _running(self, trainer: Trainer) -> Iterator[None]:
        """As in a validation of the trainer; outside of it nothing of ours holds trainer or model."""
        image_key = getattr(self._settings.source, "image_key", None)
        self._pass.replica_options = trainer_context.replica_options(trainer, self._settings.forward, image_key)
        try:
            with trainer.precision_plugin.forward_context():
                yield
        finally:
            self._pass.replica_options = ReplicaOptions()
