"""Lines of code: which are being executed, and which of them is the user's."""

from __future__ import annotations

import inspect
import os
import re
import site
import sysconfig
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import CodeType, FrameType

import torch
from torch import nn

from gradcam_callback.engine.forward import call_model
from gradcam_callback.frameworks import LIGHTNING
from gradcam_callback.results import SourceLocation
from gradcam_callback.source_lines import source_line

_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_DEMO = os.path.join(_PACKAGE, "demo", "")  # its networks are explained like anybody's


@dataclass(frozen=True)
class Frame:
    """A line of Python that was being executed.

    Attributes:
        file: The path of the file.
        line: The line's number, from 1.
        function: The function that the line is in.
        module: The identity of the module whose call it is a part of, where the line is that call's own.
    """

    file: str
    line: int
    function: str
    module: int | None = field(default=None, compare=False)


def frame_of(frame: FrameType, line: int) -> Frame:
    """The record of a frame."""
    called = frame.f_locals.get("self") if frame.f_code.co_name == "_call_impl" else None
    return Frame(frame.f_code.co_filename, line, frame.f_code.co_name, None if called is None else id(called))


def current_frames(
    functions: Mapping[CodeType, str], start: FrameType | None = None
) -> tuple[tuple[Frame, ...], str | None]:
    """The lines being executed, innermost first, up to the call of the model; and the custom function they are inside.

    Of what happens within the forward of a custom function, the lines begin at its call.

    Args:
        functions: From `custom_functions`.
        start: Where to begin; None begins at the caller.
    """
    frames: list[Frame] = []
    custom = None
    frame: FrameType | None = start or inspect.currentframe()
    while frame is not None and not is_boundary(frame):
        if frame.f_code in functions:
            custom, frames = functions[frame.f_code], []
        elif not is_internal(frame.f_code.co_filename):
            frames.append(frame_of(frame, frame.f_lineno))
        frame = frame.f_back
    return tuple(frames), custom


def custom_functions() -> dict[CodeType, str]:
    """The code of the forward of every `autograd.Function`, and the function's name."""
    found = {}
    waiting: list[type] = [torch.autograd.Function]
    while waiting:
        function = waiting.pop()
        waiting += function.__subclasses__()
        code = getattr(inspect.unwrap(function.forward), "__code__", None)  # type: ignore[attr-defined]
        if code is not None and function is not torch.autograd.Function:
            found[code] = function.__name__
    return found


def is_internal(file: str) -> bool:
    """Whether a file is part of this package, and not the user's."""
    return file.startswith(_PACKAGE + os.sep) and not file.startswith(_DEMO)


def is_boundary(frame: FrameType) -> bool:
    """Whether this is our own call of the model; what lies further out is not the model's business."""
    return frame.f_code is call_model.__code__


def locate(frames: Iterable[Frame], module: str) -> SourceLocation | None:
    """The line of the user's code among these: the innermost one that is in no library.

    Where all of them are in libraries, the innermost one outside torch and Lightning: then it is there that it happens.

    Args:
        frames: Innermost first.
        module: The dotted name of the module in whose forward it happened.
    """
    frames = list(frames)
    for trusted in (_is_users, _is_above_torch):
        for position, frame in enumerate(frames):
            if trusted(frame.file):
                code = source_line(frame.file, frame.line).strip()
                detail = tuple(f"{inner.file}:{inner.line} in {inner.function}" for inner in frames[:position])
                return SourceLocation(frame.file, frame.line, frame.function, code, module, detail)
    return None


def named_modules(model: nn.Module) -> dict[str, nn.Module]:
    """All modules by the names that people know them by."""
    return {plain_name(name): module for name, module in model.named_modules()}


def plain_name(name: str) -> str:
    """A module's dotted name without the parts that `torch.compile` puts in."""
    return ".".join(part for part in name.split(".") if part != "_orig_mod")


def module_of(frames: Sequence[Frame], model: nn.Module) -> str:
    """The dotted name of the innermost module that these lines were run by; "" if it is the model itself."""
    names = {id(module): name for name, module in named_modules(model).items()}
    return next((names[frame.module] for frame in frames if frame.module in names), "")


def _folders() -> Iterator[str]:
    paths = sysconfig.get_paths()
    yield from (paths["stdlib"], paths["platstdlib"], paths["purelib"], paths["platlib"])
    yield from site.getsitepackages()
    yield site.getusersitepackages()


_LIBRARIES = tuple(os.path.realpath(folder) + os.sep for folder in dict.fromkeys(_folders()))
_INFRASTRUCTURE = ("torch.", *LIGHTNING)
_PACKAGES = re.compile(r"[/\\](?:site|dist)-packages[/\\]([^/\\]+)")


def _is_users(file: str) -> bool:
    return not _is_generated(file) and not os.path.realpath(file).startswith(_LIBRARIES) and not _PACKAGES.search(file)


def _is_above_torch(file: str) -> bool:
    package = _PACKAGES.search(file)
    return package is not None and f"{package.group(1)}." not in _INFRASTRUCTURE


def _is_generated(file: str) -> bool:
    """Code that nobody wrote: of Python's own start, of `torch.fx`."""
    return file.startswith(("<frozen", "<eval_with_key"))
