"""Reports into a run of Weights & Biases."""

from __future__ import annotations

import html
import tempfile
from importlib import import_module
from pathlib import Path
from typing import Any

from gradcam_callback.reporting.alerts import Alert, Status
from gradcam_callback.reporting.report import Report
from gradcam_callback.reporting.sinks.sink import SinkContext

_LONGEST_TITLE = 63  # characters, of a notification


class WandbSink:
    """Writes into the run of a WandbLogger: panels as images, alerts as texts and notifications, the report as HTML.

    All of it goes through the logger's own `log_metrics`, which gives each row its `trainer/global_step` and leaves
    W&B's step alone: W&B drops a row at an earlier step of its own than the last one. Each call is one row, so it may
    come from another thread than the rows of the training.

    Args:
        context: Its logger is a WandbLogger.
    """

    name = "W&B"

    def __init__(self, context: SinkContext) -> None:
        self._context = context
        self._run = context.logger.experiment  # which a logger begins when it is asked first: not in another thread
        self._wandb: Any = import_module("wandb")
        self._recorded_at: int | None = None  # the step of a record that is not in the report yet

    def write(self, report: Report) -> None:
        """Write panels and alerts."""
        if report.records:
            self._recorded_at = report.step
        for tag, image in report.images.items():
            with tempfile.TemporaryDirectory() as folder:  # W&B copies a file as it is, and encodes anything else anew
                path = Path(folder, f"panel.{image.suffix}")
                path.write_bytes(image.content)
                self._log(tag, self._wandb.Image(str(path)), report.step)
        if report.alerts:
            text = f"<pre>{html.escape(report.markdown)}</pre>"
            self._log(report.alerts_tag, self._wandb.Html(text, data_is_not_path=True), report.step)
            for alert in report.alerts:
                self._notify(alert)

    def flush(self) -> None:
        """Write the report of the run, if there is more to it than last time."""
        if self._recorded_at is not None:
            page = self._wandb.Html(self._context.html(), inject=False, data_is_not_path=True)
            self._log("gradcam/report", page, self._recorded_at)
            self._recorded_at = None

    def _log(self, key: str, value: Any, step: int) -> None:
        self._context.logger.log_metrics({key: value}, step=step)

    def _notify(self, alert: Alert) -> None:
        """Send what W&B brings to its user by mail or in a chat, if it was asked to."""
        if alert.status is not Status.CLEARED:
            title = f"Grad-CAM: {alert.cause or 'gradient is None'} at {alert.finding.subject}"
            self._run.alert(title[:_LONGEST_TITLE], str(alert), level="WARN")
