"""What every sink can do."""

from __future__ import annotations

from typing import Protocol

from gradcam_callback.reporting.report import Report


class Sink(Protocol):
    """A place for reports. Its methods are called from one thread, in order."""

    @property
    def name(self) -> str:
        """What it is called in an alert, e.g. "TensorBoard" or a path."""

    def write(self, report: Report) -> None:
        """Write a report, or what of it belongs here.

        Raises:
            Exception: It could not be written. The other sinks go on, and an alert says so.
        """

    def flush(self) -> None:
        """Make sure that what was written is on the disk."""
