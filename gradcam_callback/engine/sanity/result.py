"""What a sanity check found, and how it is put into words.

Note [The threshold]

Measured by `gradcam-callback benchmark`, with 64 pictures of five tasks, after all weights of a trained network of the
demo were randomised at once, the median absolute correlation was 0.15 to 0.38 for Grad-CAM and HiResCAM, 0.28 to 0.68
for LayerCAM and Grad-CAM++, whose maps are where the layer is active, and 1.00 for an edge filter. So 0.7 lies between
what a map of trained weights comes to and what it cannot come to without them. Eigen-CAM has 0.34 to 0.74: of digits,
bright on black, it fails. Before training more of them fail: what is bright in the image, and the padding, is all that
there is to see, and that needs no weights of its own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

THRESHOLD = 0.7
"""See Note [The threshold]."""

_FEW_CELLS = 9  # the ranks of fewer agree by chance too often

Verdict = Literal["depends", "ignores", "null"]
"""The map changes with the weights; it does not; or there is no map."""


@dataclass(frozen=True, eq=False)  # tensors have no one answer to ==
class Stage:
    """One step of the cascade.

    Attributes:
        modules: Those whose weights were randomised in this step; those of the earlier steps are random, too.
        correlations: `(N,)` float32 on the CPU, -1..1: of each probe's map with that of the model as it is; NaN where
            either has no map. As of `rank_correlation`.
    """

    modules: tuple[str, ...]
    correlations: Tensor

    @property
    def name(self) -> str:
        """The module; of several, the first and the last."""
        first, last = self.modules[0], self.modules[-1]
        return first if len(self.modules) == 1 else f"{first} to {last}"

    @property
    def similarity(self) -> float:
        """The median of the absolute correlations, 0..1; NaN where no probe has one."""
        return float(self.correlations.abs().nanmedian())


@dataclass(frozen=True, eq=False)
class LayerSanity:
    """The cascade at one layer.

    Attributes:
        stages: From the score backwards, until all weights are random.
        later: How many of the stages lie after the layer. Of these, no method needs to change that only shows where
            the layer is active.
        cells: How many cells a map has.
    """

    stages: tuple[Stage, ...]
    later: int
    cells: int

    @property
    def similarity(self) -> float:
        """That of the last stage that has one, 0..1: all weights are random then. NaN where no stage has one."""
        return _last(self.stages)

    @property
    def similarity_later(self) -> float:
        """That of the last stage after the layer that has one; NaN where none has one."""
        return _last(self.stages[: self.later])

    @property
    def verdict(self) -> Verdict:
        """Whether the map depends on the weights; see Note [The threshold]."""
        if math.isnan(self.similarity):
            return "null"
        return "depends" if self.similarity < THRESHOLD else "ignores"


def _last(stages: tuple[Stage, ...]) -> float:
    known = [stage.similarity for stage in stages if not math.isnan(stage.similarity)]
    return known[-1] if known else math.nan


@dataclass(frozen=True, eq=False)
class SanityResult:
    """What became of the maps of one target as the weights were randomised.

    Attributes:
        layers: Layer to its cascade.
        target: The target's title.
        method: How the maps are made.
    """

    layers: Mapping[str, LayerSanity]
    target: str
    method: str

    @property
    def depends_on_weights(self) -> bool:
        """Whether there is a map at each layer, and it depends on the weights."""
        return all(found.verdict == "depends" for found in self.layers.values())

    @property
    def lines(self) -> list[str]:
        """A sentence or two for each layer."""
        return [f"{layer} · {self.target}: {_describe(found, self.method)}" for layer, found in self.layers.items()]


def _describe(found: LayerSanity, method: str) -> str:
    if found.verdict == "null":
        return (
            "There is no map to compare, since the gradient is None, zero or not finite. `gradcam-callback doctor` "
            "tells why."
        )
    figure = f"With all weights random, its rank correlation to the map of the model is {found.similarity:.2f}"
    if found.verdict == "ignores":
        text = f"The map of {method!r} does not depend on the weights. {figure}; below {THRESHOLD} it would depend."
        return text + _few(found) + " A model that was not trained yet may have such maps, too."
    text = f"The map depends on the weights. {figure}."
    if found.similarity_later >= THRESHOLD:
        text += (
            f" It hardly changes with those after the layer alone ({found.similarity_later:.2f}): it shows where the "
            "layer is active rather than what speaks for the class."
        )
    return text + _few(found)


def _few(found: LayerSanity) -> str:
    if found.cells >= _FEW_CELLS:
        return ""
    return f" It has {found.cells} cells, too few to be sure. Choose an earlier layer."
