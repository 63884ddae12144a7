"""What every sink can do, and what it is made for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from gradcam_callback.recording.bundle import report_of
from gradcam_callback.recording.reading import read_runs
from gradcam_callback.reporting.report import Report


@runtime_checkable
class Sink(Protocol):
    """A place for reports. Its methods are called from one thread, in order, beside the training."""

    @property
    def name(self) -> str:
        """What it is called in an alert, e.g. "TensorBoard" or a path."""

    def write(self, report: Report) -> None:
        """Write a report, or what of it belongs here.

        Raises:
            Exception: It could not be written. The other sinks go on, and an alert says so.
        """

    def flush(self) -> None:
        """Bring to its place what was written, and what there is to write at the end of a run.

        Raises:
            Exception: As of `write`.
        """


@dataclass(frozen=True)
class SinkContext:
    """What a sink is made for.

    Attributes:
        logger: The logger that it writes to; None of a sink for the whole run.
        folder: Where the recording and `gradcam/alerts.jsonl` of the run are: a path, or a URL that fsspec knows.
    """

    logger: Any
    folder: str

    def html(self) -> str:
        """The run so far as one HTML page, which needs no network: what `gradcam-callback report` writes.

        Raises:
            FileNotFoundError: Nothing of this run is recorded.
        """
        return report_of(read_runs(self.folder, below=False))
