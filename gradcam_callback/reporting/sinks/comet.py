"""Reports into an experiment of Comet."""

from __future__ import annotations

import copy
import io
from typing import Any

from gradcam_callback.reporting.report import Report
from gradcam_callback.reporting.sinks.sink import SinkContext


class CometSink:
    """Writes into the experiment of a CometLogger: panels as images, alerts as texts, the report as an asset.

    Args:
        context: Its logger is a CometLogger.
    """

    name = "Comet"

    def __init__(self, context: SinkContext) -> None:
        self._context = context
        self._experiment = context.logger.experiment
        self._recorded_at: int | None = None  # the step of a record that is not in the report yet

    def write(self, report: Report) -> None:
        """Write panels and alerts.

        Raises:
            OSError: Comet has not taken them.
        """
        if self._experiment.disabled:  # by the user
            return
        if report.records:
            self._recorded_at = report.step
        experiment = self._at_step(report.step)
        for tag, image in report.images.items():
            _check(experiment.log_image(io.BytesIO(image.content), name=f"{tag}.{image.suffix}"))
        if report.alerts:
            _check(experiment.log_text(report.markdown, metadata={"tag": report.alerts_tag}))

    def flush(self) -> None:
        """Write the report of the run, if there is more to it than last time.

        Raises:
            OSError: Comet has not taken it.
        """
        if self._recorded_at is not None:
            page = io.StringIO(self._context.html())
            experiment = self._at_step(self._recorded_at)
            _check(experiment.log_asset(page, file_name="gradcam/report.html", overwrite=True))
            self._recorded_at = None

    def _at_step(self, step: int) -> Any:
        """The experiment with a step of its own.

        Comet keeps the step in the experiment, sets it in each call and reads it again later in the same call: two
        threads would get each other's. What a shallow copy writes goes the same way as the experiment's own.
        """
        experiment = copy.copy(self._experiment)
        if not experiment.alive:
            raise OSError("The experiment has ended, or could not be begun")
        experiment.curr_step = step
        return experiment


def _check(answer: Any) -> None:
    """Comet answers None where it has not taken something, and raises nothing."""
    if answer is None:
        raise OSError("Comet has not taken it; its log says why")
