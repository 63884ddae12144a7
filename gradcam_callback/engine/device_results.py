"""What a pass gave, while it is still on the device and nothing of it is judged.

Every wait for a device holds up what comes after it. So a pass ends here; what is to be drawn of it is drawn on the
device, and then the verdicts and the pictures come over to the host together (`transfer.copy_to_host`), where `judge`
makes results of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from gradcam_callback.engine import health
from gradcam_callback.engine.health import Examination
from gradcam_callback.engine.layouts import Layout
from gradcam_callback.engine.targets import Scores
from gradcam_callback.results import CAMResult


@dataclass(frozen=True, eq=False)
class TargetResult:
    """What a pass gave for one target.

    Attributes:
        scores: Of each sample, and what they stand for; without a history.
        examinations: Layer to the findings, and the map among them.
    """

    scores: Scores
    examinations: Mapping[str, Examination]

    @classmethod
    def of(cls, scores: Scores, examinations: Mapping[str, Examination]) -> TargetResult:
        """Without the history of the scores. A sample that has nothing to explain has no map, whatever was computed."""
        present = scores.present
        if present is not None:
            examinations = {layer: found.where(present) for layer, found in examinations.items()}
        return cls(scores.detached(), examinations)

    @property
    def cams(self) -> dict[str, Tensor]:
        """Layer to map: float32 `(N, h, w)`; NaN for each probe without a usable gradient."""
        return {layer: found.cam for layer, found in self.examinations.items()}

    @property
    def extents(self) -> dict[str, Tensor | None]:
        """Layer to which part of its map each image is, as of `Examination`."""
        return {layer: found.extents for layer, found in self.examinations.items()}

    def to(self, device: torch.device | str) -> TargetResult:
        """The same on another device."""
        examinations = {layer: found.to(device) for layer, found in self.examinations.items()}
        return TargetResult(self.scores.to(device), examinations)


@dataclass(frozen=True, eq=False)
class DeviceResults:
    """What a pass gave.

    Attributes:
        by_target: One a target, in the order of the request.
        input_size: `(H, W)` of the images, in pixels; of signals `(W,)`, of volumes `(D, H, W)`.
        modified_weights: The weights that the model's forward has written to in place, as of `Replica`.
        layouts: Layer to how its output lies in space.
        sizes: `(h, w)` of each image, where the model takes a list of them.
    """

    by_target: tuple[TargetResult, ...]
    input_size: tuple[int, ...]
    modified_weights: tuple[str, ...] = ()
    layouts: Mapping[str, Layout] = field(default_factory=dict)
    sizes: tuple[tuple[int, int], ...] | None = None

    @property
    def verdicts(self) -> Tensor:
        """What `judge` needs, in one tensor on the device."""
        return health.pack(found for result in self.by_target for found in result.examinations.values())

    @torch.inference_mode(False)  # or the caller could not go on with what is made here; so below
    def to(self, device: torch.device | str) -> DeviceResults:
        """The same on another device."""
        return replace(self, by_target=tuple(result.to(device) for result in self.by_target))

    def within(self, shares: Tensor | Sequence[float] | None) -> DeviceResults:
        """The same, where the images are only a part of what the layers see, if that is not known already.

        Args:
            shares: Which part each is, as of `find_extents`; or all of them; None: all of it.
        """
        known = any(extents is not None for one in self.by_target for extents in one.extents.values())
        if shares is None or known:
            return self
        if not isinstance(shares, Tensor):
            values = self.by_target[0].scores.values
            shares = values.new_tensor(shares).expand(len(values), 4)
        return self._with(
            [{layer: found.within(shares) for layer, found in one.examinations.items()} for one in self.by_target]
        )

    def renamed(self, layer: str) -> DeviceResults:
        """The results of one layer under another name."""
        return self._with([dict.fromkeys([layer], *result.examinations.values()) for result in self.by_target])

    @torch.inference_mode(False)
    def completed(self, stand_in: DeviceResults) -> DeviceResults:
        """The maps of `stand_in`, of one layer, where this has none at that layer."""
        patched = []
        for own, other in zip(self.by_target, stand_in.by_target, strict=True):
            [(layer, found)] = other.examinations.items()
            cam = own.examinations[layer].cam
            cam = torch.where(cam.isnan().all(dim=tuple(range(1, cam.ndim)), keepdim=True), found.cam, cam)
            patched.append({**own.examinations, layer: replace(own.examinations[layer], cam=cam)})
        return self._with(patched)

    def _with(self, examinations: Sequence[Mapping[str, Examination]]) -> DeviceResults:
        pairs = zip(self.by_target, examinations, strict=True)
        return replace(self, by_target=tuple(replace(result, examinations=found) for result, found in pairs))

    @classmethod
    @torch.inference_mode(False)
    def concat(cls, parts: Sequence[DeviceResults]) -> DeviceResults:
        """The results of all samples, from those of some of them each: at least one part, all for the same request."""
        if len(parts) == 1:
            return parts[0]
        by_target = [_concat(results) for results in zip(*(part.by_target for part in parts), strict=True)]
        sizes = None if parts[0].sizes is None else tuple(size for part in parts for size in part.sizes or ())
        largest = tuple(map(max, zip(*(part.input_size for part in parts), strict=True)))
        told = replace(parts[0], modified_weights=_all_modified(parts), sizes=sizes, input_size=largest)
        return replace(told, by_target=tuple(by_target))

    @classmethod
    def side_by_side(cls, parts: Sequence[DeviceResults]) -> DeviceResults:
        """The results at all layers, from those at one layer each."""
        found = [
            {layer: found for result in results for layer, found in result.examinations.items()}
            for results in zip(*(part.by_target for part in parts), strict=True)
        ]
        return replace(parts[0], modified_weights=_all_modified(parts))._with(found)


def _concat(parts: Sequence[TargetResult]) -> TargetResult:
    layers = parts[0].examinations
    examinations = {layer: health.concat([part.examinations[layer] for part in parts]) for layer in layers}
    return TargetResult(Scores.concat([part.scores for part in parts]), examinations)


def _all_modified(parts: Sequence[DeviceResults]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for part in parts for name in part.modified_weights))


def judge(results: DeviceResults, verdicts: Tensor) -> list[CAMResult]:
    """The results with a judgement on each gradient; one a target.

    Args:
        results: Of a pass.
        verdicts: Their `verdicts`, on the host.
    """
    examinations = {
        (number, layer): found
        for number, result in enumerate(results.by_target)
        for layer, found in result.examinations.items()
    }
    judged = health.judge(examinations, verdicts)
    return [
        CAMResult(
            cams=result.cams,
            targets=result.scores.targets,
            scores=result.scores.values,
            predictions=result.scores.predictions,
            probabilities=result.scores.probabilities,
            health={layer: judged[number, layer] for layer in result.examinations},
            input_size=results.input_size,
            task=result.scores.task,
            layouts={layer: str(layout) for layer, layout in results.layouts.items()},
            absence=result.scores.absence,
            regions=result.scores.regions,
            boxes=result.scores.boxes,
            sizes=results.sizes,
            extents={layer: found.extents for layer, found in result.examinations.items() if found.extents is not None},
        )
        for number, result in enumerate(results.by_target)
    ]
