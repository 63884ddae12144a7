"""The logits within what a model returned, and what they say: classes, probabilities, scores."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import Node

from gradcam_callback.engine.targets.target import OutputSpec
from gradcam_callback.errors import BadInputError

# By the names of autograd's nodes, with what torch makes of a view or of a cast among them.
_NORMALISING = {"Sigmoid", "Softmax", "SafeSoftmax"}
_RESHAPING = {"View", "UnsafeView", "ReshapeAlias", "Squeeze", "Unsqueeze", "Slice", "T"}
_RESHAPING |= {"Alias", "ToCopy", "Clone", "Clamp"}

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
    logits = _search(returned) if output is None else select(returned, output)
    if not isinstance(logits, Tensor):
        where = "" if output is None else f" at output={output!r}"
        raise BadInputError(
            f"No logits were found{where} in what the model returned: {describe(returned)}. "
            + (
                "These look like detections: use `target: {detection: best}`."
                if are_detections(returned)
                else "Say where they are with `output`: a key, an index, or a function of what the model returned."
            )
        )
    return _as_rows(logits)


def count_alternatives(returned: Any, output: OutputSpec = None) -> int:
    """How many matrices of one shape may be the logits, where neither `output` nor a name says which: 1 if it is clear.

    `find_logits` takes the first of them.
    """
    is_named = any(is_floating(entry(returned, name)) for name in LOGIT_NAMES)
    if output is not None or isinstance(returned, Tensor) or is_named:
        return 1
    matrices = [value for value in parts(returned) if is_floating(value) and value.ndim == 2]
    return max(1, len(matrices))


def find_maps(returned: Any, output: OutputSpec = None) -> Tensor:
    """The logits of pixels within what a model returned, `(N, L, h, w)`.

    Args:
        returned: A tensor, or a mapping, sequence or object that holds one.
        output: As of `find_logits`; None finds them by name, else the only ones with four axes.

    Raises:
        ValueError: There are none, or several of different shapes.
    """
    if output is not None:
        found = [select(returned, output)]
    else:
        named = [entry(returned, name) for name in LOGIT_NAMES]
        found = [value for value in [returned, *named] if is_floating(value) and value.ndim == 4][:1]
        found = found or [value for value in parts(returned) if is_floating(value) and value.ndim == 4]
    if len({value.shape for value in found if isinstance(value, Tensor)}) > 1:
        raise BadInputError(
            f"Several things that the model returned may be the logits of pixels: {describe(returned)}. Say which they "
            "are with `output`: a key, an index, or a function."
        )
    if not found or not is_floating(found[0]) or found[0].ndim != 4:
        raise BadInputError(
            "A segmentation needs the logits of pixels, (N, classes, h, w), and the model returned "
            f"{describe(found[0] if output is not None else returned)}. Say where they are with `output`: a key, an "
            "index, or a function of what the model returned."
        )
    maps: Tensor = found[0]
    return maps


def are_detections(returned: Any) -> bool:
    """Whether something is a list of boxes with scores for each image, as torchvision's detectors return it."""
    is_list = isinstance(returned, (list, tuple)) and len(returned) > 0
    return is_list and all(isinstance(one, Mapping) and {"boxes", "scores"} <= set(one) for one in returned)


def select(returned: Any, output: str | int | Callable[[Any], Any]) -> Any:
    """What `output` says of what the model returned; None where there is no such thing."""
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
        value = entry(returned, name)
        if is_floating(value):  # predicted classes are integers, and have no gradient
            return value
    floating = [value for value in parts(returned) if is_floating(value)]
    matrices = [value for value in floating if value.ndim == 2]
    if len({value.shape for value in matrices}) > 1:
        raise BadInputError(
            f"Several things that the model returned may be the logits: {describe(returned)}, among them matrices of "
            f"shape {', '.join(str(tuple(value.shape)) for value in matrices)}. Say which they are with `output`: a "
            "key, an index, or a function of what the model returned."
        )
    if matrices:  # a loss a sample may stand before them; of several heads of one shape, the first is the main one
        return matrices[0]
    rows = [value for value in floating if value.ndim == 1]
    pooled = [value for value in floating if value.ndim > 2 and value.shape[2:].numel() == 1]
    return next(iter(rows + pooled), None)


