"""When to explain the model: the hooks of the callback. Its signature is the YAML schema.

Note [Harmless hooks]

Whatever goes wrong in a hook becomes an alert, and the training goes on: `_harmless` sees to it. Two errors pass,
because they were asked for: an option that turns out impossible before anything is trained (but not where the callback
was attached from outside), and a null gradient with `on_null: raise`.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Mapping, Sequence
from itertools import takewhile
from typing import Any, ClassVar, TypeVar, cast

from gradcam_callback.engine.layer_listing import ListedLayer
from gradcam_callback.engine.layers import AUTO
from gradcam_callback.engine.sanity import Progress, SanityResult
from gradcam_callback.engine.targets import Task
from gradcam_callback.lightning_api import Callback, LightningModule, Trainer
from gradcam_callback.options import OnNull, PanelOption, Scale, TargetOption
from gradcam_callback.probes import ProbeSet, ProbeSource
from gradcam_callback.reporting.alerts import Alert
from gradcam_callback.results import CAMResult, Diagnosis
from gradcam_callback.run_reporter import warn_of
from gradcam_callback.session import Session
from gradcam_callback.settings import Memory, Settings
from gradcam_callback.trainer_context import TrainerContext

Hook = TypeVar("Hook", bound=Callable[..., None])


def _harmless(hook: Hook) -> Hook:
    """See Note [Harmless hooks]."""

    @functools.wraps(hook)
    def guarded(self: GradCAMCallback, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any) -> None:
        with self._session_of(trainer).guard(TrainerContext(trainer, pl_module), f"`{hook.__name__}` failed"):
            hook(self, trainer, pl_module, *args, **kwargs)

    return cast(Hook, guarded)


class GradCAMCallback(Callback):
    """Shows where the model looks: Grad-CAM for the same images after every validation, in TensorBoard.

    The images are copied out of the batches of the first validation. The maps are computed on a copy of the model that
    shares its weights, so training does not notice it. A gradient that is None, zero or not finite becomes an alert and
    a hatched tile, never an ordinary picture.

    Args:
        target_layers: Dotted names of modules inside the LightningModule, such as `model.layer4`, one or several; or
            `auto`: the last layer with rows and columns in its output that the whole signal passes. Of a layer
            that runs more than once in a forward pass, the last call that the score depends on is explained; the
            number of a call behind the name, counted from 0, or from the end with a minus, chooses another:
            `model.head#0` is the first call, `model.head#-1` the last. Several calls make several panels. A `*` stands
            for any part of a name between two dots: `model.layer*` makes a panel of each stage of a ResNet.
        probes: The images: the first n that pass in the first validation, the samples at these positions, or a source:
            `gradcam_callback.ValidationProbes`, `ImageProbes`, or from Python `TensorProbes`.
        target: What to explain; several make several columns. `predicted`, `label`, or a class index. Of several
            labels, `positive`, those that a sample has, or `{highest: 3}`. Of a regression, `{value: 0, sign:
            negative}`. Of a segmentation, `{segmentation: predicted}`, or `label`, or a class, scored over its own
            pixels or `over: label`, `image` or a box. Of a detector, `{detection: best}`, or `label`, or a class. Of an
            embedding, `{similarity: 0}`, the cosine to that of a probe, or to a vector. Of an autoencoder,
            `reconstruction`. Or a score of one's own by its dotted name: `target(output, batch)`, one number a sample;
            `{function: NAME, title: TITLE}` gives it a title.
        method: `gradcam`, `gradcam++`, `hirescam`, `xgradcam`, `layercam`, `gradcam_elementwise` or `eigengradcam`;
            without a gradient `eigencam`, and `scorecam` and `ablationcam`, which cost a forward pass for each channel
            of the layer and each probe; `smooth_gradcam`, which costs 16 a probe; for transformers `gradient_rollout`,
            which costs one. Or one of your own by its dotted name: a function `(activation, gradient) -> map`, or a
            class, with `{class_path: ..., init_args: ...}`.
        output: Where the logits are in what forward returns: a key, an index, or from Python a function; by default
            they are found.
        layout: How the layers' outputs lie in space: `nchw`, `nhwc`, `tokens`, a grid of tokens with the number or the
            positions of the extra ones (`{grid: [14, 14], extras: 1}`), or the dotted name of a function from a tensor
            to `(N, K, h, w)`; by default it is found.
        forward: What is called of the LightningModule: a method that returns the output.
        inputs: Which entries of a batch it gets: a key, the name of an attribute or a position, with dots to reach
            further in (`view.image`); several in a list by position, or in a mapping `{argument: entry}` by keyword;
            `.` is the whole batch. By default it is found where the signature of the method and the batch agree
            (`forward(pixel_values, metadata)`, `forward(**batch)`, `predict_step(batch, batch_idx)`).
        task: What the model's numbers are: `classification`, scores of classes of which one is right; `multilabel`,
            scores of labels each for itself; or `regression`, values. By default the labels tell: several an image, or
            numbers that are no classes.
        every_n_epochs: Epochs between two probe passes; epoch 0 always has one.
        on_null: What to do about a probe without a usable gradient: `warn`; `raise` ends the run with a
            GradientNullError, before the first training step if it is so from the start; `ignore` does not warn, and
            the alert is still on record.
        bridge: Whether to draw the map across a cut that autograd alone cannot pass (`detach`, `.data`,
            `requires_grad = False`, `no_grad`, `inference_mode`): it is the map of the function that the network
            computes, its caption says that it was bridged, and the alert stays.
        class_names: Names of the classes, by index. By default those of the data set (`dataset.classes`). If there are
            not as many as the model has outputs, no panels are drawn; an empty list is for classes without names.
        mean: What the data's normalisation subtracts, a number a channel, to show the images as they were. By default
            it is taken from the data set's transforms.
        std: What it divides by, likewise.
        channels: Which channels of the images the panels show: one, or three. By default the first three.
        colormap: Any colormap that matplotlib knows.
        opacity: Of the map over the image, 0 to 1.
        scale: `each` scales every map by its own maximum; `shared` scales all probes of a panel by one, so that they
            can be compared.
        fuse: Whether several layers make one more panel, `gradcam/fused`: the mean of their heatmaps, each scaled to
            0..1 before.
        panels: When a panel is drawn for the Images tab. The viewer shows every look in any case. `every look`;
            `when something changed`, a prediction, the state of a gradient or an alert, and at the first look;
            `last`, once, when the run ends; or `never`.
        source_lines: Whether alerts quote the lines of code that they blame, with full paths. What looks like a secret
            is masked in any case.
        method_on_null: Which method draws where there is no gradient, and no map across the cut: `scorecam`,
            `ablationcam` or `eigencam`; the caption says so, and the alert stays. By default none does.
        regions: Where the thing is in each image: the entry of a batch with a box (left, top, right, bottom in pixels),
            several, or a mask for each image, by its key or position; `labels`, where these are boxes or masks;
            `{file: boxes.json}`; or a list with a box or a mask for each probe. Then it is measured how much of the
            energy of the maps lies inside, and an alert says if the model is right and looks elsewhere.
        faithfulness: Whether to measure how the probability of the class goes as the image is changed where the map
            says: insertion, deletion, average drop, increase and ROAD. `true`, or `{every_n_epochs: 5, steps: 32}`; it
            costs 76 forward passes for each map.
        sinks: Where panels and alerts go besides the loggers of the trainer: a list of classes or functions by their
            dotted names, which make a `gradcam_callback.Sink` of a `SinkContext`. `{class_path: ..., init_args: ...,
            logger: NAME}` is for each logger of a class. By default there are none, and TensorBoardLogger, WandbLogger,
            MLFlowLogger and CometLogger get all there is in any case.

    Attributes:
        alerts: All alerts so far, in order.
        last_result: The maps of the last validation, for the first target; None before there was one.
        probes: The images, once they were captured; None before.

    Raises:
        ValueError: An option has a value that is not possible; the message says which are.
        TypeError: An option is of a wrong type.
    """

    _refuses: ClassVar[bool] = True  # an option that turns out impossible

    def __init__(
        self,
        target_layers: str | Sequence[str] = AUTO,
        probes: int | Sequence[int] | ProbeSource = 8,
        target: TargetOption = "predicted",
        method: str | dict[str, Any] | Callable[[Any, Any], Any] = "gradcam",
        output: int | str | Callable[[Any], Any] | None = None,
        layout: str | dict[str, Any] | Callable[[Any], Any] | None = None,
        forward: str = "forward",
        inputs: int | str | Sequence[int | str] | dict[str, int | str] | None = None,
        task: Task | None = None,
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
        fuse: bool = False,
        panels: PanelOption = "every look",
        source_lines: bool = True,
        method_on_null: str | dict[str, Any] | None = None,
        regions: int | str | dict[str, str] | Sequence[Any] | None = None,
        faithfulness: bool | dict[str, Any] | None = None,
        sinks: Sequence[Any] | None = None,
    ) -> None:
        given = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        super().__init__()
        self.settings = Settings.checked(**given)
        self._memory = Memory()
        self._sessions: weakref.WeakKeyDictionary[Trainer, Session] = weakref.WeakKeyDictionary()

    @property
    def alerts(self) -> list[Alert]:
        """All alerts so far, in order."""
        return self._memory.alerts

    @property
    def last_result(self) -> CAMResult | None:
        """The maps of the last validation, for the first target; None before there was one."""
        return self._memory.last_result

    @property
    def probes(self) -> ProbeSet | None:
        """The images, once they were captured; None before."""
        return self._memory.probes

    # When

    @_harmless
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Begin another run, before a checkpoint is restored or a learning rate is looked for."""
        self._sessions.pop(trainer, None)
        if stage == "fit":
            self._memory.begin_training()

    @_harmless
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse a layer that does not exist, before anything else happens."""
        self._session_of(trainer).bind_model(TrainerContext(trainer, pl_module))

    @_harmless
    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find out where to write, and take up what a checkpoint holds."""
        self._session_of(trainer).open(TrainerContext(trainer, pl_module))

    @_harmless
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make a dry run with images of the sanity check, if there was one."""
        session, run = self._session_of(trainer), TrainerContext(trainer, pl_module)
        session.open(run)
        session.dry_run(run)

    @_harmless
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Make a dry run with the first batch, if the sanity check has not made one."""
        session, run = self._session_of(trainer), TrainerContext(trainer, pl_module)
        if session.awaits_dry_run:
            session.preview(run, batch, None)
            session.dry_run(run)
            session.awaits_dry_run = False

    @_harmless
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to collect the probes, where there are none yet."""
        session, run = self._session_of(trainer), TrainerContext(trainer, pl_module)
        if run.stage != "fit":
            session.bind_model(run)
        if not trainer.sanity_checking:
            session.start_collecting(run)

    @_harmless
    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Copy the samples that are wanted out of a batch."""
        session = self._session_of(trainer)
        if not trainer.sanity_checking:
            session.collect(batch, dataloader_idx)
        elif session.awaits_dry_run:
            session.preview(TrainerContext(trainer, pl_module), batch, dataloader_idx)

    @_harmless
    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Explain the probes, and write what was found."""
        if not trainer.sanity_checking:
            self._session_of(trainer).probe(TrainerContext(trainer, pl_module))

    on_test_start, on_test_batch_start = on_validation_start, on_validation_batch_start
    on_test_epoch_end = on_validation_epoch_end

    @_harmless
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Bring to the disk what waits, also on Ctrl-C."""
        self._session_of(trainer).close(TrainerContext(trainer, pl_module))

    @_harmless
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Bring to the disk what waits, and end the thread."""
        self._memory.loaded = {}
        self._session_of(trainer).close(TrainerContext(trainer, pl_module))

    def wants_batches(self, trainer: Trainer) -> bool:
        """Whether some batches that are still to come in this validation may hold probes."""
        return self._session_of(trainer).wants_batches

    def diagnose(self, trainer: Trainer, pl_module: LightningModule) -> list[tuple[str, Diagnosis]]:
        """Diagnose each target layer for each target, healthy or not, and write nothing.

        To be called when the hooks of a validation that has begun were called for its batches, and no more of them are
        wanted or there are no more.

        Returns:
            The target's name and the diagnosis, layer by layer.

        Raises:
            ValueError: There are no probes, or an option turns out impossible: there is no such layer or class.
        """
        session, run = self._session_of(trainer), TrainerContext(trainer, pl_module)
        return session.prober.diagnose(run, session.captured(run))

    def check_weights(
        self, trainer: Trainer, pl_module: LightningModule, progress: Progress | None = None
    ) -> list[SanityResult]:
        """Randomise the weights of a copy of the model, and see whether the maps change; and write nothing.

        To be called when `diagnose` may be. It costs about a dozen probe passes.

        Args:
            trainer: In a validation that has begun.
            pl_module: The model.
            progress: Told how many of the steps are done, and how many there are.

        Returns:
            One for each target.

        Raises:
            ValueError: As of `diagnose`; or the model or a target cannot be checked.
        """
        session, run = self._session_of(trainer), TrainerContext(trainer, pl_module)
        return session.prober.check_weights(run, session.captured(run), progress)

    def list_layers(self, trainer: Trainer, pl_module: LightningModule) -> list[ListedLayer]:
        """List the layers of the model, and which of them "auto" takes; to be called when `diagnose` may be.

        Raises:
            ValueError: There are no probes.
        """
        session, run = self._session_of(trainer), TrainerContext(trainer, pl_module)
        return session.prober.list_layers(run, session.captured(run))

    def look(self, run: TrainerContext) -> None:
        """Explain the probes once, and write what is seen where the context says; to be called when `diagnose` may be.

        Raises:
            ValueError: There is no such layer.
            GradientNullError: There is a null, and `on_null` is "raise".
        """
        session = self._session_of(run.trainer)
        session.bind_model(run)
        try:
            session.probe(run)
        finally:
            session.close(run)

    # Across runs

    @property
    def state_key(self) -> str:
        """What tells the states of several callbacks in one checkpoint apart: all of their options."""
        return self._generate_state_key(**self.settings.as_texts())

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps: which images were explained, how their pixels were, when, and the alerts."""
        try:
            state = self._memory.state_dict()
        except Exception as error:  # the checkpoint is worth more
            warn_of("The alerts so far could not be put into the checkpoint", error)
            state = dict(self._memory.training)
        return {**state, "explains": self.settings.request_texts()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep what a checkpoint holds until it is known whether its training is resumed."""
        self._memory.loaded = state_dict

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Take up the state of the callback that explained the same in the earlier run, if only its looks changed."""
        states: Mapping[str, Any] = checkpoint.get("callbacks", {})
        if self.state_key in states:
            return
        explains = self.settings.request_texts()
        same = (state for state in states.values() if isinstance(state, dict) and state.get("explains") == explains)
        self._memory.loaded = next(same, {})

    def __getstate__(self) -> dict[str, Any]:
        """What copies and pickles take along: not the runs that are going on."""
        return {name: value for name, value in vars(self).items() if name != "_sessions"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _sessions=weakref.WeakKeyDictionary())

    def _session_of(self, trainer: Trainer) -> Session:
        if trainer not in self._sessions:
            before = takewhile(lambda other: other is not self, trainer.callbacks)  # type: ignore[attr-defined]
            earlier = [other._session_of(trainer) for other in before if isinstance(other, GradCAMCallback)]
            self._sessions[trainer] = Session(self.settings, self._memory, earlier, refuses=self._refuses)
        return self._sessions[trainer]
