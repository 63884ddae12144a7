"""What is written at one step: the record that sinks take."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from gradcam_callback.reporting.alerts import Alert
from gradcam_callback.reporting.panel import Panel
from gradcam_callback.reporting.recorder import PendingRecord
from gradcam_callback.reporting.rendering import composition


@dataclass(frozen=True, eq=False)
class Report:
    """What is written at one step.

    Attributes:
        step: `trainer.global_step`.
        epoch: `trainer.current_epoch`.
        panels: By their tags, not yet composed.
        alerts: Those that are new.
        alerts_tag: Under which tag the alerts become a text.
        records: For the recording.
    """

    step: int
    epoch: int
    panels: Mapping[str, Panel] = field(default_factory=dict)
    alerts: Sequence[Alert] = ()
    alerts_tag: str = "gradcam/alerts"
    records: Sequence[PendingRecord] = ()

    @cached_property
    def images(self) -> dict[str, composition.EncodedImage]:
        """The panels as files, by their tags; composed once, whatever the number of sinks."""
        return {tag: composition.encode(panel) for tag, panel in self.panels.items()}

    @property
    def markdown(self) -> str:
        """The alerts as one text: of two records with one tag and one step, TensorBoard shows only the last."""
        return "\n\n---\n\n".join(alert.as_markdown() for alert in self.alerts)

    @property
    def pixels(self) -> int:
        """The size of all tiles, as a measure of the work."""
        return sum(panel.inputs.numel() // 3 * (1 + len(panel.columns)) for panel in self.panels.values())

    def split(self) -> Iterator[tuple[str, Report]]:
        """A report for each part of it, by their tags: one that fails says nothing of the others."""
        for record in self.records:
            yield record.tag, replace(self, panels={}, alerts=(), records=(record,))
        for tag, panel in self.panels.items():
            yield tag, replace(self, panels={tag: panel}, alerts=(), records=())
        if self.alerts:
            yield self.alerts_tag, replace(self, panels={}, records=())
