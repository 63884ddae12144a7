"""Corridor: one look at the model. Maps; where there are none, the reason; and maps across the cut where it allows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor, nn

from gradcam_callback.diagnosis import diagnoser as diagnosis
from gradcam_callback.diagnosis.tracer import bridging
from gradcam_callback.engine import explain, layers
from gradcam_callback.engine.memory import Portions
from gradcam_callback.engine.targets import OutputSpec
from gradcam_callback.engine.transfer import Passenger
from gradcam_callback.errors import ForwardFailedError
from gradcam_callback.execution import slices as parts
from gradcam_callback.execution.processes import ProcessGroup
from gradcam_callback.results import CAMResult, Diagnosis, GradientState, Target, name_share

# The state of every probe at a layer, for every target: as long as it stays, the reason stays.
_Health = tuple[tuple[GradientState, ...], ...]


@dataclass(frozen=True)
class ProbePassResult:
    """What one look gave.

    Attributes:
        results: One a target. Where a map was drawn across a cut, it stands in for the row of NaN, and `health` says
            so; the state stays what it is.
        diagnoses: Layer to the reason why it has probes without a gradient; healthy layers are not in it.
        failure: What went wrong in finding the reason; None where nothing did.
        portion: How many probes are taken at once, where memory is too short for all; None where it is not.
    """

    results: list[CAMResult]
    diagnoses: dict[str, Diagnosis]
    failure: Exception | None
    portion: int | None = None


@dataclass
class ProbePass:
    """Looks at a model again and again, and asks for reasons only when the picture of health changes.

    Attributes:
        target_layers: As for `compute_cam`.
        method: As for `compute_cam`.
        output: As for `compute_cam`.
        bridge: Whether to draw a map across a cut that autograd alone cannot pass.
        ranks: The processes that look together. Each method is called by all of them, and gives all the same.
    """

    target_layers: tuple[str, ...]
    method: str
    output: OutputSpec
    bridge: bool
    ranks: ProcessGroup = field(default_factory=ProcessGroup)
    _portions: Portions = field(default_factory=Portions)
    _chosen: tuple[str, ...] = ()
    _known: dict[str, tuple[_Health, Diagnosis]] = field(default_factory=dict)

    @property
    def layers(self) -> tuple[str, ...]:
        """The full names of the layers; before "auto" has chosen, "auto"."""
        return self._chosen or self.target_layers

    def settle(self, model: nn.Module) -> None:
        """Find the layers by their names. A choice of "auto" stays, if the model still has that layer.

        Raises:
            ValueError: The model has no such layer.
        """
        if self.target_layers != (layers.AUTO,):
            self._chosen = tuple(layers.find_layers(model, self.target_layers))
        elif self._chosen and self._chosen[0] not in dict(model.named_modules()):
            self._chosen = ()

    def choose(self, model: nn.Module, images: Tensor) -> str | None:
        """Let "auto" choose, if it has not; the name of the layer if it was chosen now.

        Raises:
            ForwardFailedError: The model raised.
            ValueError: No module returns maps of more than one pixel.
        """
        if self.layers != (layers.AUTO,):
            return None

        def choice() -> str:
            with self._telling_of_the_model(len(images)):
                return explain.choose_layer(model, images[:1], output=self.output)

        self._chosen = (self.ranks.run_consistently(choice),)
        return self._chosen[0]

    def look(
        self, model: nn.Module, images: Tensor, wanted: Sequence[Target], passenger: Passenger | None = None
    ) -> ProbePassResult:
        """One look.

        Args:
            model: In any mode; left as it was.
            images: `(N, C, H, W)`.
            wanted: The targets.
            passenger: May travel to the host with the verdicts, if one process explains all images in one pass.

        Raises:
            ForwardFailedError: The model raised.
            PartFailedError: Something else failed in one of several processes.
        """
        results = self._explained(model, images, wanted, self.layers, passenger=passenger)
        failure: Exception | None
        try:
            diagnoses = self._reasons(model, images, wanted, results)
            for layer, reason in diagnoses.items():
                results = [_informed(result, layer, reason) for result in results]
                if self.bridge and reason.bridges:
                    results = self._bridged(model, images, wanted, results, reason)
            failure = None
        except Exception as error:  # the maps are right without a reason
            diagnoses, failure = {}, error
        if self._sends:  # after all collective calls, because it may fail in one process alone
            results = [parts.moved(result, images.device) for result in results]
        return ProbePassResult(results, diagnoses, failure, self._portions.size)

    def _explained(
        self,
        model: nn.Module,
        images: Tensor,
        wanted: Sequence[Target],
        names: Sequence[str],
        bridged: frozenset[int] = frozenset(),
        passenger: Passenger | None = None,
    ) -> list[CAMResult]:
        """The results of all samples: each process explains its share, in portions that fit into its memory."""
        share = self.ranks.share(len(images))
        own, targets = images[share], [parts.part_of(target, share) for target in wanted]

        def explained(portion: slice) -> list[CAMResult]:
            some, whole = [parts.part_of(target, portion) for target in targets], own[portion].shape == images.shape
            return explain.explain(
                model,
                own[portion],
                names,
                wanted=some,
                method=self.method,
                output=self.output,
                bridge=bridging(bridged) if bridged else None,
                passenger=passenger if whole else None,
            )

        def job() -> tuple[list[CAMResult] | None, int | None]:
            if len(own) == 0:
                return None, None
            with self._telling_of_the_model(len(images)):
                results = parts.join(self._portions.take(len(own), explained))
            if self._sends:
                results = [parts.moved(result, "cpu") for result in results]
            return results, self._portions.size

        gathered = self.ranks.gather(job)
        sizes = [size for _, size in gathered if size is not None]
        self._portions.size = min(sizes, default=None)
        return parts.join([results for results, _ in gathered if results is not None])

    @property
    def _sends(self) -> bool:
        """Whether results go from process to process, which they do by way of the host."""
        return self.ranks.size > 1 and not self.ranks.sharded

    @contextmanager
    def _telling_of_the_model(self, count: int) -> Iterator[None]:
        """An error of the model's own becomes a diagnosis here, where its traceback still is."""
        try:
            yield
        except Exception as error:
            if not explain.raised_by_model(error):
                raise
            raise ForwardFailedError(diagnosis.of_failed_forward(self.layers[0], error, count)) from error

    def _reasons(
        self, model: nn.Module, images: Tensor, wanted: Sequence[Target], results: Sequence[CAMResult]
    ) -> dict[str, Diagnosis]:
        known, self._known = self._known, {}
        for layer in results[0].health:
            health = tuple(result.health[layer].state for result in results)
            null = next((i for i, result in enumerate(results) if result.health[layer].null_probes), None)
            if null is None:
                continue
            before, reason = known.get(layer, (None, None))
            if reason is None or before != health:
                nulls = results[null].health[layer].null_probes
                reason = self.ranks.run_consistently(partial(self._reason, model, images, layer, wanted[null], nulls))
            self._known[layer] = health, reason
        return {layer: reason for layer, (_, reason) in self._known.items()}

    def _reason(
        self, model: nn.Module, images: Tensor, layer: str, target: Target, nulls: tuple[int, ...]
    ) -> Diagnosis:
        """Why these probes have no gradient; where memory is short, found out at as many as fit."""
        size = self._portions.size or len(images)
        if size >= len(images):
            return diagnosis.diagnose(model, images, layer, target=target, output=self.output)
        part = slice(nulls[0], nulls[0] + size)
        seen = diagnosis.diagnose(model, images[part], layer, target=parts.part_of(target, part), output=self.output)
        looked_at = f"Memory is short, so this was found out at {name_share(range(len(images))[part], len(images))}."
        return replace(seen, probes=nulls, message=f"{seen.message} {looked_at}")

    def _bridged(
        self,
        model: nn.Module,
        images: Tensor,
        wanted: Sequence[Target],
        results: Sequence[CAMResult],
        reason: Diagnosis,
    ) -> list[CAMResult]:
        """The results with maps across the cuts of one layer: one more pass, whatever the number of targets."""
        crossed = self._explained(model, images, wanted, [reason.layer], reason.bridges)
        return [_patched(result, across, reason.layer) for result, across in zip(results, crossed, strict=True)]


def _informed(result: CAMResult, layer: str, reason: Diagnosis) -> CAMResult:
    """The result with the cause in the layer's health, where it has probes without a gradient."""
    verdict = result.health[layer]
    if not verdict.null_probes:
        return result
    return replace(result, health={**result.health, layer: replace(verdict, cause=reason.cause, detail=reason.message)})


def _patched(result: CAMResult, across: CAMResult, layer: str) -> CAMResult:
    """The result with the maps of `across` where it has none at the layer itself."""
    verdict = result.health[layer]
    if not verdict.null_probes:
        return result
    own, other = result.cams[layer], across.cams[layer]
    lost = own.isnan().all(dim=(1, 2), keepdim=True)
    bridged = tuple(
        state is not GradientState.OK and across.health[layer].state[probe] is GradientState.OK
        for probe, state in enumerate(verdict.state)
    )
    return replace(
        result,
        cams={**result.cams, layer: torch.where(lost, other, own)},
        health={**result.health, layer: replace(verdict, bridged=bridged, call=across.health[layer].call)},
    )
