"""What jsonargparse says about options, made short, with those that are possible."""

from __future__ import annotations

import inspect
import pkgutil
import re
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from itertools import takewhile

_CLASS_PROBLEM = "Problem with given class_path"
# The versions of jsonargparse word it differently.
_UNKNOWN_OPTION = re.compile(
    rf"{_CLASS_PROBLEM} '(?P<path>[^']+)':\s+"
    r"(?:Validation failed: )?(?:Option|Key) '(?P<option>[^']+)' is not (?:accepted|expected)"
)


def clarify(message: str) -> str:
    """Cut a message of jsonargparse down to the class that was given wrongly, and say which options that class has.

    Args:
        message: What jsonargparse says about a configuration. It names every type that was tried.

    Returns:
        The part about the first class with a problem, or else the message as it is.
    """
    lines = message.splitlines()
    start = next((index for index, line in enumerate(lines) if _CLASS_PROBLEM in line), None)
    if start is not None:
        deeper = takewhile(lambda line: _indent(line) > _indent(lines[start]), lines[start + 1 :])
        message = "\n".join([lines[start].lstrip(" -"), *deeper])
    return "\n".join([message, *_possible_options(message)])


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip(" "))


def _possible_options(message: str) -> Iterator[str]:
    for found in _UNKNOWN_OPTION.finditer(message):
        path, option = found["path"], found["option"]
        options = list(inspect.signature(pkgutil.resolve_name(path)).parameters)
        yield from possible(option, options, f"The options of {path}")


def possible(given: str, options: Sequence[str], heading: str) -> Iterator[str]:
    """What to say in place of an option that there is not."""
    for close in get_close_matches(given, options, n=1, cutoff=0.5):
        yield f"Did you mean {close!r}?"
    yield f"{heading}: {', '.join(options) or 'none'}."
