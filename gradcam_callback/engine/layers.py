"""From the names of layers, as people write them, to modules."""

from __future__ import annotations

import difflib
import fnmatch
import re
from collections.abc import Iterator, Mapping, Sequence

from torch import nn

from gradcam_callback.errors import BadInputError
from gradcam_callback.results import split_call

AUTO = "auto"

# torch.compile wraps a module in another one, whose name nobody writes into a configuration.
_WRAPPED = "_orig_mod"


def check_names(target_layers: str | Sequence[str]) -> tuple[str, ...]:
    """The names as a tuple, in order and without repetition.

    Raises:
        TypeError: They are neither a string nor a sequence of strings.
        ValueError: There are none, "auto" stands beside others, or what follows a `#` is not the number of a call.
    """
    names = [target_layers] if isinstance(target_layers, str) else target_layers
    if not isinstance(names, Sequence) or not all(isinstance(name, str) for name in names):
        raise TypeError(
            'Target layers are dotted names of modules, such as "layer4" or ["layer3", "layer4.1"], or "auto"; '
            f"given: {target_layers!r:.200}."
        )
    unique = tuple(dict.fromkeys(names))
    if not unique:
        raise BadInputError('No target layer was given. Possible: "auto", or dotted names of modules such as "layer4".')
    if AUTO in unique and len(unique) > 1:
        raise BadInputError(f'"auto" chooses one layer and stands alone; given: {list(unique)!r}.')
    for name in unique:
        _check_call(name)
    return unique


def _check_call(name: str) -> None:
    plain, call = split_call(name)
    if call is None and "#" in name:
        wrong = name.rpartition("#")[2]
        raise BadInputError(
            f"What follows the '#' in {name!r} is no number of a call: {wrong!r}. Calls are counted from 0, or from "
            'the end with a minus, and the number stands at the end of the name: "head.conv#0" is the first call of '
            '"head.conv", "head.conv#-1" its last.'
        )
    if call is not None and plain == AUTO:
        raise BadInputError(f'"auto" chooses a layer by itself and takes no number of a call; given: {name!r}.')


def find_layers(model: nn.Module, names: Sequence[str]) -> dict[str, nn.Module]:
    """The modules of these names, by their full dotted names.

    Args:
        model: Where to look.
        names: Dotted names. A list's item may be counted from the end, and written as in Python: "layer4[-1].conv2"
            is "layer4.1.conv2" in a ResNet-18. A `*` or `?` stands for any part of a name between two dots:
            "layer*" is all stages of a ResNet. The number of a call, behind a `#`, is kept.

    Raises:
        ValueError: There is no such module; the message names the closest.
    """
    modules = dict(named_modules(model, remove_duplicate=False))
    found = {}
    for given in names:
        name, call = split_call(given)
        for plain in _meant(model, modules, name):
            found[plain if call is None else f"{plain}#{call}"] = modules[plain]
    return found


def _meant(model: nn.Module, modules: Mapping[str, nn.Module], name: str) -> list[str]:
    """The full names that a name stands for: one, or as many as a pattern matches."""
    plain = _without_wrappers(name)
    if plain not in modules:
        plain = _without_brackets({"": model, **modules}, plain)
    if plain in modules:
        return [plain]
    parts = plain.split(".")
    matching = [known for known in modules if _matches(known.split("."), parts)] if re.search(r"[*?]", plain) else []
    if not matching:
        raise BadInputError(_unknown(model, name, list(modules)))
    return matching


def _matches(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    return len(parts) == len(pattern) and all(map(fnmatch.fnmatchcase, parts, pattern))


def named_modules(model: nn.Module, remove_duplicate: bool = True) -> Iterator[tuple[str, nn.Module]]:
    """The modules below the model, with the names that they had before anything was compiled."""
    for name, module in model.named_modules(remove_duplicate=remove_duplicate):
        plain = _without_wrappers(name)
        if plain and _WRAPPED not in module._modules:
            yield plain, module


def _without_wrappers(name: str) -> str:
    return ".".join(part for part in name.split(".") if part != _WRAPPED)


def _without_brackets(modules: Mapping[str, nn.Module], name: str) -> str:
    """The name with each index of a list, also one from the end, as the name of the child it stands for."""
    parts: list[str] = []
    for part in re.sub(r"\[(-?\w+)\]", r".\1", name).removeprefix(".").split("."):
        parent = modules.get(".".join(parts))
        parent = getattr(parent, _WRAPPED, parent)
        if re.fullmatch(r"-?\d+", part) and isinstance(parent, (nn.Sequential, nn.ModuleList)):
            children = [child for child, _ in parent.named_children()]
            part = children[int(part)] if -len(children) <= int(part) < len(children) else part
        parts.append(part)
    return ".".join(parts)


def _unknown(model: nn.Module, name: str, names: list[str]) -> str:
    message = f"{type(model).__name__} has no layer {name!r}."
    if not names:
        return f"{message} It has no layers at all."
    # A name may be meant without the attribute that the network is kept in: "layer4" for "model.layer4".
    close = [known for known in names if known.endswith(f".{name}")]
    close += [known for known in difflib.get_close_matches(name, names, n=4) if known not in close]
    if close:
        return f"{message} The closest: {', '.join(map(repr, close[:4]))}."
    top = [known for known in names if "." not in known]
    return f"{message} At the top there are {', '.join(map(repr, top))}; `named_modules()` lists all."
