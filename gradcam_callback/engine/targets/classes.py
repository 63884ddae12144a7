"""Classes, labels and values: one number of each sample's row is explained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from gradcam_callback.engine.targets.logits import class_count, find_logits, own_probabilities, predict, score
from gradcam_callback.engine.targets.target import Annotations, Images, OutputSpec, Scores, Task
from gradcam_callback.errors import BadInputError

_NO_LABELS = (
    "There is `target: label`, and the probes have no labels. Use `target: predicted` or a class index, or say where "
    "the labels are, with `label_key` of ValidationProbes or `labels` of the other sources."
)
_MOST_COLUMNS = 6


@dataclass(frozen=True, eq=False)
class ClassTarget:
    """The logit of a class, or of a label; or a value of a regression.

    Attributes:
        classes: "predicted", "label" (until it is bound to the samples), a class for all samples, or a class a sample.
            In a regression, the number of the value; "predicted" is the largest.
        name: The title, e.g. the name of the class; by default it is made of the classes.
        task: What the numbers are; None leaves it to the data, and to a classification where these say nothing.
        outputs: How many numbers of a sample the task is meant for; if the model gives another number of them, it is a
            classification. None is any.
        rank: Which of the predicted classes: 0 is the one with the highest logit, 1 the next.
        sign: -1 explains what makes the score lower.
        present: `(N,)` bool, the samples that have such a class at all; None: all.

    Raises:
        TypeError: `classes` is neither "predicted", an int, nor a list or tensor of ints.
        ValueError: It is another string, or a class below 0.
    """

    classes: str | int | Sequence[int] | Tensor = "predicted"
    name: str = ""
    task: Task | None = None
    outputs: int | None = None
    rank: int = 0
    sign: Literal[1, -1] = 1
    present: Tensor | None = None

    def __post_init__(self) -> None:
        check_target(self.classes)

    @property
    def may_be_absent(self) -> bool:
        """Whether some of the samples may have no such class."""
        return self.present is not None

    @property
    def _is_for_all(self) -> bool:
        return isinstance(self.classes, str) or torch.as_tensor(self.classes).ndim == 0

    @property
    def title(self) -> str:
        """The name, or what can be said without one."""
        if self.name or isinstance(self.classes, str):
            return self.name or str(self.classes)
        return str(int(torch.as_tensor(self.classes))) if self._is_for_all else "given"

    @property
    def description(self) -> str:
        """Which logit it is."""
        if isinstance(self.classes, str):
            return "The logit of the class that the model predicts."
        which = f"class {self.title}" if self._is_for_all else "the class given for each sample"
        return f"The logit of {which}."

    def bound(self, annotations: Annotations) -> list[ClassTarget]:
        """With the labels, the class's name and the task; see `BoundTarget`."""
        known = self
        if isinstance(self.classes, str) and self.classes == "label":
            if annotations.classes is None:
                raise BadInputError(_NO_LABELS)
            known = replace(self, classes=annotations.classes.tolist(), name=self.name or "label")
        elif not self.name and self._is_for_all and not isinstance(self.classes, str):
            known = replace(self, name=annotations.name_class(int(torch.as_tensor(self.classes))))
        if known.task is None:
            known = replace(known, task=annotations.task, outputs=annotations.outputs)
        return [known]

    def read(self, returned: Any, output: OutputSpec, inputs: Images) -> Tensor:
        """The logits `(N, L)`.

        Raises:
            ValueError: There are none, or they are not one row a sample.
        """
        logits, samples = find_logits(returned, output), len(inputs)
        if len(logits) != samples:
            raise BadInputError(
                f"The model returned logits of shape {tuple(logits.shape)} for {samples} images: needed is one row an "
                "image. If these are not the logits, say with `output` where they are."
            )
        return logits

    def score(self, read: Tensor) -> Scores:
        """The logit of each sample's class.

        Raises:
            ValueError: A class that does not exist, or a number of classes that is not the number of samples.
        """
        task = (self.task if self.outputs in (None, read.shape[1]) else None) or "classification"
        if task == "regression":
            numbers, predictions, count = read.detach().float(), read.detach().argmax(dim=1), read.shape[1]
        else:
            predictions, numbers = predict(read, independent=task == "multilabel")
            count = class_count(read)
        of_rank = predictions if self.rank == 0 else self._ranked(numbers)
        chosen = choose_targets(self.classes, of_rank, count)
        values = read.gather(1, chosen.unsqueeze(1)).squeeze(1) if task == "regression" else score(read, chosen)
        present = None if self.present is None else self.present.to(read.device, non_blocking=True)
        signed = values if self.sign == 1 else -values
        own = None if task == "regression" else own_probabilities(read)
        return Scores(signed, chosen, predictions, numbers, task, present=present, absence="no label", own=own)

    def _ranked(self, numbers: Tensor) -> Tensor:
        if self.rank >= numbers.shape[1]:
            raise BadInputError(
                f"The {self.rank + 1} highest classes were asked for, and the model has {numbers.shape[1]}."
            )
        return numbers.argsort(dim=1, descending=True, stable=True)[:, self.rank]

    def part(self, samples: slice) -> ClassTarget:
        """The classes of some of the samples."""
        present = None if self.present is None else self.present[samples]
        if isinstance(self.classes, (str, int)) or self._is_for_all:
            return replace(self, present=present)
        return replace(self, classes=self.classes[samples], present=present)

    def repeated(self, scores: Scores, times: int) -> ClassTarget:
        """The classes that were scored, several times over; see `RepeatableTarget`."""
        return replace(self, classes=scores.targets.repeat(times), rank=0, present=None)