def entry(returned: Any, name: str) -> Any:
    """What a mapping has under a name, or an object as an attribute; None where there is nothing."""
    return returned.get(name) if isinstance(returned, Mapping) else getattr(returned, name, None)


def parts(returned: Any) -> list[Any]:
    """The entries of a mapping, a dataclass or a sequence."""
    if isinstance(returned, Mapping):
        return list(returned.values())
    if is_dataclass(returned):
        return [getattr(returned, field.name, None) for field in fields(returned)]
    return list(returned) if isinstance(returned, Sequence) else []


def is_floating(value: Any) -> bool:
    """Whether it is a tensor of floating-point numbers."""
    return isinstance(value, Tensor) and value.is_floating_point()


def _as_rows(logits: Tensor) -> Tensor:
    if logits.ndim == 1:
        return logits.unsqueeze(1)
    if logits.ndim > 2 and logits.shape[2:].numel() == 1:
        return logits.flatten(1)
    if logits.ndim != 2:
        raise BadInputError(
            f"The logits have shape {tuple(logits.shape)}; needed is (N, classes), one row a sample. "
            + ("For a segmentation use `target: {segmentation: predicted}`. " if logits.ndim == 4 else "")
            + "For a model that returns more than that (a sequence, say), pass `output`: a function that reduces what "
            "it returned to (N, classes), e.g. `lambda y: y.mean(dim=1)`."
        )
    return logits


def describe(returned: Any) -> str:
    """What a model returned, for a message."""
    if isinstance(returned, Tensor):
        return f"Tensor of shape {tuple(returned.shape)}; of a tensor, only a function can take a part"
    if isinstance(returned, Mapping):
        return f"{type(returned).__name__} with the keys {', '.join(map(repr, returned))}"
    if isinstance(returned, (list, tuple)):
        return f"{type(returned).__name__} of {', '.join(type(value).__name__ for value in returned) or 'nothing'}"
    return type(returned).__name__


def predict(logits: Tensor, *, independent: bool = False) -> tuple[Tensor, Tensor]:
    """The predicted classes `(N,)` int64, and the probabilities `(N, L)` float32 in 0..1.

    Of a single logit, class 1 is the logit and class 0 its negative; the probabilities are its sigmoid and the rest.
    What a sigmoid or a softmax made are probabilities already.

    Args:
        logits: `(N, L)`.
        independent: Whether each of them is of a label for itself, whose probability is its sigmoid.
    """
    exact, own = logits.detach(), own_probabilities(logits)
    values = exact.float()  # may make one of two float64 numbers that are not
    if values.shape[1] > 1:
        made = values.sigmoid() if independent else values.softmax(dim=1)
        return exact.argmax(dim=1), torch.where(own[:, None], values, made)
    made = torch.where(own[:, None], values, torch.sigmoid(values))
    rest = torch.where(own[:, None], 1 - values, torch.sigmoid(-values))
    return (exact[:, 0] > torch.where(own, 0.5, 0.0)).long(), torch.cat([rest, made], dim=1)


def own_probabilities(logits: Tensor) -> Tensor:
    """Whether the numbers are probabilities already: `(N,)` bool, the same for all samples, on their device.

    The graph tells, see `has_probabilities`; or rows of several numbers that are at least 0 and all sum to 1.
    """
    if has_probabilities(logits) or logits.shape[1] < 2:
        return torch.full((len(logits),), has_probabilities(logits), device=logits.device)
    rows = logits.detach()
    fine = 1e-5 if rows.dtype in (torch.float32, torch.float64) else 4e-3
    sums_to_one = (rows.float().sum(dim=1) - 1).abs() <= fine
    return ((rows >= 0).all() & sums_to_one.all()).expand(len(rows))


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


def class_count(logits: Tensor) -> int:
    """How many classes there are to choose from: a single logit tells two classes apart."""
    return max(2, logits.shape[1])


def score(logits: Tensor, targets: Tensor) -> Tensor:
    """One score a sample, `(N,)`: the logit of its target. Of a single logit, class 0 is its negative, or the rest."""
    if logits.shape[1] == 1:
        other = 1 - logits[:, 0] if has_probabilities(logits) else -logits[:, 0]
        return torch.where(targets == 1, logits[:, 0], other)
    return logits.gather(1, targets.unsqueeze(1)).squeeze(1)
