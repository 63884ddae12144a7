"""The measures of each look, for its record."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

import numpy as np

from gradcam_callback.measures import (
    BORDER,
    Array,
    Regions,
    RegionWeights,
    border_energy,
    cover,
    drift,
    focus,
)
from gradcam_callback.recording.records import LayerMaps, Look
from gradcam_callback.reporting.tags import Tags


def measure_scalars(look: Look, tags: Tags) -> dict[str, float]:
    """The measures of the first target, by tag: the mean over the probes, of the drift the median and the largest.

    A measure that no probe has is left out.
    """
    scalars: dict[str, float] = {}
    for layer in look.layers:
        for name, values in layer.measures.items():
            known = values[0][np.isfinite(values[0])]
            if not len(known):
                continue
            if name == "drift":
                scalars[tags.measure("worst_drift", layer.name)] = float(known.max())
            scalars[tags.measure(name, layer.name)] = float(np.median(known) if name == "drift" else known.mean())
    return scalars


class LookMeasurer:
    """Measures look after look of one run.

    Args:
        regions: Where the thing is in each probe; None where that is not known.
    """

    def __init__(self, regions: Regions | None = None) -> None:
        self._regions = regions
        self._before: Look | None = None
        self._weights: dict[tuple[tuple[int, ...], bytes], RegionWeights] = {}

    def measured(self, look: Look, others: Mapping[str, Mapping[str, Array]] = MappingProxyType({})) -> Look:
        """The look with its measures. For the next one, it is the look before.

        Args:
            look: Without measures.
            others: Layer to further measures, `(T, N)` each, by their names.
        """
        before = {} if self._before is None else {layer.name: layer for layer in self._before.layers}
        same = self._before is not None and self._before.targets == look.targets
        layers = [self._layer(layer, before.get(layer.name) if same else None) for layer in look.layers]
        self._before = look
        complete = (replace(one, measures={**one.measures, **others.get(one.name, {})}) for one in layers)
        return replace(look, layers=tuple(complete))

    def _layer(self, layer: LayerMaps, before: LayerMaps | None) -> LayerMaps:
        space, count = layer.levels.shape[2:], layer.levels.shape[1]
        maps, shares = layer.levels.astype(np.float32), cover(space, count, layer.extents)
        found: dict[str, Array] = {
            "focus": focus(maps, shares),
            "border_energy": border_energy(maps, shares, cover(space, count, layer.extents, BORDER)),
        }
        if before is not None and before.levels.shape == layer.levels.shape:
            found["drift"] = drift(maps, before.levels.astype(np.float32))
        if self._regions is not None:
            weights = self._weights_for(self._regions, layer)
            found |= {"energy_inside": weights.energy_inside(maps), "pointing_game": weights.pointing_game(maps)}
        return replace(layer, measures=found)

    def _weights_for(self, regions: Regions, layer: LayerMaps) -> RegionWeights:
        """Made once for maps of a size, and again where the images lie in them otherwise."""
        space = layer.levels.shape[2:]
        key = space, b"" if layer.extents is None else layer.extents.tobytes()
        if key not in self._weights:
            self._weights = {other: known for other, known in self._weights.items() if other[0] != space}
            self._weights[key] = RegionWeights.of(regions, space, layer.extents)
        return self._weights[key]
