"""Why gradients are missing: asked only when their state changes. And maps across the cuts, where there can be any."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from gradcam_callback.engine.device_results import DeviceResults
from gradcam_callback.results import CAMResult, Diagnosis, GradientState, LayerHealth

Diagnose = Callable[[str, int, tuple[int, ...]], Diagnosis]
"""From a layer, the position of a target and the probes without a gradient to the reason."""
Cross = Callable[[str, frozenset[int]], DeviceResults | None]
"""From a layer and the calls that have to be crossed to the maps across the cut."""

# The state of every probe at a layer, for every target: as long as it stays, the cause stays.
_Health = tuple[tuple[GradientState, ...], ...]


@dataclass(frozen=True)
class Causes:
    """Layer to the reason for its missing gradients, and to the results across the cut; and what failed in between."""

    diagnoses: Mapping[str, Diagnosis]
    crossings: Mapping[str, DeviceResults]
    failure: Exception | None = None


class CauseFinder:
    """Finds causes pass by pass: one more pass a layer, whatever the number of targets, and none if nothing changed."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[_Health, Diagnosis]] = {}

    def find(self, judged: Sequence[CAMResult], diagnose: Diagnose, cross: Cross) -> Causes:
        """The causes of what is missing in one pass.

        Args:
            judged: Its results, one a target.
            diagnose: Finds one cause.
            cross: Explains a layer across a cut.
        """
        diagnoses: dict[str, Diagnosis] = {}
        crossings: dict[str, DeviceResults] = {}
        known, self._known = self._known, {}
        try:
            for layer in judged[0].health:
                null = next((i for i, result in enumerate(judged) if result.health[layer].null_probes), None)
                if null is None:
                    continue
                states = tuple(result.health[layer].state for result in judged)
                before, reason = known.get(layer, (None, None))
                if reason is None or before != states:
                    reason = diagnose(layer, null, judged[null].health[layer].null_probes)
                self._known[layer], diagnoses[layer] = (states, reason), reason
                across = cross(layer, reason.bridges) if reason.bridges else None
                if across is not None:
                    crossings[layer] = across
        except Exception as error:  # the maps are right without a cause
            return Causes(diagnoses, crossings, error)
        return Causes(diagnoses, crossings)


def with_causes(
    results: Sequence[CAMResult], diagnoses: Mapping[str, Diagnosis], crossed: Mapping[str, Sequence[CAMResult]]
) -> list[CAMResult]:
    """The results with causes, and with what was drawn across a cut, in the health of layers without a gradient."""
    complete = []
    for position, result in enumerate(results):
        health = dict(result.health)
        for layer, reason in diagnoses.items():
            if health[layer].null_probes:
                health[layer] = replace(health[layer], cause=reason.cause, detail=reason.message)
                if layer in crossed:
                    health[layer] = _crossed(health[layer], crossed[layer][position].health[layer])
        complete.append(replace(result, health=health))
    return complete


def _crossed(verdict: LayerHealth, across: LayerHealth) -> LayerHealth:
    bridged = tuple(
        state is not GradientState.OK and other is GradientState.OK
        for state, other in zip(verdict.state, across.state, strict=True)
    )
    return replace(verdict, bridged=bridged, call=across.call)
