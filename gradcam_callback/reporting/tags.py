"""The tags of one callback in one stage.

Layers have names that nobody foresees: one may be called `alerts`, or end in `_2` as the tags of a second callback do.
So a layer whose name could be taken for another tag is written `layer/<name>`, with the slashes of its name as in a
URL, and a name that is taken already gets the callback's number.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from gradcam_callback.reporting.fusion import FUSED
from gradcam_callback.reporting.panel import Panel

_OWN = ("alerts", "seconds", "null_gradients", "empty_maps", "fused", "recording")
_MEASURES = (
    *("gradient_norm", "drift", "worst_drift", "focus", "border_energy", "energy_inside", "pointing_game"),
    *("insertion", "deletion", "average_drop", "increase", "road"),
)
_RESERVED = re.compile(
    rf"({'|'.join(_OWN)})(_\d+)?|(recording(_\d+)?|layer|{'|'.join(_MEASURES)}|validate|test)(/.*)?|.*/page(_\d+)*",
    re.DOTALL,
)


class Tags:
    """Gives every tag; no two are the same, of all callbacks of a trainer and of all stages.

    Args:
        layers: The callback's layers.
        earlier: The layers of each callback of this kind that comes before it in the trainer.
        stage: "fit", "validate" or "test". Other stages than fit have tags of their own, because the steps of a
            validation after the training are those of the last one in it, and TensorBoard shows one record a step.

    Attributes:
        alerts: Of the alerts as a text.
        seconds: Of the time that the training loop was held, a scalar.
        null_gradients: Of the number of maps without a usable gradient, a scalar.
        empty_maps: Of the number of empty maps, a scalar.
        fused: Of the panel of the mean over the layers.
        recording: Of the records of looks; further records stand below it.
        stage: "fit", "validate" or "test".
        position: Of the callback among those of its kind, counted from 1.
    """

    def __init__(self, layers: Sequence[str], earlier: Sequence[Sequence[str]] = (), stage: str = "fit") -> None:
        self._prefix = "gradcam/" if stage == "fit" else f"gradcam/{stage}/"
        self.stage, self.position = stage, len(earlier) + 1
        self.alerts, self.seconds, self.null_gradients, self.empty_maps, self.fused, self.recording = (
            self._prefix + _numbered(name, self.position) for name in _OWN
        )
        taken: set[str] = set()
        for number, names in enumerate((*earlier, layers), start=1):
            self._layers = {}
            for layer in dict.fromkeys(names):
                name = _unmistakable(layer)
                while name in taken:
                    name = _numbered(name, max(number, 2))
                taken.add(name)
                self._layers[layer] = name

    def panel(self, layer: str, page: int = 0) -> str:
        """Of a layer's panel; its first page has the tag of the layer alone."""
        own = self.fused if layer == FUSED else self._prefix + self._layers[layer]
        return own + (f"/page_{page + 1}" if page else "")

    def panels(self, pages: Mapping[str, Sequence[Panel]]) -> dict[str, Panel]:
        """The pages of each layer by their tags."""
        return {self.panel(layer, page): panel for layer in pages for page, panel in enumerate(pages[layer])}

    def measure(self, name: str, layer: str) -> str:
        """Of a measure at a layer, a scalar."""
        return f"{self._prefix}{name}/{self._layers[layer]}"

    def gradient_norm(self, layer: str) -> str:
        """Of the mean gradient norm at a layer, a scalar."""
        return f"{self._prefix}gradient_norm/{self._layers[layer]}"


def _unmistakable(layer: str) -> str:
    if not _RESERVED.fullmatch(layer):
        return layer
    return "layer/" + layer.replace("/", "%2F")


def _numbered(name: str, position: int) -> str:
    return name if position == 1 else f"{name}_{position}"
