"""Methods by their names; and those of a user's own."""

from __future__ import annotations

import difflib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from gradcam_callback.engine.methods.attention import GradientRollout
from gradcam_callback.engine.methods.components import eigencam, eigengradcam
from gradcam_callback.engine.methods.formulas import (
    gradcam,
    gradcam_elementwise,
    gradcam_plus_plus,
    hirescam,
    layercam,
    xgradcam,
)
from gradcam_callback.engine.methods.method import PER_CHANNEL, FormulaMethod, Forwards, Method
from gradcam_callback.engine.methods.perturbation import AblationCAM, ScoreCAM
from gradcam_callback.engine.methods.smooth import Smooth
from gradcam_callback.errors import BadInputError

METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        FormulaMethod("gradcam", gradcam),
        FormulaMethod("gradcam++", gradcam_plus_plus),
        FormulaMethod("hirescam", hirescam),
        FormulaMethod("xgradcam", xgradcam),
        FormulaMethod("layercam", layercam),
        FormulaMethod("gradcam_elementwise", gradcam_elementwise),
        FormulaMethod("eigencam", eigencam, needs_gradient=False),
        FormulaMethod("eigengradcam", eigengradcam),
        Smooth(),
        ScoreCAM(),
        AblationCAM(),
        GradientRollout(),
    )
}

MethodInput = str | Mapping[str, Any] | Callable[[Any, Any], Any] | Method
"""What may be given for a method: a name, a function or a class, or their dotted name with `init_args`."""


@dataclass(frozen=True)
class OwnMethod:
    """A method of a user's own. What it does not declare is taken as: a gradient, and no more forward passes.

    Attributes:
        name: That of the object, or of its class.
        given: A function from activation and gradient to the map, or an object with such a method `map`.
    """

    name: str
    given: Any

    @property
    def needs_gradient(self) -> bool:
        """What it declares."""
        return bool(getattr(self.given, "needs_gradient", True))

    @property
    def extra_forwards(self) -> Forwards:
        """What it declares."""
        declared: Forwards = getattr(self.given, "extra_forwards", 0)
        return declared

    def map(self, *given: Any) -> Tensor:
        """Its map; what is below 0 is cut off, as in every map."""
        cam = getattr(self.given, "map", self.given)(*given)
        return cam.relu() if isinstance(cam, Tensor) else cam


def find_method(name: str) -> Method:
    """The method of that name.

    Raises:
        ValueError: There is none; the message lists the methods.
    """
    if isinstance(name, str) and name in METHODS:
        return METHODS[name]
    close = difflib.get_close_matches(str(name).lower(), METHODS, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    raise BadInputError(
        f"There is no method {name!r}. Possible: {', '.join(map(repr, METHODS))}, or the dotted name of a function "
        f"`(activation, gradient) -> map` or of a class with such a method `map`.{hint}"
    )


def as_method(given: MethodInput) -> Method:
    """What was given for a method, as one.

    Raises:
        ValueError: There is none of that name, it could not be imported, or it declares what is not possible.
    """
    if isinstance(given, Mapping):
        unknown = set(given) - {"class_path", "init_args"}
        if unknown or not isinstance(given.get("class_path"), str):
            raise BadInputError(
                f"A method of several entries has `class_path` and `init_args`; given: {dict(given)!r}."
            )
        return _own(_imported(given["class_path"], given.get("init_args") or {}))
    if isinstance(given, str):
        return _own(_imported(given, {})) if "." in given and given not in METHODS else find_method(given)
    return _own(given)


def as_method_on_null(given: MethodInput) -> Method:
    """The method to draw with where there is no gradient, if it can.

    Raises:
        ValueError: It needs one itself.
    """
    method = as_method(given)
    if method.needs_gradient:
        possible = ", ".join(repr(name) for name, one in METHODS.items() if not one.needs_gradient)
        raise BadInputError(
            f"`method_on_null` draws where there is no gradient, and {method.name!r} needs one. Possible: {possible}, "
            "or a class with `needs_gradient = False`."
        )
    return method


def _imported(name: str, init_args: Mapping[str, Any]) -> Any:
    try:
        found = pkgutil.resolve_name(name)
        return found(**init_args) if isinstance(found, type) else found
    except (ValueError, ImportError, AttributeError, TypeError) as error:
        raise BadInputError(
            f"The method {name!r} could not be imported: {type(error).__name__}: {error}. It is a function "
            "`(activation, gradient) -> map`, or a class with such a method `map`."
        ) from error


def _own(given: Any) -> Method:
    if isinstance(given, (Smooth, ScoreCAM, AblationCAM, GradientRollout, FormulaMethod, OwnMethod)):
        return given
    if not callable(getattr(given, "map", given)):
        return find_method(given)  # which says what is possible
    name = getattr(given, "name", None) or getattr(given, "__name__", type(given).__name__)
    method = OwnMethod(str(name), given)
    forwards = method.extra_forwards
    if forwards != PER_CHANNEL and (type(forwards) is not int or forwards < 0):
        raise BadInputError(
            f"`extra_forwards` of a method is a number of forward passes a sample, or {PER_CHANNEL!r}; "
            f"{method.name!r} has {forwards!r}."
        )
    return method
