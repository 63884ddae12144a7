"""What the callback may be told, and what is said where it cannot be."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

from gradcam_callback.errors import BadInputError

Target = int | str | dict[str, Any] | Callable[[Any, Any], Any]
# In this order, or jsonargparse cannot write a list of targets down in a configuration.
TargetOption = int | str | dict[str, Any] | Sequence[Target] | Callable[[Any, Any], Any]
OnNull = Literal["warn", "raise", "ignore"]
PanelOption = Literal["every look", "when something changed", "last", "never"]
Scale = Literal["each", "shared"]


def check_options(every_n_epochs: Any, opacity: Any, class_names: Any, output: Any) -> None:
    """Check what has a rule of its own.

    Raises:
        ValueError: One of them is not possible.
    """
    if isinstance(every_n_epochs, bool) or not isinstance(every_n_epochs, int) or every_n_epochs < 1:
        raise BadInputError(f"`every_n_epochs` is a whole number of at least 1; given: {every_n_epochs!r}.")
    if isinstance(opacity, bool) or not isinstance(opacity, (int, float)) or not 0 <= opacity <= 1:
        raise BadInputError(f"`opacity` is a number from 0 to 1; given: {opacity!r}.")
    names = [] if class_names is None else class_names
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
        raise BadInputError(f"`class_names` is a list of names, one a class; given: {class_names!r}.")
    if not (output is None or isinstance(output, (int, str)) or callable(output)):
        raise BadInputError(f"`output` is a key, an index, a function, or None to find the logits; given: {output!r}.")


def check_method_name(name: Any) -> None:
    """Check the name of a method.

    Raises:
        ValueError: It is none.
    """
    if not isinstance(name, str) or not name.isidentifier():
        raise BadInputError(f"`forward` is the name of a method of the LightningModule; given: {name!r}.")


def check_choice(name: str, value: Any, possible: Sequence[str]) -> None:
    """Check that a value is among those that are possible.

    Raises:
        ValueError: It is not; the message names them.
    """
    if value not in possible:
        raise BadInputError(f"`{name}` is one of {', '.join(map(repr, possible))}; given: {value!r}.")


def check_statistics(name: str, numbers: Any) -> None:
    """Check a mean or a standard deviation: a number a channel, or None.

    Raises:
        ValueError: It is something else.
    """
    if numbers is None:
        return
    if not isinstance(numbers, (list, tuple)) or not all(isinstance(number, (int, float)) for number in numbers):
        raise BadInputError(f"`{name}` is a list of numbers, one a channel; given: {numbers!r}.")


def check_channels(channels: Any) -> None:
    """Check which channels are shown: one or three positions, or None.

    Raises:
        ValueError: It is something else.
    """
    if channels is None:
        return
    given = channels if isinstance(channels, (list, tuple)) else ()
    if len(given) not in (1, 3) or not all(type(channel) is int and channel >= 0 for channel in given):
        raise BadInputError(f"`channels` is a list of one or three positions, counted from 0; given: {channels!r}.")


def check_targets(target: Any) -> tuple[Any, ...]:
    """The target or targets, as a tuple, as they were given.

    Raises:
        ValueError: There is none, or one stands there twice.
    """
    given = tuple(target) if isinstance(target, (list, tuple)) else (target,)
    is_twice = any(one is other or _same(one, other) for place, one in enumerate(given) for other in given[:place])
    if not given or is_twice:
        raise BadInputError(f"`target` is one target or several different ones; given: {target!r}.")
    return given


def _same(one: Any, other: Any) -> bool:
    plain = (str, int, dict)
    return isinstance(one, plain) and isinstance(other, plain) and one == other
