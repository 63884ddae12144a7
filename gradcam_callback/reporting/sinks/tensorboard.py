"""Reports into the event file of a TensorBoardLogger."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.text.summary_v2 import text_pb

from gradcam_callback.recording.summaries import summary_of
from gradcam_callback.reporting.report import Report
from gradcam_callback.reporting.sinks.disk_space import ensure_space
from gradcam_callback.reporting.sinks.sink import SinkContext

_RGB = 3  # the number that an image's record has for its colours


class TensorBoardSink:
    """Writes into the event file of a TensorBoardLogger.

    Args:
        experiment: The logger's own `SummaryWriter`. A writer of our own would open a second event file in the same
            folder, and TensorBoard would stop showing one of the two live.
    """

    name = "TensorBoard"

    def __init__(self, experiment: Any) -> None:
        self._experiment = experiment
        # A logger that was closed after an earlier run opens a new file when it is next used. That must not happen in
        # the writer's thread, where it would race with the training loop.
        experiment._get_file_writer()

    @classmethod
    def of(cls, context: SinkContext) -> TensorBoardSink:
        """The sink of a TensorBoardLogger."""
        return cls(context.logger.experiment)

    def write(self, report: Report) -> None:
        """Write records for the viewer, panels for the images tab, and alerts for the text tab.

        Raises:
            OSError: There is no space for them.
        """
        for record in report.records:
            self._add(summary_of(record.tag, record.record), report.step)
        for tag, image in report.images.items():
            picture = Summary.Image(
                height=image.height, width=image.width, colorspace=_RGB, encoded_image_string=image.content
            )
            self._add(Summary(value=[Summary.Value(tag=tag, image=picture)]), report.step)
        if report.alerts:
            # `add_text` would append "/text_summary" to the tag.
            self._add(text_pb(report.alerts_tag, report.markdown), report.step)

    def flush(self) -> None:
        """Make sure that what was written is on the disk."""
        self._experiment.flush()

    def _add(self, summary: Any, step: int) -> None:
        if getattr(self._experiment, "file_writer", self) is None:  # the next scalar of the training opens another
            raise OSError("The event file was closed")
        self.flush()  # what waits in the queue takes space, too
        ensure_space_in_events(self._experiment, summary.ByteSize())
        self._experiment._get_file_writer().add_summary(summary, step)


def open_event_file(folder: str) -> Any:
    """A `SummaryWriter` for a folder, which is made; for runs that have no TensorBoardLogger."""
    from torch.utils.tensorboard import SummaryWriter  # takes long, and a Trainer has its own

    return SummaryWriter(folder)


def write_scalars(experiment: Any, scalars: Mapping[str, float], step: int) -> None:
    """Write scalars with a `SummaryWriter`.

    Raises:
        OSError: There is no space for them, or the folder is gone.
    """
    ensure_space_in_events(experiment)
    for tag, value in scalars.items():
        experiment.add_scalar(tag, value, step)


def ensure_space_in_events(experiment: Any, size: int = 1 << 14) -> None:
    """Make sure that a `SummaryWriter` has space for so many bytes; see `disk_space`.

    To be called before scalars are handed to a TensorBoardLogger, too.

    Raises:
        OSError: There is no space for them, or the folder is gone.
    """
    writer = experiment._get_file_writer()
    file = getattr(writer.event_writer, "_file_name", "")
    ensure_space(writer.get_logdir(), size, os.path.getsize(file) if os.path.isfile(file) else 0)
