"""The measures of each look, for its record."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
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


@dataclass(frozen=True, eq=False)
class _Weights:
    """How each cell of maps of one size counts: `(N, *S)` each.

    Attributes:
        image: Which part of it belongs to the image.
        inner: Which part belongs to the image without its border.
        regions: What the cells give to the regions; None where these are not known.
    """

    image: Array
    inner: Array
    regions: RegionWeights | None

    @classmethod
    def of(cls, regions: Regions | None, layer: LayerMaps) -> _Weights:
        count, *space = layer.levels.shape[1:]
        return cls(
            image=cover(space, count, layer.extents),
            inner=cover(space, count, layer.extents, BORDER),
            regions=None if regions is None else RegionWeights.of(regions, space, layer.extents),
        )


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
        self._weights: dict[tuple[tuple[int, ...], bytes], _Weights] = {}

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
        maps, weights = layer.levels.astype(np.float32), self._weights_for(layer)
        found: dict[str, Array] = {
            "focus": focus(maps, weights.image),
            "border_energy": border_energy(maps, weights.image, weights.inner),
        }
        if before is not None and before.levels.shape == layer.levels.shape:
            found["drift"] = drift(maps, before.levels.astype(np.float32))
        if weights.regions is not None:
            found["energy_inside"] = weights.regions.energy_inside(maps)
            found["pointing_game"] = weights.regions.pointing_game(maps)
        return replace(layer, measures=found)

    def _weights_for(self, layer: LayerMaps) -> _Weights:
        """Made once for maps of a size, and again where the images lie in them otherwise."""
        shape = layer.levels.shape[1:]
        key = shape, b"" if layer.extents is None else layer.extents.tobytes()
        if key not in self._weights:
            self._weights = {other: known for other, known in self._weights.items() if other[0] != shape}
            self._weights[key] = _Weights.of(self._regions, layer)
        return self._weights[key]
