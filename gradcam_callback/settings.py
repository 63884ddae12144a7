"""The options of the callback, checked, and what it keeps from run to run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, get_args

from gradcam_callback import options
from gradcam_callback.engine import layers, layouts
from gradcam_callback.engine.faithfulness import FaithfulnessOptions
from gradcam_callback.engine.layouts import LayoutInput
from gradcam_callback.engine.methods import Method, as_method, as_method_on_null
from gradcam_callback.engine.targets import Target, Task, as_target
from gradcam_callback.execution.faithfulness_pass import as_options
from gradcam_callback.options import OnNull, PanelOption, Scale
from gradcam_callback.probes import ProbeSet, ProbeSource, as_source, forward_inputs, regions
from gradcam_callback.probes.forward_inputs import InputsOption
from gradcam_callback.probes.regions import RegionsOption
from gradcam_callback.recording.summaries import RecordTags
from gradcam_callback.reporting.alerts import Alert
from gradcam_callback.reporting.panel import PanelStyle
from gradcam_callback.reporting.rendering.colormap import colormap_table
from gradcam_callback.reporting.sinks.registry import ChosenSink, as_sinks
from gradcam_callback.results import CAMResult


@dataclass(frozen=True)
class Settings:
    """The options of the callback; `GradCAMCallback` documents them."""

    target_layers: tuple[str, ...]
    source: ProbeSource
    targets: tuple[Target, ...]
    target_texts: tuple[str, ...]
    method: Method
    method_text: str
    method_on_null: Method | None
    output: int | str | Callable[[Any], Any] | None
    layout: LayoutInput
    forward: str
    inputs: InputsOption
    task: Task | None
    every_n_epochs: int
    on_null: OnNull
    bridge: bool
    class_names: tuple[str, ...] | None
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    channels: tuple[int, ...] | None
    colormap: str
    opacity: float
    scale: Scale
    fuse: bool
    panels: PanelOption
    regions: RegionsOption
    faithfulness: tuple[FaithfulnessOptions, int] | None
    source_lines: bool
    sinks: tuple[ChosenSink, ...]

    @classmethod
    def checked(cls, *, target_layers: Any, probes: Any, target: Any, **given: Any) -> Settings:
        """The options as they were given to the callback.

        Raises:
            ValueError: An option has a value that is not possible; the message says which are.
            TypeError: An option is of a wrong type.
        """
        chosen, on_null = as_method(given["method"]), given["method_on_null"]
        given |= {
            "method": chosen,
            "method_text": _method_text(given["method"]),
            "faithfulness": as_options(given["faithfulness"]),
            "method_on_null": None if on_null is None else as_method_on_null(on_null),
            "sinks": as_sinks(given["sinks"]),
        }
        colormap_table(given["colormap"])
        options.check_options(given["every_n_epochs"], given["opacity"], given["class_names"], given["output"])
        layouts.as_layout(given["layout"])
        options.check_method_name(given["forward"])
        forward_inputs.check_inputs(given["inputs"])
        regions.check_regions(given["regions"])
        options.check_choice("on_null", given["on_null"], get_args(OnNull))
        if given["task"] is not None:
            options.check_choice("task", given["task"], get_args(Task))
        options.check_choice("scale", given["scale"], get_args(Scale))
        options.check_choice("panels", given["panels"], get_args(PanelOption))
        options.check_statistics("mean", given["mean"])
        options.check_statistics("std", given["std"])
        options.check_channels(given["channels"])
        others: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in given.items()
        }
        specs = options.check_targets(target)
        return cls(
            target_layers=layers.check_names(target_layers),
            source=as_source(probes),
            targets=tuple(map(as_target, specs)),
            target_texts=tuple(map(_text, specs)),
            **others,
        )

    @property
    def asks_for_batch(self) -> bool:
        """Whether a target, or the regions, need all that the batches hold of the probes."""
        of_target = any(getattr(target, "asks_for_batch", False) for target in self.targets)
        return of_target or regions.needs_batch(self.regions)

    def request_texts(self) -> dict[str, str]:
        """What is explained, as texts that stay the same from run to run: images, layers, classes, method."""
        return {
            "target_layers": repr(self.target_layers),
            "target": f"({', '.join(self.target_texts)})",
            "method": self.method_text,
            "output": _text(self.output),
            "layout": _text(self.layout),
            "forward": self.forward,
            "inputs": repr(self.inputs),
            "task": str(self.task),
            "probes": self.source.describe(),
        }

    def as_texts(self) -> dict[str, str]:
        """All options as texts that stay the same from run to run."""
        explained = (
            *("source", "output", "layout", "forward", "inputs", "task", "targets", "target_texts"),
            *("method", "method_text"),
        )
        own = {name: repr(value) for name, value in vars(self).items() if name not in explained}
        own["method_on_null"] = repr(None if self.method_on_null is None else self.method_on_null.name)
        return {**own, **self.request_texts()}

    def style_for(self, probes: ProbeSet) -> PanelStyle:
        """What the panels of these probes look like."""
        return PanelStyle(
            colormap=self.colormap,
            opacity=self.opacity,
            shared_scale=self.scale == "shared",
            class_names=probes.class_names if self.class_names is None else self.class_names,
            mean=self.mean or probes.mean,
            std=self.std or probes.std,
            channels=self.channels,
            fuse=self.fuse,
        )


@dataclass
class Memory:
    """What a callback keeps from run to run.

    Attributes:
        alerts: All alerts so far, in order.
        last_result: The maps of the last probe pass, for the first target.
        probes: The images of the last run that captured any.
        record_tags: Which tags the recording has used at which step.
        training: What a checkpoint keeps of the training that goes on.
        loaded: What a checkpoint held, until it is known whether its training is resumed.
    """

    alerts: list[Alert] = field(default_factory=list)
    last_result: CAMResult | None = None
    probes: ProbeSet | None = None
    record_tags: RecordTags = field(default_factory=RecordTags)
    training: dict[str, Any] = field(default_factory=dict)
    loaded: dict[str, Any] = field(default_factory=dict)

    def begin_training(self) -> None:
        """Begin another training, before a checkpoint is restored."""
        self.training, self.loaded = {}, {}
        self.probes = None

    def resume(self) -> None:
        """Go on with what a checkpoint held, if one was loaded."""
        if self.loaded:
            self.training, self.loaded = dict(self.loaded), {}

    def keep_probes(self, probes: ProbeSet) -> bool:
        """Keep in checkpoints which images are explained; whether they are the same as before a resume."""
        same: bool = self.training.get("fingerprint", probes.fingerprint) == probes.fingerprint
        self.training |= {"indices": probes.indices, "fingerprint": probes.fingerprint}
        return same

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {**self.training, **self.loaded, "alerts": [alert.as_record() for alert in self.alerts]}


def _method_text(given: Any) -> str:
    return given if isinstance(given, str) else _text(given)


def _text(option: Any) -> str:
    """An option as a text that stays the same from run to run: functions by name."""
    return str(getattr(option, "__qualname__", repr(option)))
