"""One probe pass: maps; where there are none, the cause; and maps across the cut where that is possible.

Its stages are: device results, from each process and each slice of the samples; pictures of them, still on the device;
one transfer to the host; the judgement. Only where that finds probes without a gradient there is more to do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial

from torch import Tensor, nn

from gradcam_callback.diagnosis import diagnoser as diagnosis
from gradcam_callback.diagnosis.tracer import bridging
from gradcam_callback.engine import auto, explain, forward, layers
from gradcam_callback.engine.device_results import DeviceResults, judge
from gradcam_callback.engine.image_lists import needs_stacking
from gradcam_callback.engine.inputs import Inputs, ModelInputs
from gradcam_callback.engine.layouts import Layout
from gradcam_callback.engine.methods import Method
from gradcam_callback.engine.output_survey import OutputSurvey, survey_output
from gradcam_callback.engine.references import with_references
from gradcam_callback.engine.replica import ReplicaOptions
from gradcam_callback.engine.request import CAMRequest
from gradcam_callback.engine.spaces import with_axes
from gradcam_callback.engine.targets import Target, TargetInput, as_target
from gradcam_callback.engine.transfer import copy_to_host
from gradcam_callback.errors import ForwardFailedError
from gradcam_callback.execution.causes import CauseFinder, with_causes
from gradcam_callback.execution.processes import ProcessGroup
from gradcam_callback.execution.slices import SliceRunner
from gradcam_callback.results import CAMResult, Diagnosis, name_share

Render = Callable[[DeviceResults], Sequence[Tensor]]
"""Makes what is to be drawn, on the device, of results that are not judged yet."""


@dataclass(frozen=True)
class ProbePassResult:
    """What one probe pass gave.

    Attributes:
        results: One a target. Where a map was drawn across a cut, it stands in for the row of NaN, and `health` says
            so; the state stays what it is.
        rendered: What `render` made of them, on the host; empty without one, or where it failed.
        render_failure: What it raised; None where it did not.
        diagnoses: Layer to the reason why it has probes without a gradient; healthy layers are not in it.
        diagnosis_failure: What went wrong in finding the reason; None where nothing did.
        portion: How many probes are taken at once, where memory is too short for all; None where it is not.
        modified_weights: The weights that the model's forward has written to in place.
        output: What was seen of what the model returns, once.
    """

    results: list[CAMResult]
    rendered: tuple[Tensor, ...] = ()
    render_failure: Exception | None = None
    diagnoses: Mapping[str, Diagnosis] = field(default_factory=dict)
    diagnosis_failure: Exception | None = None
    portion: int | None = None
    modified_weights: tuple[str, ...] = ()
    output: OutputSurvey = field(default_factory=OutputSurvey)


@dataclass
class ProbePass:
    """Runs a model on probes again and again, and asks for causes only when the state of a gradient changes.

    Attributes:
        request: What is asked for. Its targets stand in until `run` gets others.
        bridge: Whether to draw a map across a cut that autograd alone cannot pass.
        method_on_null: What else draws a map where there is no gradient; None: nothing does.
        processes: Those that take part. Each method is called by all of them, and gives all the same.
        replica_options: How the replica of the model is made.
    """

    request: CAMRequest
    bridge: bool = True
    method_on_null: Method | None = None
    processes: ProcessGroup = field(default_factory=ProcessGroup)
    replica_options: ReplicaOptions = field(default_factory=ReplicaOptions)
    _slices: SliceRunner = field(default_factory=SliceRunner)
    _resolved: tuple[str, ...] = ()
    _layouts: Mapping[str, Layout] = field(default_factory=dict)
    _remark: str = ""
    _axes: int = 0
    _stacks: bool | None = None
    _output: OutputSurvey | None = None
    _causes: CauseFinder = field(default_factory=CauseFinder)

    @property
    def layers(self) -> tuple[str, ...]:
        """The full names of the layers; before "auto" has chosen, "auto"."""
        return self._resolved or self.request.layers

    @property
    def layouts(self) -> Mapping[str, Layout]:
        """Layer to layout; empty until the first pass."""
        return self._layouts

    @property
    def remark(self) -> str:
        """What is to be said of the layer that "auto" has chosen; empty where it is nothing."""
        return self._remark

    @property
    def stacks_lists(self) -> bool:
        """Whether the model gets lists of images of one size as one tensor."""
        return self._stacks is True

    def as_taken(self, model: nn.Module, inputs: ModelInputs) -> ModelInputs:
        """The inputs with a list of images stacked, if the model takes them in no other way, which is found once.

        See Note [Lists of one size] in `image_lists`.
        """
        if inputs.sizes is None or inputs.differ:
            return inputs
        if self._stacks is None:
            # By every process, since forward may wait for the others.
            self._stacks = self.processes.gather(partial(needs_stacking, model, inputs, self.replica_options))[0]
        return inputs.stacked() if self._stacks else inputs

    def resolve(self, model: nn.Module) -> None:
        """Find the layers' full names. What "auto" has chosen stays, if the model still has that layer.

        Raises:
            ValueError: The model has no such layer.
        """
        if not self.request.uses_auto:
            self._resolved = tuple(layers.find_layers(model, self.request.layers))
        elif self._resolved and self._resolved[0] not in dict(model.named_modules()):
            self._resolved, self._layouts, self._remark = (), {}, ""

    def select_auto(self, model: nn.Module, inputs: Inputs, target: TargetInput) -> str | None:
        """Let "auto" choose, if it has not; the name of the layer if it was chosen now.

        Args:
            model: In any mode; left as it was.
            inputs: What the model gets.
            target: For which the layer is chosen.

        Raises:
            ForwardFailedError: The model raised.
            ValueError: No layer has space in its output.
        """
        if self._resolved or not self.request.uses_auto:
            return None
        inputs = self._with_axes(model, ModelInputs.of(inputs))

        def choice() -> tuple[tuple[str, ...], Mapping[str, Layout], str]:
            with self._model_errors_diagnosed(len(inputs)):
                asked = replace(self.request, targets=(as_target(target),))
                asked = with_references(model, inputs, asked, self.replica_options)
                found = auto.choose_layer(model, inputs, asked, options=self.replica_options)
            return found.layers, found.layouts, found.remark

        self._resolved, self._layouts, self._remark = self.processes.run_consistently(choice)
        return self._resolved[0]

    def run(
        self, model: nn.Module, inputs: Inputs, targets: Sequence[TargetInput], render: Render | None = None
    ) -> ProbePassResult:
        """One probe pass.

        Args:
            model: In any mode; left as it was.
            inputs: What the model gets.
            targets: At least one; there is a result for each.
            render: Makes tensors on the device that come to the host with the verdicts. A process that has nothing to
                draw gives none. What it raises is kept in the result, since it may fail in one process alone.

        Raises:
            ForwardFailedError: The model raised.
            PartFailedError: Something else failed in one of several processes.
        """
        inputs = self._with_axes(model, ModelInputs.of(inputs))
        request = replace(self.request.at(*self.layers), targets=tuple(map(as_target, targets)), layouts=self._layouts)
        with self._model_errors_diagnosed(len(inputs)):
            request = with_references(model, inputs, request, self.replica_options)
        output = self._survey_output(model, inputs, request)
        request = replace(request, samples_depend=output.samples_depend)
        results = self._explain(model, inputs, request).within(output.extent)
        self._layouts = results.layouts  # found once
        shown = _to_host([results], results, None if self._gathers else render)
        causes = self._causes.find(
            judge(results, shown.verdicts[0]),
            partial(self._diagnose, model, inputs, request),
            partial(self._stand_in, model, inputs, request),
        )
        verdicts, stand_ins = shown.verdicts[0], causes.stand_ins
        if self._gathers:  # after all collective calls, because it may fail in one process alone
            results = results.to(inputs.images.device)
            stand_ins = {layer: other.to(inputs.images.device) for layer, other in stand_ins.items()}
        if stand_ins or self._gathers:
            for other in stand_ins.values():
                results = results.completed(other)
            shown = _to_host(list(stand_ins.values()), results, render)
        drawn = {
            layer: judge(other, packed)
            for (layer, other), packed in zip(stand_ins.items(), shown.verdicts if stand_ins else (), strict=True)
        }
        return ProbePassResult(
            results=with_causes(judge(results, verdicts), causes, drawn),
            rendered=shown.rendered,
            render_failure=shown.render_failure,
            diagnoses=causes.diagnoses,
            diagnosis_failure=causes.failure,
            portion=self._slices.size,
            modified_weights=results.modified_weights,
            output=output,
        )

    def _with_axes(self, model: nn.Module, inputs: ModelInputs) -> ModelInputs:
        """The inputs with the number of their axes of space, which is found once."""
        if not self._axes:
            with self._model_errors_diagnosed(len(inputs)):
                self._axes = with_axes(model, inputs, self.replica_options, self.request.layout).axes
        return replace(inputs, axes=self._axes)

    def _survey_output(self, model: nn.Module, inputs: ModelInputs, request: CAMRequest) -> OutputSurvey:
        """Look at what the model returns, in the first pass: every process, since forward may wait for the others."""
        if self._output is None:

            def look() -> OutputSurvey:
                with self._model_errors_diagnosed(len(inputs)):
                    return survey_output(model, inputs, request, options=self.replica_options)

            seen = self.processes.gather(look)
            self._output = next((one for one in seen if one != OutputSurvey()), seen[0])
        return self._output

    def _explain(
        self, model: nn.Module, inputs: ModelInputs, request: CAMRequest, bridged: frozenset[int] = frozenset()
    ) -> DeviceResults:
        """The results of all samples: each process explains its share, in slices that fit into its memory."""
        given = dict.fromkeys(request.layers, request.layout) if isinstance(request.layout, Layout) else None
        share = self.processes.share(len(inputs))
        own, own_request = inputs[share], request.part(share)
        observer = bridging(bridged) if bridged else None

        def explained(part: slice) -> DeviceResults:
            options = self.replica_options
            return explain.explain(model, own[part], own_request.part(part), observer=observer, options=options)

        def job() -> tuple[DeviceResults | None, int | None]:
            if len(own) == 0:
                return None, None
            with self._model_errors_diagnosed(len(inputs)):
                results = DeviceResults.concat(self._slices.run(len(own), explained))
            if given is not None:  # it may hold a function that cannot be sent
                results = replace(results, layouts={})
            return results.to("cpu") if self._gathers else results, self._slices.size

        gathered = self.processes.gather(job)
        self._slices.size = min((size for _, size in gathered if size is not None), default=None)
        results = DeviceResults.concat([results for results, _ in gathered if results is not None])
        return results if given is None else replace(results, layouts=given)

    @property
    def _gathers(self) -> bool:
        """Whether results go from process to process, which they do by way of the host."""
        return self.processes.size > 1 and not self.processes.sharded

    @contextmanager
    def _model_errors_diagnosed(self, count: int) -> Iterator[None]:
        """An error of the model's own becomes a diagnosis here, where its traceback still is."""
        try:
            yield
        except Exception as error:
            if not forward.raised_by_model(error):
                raise
            raise ForwardFailedError(diagnosis.of_failed_forward(self.layers[0], error, count)) from error

    # Causes

    def _stand_in(
        self, model: nn.Module, inputs: ModelInputs, request: CAMRequest, layer: str, bridges: frozenset[int]
    ) -> tuple[DeviceResults, str] | None:
        """The maps of a layer across its cuts, or by another method; None where neither was asked for, or can be."""
        if bridges and self.bridge:
            return self._explain(model, inputs, request.at(layer), bridges), ""
        if self.method_on_null is None:
            return None
        other = replace(request.at(layer), method=self.method_on_null)
        return self._explain(model, inputs, other), self.method_on_null.name

    def _diagnose(
        self,
        model: nn.Module,
        inputs: ModelInputs,
        request: CAMRequest,
        layer: str,
        target: int,
        nulls: tuple[int, ...],
    ) -> Diagnosis:
        """Why these probes have no gradient; found out by one process for all."""
        job = partial(self._diagnose_here, model, inputs, layer, request.targets[target], nulls)
        return self.processes.run_consistently(job)

    def _diagnose_here(
        self, model: nn.Module, inputs: ModelInputs, layer: str, target: Target, nulls: tuple[int, ...]
    ) -> Diagnosis:
        """The same in this process; where memory is short, found out at as many probes as fit."""
        size = self._slices.size or len(inputs)
        ask = partial(
            diagnosis.diagnose,
            output=self.request.output,
            layout=self._layouts.get(layer),
            options=self.replica_options,
        )
        if size >= len(inputs):
            return ask(model, inputs, layer, target=target)
        part = slice(nulls[0], nulls[0] + size)
        seen = ask(model, inputs[part], layer, target=target.part(part))
        looked_at = f"Memory is short, so this was found out at {name_share(range(len(inputs))[part], len(inputs))}."
        return replace(seen, probes=nulls, message=f"{seen.message} {looked_at}")


@dataclass(frozen=True)
class _OnHost:
    """What came over in one transfer."""

    verdicts: list[Tensor]
    rendered: tuple[Tensor, ...]
    render_failure: Exception | None


def _to_host(judged: Sequence[DeviceResults], shown: DeviceResults, render: Render | None) -> _OnHost:
    """The verdicts on some results, and the pictures of others, in one transfer: only here the device is waited for."""
    rendered, failure = list[Tensor](), None
    try:
        rendered = [] if render is None else list(render(shown))
    except Exception as error:
        failure = error
    arrived = copy_to_host([*(results.verdicts for results in judged), *rendered])
    return _OnHost(arrived[: len(judged)], tuple(arrived[len(judged) :]), failure)
