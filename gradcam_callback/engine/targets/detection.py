"""Detection: the score of one box of each image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torchvision.ops import box_convert, generalized_box_iou

from gradcam_callback.engine.targets.classes import unbound
from gradcam_callback.engine.targets.logits import are_detections, describe, entry, is_floating, select
from gradcam_callback.engine.targets.target import Annotations, Images, OutputSpec, Scores
from gradcam_callback.errors import BadInputError

Detections = tuple[Tensor, Tensor, Tensor]
"""Of one image: the scores `(n,)`, the classes `(n,)` int64, and the boxes `(n, 4)` in pixels of the input."""


@dataclass(frozen=True, eq=False)
class DetectionTarget:
    """The score of a box.

    Models may return a list with a mapping for each image, with `boxes`, `labels` and `scores`, as torchvision's
    detectors do; or `logits` `(N, n, L)` and `pred_boxes` `(N, n, 4)`, as DETR and YOLOS do. Of the latter, the last
    class is "no object", and scores are a softmax, unless there are as many classes as names of classes: then each
    score is a sigmoid.

    Attributes:
        box: "best", the box with the highest score; a class, the best box of that class; or "label", the box that is
            nearest to the largest box of the label (by generalized IoU), of the label's class if there is one.
        name: The title; by default it is made of `box`.
        labels: A sample's labelled boxes and their classes, as of `Annotations`.
        classes: How many classes there are; None where that is not known.
    """

    box: str | int = "best"
    name: str = ""
    labels: Sequence[tuple[Tensor, Tensor]] | None = None
    classes: int | None = None

    may_be_absent = True

    def __post_init__(self) -> None:
        is_class = type(self.box) is int and self.box >= 0
        if not is_class and self.box not in ("best", "label"):
            raise BadInputError(f"`detection` is 'best', 'label' or a class index of at least 0; given: {self.box!r}.")

    @property
    def title(self) -> str:
        """Which box it is."""
        if self.name:
            return self.name
        names = {"best": "best box", "label": "label's box"}
        return names[self.box] if isinstance(self.box, str) else f"box of class {self.box}"

    @property
    def description(self) -> str:
        """Which score it is."""
        return f"The score of the {self.title}."

    def bound(self, annotations: Annotations) -> list[DetectionTarget]:
        """With the labelled boxes, and the class's name; see `BoundTarget`."""
        names = annotations.class_names
        known = replace(self, classes=None if names is None else len(names))
        if isinstance(self.box, int) and not self.name:
            known = replace(known, name=f"box of {annotations.name_class(self.box)}" if names else "")
        if self.box != "label":
            return [known]
        if annotations.boxes is None:
            raise BadInputError(
                "There is `target: {detection: label}`, and the probes have no labelled boxes: needed is a list with a "
                "mapping for each image, with `boxes` and `labels`. Say where it is, with `label_key` of "
                "ValidationProbes, or use `{detection: best}`."
            )
        return [replace(known, labels=annotations.boxes)]

    def read(self, returned: Any, output: OutputSpec, inputs: Images) -> list[Detections]:
        """What was detected in each image.

        Raises:
            ValueError: There are no detections, or not of each image.
        """
        found = returned if output is None else select(returned, output)
        if are_detections(found):
            detections = [(one["scores"], one["labels"], one["boxes"]) for one in found]
        else:
            logits, boxes = entry(found, "logits"), entry(found, "pred_boxes")
            if not is_floating(logits) or not is_floating(boxes) or logits.ndim != 3 or boxes.ndim != 3:
                raise BadInputError(
                    "A detection needs `boxes`, `labels` and `scores` for each image, or `logits` (N, n, classes) and "
                    f"`pred_boxes` (N, n, 4); the model returned {describe(found)}. Say where they are with `output`."
                )
            detections = self._of_queries(logits, boxes, inputs)
        if len(detections) != len(inputs):
            raise BadInputError(f"The model returned detections of {len(detections)} images for {len(inputs)}.")
        return detections

    def _of_queries(self, logits: Tensor, boxes: Tensor, inputs: Images) -> list[Detections]:
        is_sigmoid = self.classes is not None and logits.shape[2] == self.classes
        scores = logits.sigmoid() if is_sigmoid else logits.softmax(dim=2)[..., :-1]
        best = scores.max(dim=2)
        sides = boxes.new_tensor([[*image.shape[:-3:-1], *image.shape[:-3:-1]] for image in inputs])  # w, h, w, h
        pixels = box_convert(boxes.detach(), "cxcywh", "xyxy") * sides.unsqueeze(1)
        return list(zip(best.values, best.indices, pixels, strict=True))

    def score(self, read: Sequence[Detections]) -> Scores:
        """The score of each image's box."""
        if self.box == "label" and self.labels is None:
            raise unbound("label")
        rows = [self._score_of(detections, number) for number, detections in enumerate(read)]
        values, numbers = torch.stack([value for value, _ in rows]), torch.stack([numbers for _, numbers in rows])
        classes = numbers[:, :2].nan_to_num(-1).long()
        return Scores(
            values=values,
            targets=classes[:, 0],
            predictions=classes[:, 1],
            probabilities=numbers[:, 2:3],
            task="detection",
            shown=numbers[:, 2:4],
            present=~numbers[:, 2].isnan(),
            absence="no box",
            boxes=numbers[:, 4:],
        )

    def _score_of(self, detections: Detections, number: int) -> tuple[Tensor, Tensor]:
        """One image's score; and a row: class, class of the best box, their scores in the other order, and the box."""
        scores, classes, boxes = detections
        candidates = torch.ones_like(classes, dtype=torch.bool)
        if isinstance(self.box, int):
            candidates = classes == self.box
        if not bool(candidates.any()):
            best = scores.detach().argmax() if len(scores) else None
            row = scores.new_full((8,), torch.nan, dtype=torch.float32)
            if best is not None:
                row[1], row[3] = classes[best], scores.detach()[best]
            return scores.sum() * 0, row
        if self.box == "label":
            chosen = self._nearest(detections, number)
            if chosen is None:
                return scores.sum() * 0, scores.new_full((8,), torch.nan, dtype=torch.float32)
        else:
            chosen = scores.detach().masked_fill(~candidates, -torch.inf).argmax()
        best = scores.detach().argmax()
        pair = torch.stack([chosen, best])
        row = torch.cat([classes[pair].float(), scores.detach()[pair].float(), boxes.detach()[chosen].float()])
        return scores[chosen], row

    def _nearest(self, detections: Detections, number: int) -> Tensor | None:
        """The box that is nearest to the label's largest box; None where the label has no box."""
        assert self.labels is not None
        _, classes, boxes = detections
        labelled, kinds = (tensor.to(boxes.device) for tensor in self.labels[number])
        if len(labelled) == 0:
            return None
        sides = labelled[:, 2:] - labelled[:, :2]
        largest = sides.prod(dim=1).argmax()
        nearness = generalized_box_iou(boxes.detach().float(), labelled[largest][None].float()).squeeze(1)
        of_class = classes == kinds[largest]
        return torch.where(of_class, nearness + 2 * of_class.any(), nearness).argmax()

    def part(self, samples: slice) -> DetectionTarget:
        """With the labels of some of the samples."""
        return self if self.labels is None else replace(self, labels=self.labels[samples])
