"""What is explained: from what the model returned to one score a sample."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.autograd.graph import Node

from gradcam_callback.errors import BadInputError

# By the names of autograd's nodes, with what torch makes of a view or of a cast among them.
_NORMALISING = {"Sigmoid", "Softmax", "SafeSoftmax"}
_RESHAPING = {"View", "UnsafeView", "ReshapeAlias", "Squeeze", "Unsqueeze", "Slice", "T"}
_RESHAPING |= {"Alias", "ToCopy", "Clone", "Clamp"}

Task = Literal["classification", "multilabel", "regression"]
"""What the numbers of a sample are: scores of classes, of which one is right; of labels, each for itself; or values."""

OutputSpec = str | int | Callable[[Any], Any] | None
"""Where the logits are in what a model returned: a key or attribute, an index, a function; None finds them."""


@dataclass(frozen=True, eq=False)  # tensors have no one answer to ==
class Scores:
    """What a target makes of one forward pass.

    Attributes:
        values: `(N,)`, the score of each sample, with the history that leads to the layers.
        targets: `(N,)` int64, what each score stands for: a class, mostly.
        predictions: `(N,)` int64, what the model says.
        probabilities: `(N, L)` float32 in 0..1; the values themselves in a regression.
        task: What they are probabilities of.
    """

    values: Tensor
    targets: Tensor
    predictions: Tensor
    probabilities: Tensor
    task: Task = "classification"


@runtime_checkable
class Target(Protocol):
    """The place where other tasks (a mask, a box, a number) plug in: from what a model returned to a score a sample."""

    @property
    def title(self) -> str:
        """A word or two, for the head of a column."""

    @property
    def description(self) -> str:
        """What is explained, in a sentence."""

    def read(self, returned: Any, output: OutputSpec, samples: int) -> Any:
        """What the scores are made of, e.g. the logits, out of what the model returned for so many samples.

        It is looked for while the forward pass is still observed.
        """

    def score(self, read: Any) -> Scores:
        """One score a sample, of what was read."""

    def part(self, samples: slice) -> Target:
        """The target of some of the samples."""


TargetInput = str | int | Sequence[int] | Tensor | Target
"""What may be given for a target: "predicted", a class for all samples, a class a sample, or a Target of one's own."""


@dataclass(frozen=True, eq=False)
class ClassTarget:
    """The logit of a class, or of a label; or a value of a regression.

    Attributes:
        classes: "predicted", a class for all samples, or a class a sample. In a regression, the number of the value;
            "predicted" is the largest.
        name: The title, e.g. the name of the class; by default it is made of the classes.
        task: What the numbers are.
        outputs: How many numbers of a sample the task is meant for; if the model gives another number of them, it is a
            classification. None is any.

    Raises:
        TypeError: `classes` is neither "predicted", an int, nor a list or tensor of ints.
        ValueError: It is another string, or a class below 0.
    """

    classes: str | int | Sequence[int] | Tensor = "predicted"
    name: str = ""
    task: Task = "classification"
    outputs: int | None = None

    def __post_init__(self) -> None:
        check_target(self.classes)

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

    def read(self, returned: Any, output: OutputSpec, samples: int) -> Tensor:
        """The logits `(N, L)`.

        Raises:
            ValueError: There are none, or they are not one row a sample.
        """
        logits = find_logits(returned, output)
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
        task = self.task if self.outputs in (None, read.shape[1]) else "classification"
        if task == "regression":
            values = read.detach().float()
            largest = read.detach().argmax(dim=1)
            chosen = choose_targets(self.classes, largest, read.shape[1])
            return Scores(read.gather(1, chosen.unsqueeze(1)).squeeze(1), chosen, largest, values, task)
        predictions, probabilities = predict(read, independent=task == "multilabel")
        chosen = choose_targets(self.classes, predictions, class_count(read))
        return Scores(score(read, chosen), chosen, predictions, probabilities, task)

    def part(self, samples: slice) -> ClassTarget:
        """The classes of some of the samples."""
        if isinstance(self.classes, (str, int)) or self._is_for_all:
            return self
        return replace(self, classes=self.classes[samples])


def as_target(given: TargetInput) -> Target:
    """What was given for a target, as one.

    Raises:
        TypeError: It is neither "predicted", an int, a list or tensor of ints, nor a Target.
        ValueError: It is another string, or a class below 0.
    """
    return given if isinstance(given, Target) else ClassTarget(given)


# The names under which libraries return logits, in the order in which they are looked for.
LOGIT_NAMES = ("logits", "out", "output", "outputs", "prediction", "predictions", "preds", "scores", "y_hat")


def find_logits(returned: Any, output: OutputSpec = None) -> Tensor:
    """The logits within what a model returned.

    Args:
        returned: A tensor, or a mapping, sequence or object that holds one.
        output: Where they are: a key or attribute, an index, a function of what was returned. None finds them: by
            name; else the only matrix `(N, L)`; else the first that could be logits.

    Returns:
        `(N, L)`, one row a sample; a single logit a sample is `(N, 1)`.

    Raises:
        ValueError: There are none where `output` says, or they cannot be found, or they have another shape.
    """
    logits = _search(returned) if output is None else _select(returned, output)
    if not isinstance(logits, Tensor):
        where = "" if output is None else f" at output={output!r}"
        raise BadInputError(
            f"No logits were found{where} in what the model returned: {_describe(returned)}. "
            "Say where they are with `output`: a key, an index, or a function of what the model returned."
        )
    return _as_rows(logits)


