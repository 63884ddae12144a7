"""What is called of a LightningModule: its forward or another method, with the images by position or by keyword."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from gradcam_callback.errors import BadInputError

FORWARD = "forward"
# As libraries name the argument that images are given as.
_IMAGE_ARGUMENTS = ("pixel_values", "images", "image", "inputs", "x")
_BY_POSITION = (
    *(inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD),
    inspect.Parameter.VAR_POSITIONAL,
)


def check_method(model: nn.Module, name: str) -> None:
    """Make sure that there is something to call.

    Args:
        model: The LightningModule.
        name: Of the method.

    Raises:
        ValueError: There is no such method, or the class defines no forward; the message names those that it defines.
    """
    method = getattr(model, name, None)
    own = [key for kind in _own_classes(model) for key, value in vars(kind).items() if inspect.isfunction(value)]
    possible = [key for key in dict.fromkeys(own) if not key.startswith("_") and key != FORWARD]
    named = f" Its own methods: {', '.join(possible)}." if possible else ""
    if not callable(method):
        raise BadInputError(f"`forward`: {type(model).__name__} has no method {name!r}.{named}")
    if name == FORWARD and not _defines_forward(model):
        raise BadInputError(
            f"{type(model).__name__} defines no forward, which is what is explained. Define it, or name a method that "
            f"takes images and returns the output, with `forward` in the callback.{named}"
        )


def _defines_forward(model: nn.Module) -> bool:
    """Whether forward is another than that of the base classes, which only raises."""
    home = next(kind for kind in type(model).__mro__ if FORWARD in vars(kind))
    return FORWARD in vars(model) or home.__name__ not in ("Module", "LightningModule") or home in _own_classes(model)


def _own_classes(model: nn.Module) -> list[type]:
    """The classes of the model that are its user's."""
    libraries = ("torch.", "lightning.", "pytorch_lightning.", "builtins")
    return [kind for kind in type(model).__mro__ if not f"{kind.__module__}.".startswith(libraries)]


def adapt(model: nn.Module, name: str, image_key: Any = None) -> None:
    """Have a replica's forward call another method, or give it its images by keyword, where need be.

    Args:
        model: The replica.
        name: Of the method.
        image_key: Under which key a batch has its images, if that is known.
    """
    method = getattr(model, name)
    keyword = _keyword_of_images(method, image_key)
    if keyword is not None:
        vars(model)[FORWARD] = lambda images: method(**{keyword: images})
    elif name != FORWARD:
        vars(model)[FORWARD] = method


def _keyword_of_images(method: Callable[..., Any], image_key: Any) -> str | None:
    """The name of the argument that takes the images; None where they are given by position."""
    try:
        parameters = list(inspect.signature(method).parameters.values())
    except (TypeError, ValueError):
        return None
    if any(parameter.kind in _BY_POSITION for parameter in parameters):
        return None
    named = [parameter.name for parameter in parameters if parameter.kind is inspect.Parameter.KEYWORD_ONLY]
    needed = [
        parameter.name for parameter in parameters if parameter.name in named and parameter.default is parameter.empty
    ]
    key = str(image_key).rpartition(".")[2] if isinstance(image_key, str) else ""
    return _first_of((key, *_IMAGE_ARGUMENTS), named) or _first_of(needed, named) or key or _IMAGE_ARGUMENTS[0]


def _first_of(names: Sequence[str], possible: Sequence[str]) -> str | None:
    return next((name for name in names if name in possible), None)
