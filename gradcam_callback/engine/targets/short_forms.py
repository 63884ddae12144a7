"""Targets by short names, as YAML has them."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from gradcam_callback.engine.targets.classes import ClassTarget, HighestTarget, PositiveTarget
from gradcam_callback.engine.targets.detection import DetectionTarget
from gradcam_callback.engine.targets.function import FunctionTarget
from gradcam_callback.engine.targets.reconstruction import ReconstructionTarget
from gradcam_callback.engine.targets.segmentation import SegmentationTarget
from gradcam_callback.engine.targets.similarity import similarity
from gradcam_callback.engine.targets.target import Target
from gradcam_callback.errors import BadInputError

TargetInput = str | int | Sequence[int] | Tensor | Mapping[str, Any] | Callable[[Any, Any], Any] | Target
"""What may be given for a target: a short form, a class a sample, a function, or a Target of one's own."""

POSSIBLE = (
    "Possible: 'predicted', 'label', a class index, 'positive', {highest: 3}, {value: 0, sign: negative}, "
    "{segmentation: predicted}, {detection: best}, {similarity: 0}, 'reconstruction', or the dotted name of a function "
    "`target(output, batch)`."
)


def as_target(given: TargetInput) -> Target:
    """What was given for a target, as one.

    Raises:
        TypeError: It is of a type that no target is made of.
        ValueError: It is another text, a class below 0, or a mapping with other entries.
    """
    if isinstance(given, Target):
        return given
    if isinstance(given, Mapping):
        return _of_mapping(given)
    if isinstance(given, str) and given not in ("predicted", "label"):
        return _of_text(given)
    return FunctionTarget(given) if callable(given) else ClassTarget(given)


def _of_text(given: str) -> Target:
    if given in _WORDS:
        return _WORDS[given]()
    if "." in given:
        return _imported(given)
    raise BadInputError(f"There is no target {given!r}. {POSSIBLE}")


def _of_mapping(given: Mapping[str, Any]) -> Target:
    """A target whose kind is the one key that names it; the others are its options."""
    kinds = [key for key in _KINDS if key in given]
    if len(kinds) != 1:
        raise BadInputError(f"A target of several entries has one of {', '.join(_KINDS)}; given: {dict(given)!r}.")
    [kind] = kinds
    make, options = _KINDS[kind]
    unknown = set(given) - {kind, *options}
    if unknown:
        possible = f"beside it there may be {', '.join(options)}" if options else "nothing else stands beside it"
        raise BadInputError(f"A target with {kind!r} has no {', '.join(map(repr, sorted(unknown)))}: {possible}.")
    return make(given[kind], **{key: value for key, value in given.items() if key != kind})


def _of_highest(count: Any) -> Target:
    return HighestTarget(_positive(count, "highest"))


def _of_positive(most: Any) -> Target:
    return PositiveTarget(_positive(most, "positive"))


def _positive(number: Any, key: str) -> int:
    if type(number) is not int or number < 1:
        raise BadInputError(f"`{key}` is how many columns there are, at least 1; given: {number!r}.")
    return number


def _of_value(number: Any, sign: str = "positive") -> Target:
    if sign not in ("positive", "negative"):
        raise BadInputError(f"`sign` is 'positive' or 'negative'; given: {sign!r}.")
    if type(number) is not int or number < 0:
        raise BadInputError(f"`value` is the position of a number of the output, from 0; given: {number!r}.")
    title = f"value {number}" + (", lower" if sign == "negative" else "")
    return ClassTarget(number, title, "regression", sign=1 if sign == "positive" else -1)


def _of_function(function: Any, title: str = "") -> Target:
    if isinstance(function, str):
        return _imported(function, title)
    if not callable(function):
        raise BadInputError(f"`function` is the dotted name of a function; given: {function!r}.")
    return FunctionTarget(function, title)


def _of_class_path(name: Any, init_args: Mapping[str, Any] | None = None) -> Target:
    return _imported(name, **(init_args or {}))


def _imported(name: str, title: str = "", **init_args: Any) -> Target:
    """A function, or an object of a class, by its dotted name.

    Raises:
        BadInputError: There is no such thing, or it is neither.
    """
    try:
        found = pkgutil.resolve_name(name)
        made = found(**init_args) if isinstance(found, type) else found
    except (ValueError, ImportError, AttributeError, TypeError) as error:
        raise BadInputError(
            f"The target {name!r} could not be imported: {type(error).__name__}: {error}. It is a function "
            "`target(output, batch)`, or a class of such objects."
        ) from error
    if isinstance(made, Target):
        return made
    if not callable(made):
        raise BadInputError(f"The target {name!r} is {type(made).__name__}, and no function `target(output, batch)`.")
    return FunctionTarget(made, title)


_WORDS: dict[str, Callable[[], Target]] = {"positive": PositiveTarget, "reconstruction": ReconstructionTarget}
# The key, what makes a target of its value, and the options beside it.
_KINDS: dict[str, tuple[Callable[..., Target], tuple[str, ...]]] = {
    "positive": (_of_positive, ()),
    "highest": (_of_highest, ()),
    "value": (_of_value, ("sign",)),
    "segmentation": (SegmentationTarget, ("over",)),
    "detection": (DetectionTarget, ()),
    "similarity": (similarity, ()),
    "function": (_of_function, ("title",)),
    "class_path": (_of_class_path, ("init_args",)),
}