Own = TypeVar("Own")


class _Unbound:
    """A target that becomes others once the data, or the model, are asked."""

    title: str

    def read(self, returned: Any, output: OutputSpec, inputs: Images) -> Tensor:
        """Cannot be read before it is bound."""
        raise unbound(self.title)

    def score(self, read: Tensor) -> Scores:
        """Cannot be scored before it is bound."""
        raise unbound(self.title)

    def part(self: Own, samples: slice) -> Own:
        """The same."""
        return self


@dataclass(frozen=True)
class PositiveTarget(_Unbound):
    """Each label that a sample has, in a column each: the first of each sample, the second, and so on.

    Attributes:
        most: How many columns at most, at least 1.
    """

    most: int = _MOST_COLUMNS

    title = "positive"
    description = "The logits of the labels that each sample has."

    def bound(self, annotations: Annotations) -> list[ClassTarget]:
        """As many targets as the sample with the most labels has; see `BoundTarget`."""
        if annotations.values is not None and annotations.task == "multilabel":
            flags = annotations.values > 0
        elif annotations.classes is not None:
            flags = torch.nn.functional.one_hot(annotations.classes.long()) > 0
        else:
            raise BadInputError(
                "There is `target: positive`, and the probes have no labels of the kind: needed is a 0 or 1 for each "
                "label, `(N, L)`, or a class index. Use `target: predicted`, `{highest: 3}` or a class index, or say "
                "where the labels are, with `label_key` of ValidationProbes."
            )
        counts = flags.sum(dim=1)
        ordered = flags.int().argsort(dim=1, descending=True, stable=True)  # those that a sample has, by index
        count = max(1, int(counts.max()))
        columns = range(min(count, self.most))
        titles = [f"positive {column + 1} of {count}" if count > 1 else self.title for column in columns]
        task: Task = annotations.task or "classification"
        return [
            ClassTarget(ordered[:, column], titles[column], task, annotations.outputs, present=counts > column)
            for column in columns
        ]


@dataclass(frozen=True)
class HighestTarget(_Unbound):
    """The classes with the highest logits, in a column each.

    Attributes:
        count: How many, at least 1.
    """

    count: int

    description = "The logits of the classes that the model ranks highest."

    @property
    def title(self) -> str:  # type: ignore[override]
        """How many there are."""
        return f"highest {self.count}"

    def bound(self, annotations: Annotations) -> list[ClassTarget]:
        """A target for each rank; see `BoundTarget`."""
        ranks = [ClassTarget(name=f"highest {rank + 1}", rank=rank) for rank in range(self.count)]
        return [target for rank in ranks for target in rank.bound(annotations)]


def unbound(what: str) -> BadInputError:
    """The error where the data's word is needed and there are no data."""
    return BadInputError(
        f"The target {what!r} asks what the data say of each image, which the callback knows, and here nobody does. "
        "Give the classes themselves, one an image."
    )


def check_target(target: Any) -> None:
    """Refuse what cannot be a target, before any model has run.

    Raises:
        TypeError: It is neither "predicted", an int, nor a list or tensor of ints.
        ValueError: It is another string, or a class below 0.
    """
    if isinstance(target, str):
        if target not in ("predicted", "label"):
            raise BadInputError(
                f'There is no target {target!r}. Possible: "predicted", a class index, or one a sample.'
            )
        return
    try:
        classes = torch.as_tensor(target)
    except (TypeError, ValueError, RuntimeError):
        classes = torch.tensor(0.0)
    if classes.ndim > 1 or classes.is_floating_point() or classes.is_complex() or classes.dtype == torch.bool:
        raise TypeError(
            f'A target is "predicted", an int, or one int a sample (a list or an integer tensor); given: {target!r}.'
        )
    if classes.numel() and int(classes.min()) < 0:
        raise BadInputError(f"A target is a class index of at least 0; given: {int(classes.min())}.")


def choose_targets(target: str | int | Sequence[int] | Tensor, predictions: Tensor, classes: int) -> Tensor:
    """The class to explain for each sample: `(N,)` int64 on the device of `predictions`.

    Args:
        target: "predicted", a class for all samples, or a class a sample.
        predictions: `(N,)` int64.
        classes: How many classes there are to choose from.

    Raises:
        ValueError: A class that does not exist, or a number of targets that is not the number of samples.
    """
    if isinstance(target, str):
        if target == "label":
            raise unbound(target)
        return predictions
    chosen = torch.as_tensor(target)
    if chosen.ndim > 0 and chosen.shape != predictions.shape:
        raise BadInputError(
            f"{chosen.numel()} targets were given for {len(predictions)} samples. "
            'Possible: "predicted", one class for all, or one class a sample.'
        )
    if chosen.numel() and int(chosen.max()) >= classes:
        raise BadInputError(
            f"Target class {int(chosen.max())} does not exist: the model has {classes} classes, 0 to {classes - 1}."
        )
    # A copy to a GPU need not be waited for; one from it has to be.
    return chosen.to(predictions.device, torch.int64, non_blocking=predictions.is_cuda).expand_as(predictions)
