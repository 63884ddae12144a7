"""The alert that a model is right and looks elsewhere.

Note [Looks elsewhere]

The alert is for a model that is right for another reason than the thing itself. So it counts the probes that are
predicted rightly (all, where there are no labels of classes) and have a region, for the first target. A probe misses
its region if the largest value of its map lies outside, and the region gets less than `FACTOR` times the energy that a
map which knows nothing gives it: its share of the image. The alert is raised where more than `MOST` of at least
`FEWEST` such probes miss their region in two looks in a row, and cleared after two looks in a row where they do not.

How often it is right and how often it is wrong was measured: see docs/measures.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from gradcam_callback.causes import CallbackIssue
from gradcam_callback.measures import Array, Regions
from gradcam_callback.recording.records import LayerMaps, Look
from gradcam_callback.reporting.alerts import Finding

FACTOR = 2.0
"""How much more than its share of the image a region has to get of the energy."""
FEWEST = 3
"""How many probes have to count."""
MOST = 0.5
"""The share of them that may miss their region."""
_LOOKS = 2
_SUBJECT = "regions/"
_ROWS, _COLUMNS = ("upper", "middle", "lower"), ("left", "middle", "right")


@dataclass(frozen=True)
class RegionVerdict:
    """What a look at one layer says of the regions.

    Attributes:
        counted: The positions of the probes that count.
        missed: Of those whose map misses the region.
        energy: The mean share of the energy in the regions of those that count, 0..1.
        area: The mean share of the image that these regions have, 0..1.
    """

    counted: tuple[int, ...]
    missed: tuple[int, ...]
    energy: float
    area: float

    @classmethod
    def of(cls, layer: LayerMaps, is_right: Array, areas: Array) -> RegionVerdict:
        """For the first target.

        Args:
            layer: With its measures.
            is_right: `(N,)` bool, the probes that are predicted rightly.
            areas: `(N,)`, the share of the image that each region has; NaN without one.
        """
        energy, hits = layer.measures["energy_inside"][0], layer.measures["pointing_game"][0]
        counts = is_right & np.isfinite(energy)
        missed = counts & (hits == 0) & (energy < FACTOR * areas)
        counted, missing = (tuple(map(int, np.flatnonzero(flags))) for flags in (counts, missed))
        means = (float(values[counts].mean()) if counted else np.nan for values in (energy, areas))
        return cls(counted, missing, *means)

    @property
    def is_elsewhere(self) -> bool:
        """Whether most of the probes that count miss their region."""
        return len(self.counted) >= FEWEST and len(self.missed) > MOST * len(self.counted)


class ElsewhereWatch:
    """Follows look after look of one run; see Note [Looks elsewhere].

    Args:
        regions: Where the thing is in each probe.
        labels: `(N,)`, the class of each probe; None where there are none.
    """

    def __init__(self, regions: Regions, labels: Array | None) -> None:
        self._areas, self._labels = regions.areas, labels
        self._streaks: dict[str, int] = {}  # looks in a row that were elsewhere; below 0, that were not
        self._open: set[str] = set()

    def findings(self, look: Look) -> Mapping[str, Finding | None]:
        """Of each subject what is wrong with it now; None where nothing is."""
        known = self._labels is not None and look.task == "classification"
        is_right = look.predictions == self._labels if known else np.ones(look.predictions.shape, bool)
        return {
            _SUBJECT + layer.name: self._finding(look, layer, RegionVerdict.of(layer, is_right, self._areas))
            for layer in look.layers
        }

    def _finding(self, look: Look, layer: LayerMaps, verdict: RegionVerdict) -> Finding | None:
        streak = self._streaks.get(layer.name, 0)
        streak = max(streak, 0) + 1 if verdict.is_elsewhere else min(streak, 0) - 1
        self._streaks[layer.name] = streak
        if streak >= _LOOKS:
            self._open.add(layer.name)
        elif streak <= -_LOOKS:
            self._open.discard(layer.name)
        return looks_elsewhere(look, layer, verdict) if layer.name in self._open else None


def looks_elsewhere(look: Look, layer: LayerMaps, verdict: RegionVerdict) -> Finding:
    """What is wrong where a model is right and looks elsewhere."""
    counted, missed = len(verdict.counted), len(verdict.missed)
    message = (
        f"At {layer.name!r} the maps of {missed} of {counted} rightly predicted probes miss their region: it gets "
        f"{verdict.energy:.0%} of the energy, and has {verdict.area:.0%} of the image.{_place(layer, verdict)}"
    )
    advice = (
        "The model may be right for another reason than the thing itself. Look there for what goes with the class: a "
        "watermark, a border, a background; and measure the accuracy on images without it."
    )
    return Finding(
        _SUBJECT + layer.name, CallbackIssue.LOOKS_ELSEWHERE, verdict.missed, look.targets[:1], message, advice
    )


def _place(layer: LayerMaps, verdict: RegionVerdict) -> str:
    """Which ninth of the image gets the most of the energy, in a sentence; "" where images are no plane."""
    maps = layer.levels[0, list(verdict.missed)].astype(np.float64)
    if maps.ndim != 3 or layer.extents is not None or not len(maps):
        return ""
    maps /= np.maximum(maps.sum(axis=(1, 2), keepdims=True), 1e-9)
    thirds = [np.minimum((np.arange(cells) + 0.5) * 3 // cells, 2).astype(int) for cells in maps.shape[1:]]
    shares = np.zeros((3, 3))
    np.add.at(shares, (thirds[0][:, None], thirds[1][None]), maps.mean(axis=0))
    row, column = np.unravel_index(int(shares.argmax()), shares.shape)
    where = "middle" if row == column == 1 else f"{_ROWS[row]} {_COLUMNS[column]}"
    return f" Most of the energy, {shares.max():.0%}, lies in the {where} of the image."
