"""What a target is: the part that says what is explained, and one score a sample."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from gradcam_callback.errors import BadInputError

Task = Literal["classification", "multilabel", "regression"]
"""What the numbers of a sample are: scores of classes, of which one is right; of labels, each for itself; or values."""

Kind = Literal["classification", "multilabel", "regression", "segmentation", "detection", "value"]
"""What a target explains: numbers of one of the tasks, a class of pixels, a box, or any other value."""

OutputSpec = str | int | Callable[[Any], Any] | None
"""Where the logits are in what a model returned: a key or attribute, an index, a function; None finds them."""

Images = Tensor | Sequence[Tensor]
"""Images `(N, C, H, W)`; a list of `(C, h, w)` where they differ in size."""


def of_one_size(images: Images) -> Tensor:
    """The images, if one size is theirs.

    Raises:
        ValueError: They differ in size.
    """
    if isinstance(images, Tensor):
        return images
    raise BadInputError(
        "This target needs images of one size, and these differ: "
        f"{', '.join(str(tuple(image.shape)) for image in images)}. Resize them."
    )


@dataclass(frozen=True, eq=False)  # tensors have no one answer to ==
class Scores:
    """What a target makes of one forward pass.

    Attributes:
        values: `(N,)`, the score of each sample, with the history that leads to the layers.
        targets: `(N,)` int64, what each score stands for: a class, mostly.
        predictions: `(N,)` int64, what the model says.
        probabilities: `(N, L)` float32 in 0..1; the values themselves in a regression; of pixels, their share.
        task: What is explained.
        shown: `(N, 2)` float32, the numbers that stand beside target and prediction; None takes their probabilities.
        present: `(N,)` bool, whether a sample has what is to be explained (a box of that class, a second label). None:
            all have. A sample without it has no map, and that is no null gradient.
        absence: What to say of such samples, in a word or two.
        regions: `(N, h, w)` bool, the pixels that the score is taken over, at the size of the output.
        own: `(N,)` bool, whether the probabilities are the model's own numbers; None where there are none.
        boxes: `(N, 4)` float32, the box whose score it is: left, top, right, bottom in pixels of the input.
    """

    values: Tensor
    targets: Tensor
    predictions: Tensor
    probabilities: Tensor
    task: Kind = "classification"
    shown: Tensor | None = None
    present: Tensor | None = None
    absence: str = "nothing to explain"
    regions: Tensor | None = None
    boxes: Tensor | None = None
    own: Tensor | None = None

    @classmethod
    def of_values(cls, values: Tensor, **more: Any) -> Scores:
        """Scores that are no scores of classes: one number a sample, which says what it is."""
        zeros = torch.zeros_like(values, dtype=torch.int64)
        return cls(values, zeros, zeros, values.detach().float().unsqueeze(1), "value", **more)

    @property
    def numbers(self) -> Tensor:
        """`(N, 2)` float32, the numbers that stand beside target and prediction."""
        if self.shown is not None:
            return self.shown
        return self.probabilities.gather(1, torch.stack([self.targets, self.predictions], dim=1))

    def detached(self) -> Scores:
        """The same without the history of the values, which are float32."""
        return replace(self, values=self.values.detach().float())

    def to(self, device: torch.device | str) -> Scores:
        """The same on another device."""
        return self._with({name: tensor.to(device) for name, tensor in self._tensors().items()})

    @classmethod
    def concat(cls, parts: Sequence[Scores]) -> Scores:
        """The scores of all samples, from those of some of them each."""
        columns = {name: [part._tensors()[name] for part in parts] for name in parts[0]._tensors()}
        return parts[0]._with({name: torch.cat(tensors) for name, tensors in columns.items()})

    def _with(self, tensors: dict[str, Any]) -> Scores:
        return replace(self, **tensors)

    def _tensors(self) -> dict[str, Tensor]:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, Tensor)}


@dataclass(frozen=True, eq=False)
class Annotations:
    """What the data say of some samples.

    Attributes:
        classes: `(N,)` int64, the class of each; None where the data have none.
        values: `(N,)` or `(N, L)`, labels of another kind: flags of several labels, or numbers.
        task: What the values are; None where there are none.
        outputs: How many numbers a sample the task is meant for; None is any.
        masks: `(N, H, W)` int64, the class of each pixel.
        boxes: A sample's boxes `(n, 4)` and their classes `(n,)`: left, top, right, bottom in pixels.
        class_names: By index; None where they are not known.
        batch: All that the validation's batches hold of the samples, in the structure of a batch.
    """

    classes: Tensor | None = None
    values: Tensor | None = None
    task: Task | None = None
    outputs: int | None = None
    masks: Tensor | None = None
    boxes: Sequence[tuple[Tensor, Tensor]] | None = None
    class_names: Sequence[str] | None = None
    batch: Any = None

    def name_class(self, index: int) -> str:
        """The class's name, or its index where it has none."""
        names = self.class_names
        return names[index] if names is not None and 0 <= index < len(names) else str(index)


@runtime_checkable
class Target(Protocol):
    """The place where other tasks plug in: from what a model returned to a score a sample.

    A target that needs to know what the data say of the samples has a method `bound` besides, as `BoundTarget` has it.
    """

    @property
    def title(self) -> str:
        """A word or two, for the head of a column."""

    @property
    def description(self) -> str:
        """What is explained, in a sentence."""

    def read(self, returned: Any, output: OutputSpec, inputs: Images) -> Any:
        """What the scores are made of, e.g. the logits, out of what the model returned for these inputs.

        It is looked for while the forward pass is still observed, and changes no tensor. The inputs are a list where
        the images differ in size.
        """

    def score(self, read: Any) -> Scores:
        """One score a sample, of what was read."""

    def part(self, samples: slice) -> Target:
        """The target of some of the samples."""


class RepeatableTarget(Protocol):
    """A target that can score changed images by what it scored in the images themselves."""

    def repeated(self, scores: Scores, times: int) -> Target:
        """The target of several batches of these samples, one after the other, as fixed by their scores."""


class BoundTarget(Protocol):
    """A target that asks the data first."""

    def bound(self, annotations: Annotations) -> Sequence[Target]:
        """The target of these very samples; several where it makes several columns.

        Raises:
            BadInputError: The data do not have what it needs.
        """


def repeat_target(target: Target, scores: Scores, times: int) -> Target:
    """The target of several batches of the same samples, changed: of the class, or the pixels, that it is of now.

    Args:
        target: Of the samples.
        scores: What it made of them.
        times: How many batches there are, one after the other.

    Raises:
        BadInputError: What it is of depends on each image anew.
    """
    ask = getattr(target, "repeated", None)
    if ask is None:
        raise BadInputError(
            f"The target {target.title!r} cannot be scored in changed images: what it is of is found in each image "
            "anew. Possible are classes, labels, values, pixels of a class and similarities; or a method without more "
            "forward passes, such as 'gradcam'."
        )
    fixed: Target = ask(scores, times)
    return fixed


def bind(target: Target, annotations: Annotations) -> tuple[Target, ...]:
    """The target, or targets, of samples of which the data say so much.

    Raises:
        BadInputError: The data do not have what it needs.
    """
    ask = getattr(target, "bound", None)
    return (target,) if ask is None else tuple(ask(annotations))
