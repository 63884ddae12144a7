"""When a panel is written for the Images tab; see the option `panels`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from gradcam_callback.options import PanelOption
from gradcam_callback.recording.records import Look
from gradcam_callback.reporting.panel import Panel


@dataclass(frozen=True)
class KeptPanels:
    """Panels for the end of the run.

    Attributes:
        panels: By their tags.
        step: At which they were drawn.
        epoch: At which they were drawn.
    """

    panels: Mapping[str, Panel]
    step: int
    epoch: int


class PanelSchedule:
    """Tells the looks whose panels are written from the others.

    Args:
        option: "every look", "when something changed", "last" or "never".
    """

    def __init__(self, option: PanelOption) -> None:
        self._option = option
        self._written: Look | None = None
        self._kept: KeptPanels | None = None

    @property
    def draws(self) -> bool:
        """Whether there are panels at all."""
        return self._option != "never"

    def is_due(self, look: Look, *, has_news: bool) -> bool:
        """Whether the panels of this look are worth writing, now or at the end.

        Args:
            look: What was seen.
            has_news: Whether an alert was raised, has changed or was cleared.
        """
        if self._option != "when something changed":
            return self.draws
        is_due = has_news or self._written is None or _differ(self._written, look)
        if is_due:
            self._written = look
        return is_due

    def forget(self) -> None:
        """Have the next look written: there was none, or no panels could be made of it."""
        self._written = None

    def take(self, panels: Mapping[str, Panel], step: int, epoch: int) -> Mapping[str, Panel]:
        """Those of these panels that are written now."""
        if self._option != "last":
            return panels
        if panels:
            self._kept = KeptPanels(panels, step, epoch)
        return {}

    def take_kept(self) -> KeptPanels | None:
        """What was kept for the end, once."""
        kept, self._kept = self._kept, None
        return kept


def _differ(before: Look, now: Look) -> bool:
    """Whether a prediction, or the state of a gradient, has changed."""
    if not np.array_equal(before.predictions, now.predictions) or len(before.layers) != len(now.layers):
        return True
    pairs = zip(before.layers, now.layers, strict=True)
    return any(
        not np.array_equal(was.states, own.states) or not np.array_equal(was.flags, own.flags) for was, own in pairs
    )
