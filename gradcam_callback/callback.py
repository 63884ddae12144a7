"""Front door: which hook, which epoch, which rank, which trainer context. Its signature is the YAML schema.

Note [Harmless hooks]

Whatever goes wrong in a hook becomes an alert, and the training goes on: `_harmless` sees to it. Two errors pass,
because they were asked for: an option that turns out impossible before anything is trained, and a null with
`on_null: raise`.
"""

from __future__ import annotations

import functools
import operator
import time
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from itertools import takewhile
from typing import Any, TypeVar, cast, get_args

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from lightning.pytorch.utilities.rank_zero import rank_zero_info  # type: ignore[attr-defined]

from gradcam_callback import options
from gradcam_callback import trainer_context as setting
from gradcam_callback.causes import CallbackIssue
from gradcam_callback.diagnosis import diagnoser as diagnosis
from gradcam_callback.engine import layers, methods
from gradcam_callback.engine.transfer import brought_over
from gradcam_callback.errors import BadInputError, ForwardFailedError, GradientNullError
from gradcam_callback.execution.probe_pass import ProbePass, ProbePassResult
from gradcam_callback.options import OnNull, Scale, TargetSpec
from gradcam_callback.probes.sources import ProbeSource, as_source
from gradcam_callback.reporting import findings as alerts
from gradcam_callback.reporting import panels
from gradcam_callback.reporting.alert_reporter import AlertReporter
from gradcam_callback.reporting.alerts import Alert, Finding
from gradcam_callback.reporting.rendering.colormap import colormap_table
from gradcam_callback.reporting.sinks.sink import Sink
from gradcam_callback.reporting.tags import Tags
from gradcam_callback.results import CAMResult, Diagnosis, Panel, ProbeSet, Target, name_call, split_call

Hook = TypeVar("Hook", bound=Callable[..., None])


