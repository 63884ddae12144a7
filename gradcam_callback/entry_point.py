"""What is called of a LightningModule: its forward, or another method."""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn

from gradcam_callback.errors import BadInputError
from gradcam_callback.frameworks import LIGHTNING

FORWARD = "forward"


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
    libraries = ("torch.", *LIGHTNING, "builtins")
    return [kind for kind in type(model).__mro__ if not f"{kind.__module__}.".startswith(libraries)]


def adapt(model: nn.Module, name: str) -> None:
    """Have a replica's forward call another method, where need be, and what it logs reach nobody.

    Args:
        model: The replica.
        name: Of the method.
    """
    if name != FORWARD:
        vars(model)[FORWARD] = getattr(model, name)
    for module in model.modules():
        if hasattr(type(module), "log") and hasattr(
            type(module), "log_dict"
        ):  # a LightningModule; Fabric runs them, too
            vars(module).update(log=_log_nothing, log_dict=_log_nothing)


def _log_nothing(*args: Any, **kwargs: Any) -> None:
    """In place of `LightningModule.log` and `log_dict`."""
