"""What the model returned -> logits -> one score per sample. A room: it knows neither layers nor gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

from gradcam_callback.errors import BadInputError

OutputSpec = str | int | Callable[[Any], Any] | None

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
    if len(matrices) == 1:  # a loss a sample may stand before them
        return matrices[0]
    rows = [value for value in floating if value.ndim in (1, 2)]
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


def predict(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The predicted classes `(N,)` int64, and the probabilities `(N, L)` float32 in 0..1.

    Of a single logit, class 1 is the logit and class 0 its negative; the probabilities are its sigmoid and the rest.
    """
    exact = logits.detach()
    values = exact.float()  # may make one of two float64 numbers that are not
    if values.shape[1] == 1:
        probabilities = torch.cat([torch.sigmoid(-values), torch.sigmoid(values)], dim=1)
        return (exact[:, 0] > 0).long(), probabilities
    return exact.argmax(dim=1), values.softmax(dim=1)


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
    """One score a sample, `(N,)`: the logit of its target. Of a single logit, class 0 is its negative."""
    if logits.shape[1] == 1:
        return torch.where(targets == 1, logits[:, 0], -logits[:, 0])
    return logits.gather(1, targets.unsqueeze(1)).squeeze(1)