def _harmless(hook: Hook) -> Hook:
    """See Note [Harmless hooks]."""

    @functools.wraps(hook)
    def guarded(self: GradCAMCallback, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        with self._guard(trainer, "callback", f"`{hook.__name__}` failed"):
            return hook(self, trainer, *args, **kwargs)
        # Only where it failed is this reached.
        with self._guard(trainer, "callback", "The alerts could not be said"):
            self._say(trainer)

    return cast(Hook, guarded)


class GradCAMCallback(Callback):
    """Shows where the model looks: Grad-CAM for the same images after every validation, in TensorBoard.

    Training does not notice it: weights, generators, modes and `.grad` stay as they would be without it. A gradient
    that is None, zero or not finite becomes an alert and a hatched tile, never an ordinary picture. The images, once
    captured, are at `.probes`.

    Args:
        target_layers: Dotted names of modules inside the LightningModule, such as `model.layer4`, one or several; or
            `auto`: the last layer that returns maps of more than one pixel and that the score depends on. Of a layer
            that runs more than once in a forward pass, the last call that the score depends on is explained; the
            number of a call behind the name, counted from 0, or from the end with a minus, chooses another:
            `model.head#0` is the first call, `model.head#-1` the last. Several calls make several panels.
        probes: The images: the first n of the first validation loader's data set, or these indices, or a source:
            `gradcam_callback.ValidationProbes`, `ImageProbes`, or from Python `TensorProbes`.
        target: The class to explain: `predicted`, `label`, or a class index. Several make several columns.
        method: `gradcam`, `gradcam++`, `hirescam`, `xgradcam` or `layercam`.
        output: Where the logits are in what forward returns: a key, an index, or from Python a function; by default
            they are found.
        every_n_epochs: Epochs between two looks; epoch 0 is always looked at.
        on_null: What to do about a probe without a usable gradient: `warn`; `raise` ends the run with a
            GradientNullError, before the first training step if it is so from the start; `ignore` does not warn, and
            the alert is still on record.
        bridge: Whether to draw the map across a cut that autograd alone cannot pass (`detach`, `.data`,
            `requires_grad = False`, `no_grad`, `inference_mode`): it is the map of the function that the network
            computes, its caption says that it was bridged, and the alert stays.
        class_names: Names of the classes, by index. By default those of the data set (`dataset.classes`).
        mean: What the data's normalisation subtracts, a number a channel, to show the images as they were. By default
            it is taken from the data set's transforms.
        std: What it divides by, likewise.
        channels: Which channels of the images the panels show, one or three; by default the first three.
        colormap: Any colormap that matplotlib knows.
        opacity: Of the map over the image, 0 to 1.
        scale: `each` scales every map by its own maximum; `shared` scales all probes of a panel by one, so that they
            can be compared.

    Attributes:
        alerts: All alerts so far, in order.
        last_result: The maps of the last validation, for the first target; None before there was one.

    Raises:
        ValueError: An option has a value that is not possible; the message says which are.
        TypeError: An option is of a wrong type.
    """

    def __init__(
        self,
        target_layers: str | Sequence[str] = layers.AUTO,
        probes: int | Sequence[int] | ProbeSource = 8,
        target: TargetSpec | Sequence[TargetSpec] = "predicted",
        method: str = "gradcam",
        output: int | str | Callable[[Any], Any] | None = None,
        every_n_epochs: int = 1,
        on_null: OnNull = "warn",
        bridge: bool = True,
        class_names: Sequence[str] | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        channels: Sequence[int] | None = None,
        colormap: str = "turbo",
        opacity: float = 0.5,
        scale: Scale = "each",
    ) -> None:
        super().__init__()
        methods.find_method(method)
        colormap_table(colormap)
        options.check_options(every_n_epochs, opacity, class_names, output)
        options.check_choice("on_null", on_null, get_args(OnNull))
        options.check_choice("scale", scale, get_args(Scale))
        options.check_statistics("mean", mean)
        options.check_statistics("std", std)
        self.target_layers = layers.check_names(target_layers)
        self.bridge = bridge
        self.source = as_source(probes)
        self.target = options.check_targets(target)
        self.method = method
        self.output = output
        self.every_n_epochs = every_n_epochs
        self.on_null = on_null
        self.class_names = class_names
        self.mean = mean
        self.std = std
        self.channels = channels
        self.colormap = colormap
        self.opacity = opacity
        self.scale = scale

        self.last_result: CAMResult | None = None
        self.probes: ProbeSet | None = None
        self._journal = AlertReporter(on_null)
        self._observer = ProbePass(self.target_layers, method, output, bridge)
        self._model: weakref.ref[LightningModule] | None = None
        self._loaded: dict[str, Any] = {}
        self._resumed: dict[str, Any] = {}
        self._last_epoch: int | None = None
        self._told_of_calls: set[str] = set()

    @property
    def alerts(self) -> list[Alert]:
        """All alerts so far, in order."""
        return self._journal.tracker.alerts

    # When

    @_harmless
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Begin another training, before a checkpoint is restored or a learning rate is looked for."""
        if stage == "fit":
            self._forget()

    @_harmless
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse a layer that does not exist, before anything else happens."""
        self._meet(trainer, pl_module)

    @_harmless
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Capture the probes and rehearse, so that what is wrong is said before the first training step."""
        with self._guard(trainer, "callback", "What the checkpoint holds could not be taken up"):
            self._resume()
        self._open(trainer)
        with setting.as_in_validation(trainer, pl_module):
            if self._capture(trainer, trainer.val_dataloaders):
                self._rehearse(trainer, pl_module)
        self._say(trainer)

    @_harmless
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Capture the probes, where that was not done at the start of the training."""
        if trainer.state.fn == TrainerFn.VALIDATING:
            self._begin_evaluation(trainer, pl_module, trainer.val_dataloaders)
        elif not trainer.sanity_checking and self.probes is None:
            try:
                self._capture(trainer, trainer.val_dataloaders)
            except BadInputError as error:  # too late to refuse: the training goes on
                self._note(trainer, ["probes"], [alerts.failed("probes", "The probes could not be captured", error)])

    @_harmless
    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Capture the probes from the test data."""
        self._begin_evaluation(trainer, pl_module, trainer.test_dataloaders)

    @_harmless
    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look, and write what was seen."""
        if not trainer.sanity_checking and self._is_due(trainer):
            self._look(trainer, pl_module)

    @_harmless
    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look, and write what was seen."""
        self._look(trainer, pl_module)

    @_harmless
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Bring to the disk what waits, also on Ctrl-C."""
        self._journal.close(step=trainer.global_step, epoch=trainer.current_epoch)

    @_harmless
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Bring to the disk what waits, and end the thread."""
        self._loaded, self._resumed = {}, {}
        self._journal.close(step=trainer.global_step, epoch=trainer.current_epoch)

    def diagnose(self, trainer: Trainer, pl_module: LightningModule) -> list[tuple[str, Diagnosis]]:
        """Diagnose each target layer for each target, healthy or not, and write nothing.

        To be called in a hook of a validation, when the model and its data are in place.

        Returns:
            The target's name and the diagnosis, layer by layer.

        Raises:
            ValueError: An option turns out impossible: there is no such layer, probe or class.
        """
        self._meet(trainer, pl_module)
        self._capture(trainer, trainer.val_dataloaders)
        if self.probes is None:
            raise BadInputError(str(self.alerts[-1]) if self.alerts else "There are no data to take probes from.")
        images, wanted = self.probes.images, self._wanted(self.probes)
        with trainer.precision_plugin.forward_context():
            self._observer.choose(pl_module, images)
            return [
                (title, diagnosis.diagnose(pl_module, images, layer, target=target, output=self.output))
                for layer in self._observer.layers
                for title, target in zip(self._titles(), wanted, strict=True)
            ]

    # Across runs

    @property
    def state_key(self) -> str:
        """What tells the states of several callbacks in one checkpoint apart."""
        return self._generate_state_key(
            target_layers=self.target_layers,
            target=self.target,
            method=self.method,
            output=getattr(self.output, "__qualname__", self.output),
            probes=self.source.describe(),
        )

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps: which images were looked at, how their pixels were, and the alerts."""
        state = dict(self._resumed)
        try:
            state["alerts"] = self._journal.tracker.state()
        except Exception as error:  # the checkpoint is worth more
            _warn_of("The alerts so far could not be put into the checkpoint", error)
        if self.probes is not None:
            state["indices"] = self.probes.indices
            state["fingerprint"] = self.probes.fingerprint
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep what a checkpoint holds until it is known whether its training is resumed."""
        self._loaded = state_dict

    def __getstate__(self) -> dict[str, Any]:
        """What copies and pickles take along."""
        return {**vars(self), "_model": None}

    def _resume(self) -> None:
        """Go on with the images and the alerts of the training that is resumed, if one is."""
        self._resumed, self._loaded = self._loaded, {}
        if not self.alerts:
            self._journal.tracker.load(self._resumed.get("alerts", []))

    # How

    def _meet(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the layers; forget what belongs to another model."""
        if self._model is None or self._model() is not pl_module:
            self._forget()
        self._model = weakref.ref(pl_module)
        self._observer.ranks = setting.ranks_of(trainer)
        self._observer.settle(pl_module)

    def _forget(self) -> None:
        """Forget what belongs to one training of one model. The alerts stay on record."""
        self._observer = ProbePass(self.target_layers, self.method, self.output, self.bridge)
        self._journal.reset()
        self._last_epoch = self.probes = None
        self._told_of_calls.clear()

    def _begin_evaluation(self, trainer: Trainer, pl_module: LightningModule, loaders: Any) -> None:
        self._meet(trainer, pl_module)
        self._open(trainer)
        self._capture(trainer, loaders)

    def _open(self, trainer: Trainer) -> None:
        """Find out where to write."""
        sinks: list[Sink] = []
        folder = None
        with self._guard(trainer, "writing", "There is no place to write to"):
            sinks, folder = setting.place_to_write(trainer)
        self._journal.open(sinks, alerts_tag=self._tags(trainer).alerts, silent=not trainer.is_global_zero)
        if folder is not None:
            text = f"There is no TensorBoardLogger: the Grad-CAM panels are written as PNG files under {folder}."
            self._journal.notice(text)

    def _is_due(self, trainer: Trainer) -> bool:
        """Whether this validation is looked at: each one of an epoch that is due, and outside of `fit` always."""
        if trainer.state.fn != TrainerFn.FITTING:
            return True
        epoch, last = trainer.current_epoch, self._last_epoch
        if last is not None and last != epoch and epoch - last < self.every_n_epochs:
            return False
        self._last_epoch = epoch
        return True

    def _capture(self, trainer: Trainer, loaders: Any) -> bool:
        """Take the probes; whether there are any. Without validation data in `fit` there is nothing to look at.

        Raises:
            BadInputError: The probes, or the target, are configured wrongly.
        """
        flat = CombinedLoader(loaders).flattened if loaders is not None else []
        if not flat and trainer.state.fn == TrainerFn.FITTING:
            return False
        obstacle = setting.obstacle(trainer)
        if obstacle is not None:
            self._note(trainer, ["strategy"], [alerts.unsupported_strategy(obstacle)])
            return False
        try:
            probes = self._captured_for_all(trainer, flat)
        except BadInputError:
            raise
        except Exception as error:
            self._note(trainer, ["probes"], [alerts.failed("probes", "The probes could not be captured", error)])
            return False
        if "label" in self.target and probes.labels is None:
            raise BadInputError(
                "There is `target: label`, and the probes have no labels. Use `target: predicted` or a class index, or "
                "say where the labels are, with `label_key` of ValidationProbes or `labels` of the other sources."
            )
        self.probes = probes
        self._note(trainer, ["probes"], self._judge_probes(probes))
        self._note(trainer, ["channels"], alerts.hidden_channels(probes.images.shape[1], self.channels))
        return True

    def _captured_for_all(self, trainer: Trainer, loaders: Sequence[Any]) -> ProbeSet:
        """The probes of the first process, in each on its own device."""
        ranks, moved = self._observer.ranks, list[torch.Tensor]()
        probes = ranks.from_rank_zero(lambda: self._captured(trainer, loaders))
        # Together, because there may be no room for them in one process alone.
        ranks.gather(lambda: moved.append(probes.images.to(trainer.strategy.root_device)))
        return replace(probes, images=moved[0])

    def _captured(self, trainer: Trainer, loaders: Sequence[Any]) -> ProbeSet:
        """The probes as the source gives them, ready for the way to other processes, if there are any."""
        with trainer.precision_plugin.forward_context():
            probes = self.source.capture(loaders, partial(setting.transfer, trainer), self._resumed.get("indices"))
            # A source of the user's own images does not pass them through the batch hooks.
            images = trainer.precision_plugin.convert_input(probes.images)
        return replace(probes, images=images.cpu() if self._observer.ranks.size > 1 else images)

    def _judge_probes(self, probes: ProbeSet) -> list[Finding]:
        if self._resumed.get("fingerprint", probes.fingerprint) != probes.fingerprint:
            message = "The probes have the same indices as in the run that is resumed, and other pixels or labels."
            advice = "Maps before and after the resume show different images; look for a changed data set or transform."
            return [Finding("probes", CallbackIssue.PROBES_CHANGED, (), (), message, advice)]
        for text in probes.notices:
            self._journal.notice(text)
        return []

    def _rehearse(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A look before anything is trained: an option that turns out impossible is refused, and nothing is drawn.

        Raises:
            BadInputError: A class that does not exist, logits that cannot be found, statistics for other channels.
        """
        assert self.probes is not None
        try:
            painting = _Drawing(panels.PanelRenderer(self.probes, self._look_of(self.probes)))
            observation = self._observe(trainer, pl_module, painting)
            self._note_health(trainer, observation)
            self._draw(trainer, painting, observation.results)
        except BadInputError:
            raise
        except Exception as error:
            self._note_failure(trainer, error)

    def _look(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """One probe pass: maps, panels, scalars, alerts. Whatever goes wrong becomes an alert; the training goes on.

        Raises:
            GradientNullError: There is a null, and `on_null` is "raise".
        """
        if self.probes is None:
            # For other callbacks that watch it and would end the run without; no logger is told.
            missing = self._counts(trainer, len(self._observer.layers) * len(self.target), 0)
            pl_module.log_dict(missing, logger=False, sync_dist=self._observer.ranks.size > 1)
            return self._say(trainer)
        started = time.perf_counter()
        drawn: dict[str, Panel] = {}
        scalars = self._counts(trainer, len(self.probes) * len(self._observer.layers) * len(self.target), 0)
        try:
            painting = _Drawing(panels.PanelRenderer(self.probes, self._look_of(self.probes)))
            observation = self._observe(trainer, pl_module, painting)
            self.last_result = observation.results[0]
            scalars = self._scalars(trainer, observation.results)
            self._note_health(trainer, observation)
            if trainer.is_global_zero:
                drawn = self._draw(trainer, painting, observation.results)
            self._note(trainer, ["callback"], [])
        except Exception as error:
            self._note_failure(trainer, error)
        scalars[self._tags(trainer).seconds] = time.perf_counter() - started
        self._log(trainer, pl_module, scalars)
        self._journal.publish(drawn, step=trainer.global_step, epoch=trainer.current_epoch)

    def _observe(self, trainer: Trainer, pl_module: LightningModule, painting: _Drawing) -> ProbePassResult:
        probes = painting.renderer.probes
        with trainer.precision_plugin.forward_context():
            chosen = self._observer.choose(pl_module, probes.images)
            if chosen is not None:
                rank_zero_info(f"Grad-CAM explains the layer {chosen!r}, which `target_layers: auto` chose.")
            observation = self._observer.look(pl_module, probes.images, self._wanted(probes), painting)
        self._tell_of_calls(observation.results[0])
        return observation

    def _tell_of_calls(self, result: CAMResult) -> None:
        """Say once which call is explained, of a layer that runs more than once and was named without a number."""
        for layer, verdict in result.health.items():
            if verdict.calls > 1 and split_call(layer)[1] is None and layer not in self._told_of_calls:
                self._told_of_calls.add(layer)
                explained = name_call(layer, verdict.calls, verdict.call)
                rank_zero_info(
                    f"The layer {layer!r} runs {verdict.calls} times in a forward pass, and Grad-CAM explains "
                    f"{explained}. Choose another by its number: {layer + '#0'!r} is the first."
                )

    def _draw(self, trainer: Trainer, painting: _Drawing, results: Sequence[CAMResult]) -> dict[str, Panel]:
        heading = f"{self.method} · epoch {trainer.current_epoch} · step {trainer.global_step}"
        pages = painting.renderer.panels(painting.tensors(results), results, self._titles(), heading)
        return self._tags(trainer).panels(pages)

    def _log(self, trainer: Trainer, pl_module: LightningModule, scalars: dict[str, float]) -> None:
        """The scalars, for other callbacks and for every logger.

        Lightning would log them at its own count of steps, which is one behind in `fit`, and the panels would not
        stand at the same step.
        """
        findings = []
        # All processes have the same scalars, but for the seconds, of which this makes the mean.
        several = self._observer.ranks.size > 1
        jobs: list[Callable[[], Any]] = [partial(pl_module.log_dict, scalars, logger=False, sync_dist=several)]
        jobs += [partial(setting.log_metrics, trainer, logger, scalars) for logger in trainer.loggers]
        for job in jobs:
            try:
                job()
            except Exception as error:  # the next logger may be in order
                findings = [alerts.failed("logging", "The scalars could not be logged", error)]
        self._note(trainer, ["logging"], findings)

    def _scalars(self, trainer: Trainer, results: Sequence[CAMResult]) -> dict[str, float]:
        verdicts = [verdict for result in results for verdict in result.health.values()]
        nulls, empty = sum(len(verdict.null_probes) for verdict in verdicts), sum(sum(v.empty) for v in verdicts)
        scalars = self._counts(trainer, nulls, empty)
        for layer, verdict in results[0].health.items():
            scalars[self._tags(trainer).gradient_norm(layer)] = float(torch.nanmean(verdict.gradient_norm))
        return scalars

    def _counts(self, trainer: Trainer, nulls: int, empty: int) -> dict[str, float]:
        tags = self._tags(trainer)
        return {tags.null_gradients: float(nulls), tags.empty_maps: float(empty)}

    def _tags(self, trainer: Trainer) -> Tags:
        """Under which tags it writes in this stage."""
        earlier = [elder._observer.layers for elder in self._elders(trainer)]
        stages = {TrainerFn.VALIDATING: "validate", TrainerFn.TESTING: "test"}
        return Tags(self._observer.layers, earlier, stages.get(trainer.state.fn or TrainerFn.FITTING, "fit"))

    def _elders(self, trainer: Trainer) -> list[GradCAMCallback]:
        """The callbacks of this kind that come before this one in the trainer."""
        before = takewhile(lambda callback: callback is not self, trainer.callbacks)  # type: ignore[attr-defined]
        return [callback for callback in before if isinstance(callback, GradCAMCallback)]

    # What is said

    @contextmanager
    def _guard(self, trainer: Trainer, subject: str, what: str) -> Iterator[None]:
        """See Note [Harmless hooks]."""
        try:
            yield
        except (BadInputError, GradientNullError):
            raise
        except Exception as error:
            try:
                self._note(trainer, [subject], [alerts.failed(subject, what, error)])
            except Exception:  # the book of alerts itself is what fails
                _warn_of(what, error)

    def _note_health(self, trainer: Trainer, observation: ProbePassResult) -> None:
        findings = alerts.find_nulls(observation.results, self._titles(), observation.diagnoses)
        if observation.failure is not None:
            findings.append(alerts.failed("diagnosis", "The cause could not be found", observation.failure))
        if observation.portion is not None:
            findings.append(alerts.short_of_memory(observation.portion))
        layers_seen = observation.results[0].health
        self._note(trainer, ["forward", "diagnosis", "memory", *layers_seen], findings)

    def _note_failure(self, trainer: Trainer, error: Exception) -> None:
        if isinstance(error, ForwardFailedError):
            finding = Finding.of(error.diagnosis, self._titles(), subject="forward")
        else:
            finding = alerts.failed("callback", "The probe pass failed", error)
        self._note(trainer, ["callback", "forward"], [finding])

    def _note(self, trainer: Trainer, subjects: Sequence[str], findings: Sequence[Finding]) -> None:
        self._journal.record(subjects, findings, step=trainer.global_step, epoch=trainer.current_epoch)

    def _say(self, trainer: Trainer) -> None:
        self._journal.publish(step=trainer.global_step, epoch=trainer.current_epoch)

    def _wanted(self, probes: ProbeSet) -> list[Target]:
        labels = [] if probes.labels is None else probes.labels.tolist()
        return [labels if target == "label" else target for target in self.target]

    def _titles(self) -> list[str]:
        names = self.class_names or (self.probes.class_names if self.probes is not None else None)
        return [target if isinstance(target, str) else panels.class_name(target, names) for target in self.target]

    def _look_of(self, probes: ProbeSet) -> panels.PanelStyle:
        return panels.PanelStyle(
            colormap=self.colormap,
            opacity=self.opacity,
            shared_scale=self.scale == "shared",
            class_names=self.class_names or probes.class_names,
            mean=self.mean or probes.mean,
            std=self.std or probes.std,
            channels=self.channels,
        )


class _Drawing:
    """What is drawn on the device comes to the host together with the verdicts, if it may."""

    def __init__(self, renderer: panels.PanelRenderer) -> None:
        self.renderer = renderer
        self._maps: list[torch.Tensor] = []
        self._on_host: Sequence[torch.Tensor] = ()

    def board(self, results: Sequence[CAMResult]) -> Sequence[torch.Tensor]:
        self._maps = _maps(results)
        with suppress(Exception):  # it is tried again, and said, once the verdicts are there
            return self.renderer.render(results)
        return ()

    def arrive(self, tensors: Sequence[torch.Tensor]) -> None:
        self._on_host = tensors

    def tensors(self, results: Sequence[CAMResult]) -> Sequence[torch.Tensor]:
        """What was drawn of these results; drawn anew where the maps are others, as those across a cut."""
        maps = _maps(results)
        if self._on_host and len(maps) == len(self._maps) and all(map(operator.is_, maps, self._maps)):
            return self._on_host
        return brought_over(self.renderer.render(results))


def _maps(results: Sequence[CAMResult]) -> list[torch.Tensor]:
    return [cam for result in results for cam in result.cams.values()]


def _warn_of(what: str, error: Exception) -> None:
    """Say what cannot even become an alert."""
    with suppress(Exception):  # where the user has made errors of warnings
        warnings.warn(f"Grad-CAM: {what}: {type(error).__name__}: {error}. The training goes on.", stacklevel=3)
