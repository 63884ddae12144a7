"""What is measured of a run's maps, look after look, and what that tells."""

from __future__ import annotations

from dataclasses import replace

from gradcam_callback.execution.probe_pass import ProbePassResult
from gradcam_callback.prober import Prober
from gradcam_callback.probes import ProbeSet
from gradcam_callback.probes.regions import find_regions
from gradcam_callback.reporting import findings
from gradcam_callback.reporting.look_measures import LookMeasurer
from gradcam_callback.reporting.looks_elsewhere import ElsewhereWatch
from gradcam_callback.reporting.recorder import SeenProbes
from gradcam_callback.run_context import RunContext
from gradcam_callback.run_reporter import RunReporter
from gradcam_callback.settings import Settings


class Measuring:
    """Measures the maps of one run, and keeps on record what is wrong with them.

    Args:
        settings: The options of the callback.
        prober: It runs the model again where that is asked for.
        reporter: Of what is found.
    """

    def __init__(self, settings: Settings, prober: Prober, reporter: RunReporter) -> None:
        self._settings, self._prober, self._reporter = settings, prober, reporter
        self._probes: ProbeSet | None = None
        self._measurer = LookMeasurer()
        self._elsewhere: ElsewhereWatch | None = None

    def begin(self, run: RunContext, probes: ProbeSet) -> None:
        """Find where the thing is in each probe. Where that cannot be, it is an alert: it is too late to refuse it."""
        regions, found = None, []
        try:
            regions = find_regions(self._settings.regions, probes)
        except Exception as error:
            found = [findings.failed("regions", "The regions of the probes could not be found", error)]
        self._reporter.record(run, ["regions"], found)
        labels = None if probes.labels is None else probes.labels.numpy()
        self._probes, self._measurer = probes, LookMeasurer(regions)
        self._elsewhere = None if regions is None else ElsewhereWatch(regions, labels)

    def measured(self, run: RunContext, result: ProbePassResult, seen: SeenProbes) -> SeenProbes:
        """The look with its measures."""
        assert self._probes is not None
        others, failed = {}, []
        try:
            others = self._prober.faithfulness(run, self._probes, result)
        except Exception as error:  # the maps are right without it
            failed = [findings.failed("faithfulness", "The faithfulness could not be measured", error)]
        self._reporter.record(run, ["faithfulness"], failed)
        look = self._measurer.measured(seen.look, others)
        if self._elsewhere is not None:
            found = self._elsewhere.findings(look)
            self._reporter.record(run, list(found), [finding for finding in found.values() if finding is not None])
        return replace(seen, look=look)
