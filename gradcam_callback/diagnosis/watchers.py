"""What is watched while a model runs besides its torch calls: its modules, what is saved for backward, direct calls."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from gradcam_callback.diagnosis import source
from gradcam_callback.diagnosis.provenance import address, version
from gradcam_callback.diagnosis.source import Frame, plain_name
from gradcam_callback.diagnosis.trace import Trace
from gradcam_callback.engine.no_grad_fallback import NoGradFallback


class SavedTensorCheck(saved_tensors_hooks):
    """Notes in a trace which tensors were changed between forward, which saved them, and backward."""

    def __init__(self, trace: Trace) -> None:
        def save(tensor: Tensor) -> tuple[Tensor, int, int]:
            return tensor, version(tensor), len(trace.steps)

        def load(saved: tuple[Tensor, int, int]) -> Tensor:
            tensor, before, step = saved
            if version(tensor) != before:
                trace.modified_after_save.append((address(tensor), step))
            return tensor

        super().__init__(save, load)


class RunningModules:
    """Which modules of a model are running."""

    def __init__(self) -> None:
        self._names: list[str] = []

    def innermost(self) -> str:
        """The dotted name; "" is the model itself."""
        return self._names[-1] if self._names else ""

    @contextmanager
    def watching(self, model: nn.Module, entered: Callable[[str, tuple[Any, ...]], None]) -> Iterator[None]:
        """While the model runs inside, `entered` is told of each module that begins, and of what it is given."""

        def enter(name: str, _module: nn.Module, args: Any) -> None:
            self._names.append(name)
            entered(name, args)

        def leave(_module: nn.Module, _args: Any, _output: Any) -> None:
            if self._names:
                self._names.pop()

        with ExitStack() as stack:
            for name, module in model.named_modules():
                if not isinstance(module, torch.jit.ScriptModule):
                    hook = partial(enter, plain_name(name))
                    stack.callback(module.register_forward_pre_hook(hook, prepend=True).remove)
                    stack.callback(module.register_forward_hook(leave, always_call=True).remove)
            yield


class ForwardCallDetector(NoGradFallback):
    """Sees whether a module's `forward` runs, also where its hooks are bypassed.

    Args:
        layer: The module.

    Attributes:
        frames: The lines that ran it, innermost first; None as long as nothing did.
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.frames: tuple[Frame, ...] | None = None
        self._layer = layer

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Call a torch function, and find out who called it."""
        frame: FrameType | None = sys._getframe(1)
        while self.frames is None and frame is not None and not source.is_boundary(frame):
            if frame.f_locals.get("self") is self._layer:
                self.frames, _ = source.current_frames({}, frame.f_back)
            frame = frame.f_back
        return self._call(func, args, dict(kwargs or {}))
