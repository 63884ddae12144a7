"""Segmentation: a class, scored over a region of the pixels (Seg-Grad-CAM).

The score of class c over the pixels M is the sum of its logits there: `sum(logits[c, i, j] for (i, j) in M)`
(Vinogradova, Dibrov and Myers, "Towards interpretable semantic segmentation via gradient-weighted class activation
mapping", AAAI 2020, equation 2).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from gradcam_callback.engine.targets.classes import unbound
from gradcam_callback.engine.targets.logits import find_maps
from gradcam_callback.engine.targets.target import Annotations, Images, OutputSpec, Scores, of_one_size
from gradcam_callback.errors import BadInputError

Region = Literal["prediction", "label", "image"] | Sequence[int]
"""The pixels that a class is scored over: those that the model, or the label, gives it; all; or those of a box."""


@dataclass(frozen=True, eq=False)
class SegmentationTarget:
    """A class of pixels over a region.

    Attributes:
        segment: A class; "predicted", the class that most pixels of an image are predicted as; or "label", the class
            of most pixels of its label. Class 0, the background by custom, is taken only where there is no other.
        over: "prediction", the pixels that are predicted as the class; "label", those that the label gives it;
            "image", all; or a box: left, top, right, bottom in pixels of the input. None is "label" for the label's
            class, else "prediction".
        name: The title; by default it is made of the class.
        masks: `(N, H, W)` int64, the label of each pixel.
    """

    segment: str | int = "predicted"
    over: Region | None = None
    name: str = ""
    masks: Tensor | None = None

    may_be_absent = True

    def __post_init__(self) -> None:
        is_class = type(self.segment) is int and self.segment >= 0
        if not is_class and self.segment not in ("predicted", "label"):
            raise BadInputError(
                f"`segmentation` is 'predicted', 'label' or a class index of at least 0; given: {self.segment!r}."
            )
        box = self.over if isinstance(self.over, (list, tuple)) else ()
        is_box = len(box) == 4 and all(type(side) is int for side in box) and box[0] < box[2] and box[1] < box[3]
        if not is_box and self.over not in (None, "prediction", "label", "image"):
            raise BadInputError(
                "`over` is 'prediction', 'label', 'image' or a box [left, top, right, bottom] in whole pixels; given: "
                f"{self.over!r}."
            )

    @property
    def title(self) -> str:
        """The class, and the region where it is not the one that goes without saying."""
        title = self.name or str(self.segment)
        if self.over is None or self.over == self._region:
            return title if self.over is None else f"{title}, over the {self.over}"
        return f"{title}, over a box"

    @property
    def description(self) -> str:
        """Which logits are summed."""
        return f"The sum of the logits of the class {self.segment!r} over the pixels of the {self._region}."

    @property
    def _region(self) -> str:
        if isinstance(self.over, str):
            return self.over
        return "box" if self.over is not None else "label" if self.segment == "label" else "prediction"

    def bound(self, annotations: Annotations) -> list[SegmentationTarget]:
        """With the labels of the pixels, and the class's name; see `BoundTarget`."""
        known = self
        if type(self.segment) is int and not self.name:
            known = replace(self, name=annotations.name_class(self.segment))
        if "label" not in (self.segment, self._region):
            return [known]
        if annotations.masks is None:
            raise BadInputError(
                "The target needs the label of each pixel, a tensor (N, H, W) of class indices, and the probes have "
                "none. Say where it is, with `label_key` of ValidationProbes, or use `{segmentation: predicted}`."
            )
        return [replace(known, masks=annotations.masks)]

    def read(self, returned: Any, output: OutputSpec, inputs: Images) -> tuple[Tensor, tuple[int, int]]:
        """The logits `(N, L, h, w)`, and `(H, W)` of the inputs.

        Raises:
            ValueError: There are none, or not one for each input.
        """
        logits, inputs = find_maps(returned, output), of_one_size(inputs)
        if len(logits) != len(inputs):
            raise BadInputError(f"The model returned {len(logits)} maps of logits for {len(inputs)} images.")
        return logits, (inputs.shape[-2], inputs.shape[-1])

    def score(self, read: tuple[Tensor, tuple[int, int]]) -> Scores:
        """The sum of the class's logits over the region.

        Raises:
            ValueError: A class that does not exist, or a label of another size.
        """
        logits, size = read
        if logits.shape[1] == 1:  # one logit a pixel tells two classes apart
            logits = torch.cat([-logits, logits], dim=1)
        predicted = logits.detach().argmax(dim=1)
        shares = _shares(predicted, logits.shape[1])
        labelled = None if self.masks is None else _resized(self.masks.to(logits.device), predicted)
        chosen = self._classes(logits, shares, labelled)
        region = self._pixels(chosen, predicted, labelled, size)
        of_class = logits.gather(1, chosen[:, None, None, None].expand(-1, 1, *logits.shape[2:])).squeeze(1)
        return Scores(
            values=(of_class * region).flatten(1).sum(dim=1),
            targets=chosen,
            predictions=_largest(shares),
            probabilities=shares,
            task="segmentation",
            present=region.flatten(1).any(dim=1),
            absence="no such pixel",
            regions=region,
        )

    def _classes(self, logits: Tensor, shares: Tensor, labelled: Tensor | None) -> Tensor:
        """The class of each sample `(N,)`."""
        count = logits.shape[1]
        if self.segment == "predicted":
            return _largest(shares)
        if self.segment == "label":
            if labelled is None:
                raise unbound("label")
            return _largest(_shares(labelled, count))
        if int(self.segment) >= count:
            raise BadInputError(
                f"Target class {self.segment} does not exist: the model has {count} classes, 0 to {count - 1}."
            )
        return torch.full((len(logits),), int(self.segment), device=logits.device)

    def _pixels(self, chosen: Tensor, predicted: Tensor, labelled: Tensor | None, size: tuple[int, int]) -> Tensor:
        """The region of each sample `(N, h, w)`."""
        if self._region == "image":
            return torch.ones_like(predicted, dtype=torch.bool)
        if self._region == "box":
            assert isinstance(self.over, (list, tuple))
            return _within(self.over, size, predicted)
        pixels = predicted if self._region == "prediction" else labelled
        if pixels is None:
            raise unbound("label")
        return pixels == chosen[:, None, None]

    def repeated(self, scores: Scores, times: int) -> FixedSegmentationTarget:
        """The pixels that were scored, several times over; see `RepeatableTarget`."""
        assert scores.regions is not None
        regions = scores.regions.repeat(times, 1, 1)
        return FixedSegmentationTarget(scores.targets.repeat(times), regions, self.name or str(self.segment))

    def part(self, samples: slice) -> SegmentationTarget:
        """With the labels of some of the samples."""
        return self if self.masks is None else replace(self, masks=self.masks[samples])


