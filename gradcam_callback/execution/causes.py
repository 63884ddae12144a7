"""Why gradients are missing: asked only when their state changes. And maps across the cuts, where there can be any."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from gradcam_callback.engine.device_results import DeviceResults
from gradcam_callback.results import CAMResult, Diagnosis, GradientState, LayerHealth

Diagnose = Callable[[str, int, tuple[int, ...]], Diagnosis]
"""From a layer, the position of a target and the probes without a gradient to the reason."""
StandIn = Callable[[str, frozenset[int]], "tuple[DeviceResults, str] | None"]
"""From a layer and the calls that have to be crossed to other maps, and the method they are by; "" across the cut."""

# The state of every probe at a layer, for every target: as long as it stays, the cause stays.
_Health = tuple[tuple[GradientState, ...], ...]


@dataclass(frozen=True)
class Causes:
    """What is known where gradients are missing.

    Attributes:
        diagnoses: Layer to the reason.
        stand_ins: Layer to the results that stand in for the missing maps.
        methods: Layer to the method that these are by; "" where they are across the cut.
        failure: What failed in between.
    """

    diagnoses: Mapping[str, Diagnosis]
    stand_ins: Mapping[str, DeviceResults]
    methods: Mapping[str, str]
    failure: Exception | None = None


class CauseFinder:
    """Finds causes pass by pass: one more pass a layer, whatever the number of targets, and none if nothing changed."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[_Health, Diagnosis]] = {}

    def find(self, judged: Sequence[CAMResult], diagnose: Diagnose, stand_in: StandIn) -> Causes:
        """The causes of what is missing in one pass.

        Args:
            judged: Its results, one a target.
            diagnose: Finds one cause.
            stand_in: Explains a layer in another way; None where there is none.
        """
        diagnoses: dict[str, Diagnosis] = {}
        stand_ins: dict[str, DeviceResults] = {}
        methods: dict[str, str] = {}
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
                other = stand_in(layer, reason.bridges)
                if other is not None:
                    stand_ins[layer], methods[layer] = other
        except Exception as error:  # the maps are right without a cause
            return Causes(diagnoses, stand_ins, methods, error)
        return Causes(diagnoses, stand_ins, methods)


def with_causes(
    results: Sequence[CAMResult], causes: Causes, drawn: Mapping[str, Sequence[CAMResult]]
) -> list[CAMResult]:
    """The results with causes, and with what was drawn in another way, in the health of layers without a gradient."""
    complete = []
    for position, result in enumerate(results):
        health = dict(result.health)
        for layer, reason in causes.diagnoses.items():
            if health[layer].null_probes:
                health[layer] = replace(health[layer], cause=reason.cause, detail=reason.message)
                if layer in drawn:
                    other = drawn[layer][position].health[layer]
                    health[layer] = _with_stand_in(health[layer], other, causes.methods[layer])
        complete.append(replace(result, health=health))
    return complete


def _with_stand_in(verdict: LayerHealth, other: LayerHealth, method: str) -> LayerHealth:
    drawn = tuple(
        state is not GradientState.OK and found is GradientState.OK
        for state, found in zip(verdict.state, other.state, strict=True)
    )
    if method:
        return replace(verdict, substituted=drawn, substitute=method, call=other.call)
    return replace(verdict, bridged=drawn, call=other.call)
