"""What `gradcam-callback explain` asks of a callback: panels, a recording and its report, of a model as it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from gradcam_callback.callback import GradCAMCallback
from gradcam_callback.engine.targets import Annotations, Target, as_target, bind
from gradcam_callback.errors import BadInputError, GradientNullError
from gradcam_callback.lightning_api import LightningModule, Trainer
from gradcam_callback.probes import ImageProbes
from gradcam_callback.report import write_report
from gradcam_callback.reporting.sinks.files import AlertFile, PanelFiles, RecordingFile
from gradcam_callback.reporting.sinks.registry import ChosenSink, OpenedSinks
from gradcam_callback.trainer_context import TrainerContext

REPORT = "report.html"


@dataclass(frozen=True, eq=False)
class ExplainContext(TrainerContext):
    """A validation whose look goes into a folder, and nowhere else.

    Attributes:
        folder: Of the panels, the recording and the alerts.
        weights: What the model's weights are, for the heading of the panels.
    """

    folder: str
    weights: str

    @property
    def shows_progress(self) -> bool:
        """Always: the Trainer's own bar shows nothing of this."""
        return True

    @property
    def moment(self) -> str:
        """The weights: of a checkpoint's epoch and step the Trainer knows nothing in a validation."""
        return self.weights

    def open_sinks(self, chosen: Sequence[ChosenSink]) -> OpenedSinks:
        """Files."""
        return OpenedSinks([RecordingFile(self.folder), PanelFiles(self.folder), AlertFile(self.folder)])

    def log_scalars(self, scalars: dict[str, float]) -> list[Exception]:
        """Nowhere: there is one look, and the recording has its numbers."""
        return []

    def show_scalars(self, scalars: dict[str, float]) -> None:
        """To nobody."""


@dataclass(frozen=True)
class Explanation:
    """What was written by one callback.

    Attributes:
        folder: Where.
        has_null: Whether a gradient is missing.
    """

    folder: Path
    has_null: bool

    def conclude(self) -> None:
        """Write the report, and print where everything is.

        Raises:
            OSError: It cannot be written.
        """
        report = Path(write_report([str(self.folder)], str(self.folder / REPORT)))
        panels = len(list((self.folder / "gradcam").rglob("step=*")))
        print(f"Written: {report} ({report.stat().st_size / 1e6:.1f} MB), to be opened in a browser.")
        print(f"Written: {panels} panel{'s' * (panels != 1)} below {self.folder / 'gradcam'}.")


def new_folder(output: str) -> Path:
    """The folder to write to.

    Raises:
        ValueError: There is an earlier look in it, which would be in the report, too.
    """
    folder = Path(output)
    if any(folder.rglob("*tfevents*")):
        raise BadInputError(f"There is a recording in {folder} already. Remove it, or name another folder with `-o`.")
    return folder


def explain(callback: GradCAMCallback, trainer: Trainer, model: LightningModule, folder: Path, weights: str) -> bool:
    """Have a callback look once; whether a gradient is missing.

    To be called when `GradCAMCallback.diagnose` may be.

    Raises:
        ValueError: There are no maps; the message says why.
    """
    try:
        callback.look(ExplainContext(trainer, model, str(folder), weights))
    except GradientNullError:  # that is what the exit status is for
        return True
    if callback.last_result is None:
        raise BadInputError(str(callback.alerts[-1]) if callback.alerts else "No sample passed to be explained.")
    return any(alert.finding.is_null for alert in callback.alerts)


def take_files(callback: GradCAMCallback, files: Sequence[str]) -> None:
    """Have a callback explain image files in place of its own probes.

    They have neither labels nor regions, so targets that ask for labels are left out.

    Raises:
        ValueError: There is no such file, or it is no image.
    """
    targets = tuple(filter(_needs_no_label, callback.settings.targets)) or (as_target("predicted"),)
    callback.settings = replace(callback.settings, source=ImageProbes(files), targets=targets, regions=None)


def _needs_no_label(target: Target) -> bool:
    try:
        bind(target, Annotations())
    except BadInputError:
        return False
    return True