@dataclass(frozen=True, eq=False)
class FixedSegmentationTarget:
    """A class of pixels over pixels that are given.

    Attributes:
        classes: `(N,)` int64.
        regions: `(N, h, w)` bool, at the size of the output.
        title: What it is called.
    """

    classes: Tensor
    regions: Tensor
    title: str

    description = "The sum of the logits of given classes over given pixels."

    def read(self, returned: Any, output: OutputSpec, inputs: Images) -> Tensor:
        """The logits `(N, L, h, w)`."""
        logits = find_maps(returned, output)
        return torch.cat([-logits, logits], dim=1) if logits.shape[1] == 1 else logits

    def score(self, read: Tensor) -> Scores:
        """The sum of the class's logits over the pixels."""
        chosen = self.classes[:, None, None, None].expand(-1, 1, *read.shape[2:])
        of_class = read.gather(1, chosen).squeeze(1)
        return Scores.of_values((of_class * self.regions).flatten(1).sum(dim=1))

    def part(self, samples: slice) -> FixedSegmentationTarget:
        """Of some of the samples."""
        return replace(self, classes=self.classes[samples], regions=self.regions[samples])


def _shares(classes: Tensor, count: int) -> Tensor:
    """The share of the pixels that each class has: `(N, L)` float32. Pixels of no class are left out."""
    flat = classes.flatten(1)
    is_class = ((flat >= 0) & (flat < count)).float()
    counts = torch.zeros(len(flat), count, device=flat.device)
    return counts.scatter_add_(1, flat.clamp(0, count - 1), is_class) / flat.shape[1]


def _largest(shares: Tensor) -> Tensor:
    """The class of most pixels; class 0 only where there is no other."""
    others = shares[:, 1:]
    return torch.where(others.amax(dim=1) > 0, others.argmax(dim=1) + 1, 0)


def _resized(masks: Tensor, like: Tensor) -> Tensor:
    """Labels of pixels at the size of the output: nearest, because they are no numbers to be mixed."""
    resized = F.interpolate(masks.unsqueeze(1).float(), size=like.shape[1:], mode="nearest-exact")
    return resized.squeeze(1).long()


def _within(box: Sequence[int], size: tuple[int, int], like: Tensor) -> Tensor:
    """The pixels of the output whose middle lies in a box of the input: `(N, h, w)` bool."""
    rows = (torch.arange(like.shape[1], device=like.device) + 0.5) * (size[0] / like.shape[1])
    columns = (torch.arange(like.shape[2], device=like.device) + 0.5) * (size[1] / like.shape[2])
    left, top, right, bottom = box
    inside = ((rows >= top) & (rows < bottom))[:, None] & ((columns >= left) & (columns < right))[None]
    return inside.expand_as(like)
