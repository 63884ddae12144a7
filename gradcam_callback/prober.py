"""Probe passes as the options of the callback ask for them, and the panels of what they give."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, get_args

from torch import nn

from gradcam_callback import entry_point
from gradcam_callback.diagnosis.diagnoser import diagnose
from gradcam_callback.engine.faithfulness import forward_passes
from gradcam_callback.engine.inputs import ModelInputs
from gradcam_callback.engine.layer_listing import ListedLayer, list_layers
from gradcam_callback.engine.methods import Method
from gradcam_callback.engine.replica import ReplicaOptions
from gradcam_callback.engine.request import CAMRequest
from gradcam_callback.engine.sanity import Progress, SanityResult, check_weights
from gradcam_callback.engine.targets import Target, Task, bind
from gradcam_callback.execution.faithfulness_pass import FaithfulnessPass, check_faithfulness
from gradcam_callback.execution.probe_pass import ProbePass, ProbePassResult
from gradcam_callback.execution.processes import ProcessGroup
from gradcam_callback.measures import Array
from gradcam_callback.probes import ProbeSet, forward_inputs
from gradcam_callback.progress import progress_bar
from gradcam_callback.reporting.panel import Panel
from gradcam_callback.reporting.pass_renderer import PassRenderer
from gradcam_callback.reporting.recorder import SeenProbes
from gradcam_callback.results import CAMResult, Diagnosis
from gradcam_callback.run_context import RunContext
from gradcam_callback.settings import Settings


class Prober:
    """Explains and diagnoses a model on probes, and draws panels.

    Args:
        settings: The options of the callback.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        request = CAMRequest.of(
            settings.target_layers, settings.targets, settings.method, settings.output, settings.layout
        )
        self._pass = ProbePass(request, bridge=settings.bridge, method_on_null=settings.method_on_null)

    @property
    def layers(self) -> tuple[str, ...]:
        """The full names of the layers; before "auto" has chosen, "auto"."""
        return self._pass.layers

    @property
    def method(self) -> Method:
        """How the maps are made."""
        return self._settings.method

    @property
    def faithfulness_price(self) -> int:
        """How many forward passes the measures of faithfulness cost, for each map; 0 where they are not asked for."""
        return 0 if self._settings.faithfulness is None else forward_passes(self._settings.faithfulness[0])

    @property
    def remark(self) -> str:
        """What is to be said of the layer that "auto" has chosen; empty where it is nothing."""
        return self._pass.remark

    @property
    def stacks_lists(self) -> bool:
        """Whether the model gets lists of images of one size as one tensor."""
        return self._pass.stacks_lists

    def bind_model(self, model: nn.Module, processes: ProcessGroup) -> None:
        """Find the layers in the model, and know the processes that take part.

        Raises:
            BadInputError: There is no such layer, or no such method.
        """
        entry_point.check_method(model, self._settings.forward)
        self._pass.processes = processes
        self._pass.resolve(model)

    def capture_options(self, model: nn.Module) -> dict[str, Any]:
        """What the model, and a target, need of the batches: options of a `CaptureContext`."""
        method, option = getattr(model, self._settings.forward), self._settings.inputs
        return {
            "keeps_batch": self._settings.asks_for_batch or forward_inputs.needs_batch(method, option),
            "given": forward_inputs.keys_given(method, option),
            "by_option": option is not None,
            "remark": partial(forward_inputs.remark_on, method, option),
        }

    def explain(self, run: RunContext, probes: ProbeSet, renderer: PassRenderer) -> ProbePassResult:
        """One probe pass.

        Raises:
            BadInputError: An option turns out impossible, or "auto" found no layer.
            ForwardFailedError: The model raised.
        """
        with self._running(run):
            targets, inputs = self.targets(probes), self._inputs(run.model, probes)
            with progress_bar("Grad-CAM: choosing the layer", shown=run.shows_progress) as bar:
                self._pass.select_auto(run.model, inputs, targets[0])
                bar.rename(f"Grad-CAM: explaining {len(probes)} probes")
                return self._pass.run(run.model, inputs, targets, lambda found: renderer.render(found.by_target))

    def check_faithfulness(self, probes: ProbeSet) -> None:
        """Refuse to measure what cannot be measured.

        Raises:
            BadInputError: A target is of no class, or the probes are no images.
        """
        if self._settings.faithfulness is not None:
            check_faithfulness(self.targets(probes), probes.displayed)

    def faithfulness(self, run: RunContext, probes: ProbeSet, result: ProbePassResult) -> dict[str, dict[str, Array]]:
        """Layer to measure of faithfulness to `(T, N)`; empty where none is due."""
        if self._settings.faithfulness is None or run.epoch % self._settings.faithfulness[1]:
            return {}
        with self._running(run):
            passes = FaithfulnessPass(
                self._settings.faithfulness[0], self._settings.output, self._pass.processes, self._pass.replica_options
            )
            inputs, targets = self._inputs(run.model, probes), self.targets(probes)
            with progress_bar("Grad-CAM: measuring the faithfulness", shown=run.shows_progress) as bar:
                return passes.run(run.model, inputs, targets, result.results, bar)

    def seen(self, result: ProbePassResult, renderer: PassRenderer) -> SeenProbes:
        """What is recorded of a pass.

        Raises:
            Exception: It could not be made.
        """
        if result.render_failure is not None:
            raise result.render_failure
        return renderer.seen(result.rendered, result.results, self.titles(renderer.probes), self._settings.method.name)

    def panels(self, run: RunContext, result: ProbePassResult, renderer: PassRenderer) -> dict[str, list[Panel]]:
        """The pages of each layer's panel.

        Raises:
            Exception: They could not be drawn.
        """
        heading = f"{self._settings.method.name} · {run.moment}"
        heading += f" · {self.remark}" if self.remark else ""
        return renderer.panels(result.rendered, result.results, self.titles(renderer.probes), heading)

    def diagnose(self, run: RunContext, probes: ProbeSet) -> list[tuple[str, Diagnosis]]:
        """Diagnose each layer for each target; see `GradCAMCallback.diagnose`."""
        with self._running(run):
            targets, inputs = self.targets(probes), self._inputs(run.model, probes)
            self._pass.select_auto(run.model, inputs, targets[0])
            ask = partial(diagnose, run.model, inputs, output=self._settings.output, options=self._pass.replica_options)
            return [
                (target.title, ask(layer, target=target, layout=self._pass.layouts.get(layer, self._settings.layout)))
                for layer in self.layers
                for target in targets
            ]

    def check_weights(self, run: RunContext, probes: ProbeSet, progress: Progress | None = None) -> list[SanityResult]:
        """Whether the maps depend on the weights; see `GradCAMCallback.check_weights`."""
        with self._running(run):
            targets, inputs = self.targets(probes), self._inputs(run.model, probes)
            self._pass.select_auto(run.model, inputs, targets[0])
            request = replace(self._pass.request.at(*self.layers), targets=targets, layouts=self._pass.layouts)
            return check_weights(run.model, inputs, request, options=self._pass.replica_options, progress=progress)

    def list_layers(self, run: RunContext, probes: ProbeSet) -> list[ListedLayer]:
        """List the layers of the model; see `GradCAMCallback.list_layers`."""
        with self._running(run):
            options = self._pass.replica_options
            request = replace(self._pass.request, targets=self.targets(probes))
            return list_layers(run.model, self._inputs(run.model, probes), request, options=options)

    def titles(self, probes: ProbeSet | None) -> list[str]:
        """What the columns are called: one a target, or several."""
        targets = self._settings.targets if probes is None else self.targets(probes)
        return [target.title for target in targets]

    def targets(self, probes: ProbeSet) -> tuple[Target, ...]:
        """The targets of these probes; several columns may come from one option.

        Raises:
            BadInputError: A target asks for labels that there are not.
        """
        settings, known = self._settings, probes.annotations
        if settings.class_names is not None:
            known = replace(known, class_names=settings.class_names)
        if settings.task is not None:
            known = replace(known, task=settings.task, outputs=None)
        return tuple(bound for target in settings.targets for bound in bind(target, known))

    def _inputs(self, model: nn.Module, probes: ProbeSet) -> ModelInputs:
        """What the model gets for the probes.

        Raises:
            BadInputError: It cannot be told.
        """
        method = getattr(model, self._settings.forward)
        return self._pass.as_taken(model, forward_inputs.inputs_of(method, self._settings.inputs, probes))

    def task_notice(self, probes: ProbeSet, result: CAMResult) -> str:
        """What to say where the labels have told the task; empty where they have not."""
        if self._settings.task is not None or probes.values is None or result.task not in get_args(Task):
            return ""
        if result.task != probes.task:
            shape = tuple(probes.values.shape[1:])
            return f"The labels are no class indices (of shape {shape} each), and the probes have none."
        what, meant = {
            "multilabel": ("several labels an image", "scores of labels, each for itself"),
            "regression": ("numbers that are no classes", "values of a regression"),
        }[result.task]
        return f"The data have {what}, so Grad-CAM takes the model's outputs for {meant}; `task` says otherwise."

    @contextmanager
    def _running(self, run: RunContext) -> Iterator[None]:
        """As in a validation of the run; outside of it nothing of ours holds trainer or model."""
        self._pass.replica_options = run.replica_options(self._settings.forward)
        try:
            with run.forward_context():
                yield
        finally:
            self._pass.replica_options = ReplicaOptions()
