"""Grad-CAM in a training loop of the user's own: plain torch or Fabric, without a Trainer."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from gradcam_callback.engine.layers import AUTO
from gradcam_callback.engine.targets import Task
from gradcam_callback.loop_context import LoopContext
from gradcam_callback.options import OnNull, PanelOption, Scale, TargetOption
from gradcam_callback.probes import ProbeSet, as_given
from gradcam_callback.reporting.alerts import Alert
from gradcam_callback.results import CAMResult
from gradcam_callback.session import Session
from gradcam_callback.settings import Memory, Settings


class GradCAMWatch:
    """Shows where a model looks as it trains, in a loop without a Trainer.

    Each look computes Grad-CAM for the same images, on a copy of the model that shares its weights, so training does
    not notice it. Panels, scalars, alerts and the recording are those of `GradCAMCallback`. Before the first look the
    images are explained once, so that what is wrong is known before the training.

    Whatever goes wrong in a look becomes an alert, and the training goes on.

    Args:
        model: The module that trains: as it is, or wrapped by `Fabric.setup`, DistributedDataParallel or
            `torch.compile`; on any device, and it may move.
        probes: The images, as the model gets them: `(N, C, H, W)`; a batch such as `(images, labels)`, of which all
            samples are taken; or `ImageProbes` or `TensorProbes`. A copy is kept.
        log_dir: The folder of the run, on the disk or a URL; or the `torch.utils.tensorboard.SummaryWriter` that the
            loop itself writes with, because TensorBoard shows one event file of a folder as it grows.
        target_layers: This and all that follow: as for `GradCAMCallback`.
        target: What to explain.
        method: How the maps are made.
        output: Where the logits are in what forward returns.
        layout: How the layers' outputs lie in space.
        forward: What is called of the model.
        inputs: Which entries of a batch it gets, where `probes` is a batch.
        task: What the model's numbers are.
        on_null: What to do about a probe without a usable gradient; with `raise` a GradientNullError comes from here,
            before the training, or from a look.
        bridge: Whether to draw the map across a cut.
        class_names: Names of the classes, by index.
        mean: What the normalisation subtracts, a number a channel, to show the images as they were.
        std: What it divides by.
        channels: Which channels of the images the panels show.
        colormap: Any that matplotlib knows.
        opacity: Of the map over the image, 0 to 1.
        scale: `each` or `shared`.
        fuse: Whether several layers make one more panel.
        panels: When a panel is drawn.
        source_lines: Whether alerts quote lines of code.
        method_on_null: Which method draws where there is no gradient.
        regions: Where the thing is in each image.
        faithfulness: Whether to measure how the probability goes as the image is changed.
        sinks: Where panels and alerts go besides.

    Raises:
        ValueError: An option has a value that is not possible, or `probes` holds no images; the message says what is.
        TypeError: An option is of a wrong type.
        GradientNullError: There is a null, and `on_null` is "raise".
    """

    def __init__(
        self,
        model: nn.Module,
        probes: Any,
        log_dir: str | os.PathLike[str] | Any,
        *,
        target_layers: str | Sequence[str] = AUTO,
        target: TargetOption = "predicted",
        method: str | dict[str, Any] | Callable[[Any, Any], Any] = "gradcam",
        output: int | str | Callable[[Any], Any] | None = None,
        layout: str | dict[str, Any] | Callable[[Any], Any] | None = None,
        forward: str = "forward",
        inputs: int | str | Sequence[int | str] | dict[str, int | str] | None = None,
        task: Task | None = None,
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
        given = {name: value for name, value in locals().items() if name not in ("self", "model", "log_dir")}
        settings = Settings.checked(every_n_epochs=1, **{**given, "probes": as_given(probes)})
        self._run = LoopContext(model, log_dir)
        self._memory = Memory()
        self._session = Session(settings, self._memory)
        self._looks = 0
        # At the end of the process, too, or the last panels would be lost.
        self._closing = weakref.finalize(self, _close, self._session, self._run)
        if self._run.takes_part:
            self._begin()

    @property
    def alerts(self) -> list[Alert]:
        """All alerts so far, in order."""
        return self._memory.alerts

    @property
    def last_result(self) -> CAMResult | None:
        """The maps of the last look, for the first target; None before there was one."""
        return self._memory.last_result

    @property
    def probes(self) -> ProbeSet | None:
        """The images; None before the first look."""
        return self._memory.probes

    def look(self, step: int, epoch: int | None = None) -> None:
        """Explain the images, and write what is seen. It may stand anywhere in the loop, in training mode, too.

        Args:
            step: How many optimizer steps there were: where the panels stand in TensorBoard.
            epoch: The epoch, counted from 0. None counts the looks in its place.

        Raises:
            GradientNullError: There is a null, and `on_null` is "raise".
        """
        if not self._run.takes_part:
            return
        self._run.move_to(step, epoch, self._looks)
        self._looks += 1
        with self._session.guard(self._run, "`look` failed"):
            if not self._closing.alive:
                raise RuntimeError("the watch is closed, and nothing is written any more")
            self._session.probe(self._run)

    def close(self) -> None:
        """Bring to the disk what waits. It happens by itself at the end of a `with`, and of the process."""
        self._closing()

    def __enter__(self) -> GradCAMWatch:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _begin(self) -> None:
        """Find the layers, explain the images once, and take them."""
        session, run = self._session, self._run
        session.bind_model(run)
        with session.guard(run, "The watch could not begin"):
            session.open(run)
            if run.unsupported_reason is None:
                session.preview(run, None, 0)
                session.dry_run(run)
                session.start_collecting(run)


def _close(session: Session, run: LoopContext) -> None:
    session.close(run)
    run.close()
