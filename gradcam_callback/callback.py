"""Front door: which hook, which epoch, which rank, which trainer context. Its signature is the YAML schema."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from lightning.pytorch.utilities.rank_zero import rank_zero_info  # type: ignore[attr-defined]

from gradcam_callback import diagnosis, events, explain, layers, methods, panels, picture
from gradcam_callback.alerts import (
    Alert,
    AlertBook,
    Finding,
    GradientNullError,
    GradientNullWarning,
    Status,
    find_nulls,
)
from gradcam_callback.causes import Trouble
from gradcam_callback.observer import Observation, Observer
from gradcam_callback.probes import ProbeSource, as_source
from gradcam_callback.records import BadInputError, CAMResult, Diagnosis, Panel, ProbeSet

TargetSpec = int | str
OnNull = Literal["warn", "raise", "ignore"]
Scale = Literal["each", "shared"]


class GradCAMCallback(Callback):
    """Shows where the model looks: Grad-CAM for the same images after every validation, in TensorBoard.

    Training does not notice it: weights, generators, modes and `.grad` stay as they would be without it. A gradient
    that is None, zero or not finite becomes an alert and a hatched tile, never an ordinary picture. The images, once
    captured, are at `.probes`.

    Args:
        target_layers: Dotted names of modules inside the LightningModule, such as `model.layer4`, one or several; or
            `auto`: the last layer that returns maps of more than one pixel and that the score depends on.
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
        colormap: str = "turbo",
        opacity: float = 0.5,
        scale: Scale = "each",
    ) -> None:
        super().__init__()
        methods.find_method(method)
        picture.colormap_table(colormap)
        _check_options(every_n_epochs, on_null, opacity, scale)
        self.target_layers = layers.check_names(target_layers)
        self.bridge = bridge
        self.source = as_source(probes)
        self.target = _check_targets(target)
        self.method = method
        self.output = output
        self.every_n_epochs = every_n_epochs
        self.on_null = on_null
        self.class_names = class_names
        self.mean = mean
        self.std = std
        self.colormap = colormap
        self.opacity = opacity
        self.scale = scale

        self.last_result: CAMResult | None = None
        self.probes: ProbeSet | None = None
        self._book = AlertBook()
        self._observer = Observer(self.target_layers, method, output, bridge)
        self._resumed: dict[str, Any] = {}
        self._writer: events.BackgroundWriter | None = None
        self._folder: Path | None = None

    @property
    def alerts(self) -> list[Alert]:
        """All alerts so far, in order."""
        return self._book.alerts

    # When

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse a layer that does not exist, before anything else happens."""
        self._observer.settle(pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Capture the probes and rehearse, so that what is wrong is said before the first training step."""
        self._open(trainer)
        self._capture(trainer, trainer.val_dataloaders)
        if self.probes is not None:
            self._observe(trainer, pl_module, rehearsal=True)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Capture the probes, where there was no training before this validation."""
        if trainer.state.fn == TrainerFn.VALIDATING:
            self._begin_evaluation(trainer, pl_module, trainer.val_dataloaders)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Capture the probes from the test data."""
        self._begin_evaluation(trainer, pl_module, trainer.test_dataloaders)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look, and write what was seen."""
        fitting = trainer.state.fn == TrainerFn.FITTING
        if trainer.sanity_checking or (fitting and trainer.current_epoch % self.every_n_epochs != 0):
            return
        self._look(trainer, pl_module)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look, and write what was seen."""
        self._look(trainer, pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Bring to the disk what waits, also on Ctrl-C."""
        self._close(trainer)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Bring to the disk what waits, and end the thread."""
        self._close(trainer)

    def diagnose(self, trainer: Trainer, pl_module: LightningModule) -> list[tuple[str, Diagnosis]]:
        """Diagnose each target layer for each target, healthy or not, and write nothing.

        To be called in a hook of a validation, when the model and its data are in place.

        Returns:
            The target's name and the diagnosis, layer by layer.

        Raises:
            ValueError: An option turns out impossible: there is no such layer, probe or class.
        """
        self._observer.settle(pl_module)
        self._capture(trainer, trainer.val_dataloaders)
        if self.probes is None:
            raise BadInputError(str(self.alerts[-1]))
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
        return self._generate_state_key(target_layers=self.target_layers, target=self.target, method=self.method)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps: which images were looked at, how their pixels were, and the alerts."""
        state = {**self._resumed, "alerts": self._book.state()}
        if self.probes is not None:
            state["source"] = self.source.describe()
            state["indices"] = self.probes.indices
            state["fingerprint"] = self.probes.fingerprint
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the alerts of the run that is being resumed, and its images, unless another choice is configured now."""
        self._book.load(state_dict.get("alerts", []))
        self._resumed = state_dict if state_dict.get("source") == self.source.describe() else {}

    def __getstate__(self) -> dict[str, Any]:
        """What copies and pickles take along: all but the thread."""
        return {**vars(self), "_writer": None}

    # How

    def _begin_evaluation(self, trainer: Trainer, pl_module: LightningModule, loaders: Any) -> None:
        self._observer.settle(pl_module)
        self._open(trainer)
        self._capture(trainer, loaders)

    def _open(self, trainer: Trainer) -> None:
        """Find out where to write. Every rank takes part: asking for the log directory is a collective call."""
        directory = trainer.log_dir or trainer.default_root_dir
        logger = next((logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)), None)
        self._folder = Path(logger.log_dir if logger is not None else directory)
        if not trainer.is_global_zero or _is_trial(trainer):
            return
        if logger is None:
            self._writer = events.BackgroundWriter(events.FolderSink(self._folder))
            message = (
                f"there is no TensorBoardLogger: the Grad-CAM panels are written as PNG files under {self._folder}"
            )
            warnings.warn(message, stacklevel=2)
        else:
            self._writer = events.BackgroundWriter(events.TensorBoardSink(logger.experiment))

    def _close(self, trainer: Trainer) -> None:
        if self._writer is not None:
            writer, self._writer = self._writer, None
            writer.close()
            self._announce(trainer, ["writing"], _write_findings(writer))
        self._resumed = {}

    def _capture(self, trainer: Trainer, loaders: Any) -> None:
        """Take the probes. What was configured wrongly raises: nothing has been trained yet."""
        flat = CombinedLoader(loaders).flattened if loaders is not None else []
        try:
            # The modules' and data modules' batch hooks run in it as well, as they do in a validation.
            with trainer.precision_plugin.forward_context():
                self.probes = self.source.capture(flat, partial(_transfer, trainer), self._resumed.get("indices"))
        except BadInputError:
            raise
        except Exception as error:
            self.probes = None
            self._announce(trainer, ["probes"], [_failed("probes", "The probes could not be captured", error)])
            return
        if "label" in self.target and self.probes.labels is None:
            raise BadInputError(
                "There is `target: label`, and the probes have no labels. Use `target: predicted` or a class index, or "
                "say where the labels are, with `label_key` of ValidationProbes or `labels` of the other sources."
            )
        self._announce(trainer, ["probes"], self._judge_probes(self.probes))

    def _judge_probes(self, probes: ProbeSet) -> list[Finding]:
        before = self._resumed.get("fingerprint", probes.fingerprint)
        if before != probes.fingerprint:
            message = "The probes have the same indices as in the run that is resumed, and other pixels or labels."
            advice = "Maps before and after the resume show different images; look for a changed data set or transform."
            return [Finding("probes", Trouble.PROBES_CHANGED, (), (), message, advice)]
        if probes.notices:
            advice = "The run goes on with what there is."
            return [Finding("probes", Trouble.FEWER_PROBES, (), (), " ".join(probes.notices), advice)]
        return []

    def _look(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.probes is None:
            return
        started = time.perf_counter()
        scalars = self._observe(trainer, pl_module)
        if self._writer is not None:
            self._announce(trainer, ["writing"], _write_findings(self._writer))
        scalars["gradcam/seconds"] = time.perf_counter() - started
        pl_module.log_dict(scalars)

    def _observe(self, trainer: Trainer, pl_module: LightningModule, rehearsal: bool = False) -> dict[str, float]:
        """One probe pass: maps, scalars, panels, alerts.

        Whatever goes wrong becomes an alert, and the training goes on. Only in the rehearsal, before anything is
        trained, an option that turns out impossible raises.

        Args:
            trainer: Whose logger gets what is seen.
            pl_module: The model.
            rehearsal: Whether to write no panel.

        Returns:
            The scalars, by tag.

        Raises:
            BadInputError: In a rehearsal: a class that does not exist, logits that cannot be found, and the like.
            GradientNullError: There is a null, and `on_null` is "raise".
        """
        assert self.probes is not None
        try:
            observation = self._explain(trainer, pl_module, self.probes)
            results = observation.results
            look, heading = self._look_of(self.probes), self._heading(trainer)
            drawn = panels.draw(self.probes, results, self._titles(), look, heading)
        except BadInputError as error:
            if rehearsal:
                raise
            return self._failed_pass(trainer, error)
        except Exception as error:
            return self._failed_pass(trainer, error)
        if not rehearsal:
            self.last_result = results[0]
            self._write(drawn, trainer.global_step)
        findings = find_nulls(results, self._titles(), observation.diagnoses)
        if observation.failure is not None:
            findings.append(_failed("diagnosis", "The cause could not be found", observation.failure))
        self._announce(trainer, ["callback", "forward", "diagnosis", *results[0].health], findings)
        return _scalars(results)

    def _explain(self, trainer: Trainer, pl_module: LightningModule, probes: ProbeSet) -> Observation:
        with trainer.precision_plugin.forward_context():
            chosen = self._observer.choose(pl_module, probes.images)
            if chosen is not None:
                rank_zero_info(f"Grad-CAM explains the layer {chosen!r}, which `target_layers: auto` chose.")
            return self._observer.look(pl_module, probes.images, self._wanted(probes))

    def _failed_pass(self, trainer: Trainer, error: Exception) -> dict[str, float]:
        assert self.probes is not None
        if explain.raised_by_model(error):
            failed = diagnosis.of_failed_forward(self._observer.layers[0], error, len(self.probes))
            finding = Finding.of(failed, self._titles(), subject="forward")
        else:
            finding = _failed("callback", "The probe pass failed", error)
        self._announce(trainer, ["callback", "forward"], [finding])
        everything = len(self.probes) * len(self._observer.layers) * len(self.target)
        return {"gradcam/null_gradients": float(everything), "gradcam/empty_maps": 0.0}

    def _write(self, drawn: dict[str, Panel], step: int) -> None:
        if self._writer is not None:
            for layer, panel in drawn.items():
                self._writer.image(f"gradcam/{layer}", partial(picture.compose, panel), step)

    def _announce(self, trainer: Trainer, subjects: Sequence[str], findings: Sequence[Finding]) -> None:
        """Say what is new about these subjects: on record, in TensorBoard, as a warning or an error."""
        new = self._book.update(subjects, findings, step=trainer.global_step, epoch=trainer.current_epoch)
        if not new or not trainer.is_global_zero:
            return
        self._record(trainer, new)
        worse = [alert for alert in new if alert.status is not Status.CLEARED]
        nulls = [alert for alert in worse if alert.finding.is_null]
        if nulls and self.on_null == "raise":
            raise GradientNullError("\n".join(map(str, nulls)))
        for alert in worse:
            if not alert.finding.is_null or self.on_null == "warn":
                _warn(alert)

    def _record(self, trainer: Trainer, new: Sequence[Alert]) -> None:
        if self._writer is not None:
            # One text a moment: of two records with one tag and one step, TensorBoard shows only the last.
            self._writer.text("gradcam/alerts", "\n\n---\n\n".join(map(Alert.as_markdown, new)), trainer.global_step)
        if self._folder is None or _is_trial(trainer):
            return
        try:
            events.append_records(self._folder / "gradcam" / "alerts.jsonl", map(Alert.as_record, new))
        except OSError as error:
            warnings.warn(f"the alerts could not be written to {self._folder}: {error}", stacklevel=2)

    def _wanted(self, probes: ProbeSet) -> list[explain.Target]:
        labels = [] if probes.labels is None else probes.labels.tolist()
        return [labels if target == "label" else target for target in self.target]

    def _titles(self) -> list[str]:
        names = self.class_names or (self.probes.class_names if self.probes is not None else None)
        return [target if isinstance(target, str) else panels.class_name(target, names) for target in self.target]

    def _look_of(self, probes: ProbeSet) -> panels.Look:
        return panels.Look(
            colormap=self.colormap,
            opacity=self.opacity,
            shared_scale=self.scale == "shared",
            class_names=self.class_names or probes.class_names,
            mean=self.mean or probes.mean,
            std=self.std or probes.std,
        )

    def _heading(self, trainer: Trainer) -> str:
        return f"{self.method} · epoch {trainer.current_epoch} · step {trainer.global_step}"


def _is_trial(trainer: Trainer) -> bool:
    """Whether this is a `fast_dev_run`, which leaves nothing on the disk."""
    return any(isinstance(logger, DummyLogger) for logger in trainer.loggers)


def _transfer(trainer: Trainer, batch: Any, dataloader_idx: int) -> Any:
    """What the evaluation loop does to a batch before the model gets it."""
    batch = trainer.precision_plugin.convert_input(batch)
    batch = trainer.lightning_module._on_before_batch_transfer(batch, dataloader_idx=dataloader_idx)
    return trainer.strategy.batch_to_device(batch, dataloader_idx=dataloader_idx)


def _scalars(results: Sequence[CAMResult]) -> dict[str, float]:
    verdicts = [verdict for result in results for verdict in result.health.values()]
    scalars = {
        "gradcam/null_gradients": float(sum(len(verdict.null_probes) for verdict in verdicts)),
        "gradcam/empty_maps": float(sum(sum(verdict.empty) for verdict in verdicts)),
    }
    for layer, verdict in results[0].health.items():
        scalars[f"gradcam/gradient_norm/{layer}"] = float(torch.nanmean(verdict.gradient_norm))
    return scalars


def _failed(subject: str, what: str, error: Exception) -> Finding:
    message = f"{what}: {type(error).__name__}: {error}"
    advice = "The training goes on as if the callback were not there."
    return Finding(subject, Trouble.CALLBACK_FAILED, (), (), message, advice)


def _warn(alert: Alert) -> None:
    """A warning that points at the user's line, where one is to blame."""
    category = GradientNullWarning if alert.finding.is_null else UserWarning
    location = alert.finding.location
    if location is None:
        warnings.warn(str(alert), category, stacklevel=3)
    else:
        warnings.warn_explicit(str(alert), category, location.file, location.line)


def _write_findings(writer: events.BackgroundWriter) -> list[Finding]:
    return [
        Finding("writing", Trouble.WRITING_FAILED, (), (), f"A panel or an alert could not be written: {failure!r}", "")
        for failure in writer.take_failures()[:1]
    ]


def _check_options(every_n_epochs: int, on_null: str, opacity: float, scale: str) -> None:
    if isinstance(every_n_epochs, bool) or not isinstance(every_n_epochs, int) or every_n_epochs < 1:
        raise BadInputError(f"`every_n_epochs` is a whole number of at least 1; given: {every_n_epochs!r}.")
    for name, value, possible in (("on_null", on_null, get_args(OnNull)), ("scale", scale, get_args(Scale))):
        if value not in possible:
            raise BadInputError(f"`{name}` is one of {', '.join(map(repr, possible))}; given: {value!r}.")
    if not 0 <= opacity <= 1:
        raise BadInputError(f"`opacity` is a number from 0 to 1; given: {opacity!r}.")


def _check_targets(target: TargetSpec | Sequence[TargetSpec]) -> tuple[TargetSpec, ...]:
    given = (target,) if isinstance(target, (str, int)) else tuple(target)
    for one in given:
        is_class = isinstance(one, int) and not isinstance(one, bool) and one >= 0
        if not is_class and one not in ("predicted", "label"):
            raise BadInputError(f"A target is 'predicted', 'label' or a class index of at least 0; given: {one!r}.")
    if not given or len(set(given)) < len(given):
        raise BadInputError(f"`target` is one target or several different ones; given: {target!r}.")
    return given
