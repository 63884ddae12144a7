"""What is made of a probe pass: a record for the recording, and panels where they are drawn."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from torch import Tensor

from gradcam_callback.engine.device_results import TargetResult
from gradcam_callback.probes.probe_set import ProbeSet
from gradcam_callback.reporting.looks import make_look, render_look
from gradcam_callback.reporting.panel import Panel, PanelStyle
from gradcam_callback.reporting.panels import PanelRenderer, label_text
from gradcam_callback.reporting.probe_pictures import encode_probes
from gradcam_callback.reporting.recorder import SeenProbes
from gradcam_callback.results import CAMResult


class PassRenderer:
    """Makes tensors on the device, and what they stand for on the host. Between the two the caller transfers them.

    Args:
        probes: The images and what is known of them.
        style: What panels look like.
        draws: Whether there are panels.
    """

    def __init__(self, probes: ProbeSet, style: PanelStyle, *, draws: bool = True) -> None:
        self.probes = probes
        self.style = style
        self._panels = PanelRenderer(probes, style) if draws else None
        self._recorded = 0
        self._failure: Exception | None = None

    def render(self, results: Sequence[TargetResult]) -> list[Tensor]:
        """Make what is recorded, and draw the panels. The host does not wait for the device.

        Args:
            results: One a target, of the same layers.
        """
        recorded = render_look(results, self.probes.labels)
        self._recorded, self._failure = len(recorded), None
        try:  # the recording does not depend on it
            drawn = [] if self._panels is None else self._panels.render(results)
        except Exception as error:
            drawn, self._failure = [], error
        return [*recorded, *drawn]

    def seen(
        self, tensors: Sequence[Tensor], results: Sequence[CAMResult], targets: Sequence[str], method: str
    ) -> SeenProbes:
        """The look for the recording.

        Args:
            tensors: What `render` returned, on the host.
            results: Those that were rendered, one a target, with their health.
            targets: What the targets are called.
            method: How the maps were computed.
        """
        own, fingerprint = tensors[: self._recorded], self.probes.fingerprint
        look = make_look(own, results, method=method, titles=targets, probe_set=fingerprint)
        names, task = self.style.class_names, results[0].task
        texts = [label_text(self.probes, probe, task, names) for probe in range(len(self.probes))]
        space = look.layers[0].levels.ndim - 2
        return SeenProbes(look, partial(encode_probes, self.probes, self.style, texts, space))

    def panels(
        self, tensors: Sequence[Tensor], results: Sequence[CAMResult], targets: Sequence[str], heading: str
    ) -> dict[str, list[Panel]]:
        """The pages of each layer's panel, as of `PanelRenderer.panels`; none where none are drawn.

        Raises:
            Exception: They could not be drawn.
        """
        if self._failure is not None:
            raise self._failure
        if self._panels is None:
            return {}
        return self._panels.panels(tensors[self._recorded :], results, targets, heading)