def _select(returned: Any, output: str | int | Callable[[Any], Any]) -> Any:
    if callable(output):
        return output(returned)
    if isinstance(returned, Tensor):
        return None  # an item of it would be a sample, and with as many classes as samples nobody would notice
    if isinstance(output, str) and not isinstance(returned, Mapping):
        return getattr(returned, output, None)
    try:
        return returned[output]
    except (KeyError, IndexError, TypeError):
        return None


def _search(returned: Any) -> Any:
    if isinstance(returned, Tensor):
        return returned
    for name in LOGIT_NAMES:
        value = returned.get(name) if isinstance(returned, Mapping) else getattr(returned, name, None)
        if _is_floating(value):  # predicted classes are integers, and have no gradient
            return value
    floating = [value for value in _parts(returned) if _is_floating(value)]
    matrices = [value for value in floating if value.ndim == 2]
    if len({value.shape for value in matrices}) > 1:
        raise BadInputError(
            f"Several things that the model returned may be the logits: {_describe(returned)}, among them matrices of "
            f"shape {', '.join(str(tuple(value.shape)) for value in matrices)}. Say which they are with `output`: a "
            "key, an index, or a function of what the model returned."
        )
    if matrices:  # a loss a sample may stand before them; of several heads of one shape, the first is the main one
        return matrices[0]
    rows = [value for value in floating if value.ndim == 1]
    pooled = [value for value in floating if value.ndim > 2 and value.shape[2:].numel() == 1]
    return next(iter(rows + pooled), None)


def _parts(returned: Any) -> list[Any]:
    if isinstance(returned, Mapping):
        return list(returned.values())
    if is_dataclass(returned):
        return [getattr(returned, field.name, None) for field in fields(returned)]
    return list(returned) if isinstance(returned, Sequence) else []


def _is_floating(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _as_rows(logits: Tensor) -> Tensor:
    if logits.ndim == 1:
        return logits.unsqueeze(1)
    if logits.ndim > 2 and logits.shape[2:].numel() == 1:
        return logits.flatten(1)
    if logits.ndim != 2:
        raise BadInputError(
            f"The logits have shape {tuple(logits.shape)}; needed is (N, classes), one row a sample. For a model that "
            "returns more than that (a mask, a sequence), pass `output`: a function that reduces what it returned to "
            "(N, classes), e.g. `lambda y: y.mean(dim=(2, 3))`."
        )
    return logits


def _describe(returned: Any) -> str:
    if isinstance(returned, Tensor):
        return f"Tensor of shape {tuple(returned.shape)}; of a tensor, only a function can take a part"
    if isinstance(returned, Mapping):
        return f"{type(returned).__name__} with the keys {', '.join(map(repr, returned))}"
    if isinstance(returned, (list, tuple)):
        return f"{type(returned).__name__} of {', '.join(type(value).__name__ for value in returned) or 'nothing'}"
    return type(returned).__name__


def check_target(target: Any) -> None:
    """Refuse what cannot be a target, before any model has run.

    Raises:
        TypeError: It is neither "predicted", an int, nor a list or tensor of ints.
        ValueError: It is another string, or a class below 0.
    """
    if isinstance(target, str):
        if target != "predicted":
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
        raise BadInputError(f"A target class is at least 0; given: {int(classes.min())}.")


def predict(logits: Tensor, *, independent: bool = False) -> tuple[Tensor, Tensor]:
    """The predicted classes `(N,)` int64, and the probabilities `(N, L)` float32 in 0..1.

    Of a single logit, class 1 is the logit and class 0 its negative; the probabilities are its sigmoid and the rest.
    What a sigmoid or a softmax made are probabilities already.

    Args:
        logits: `(N, L)`.
        independent: Whether each of them is of a label for itself, whose probability is its sigmoid.
    """
    exact, are_probabilities = logits.detach(), has_probabilities(logits)
    values = exact.float()  # may make one of two float64 numbers that are not
    if values.shape[1] > 1:
        made = values if are_probabilities else values.sigmoid() if independent else values.softmax(dim=1)
        return exact.argmax(dim=1), made
    if are_probabilities:
        return (exact[:, 0] > 0.5).long(), torch.cat([1 - values, values], dim=1)
    return (exact[:, 0] > 0).long(), torch.cat([torch.sigmoid(-values), torch.sigmoid(values)], dim=1)


def has_probabilities(logits: Tensor) -> bool:
    """Whether the last operation, but for changes of shape and the like, was a sigmoid or a softmax.

    Its values alone would not tell: the logits of a network that has learnt nothing are in 0..1 by chance. Without a
    graph that is not known, and they count as logits.
    """
    node = logits.grad_fn
    while node is not None and _kind(node) in _RESHAPING:
        node = node.next_functions[0][0]
    return node is not None and _kind(node) in _NORMALISING


def _kind(node: Node) -> str:
    return node.name().rstrip("0123456789").removesuffix("Backward")


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


def class_count(logits: Tensor) -> int:
    """How many classes there are to choose from: a single logit tells two classes apart."""
    return max(2, logits.shape[1])


def score(logits: Tensor, targets: Tensor) -> Tensor:
    """One score a sample, `(N,)`: the logit of its target. Of a single logit, class 0 is its negative, or the rest."""
    if logits.shape[1] == 1:
        other = 1 - logits[:, 0] if has_probabilities(logits) else -logits[:, 0]
        return torch.where(targets == 1, logits[:, 0], other)
    return logits.gather(1, targets.unsqueeze(1)).squeeze(1)
