"""One look after another at the probes of a run: the pass, its measures, its panels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from gradcam_callback.engine.layers import AUTO
from gradcam_callback.execution.probe_pass import ProbePassResult
from gradcam_callback.measuring import Measuring
from gradcam_callback.notices import notices_of
from gradcam_callback.prober import Prober
from gradcam_callback.probes import ProbeSet
from gradcam_callback.reporting.look_measures import measure_scalars
from gradcam_callback.reporting.panel import Panel
from gradcam_callback.reporting.panel_schedule import KeptPanels, PanelSchedule
from gradcam_callback.reporting.pass_renderer import PassRenderer
from gradcam_callback.reporting.recorder import SeenProbes
from gradcam_callback.reporting.tags import Tags
from gradcam_callback.results import CAMResult
from gradcam_callback.run_context import RunContext
from gradcam_callback.run_reporter import RunReporter, health_scalars
from gradcam_callback.settings import Settings


@dataclass(eq=False)
class LookResult:
    """What one look has come to, as far as it came.

    Attributes:
        scalars: By tag.
        panels: Layer to the pages of its panel; empty where none is due.
        seen: What is recorded.
        result: The maps of the first target.
    """

    scalars: dict[str, float]
    panels: dict[str, list[Panel]] = field(default_factory=dict)
    seen: SeenProbes | None = None
    result: CAMResult | None = None


class Looking:
    """Looks at the probes of one run.

    Args:
        settings: The options of the callback.
        prober: It runs the model.
        reporter: Of what is found.
    """

    def __init__(self, settings: Settings, prober: Prober, reporter: RunReporter) -> None:
        self._settings, self._prober, self._reporter = settings, prober, reporter
        self._schedule = PanelSchedule(settings.panels)
        self._measuring = Measuring(settings, prober, reporter)

    def begin(self, run: RunContext, probes: ProbeSet) -> None:
        """Take up the probes that the looks are at."""
        self._measuring.begin(run, probes)

    def dry_run(self, run: RunContext, probes: ProbeSet) -> None:
        """Look, and write nothing of it.

        Raises:
            Exception: Whatever went wrong.
        """
        renderer = self._renderer(probes)
        result = self._explain(run, renderer)
        if self._reporter.record_doubts(run, renderer, result):
            self._prober.panels(run, result, renderer)

    def look(self, run: RunContext, probes: ProbeSet, look: LookResult, tags: Callable[[], Tags]) -> None:
        """Look.

        Args:
            run: The run.
            probes: Those that `begin` was told.
            look: What it comes to is put in there, so that what went well before an error is not lost.
            tags: Those of the layers, which "auto" may choose during the look.

        Raises:
            Exception: Whatever went wrong.
        """
        try:
            renderer = self._renderer(probes, draws=self._schedule.draws)
            result = self._explain(run, renderer)
            look.result = result.results[0]
            look.scalars = health_scalars(result.results, tags())
            look.seen = self._measuring.measured(run, result, self._prober.seen(result, renderer))
            look.scalars |= measure_scalars(look.seen.look, tags())
            is_plain = self._reporter.record_doubts(run, renderer, result)
            if is_plain and self._schedule.is_due(look.seen.look, has_news=self._reporter.has_news):
                look.panels = self._prober.panels(run, result, renderer)
            self._reporter.record(run, ["callback"], [])
        except Exception:
            self._schedule.forget()
            raise

    def due_panels(self, run: RunContext, panels: Mapping[str, Panel]) -> Mapping[str, Panel]:
        """What is to be written now of the panels of this look, by tag; see `PanelSchedule.take`."""
        return self._schedule.take(panels, run.step, run.epoch)

    def kept_panels(self) -> KeptPanels | None:
        """What is left to be written when the run ends."""
        return self._schedule.take_kept()

    def _renderer(self, probes: ProbeSet, *, draws: bool = True) -> PassRenderer:
        return PassRenderer(probes, self._settings.style_for(probes), draws=draws)

    def _explain(self, run: RunContext, renderer: PassRenderer) -> ProbePassResult:
        """One probe pass, and what it tells of gradients, memory, weights and probes on record."""
        probes = renderer.probes
        is_chosen = self._prober.layers != (AUTO,)
        result = self._prober.explain(run, probes, renderer)
        for notice in notices_of(self._prober, probes, result, chosen_now=not is_chosen):
            self._reporter.notice(run, notice)
        self._reporter.record_health(run, result, self._prober.titles(probes))
        return result
