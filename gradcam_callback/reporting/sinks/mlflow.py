"""Reports into a run of MLflow."""

from __future__ import annotations

import io
import re

from PIL import Image

from gradcam_callback.reporting.report import Report
from gradcam_callback.reporting.sinks.sink import SinkContext

# In the key of an image, and in the name of a file that can be downloaded; a slash in a key is kept in a way that some
# versions of MLflow cannot read back.
_IMPOSSIBLE = re.compile(r"[^A-Za-z0-9_. -]")


class MLFlowSink:
    """Writes into the run of an MLFlowLogger: panels as images with steps, alerts and the report as artifacts.

    A client of MLflow has no state that the training uses, so it may be called from another thread.

    Args:
        context: Its logger is an MLFlowLogger.
    """

    name = "MLflow"

    def __init__(self, context: SinkContext) -> None:
        self._context = context
        self._client, self._run = context.logger.experiment, context.logger.run_id
        self._has_records = False  # that are not in the report yet

    def write(self, report: Report) -> None:
        """Write panels, and a file for each alert."""
        self._has_records |= bool(report.records)
        for tag, image in report.images.items():
            picture = Image.open(io.BytesIO(image.content))
            self._client.log_image(self._run, picture, key=_IMPOSSIBLE.sub("-", tag), step=report.step)
        for alert in report.alerts:
            name = _IMPOSSIBLE.sub("-", f"step-{report.step:08d} {alert.status} {alert.finding.subject}")
            self._client.log_text(self._run, alert.as_markdown(), f"{report.alerts_tag}/{name}.md")

    def flush(self) -> None:
        """Write the report of the run, if there is more to it than last time."""
        if self._has_records:
            self._client.log_text(self._run, self._context.html(), "gradcam/report.html")
            self._has_records = False
