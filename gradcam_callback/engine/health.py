"""The judgement on gradients: ok, none, zero, non-finite, per probe, before anything is normalised."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from gradcam_callback.causes import Cause
from gradcam_callback.results import GradientState, LayerHealth, zero_within

Key = TypeVar("Key")

# The order is the code on the device; of two that hold, the later one is told.
_STATES = (
    GradientState.OK,
    GradientState.NONE,
    GradientState.ZERO,
    GradientState.NON_FINITE,
    GradientState.ABSENT,
)
_OK, _NONE, _ZERO, _NON_FINITE, _ABSENT = range(len(_STATES))


@dataclass(frozen=True)
class Examination:
    """One layer's findings, still on the device.

    Attributes:
        cam: float32 `(N, h, w)`; NaN for each probe without a usable gradient.
        norm: float32 `(N,)`, L2; NaN where there is no gradient.
        code: int64 `(N,)`, a position in the list of states.
        empty: bool `(N,)`: a usable gradient, and a map of zeros; where there are extents, within these.
        cause: Why, where the forward pass alone already tells.
        detail: That cause in words.
        calls: How often the layer ran.
        call: Which of its calls was examined, counted from 0.
        extents: float32 `(N, 4)`, which part of its map each image is: top, left, bottom, right in cells; None where
            it is all of it.
        channels: How many channels the activation has; 0 where there is none.
    """

    cam: Tensor
    norm: Tensor
    code: Tensor
    empty: Tensor
    cause: Cause | None = None
    detail: str = ""
    calls: int = 1
    call: int = 0
    extents: Tensor | None = None
    channels: int = 0

    def to(self, device: torch.device | str) -> Examination:
        """The same on another device."""
        cam, norm, code, empty = (tensor.to(device) for tensor in (self.cam, self.norm, self.code, self.empty))
        extents = None if self.extents is None else self.extents.to(device)
        return replace(self, cam=cam, norm=norm, code=code, empty=empty, extents=extents)

    def within(self, shares: Tensor) -> Examination:
        """The same with extents, from shares `(N, 4)` of the height and the width."""
        height, width = self.cam.shape[1:]
        # Side by side, because a tensor made of the numbers would have to be copied to the device.
        sides = zip(shares.unbind(1), (height, width, height, width), strict=True)
        extents = torch.stack([side * cells for side, cells in sides], dim=1)
        return replace(self, extents=extents, empty=(self.code == _OK) & zero_within(self.cam, extents))

    def where(self, present: Tensor) -> Examination:
        """The same, but that the samples which are not present have nothing to explain."""
        return replace(
            self,
            cam=torch.where(_beside(present, self.cam), self.cam, torch.nan),
            norm=torch.where(present, self.norm, torch.nan),
            code=torch.where(present, self.code, _ABSENT),
            empty=self.empty & present,
        )


def examine(activation: Tensor, gradient: Tensor | None, cam: Tensor, scores: Tensor) -> Examination:
    """Judge each probe's gradient, and take away the map of each that is not usable.

    Args:
        activation: `(N, K, h, w)`.
        gradient: The same shape; None for a method that needs none: then only what is not finite is not usable.
        cam: `(N, h, w)`, the map that was made of them.
        scores: `(N,)`. One that is NaN explains nothing, whatever its gradient; minus infinity is a masked class.
    """
    cam = cam.float()  # float64 may hold what float32 calls infinite
    cam_peak = _peak(cam.flatten(1))
    finite = ~scores.isnan() & _peak(activation.flatten(1)).isfinite() & cam_peak.isfinite()
    if gradient is None:
        norm, code = torch.full_like(cam_peak, torch.nan), torch.full_like(cam_peak, _OK, dtype=torch.int64)
    else:
        flat = gradient.flatten(1)
        peak = _peak(flat)
        norm, code = _norm(flat, peak), torch.where(peak == 0, _ZERO, _OK)
        finite = finite & peak.isfinite()
    code = torch.where(finite, code, _NON_FINITE)
    usable = code == _OK
    cam = torch.where(_beside(usable, cam), cam, torch.nan)
    return Examination(cam, norm, code, usable & (cam_peak == 0), channels=activation.shape[1])


def _peak(flat: Tensor) -> Tensor:
    """The largest absolute value of each row; NaN if there is one in it.

    It tells what is zero and what is finite in one reading. To ask each number and then `all` takes ten times as long.
    """
    return torch.maximum(flat.amax(dim=1), -flat.amin(dim=1))


def _norm(flat: Tensor, peak: Tensor) -> Tensor:
    """The L2 norm of each row, without squaring tiny numbers to zero or huge ones to infinity."""
    scaled: Tensor = torch.linalg.vector_norm(flat / torch.where(peak == 0, 1, peak)[:, None], dim=1)
    return (scaled * peak).float()


def missing(
    activation: Tensor | None, samples: Tensor, cause: Cause | None = None, detail: str = "", *, axes: int = 2
) -> Examination:
    """The findings where there is no gradient at all.

    Args:
        activation: `(N, K, h, w)`, whose space the map of NaN gets; None gives it one pixel.
        samples: Any tensor of N rows on the right device.
        cause: Why, where it is known.
        detail: That in words.
        axes: Of space, where there is no activation to tell.
    """
    n = len(samples)
    space = (1,) * axes if activation is None else activation.shape[2:]
    nan = torch.full((n, *space), torch.nan, device=samples.device)
    code = torch.full((n,), _NONE, device=samples.device)
    return Examination(
        cam=nan,
        norm=nan.flatten(1)[:, 0].clone(),
        code=code,
        empty=torch.zeros_like(code, dtype=torch.bool),
        cause=cause,
        detail=detail,
        channels=0 if activation is None else activation.shape[1],
    )


def _beside(flags: Tensor, maps: Tensor) -> Tensor:
    """Flags `(N,)` with as many axes as maps `(N, ...)`."""
    return flags.view(-1, *[1] * (maps.ndim - 1))


def concat(parts: Sequence[Examination]) -> Examination:
    """The findings of all samples, from those of some of them each."""
    if len(parts) == 1:
        return parts[0]
    told = next((part for part in parts if part.cause is not None), parts[0])
    # The batches of images of different sizes differ in size, and so do their maps.
    space = tuple(map(max, zip(*(part.cam.shape[1:] for part in parts), strict=True)))
    extents, differ = None, len(space) == 2 and any(part.cam.shape[1:] != space for part in parts)
    if differ or any(part.extents is not None for part in parts):
        extents = torch.cat([_whole(part.cam) if part.extents is None else part.extents for part in parts])
    return replace(
        told,
        cam=torch.cat([_enlarged(part.cam, space) for part in parts]),
        norm=torch.cat([part.norm for part in parts]),
        code=torch.cat([part.code for part in parts]),
        empty=torch.cat([part.empty for part in parts]),
        extents=extents,
    )


def _enlarged(cam: Tensor, space: tuple[int, ...]) -> Tensor:
    """Maps with more cells at their ends, which go on as the last ones; rows of NaN stay such.

    So what is interpolated at the edge of an image that fills its map stays what it was. A part in which the layer
    never ran has maps of one cell, which is NaN.
    """
    added = [side - own for side, own in zip(space, cam.shape[1:], strict=True)]
    if not any(added):
        return cam
    return F.pad(cam, [cells for side in reversed(added) for cells in (0, side)], mode="replicate")


def _whole(cam: Tensor) -> Tensor:
    """Extents of images that are all of their maps."""
    zero = cam.new_zeros(len(cam))
    return torch.stack([zero, zero, zero + cam.shape[1], zero + cam.shape[2]], dim=1)


def pack(examinations: Iterable[Examination]) -> Tensor:
    """The findings in one tensor `(layers, 2, N)`, so that they come over to the host in one piece.

    The state's code and the flag for an empty map are one number; beside it stands the norm.
    """
    return torch.stack([torch.stack([(found.code * 2 + found.empty).float(), found.norm]) for found in examinations])


def judge(examinations: Mapping[Key, Examination], packed: Tensor) -> dict[Key, LayerHealth]:
    """The verdicts by layer, or whatever else they are known by.

    Args:
        examinations: Of each layer.
        packed: What `pack` made of them, on the host.
    """
    codes, norms = packed.unbind(1)
    return {
        name: LayerHealth(
            gradient_norm=norm,
            state=tuple(_STATES[int(number) // 2] for number in numbers),
            empty=tuple(bool(number % 2) for number in numbers),
            cause=found.cause,
            detail=found.detail,
            calls=found.calls,
            call=found.call,
            channels=found.channels,
        )
        for (name, found), numbers, norm in zip(examinations.items(), codes.tolist(), norms, strict=True)
    }
