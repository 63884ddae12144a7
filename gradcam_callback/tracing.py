"""What forward does with the layer's activation, call by call. A room: it judges nothing and knows no layer by name.

Note [Alive when it is used]

Whether a tensor carries a gradient is looked up when the next operation uses it, and not when it was made. Much happens
in between: `requires_grad_(False)` on it, an in-place operation, or the end of a custom `autograd.Function`, whose
inside runs without gradients and whose result gets its history only when it returns.

Note [What the wall makes impossible]

Some calls work under `no_grad`, where people's validation runs, and raise with gradients on: `numpy()`, `out=`,
`requires_grad = False` on what is no leaf, an operation that would save a tensor made in inference mode. A model must
not fail because it is watched. So such a call is done as it would be without gradients: on detached tensors, or on a
copy.
"""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from types import CodeType, FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge, saved_tensors_hooks
from torch.overrides import TorchFunctionMode, resolve_name

from gradcam_callback.causes import Cause

_OURS = os.path.dirname(os.path.abspath(__file__))
_AT_THE_LAYER = (os.path.join(_OURS, "gradients.py"), os.path.abspath(__file__))  # whose calls are not the model's
_CALL_FILE = os.path.join(_OURS, "explain.py")

_DETACHING = (torch.Tensor.detach, torch.Tensor.detach_, torch.detach, torch.detach_, torch.Tensor.data.__get__)  # type: ignore[attr-defined]
_SET_REQUIRES_GRAD = torch.Tensor.requires_grad.__set__  # type: ignore[attr-defined]
_COPYING = {"tensor", "new_tensor"}
# What gives a value to Python, NumPy or another library.
_LEAVING = {
    *("numpy", "__array__", "item", "tolist", "__float__", "__int__", "__index__", "__complex__", "__bool__"),
    *("__dlpack__", "untyped_storage", "storage", "data_ptr"),
}
# What looks at a tensor's shape or kind only; its result does not depend on the values.
_SHAPE_ONLY = {"new_zeros", "new_ones", "new_full", "new_empty", "new_empty_strided"}
_LIKE_SECOND = {"expand_as", "view_as", "reshape_as", "type_as"}


@dataclass(frozen=True)
class Frame:
    """A line of Python that was being executed."""

    file: str
    line: int
    function: str


@dataclass(frozen=True)
class Use:
    """A tensor at the moment when an operation uses it.

    Attributes:
        producer: The index of the step that made it; 0 is the layer.
        alive: Whether it carries a gradient; see Note [Alive when it is used].
        edge: Where its gradient can be asked for; None if it is not alive.
        shape: Its shape.
        finite: Whether all its values are finite.
    """

    producer: int
    alive: bool
    edge: GradientEdge | None
    shape: tuple[int, ...]
    finite: bool


@dataclass(frozen=True)
class Step:
    """One call on the way from the layer on.

    Attributes:
        index: Its position in the trace.
        operation: The function's name, e.g. "torch.Tensor.detach"; of a custom function, its class's name.
        module: The dotted name of the module in whose forward it happened; "" is the model itself.
        uses: The tensors it used that depend on the layer.
        nature: Why its result carries no gradient if its inputs did, where the call itself tells.
        event: The number of the call that is to blame (the `detach`, the beginning of the `no_grad` block), by which
            it can be bridged; None where it cannot.
        frames: Innermost first, up to the call of the model.
        shape: Of its first result.
        finite: Whether all values of its results are finite.
        written: The addresses of the memory that it changed in place.
    """

    index: int
    operation: str
    module: str
    uses: tuple[Use, ...]
    nature: Cause | None
    event: int | None
    frames: tuple[Frame, ...]
    shape: tuple[int, ...]
    finite: bool
    written: frozenset[int] = frozenset()


@dataclass
class Trace:
    """All steps of one forward pass from the layer on.

    Attributes:
        steps: Step 0 is the layer.
        departures: Calls that gave a value which depends on the layer to Python or another library.
        modules: The dotted names of the modules that ran before the layer had finished.
        begun_in: NO_GRAD or INFERENCE_MODE, if the layer itself ran in such a block of the model.
        saved: What autograd saved for backward: the address of the memory, and the step that saved it.
    """

    steps: list[Step] = field(default_factory=list)
    departures: list[Step] = field(default_factory=list)
    modules: list[str] = field(default_factory=list)
    begun_in: Cause | None = None
    saved: list[tuple[int, int]] = field(default_factory=list)


class Lenient(TorchFunctionMode):
    """Calls that only gradients make impossible are done without them.

    See Note [What the wall makes impossible].
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Call a torch function, if need be without gradients."""
        return self._call(func, args, dict(kwargs or {}))

    def _call(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        try:
            return func(*args, **kwargs)
        except RuntimeError:
            tensors = list(_tensors((args, kwargs)))
            if _switches_off(func, args, kwargs):
                # In place, because it is this tensor that the caller goes on with.
                detached = args[0].detach_()
                return None if func == _SET_REQUIRES_GRAD else detached
            if any(tensor.is_inference() for tensor in tensors) and not torch.is_inference_mode_enabled():
                return func(*_mapped(args, _plain), **_mapped(kwargs, _plain))
            if not any(tensor.requires_grad for tensor in tensors):
                raise
            with torch.no_grad():
                return func(*_mapped(args, Tensor.detach), **_mapped(kwargs, Tensor.detach))


def _plain(tensor: Tensor) -> Tensor:
    return tensor.clone() if tensor.is_inference() else tensor


class Tracer(Lenient):
    """Records what happens to a tensor and to all that is computed from it; on demand it crosses cuts.

    Args:
        bridged: The numbers of calls that are not done, so that the gradient gets past them: a `detach` returns its
            argument, gradients are not switched off.
        disturbed: The number of a departure whose value is changed, to see whether the score depends on it.
        recording: Whether to record. Without it, only the cuts are crossed.
    """

    def __init__(
        self, *, bridged: frozenset[int] = frozenset(), disturbed: int | None = None, recording: bool = True
    ) -> None:
        super().__init__()
        self.trace = Trace()
        self._bridged = bridged
        self._disturbed = disturbed
        self._recording = recording
        self._functions = _custom_functions() if recording else {}
        self._begun = False
        self._switched_off = False
        self._events = 0
        self._block: int | None = None
        self._departures = 0
        self._producers: dict[tuple[int, int], int] = {}
        self._writers: dict[int, int] = {}
        self._kept: list[Tensor] = []  # so that no identity is given away a second time
        self._stack: list[str] = []

    @contextmanager
    def watching(self, model: nn.Module) -> Iterator[Tracer]:
        """Trace while the model runs inside."""
        with ExitStack() as stack:
            for name, module in model.named_modules():
                if not isinstance(module, torch.jit.ScriptModule) or name == "":
                    enter = module.register_forward_pre_hook(self._enter(name), prepend=True)
                    leave = module.register_forward_hook(self._leave, always_call=True)
                    stack.callback(enter.remove)
                    stack.callback(leave.remove)
            stack.enter_context(_inference_blocks(self))
            if self._recording:
                stack.enter_context(saved_tensors_hooks(self._note_saved, lambda tensor: tensor))
            stack.enter_context(self)
            yield self

    def begin(self, activation: Tensor) -> None:
        """From here on, what is computed from this tensor is followed."""
        self._begun = True
        if self._recording:
            if not self.trace.steps:
                if torch.is_inference_mode_enabled():
                    self.trace.begun_in = Cause.INFERENCE_MODE
                elif self._switched_off:
                    self.trace.begun_in = Cause.NO_GRAD
                module = self._stack[-1] if self._stack else ""
                finite = _is_finite([activation])
                self.trace.steps.append(Step(0, "layer", module, (), None, None, (), tuple(activation.shape), finite))
            self._produce(activation, 0)

    def use_of(self, tensor: Tensor) -> Use | None:
        """How a tensor stands now; None if it does not depend on the layer."""
        producer = self._producer(tensor)
        if producer is None:
            return None
        edge = get_gradient_edge(tensor) if tensor.requires_grad else None
        return Use(producer, tensor.requires_grad, edge, tuple(tensor.shape), _is_finite([tensor]))

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Call a torch function, record it, or cross it."""
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        if sys._getframe(1).f_code.co_filename in _AT_THE_LAYER:
            return self._call(func, args, kwargs)
        if name == "_set_grad_enabled":
            return self._switch(func, bool(args[0]))
        if not self._begun:
            return self._call(func, args, kwargs)
        nature = _nature(func, name, args, kwargs)
        event = self._next_event() if nature is not None and nature is not Cause.LEFT_TORCH else None
        if event in self._bridged and event is not None:
            return None if func == _SET_REQUIRES_GRAD else args[0]
        if name in _LEAVING:
            return self._depart(func, name, args, kwargs)
        if not self._recording or name.endswith("_like") or name in _SHAPE_ONLY:
            return self._call(func, args, kwargs)
        return self._record(func, name, args, kwargs, nature, event)

    def _next_event(self) -> int:
        self._events += 1
        return self._events

    def _switch(self, func: Callable[..., Any], enabled: bool) -> None:
        """A block that switches gradients off or on. A bridged one is not entered."""
        self._switched_off = not enabled
        if enabled:
            self._block = None
        elif self._begun:
            event = self._next_event()
            if event in self._bridged:
                return
            self._block = event
        func(enabled)

    def _enter_inference(self) -> bool:
        """Whether an inference_mode block that begins now is to be entered; see `_inference_blocks`."""
        if not self._begun:
            return True
        event = self._next_event()
        if event in self._bridged:
            return False
        self._block = event
        return True

    def _depart(self, func: Callable[..., Any], name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        use = self.use_of(args[0]) if self._recording and isinstance(args[0], Tensor) else None
        self._departures += 1
        if use is not None:
            frames, custom = _frames(self._functions)
            nature = Cause.CUSTOM_FUNCTION if custom else Cause.LEFT_TORCH
            module = self._stack[-1] if self._stack else ""
            step = Step(
                self._departures, custom or _spoken(func, name), module, (use,), nature, None, frames, use.shape, True
            )
            self.trace.departures.append(step)
        if self._departures == self._disturbed:
            args = (disturbed(args[0]), *args[1:])
        return self._call(func, args, kwargs)

    def _record(
        self,
        func: Callable[..., Any],
        name: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        nature: Cause | None,
        event: int | None,
    ) -> Any:
        given = list(_tensors((args[:1] if name in _LIKE_SECOND else args, kwargs)))
        uses = tuple(use for tensor in given if (use := self.use_of(tensor)) is not None)
        versions = [_version(tensor) for tensor in given]
        switched_off, inference = not torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        result = self._call(func, args, kwargs)
        changed = [tensor for tensor, version in zip(given, versions, strict=True) if _version(tensor) != version]
        # Of `requires_grad = False`, the result is the tensor itself, which nothing has changed.
        made = [args[0]] if nature is Cause.REQUIRES_GRAD_OFF else [*_tensors(result), *changed]
        if not uses or not made:
            return result
        frames, custom = _frames(self._functions)
        if custom:
            nature, event = Cause.CUSTOM_FUNCTION, None
        elif nature is None and (switched_off or inference):
            nature, event = (Cause.INFERENCE_MODE if inference else Cause.NO_GRAD), self._block
        index = len(self.trace.steps)
        module = self._stack[-1] if self._stack else ""
        operation = custom or _spoken(func, name)
        shape, finite = tuple(made[0].shape), _is_finite(made)
        written = frozenset(map(_address, changed))
        self.trace.steps.append(Step(index, operation, module, uses, nature, event, frames, shape, finite, written))
        for tensor in made:
            if nature is not None or self._producers.get(_key(tensor)) is None:
                self._produce(tensor, index)
        return result

    def _note_saved(self, tensor: Tensor) -> Tensor:
        self.trace.saved.append((_address(tensor), len(self.trace.steps)))
        return tensor

    def _produce(self, tensor: Tensor, index: int) -> None:
        self._kept.append(tensor)
        self._producers[_key(tensor)] = index
        self._writers[_address(tensor)] = index

    def _producer(self, tensor: Tensor) -> int | None:
        found = self._producers.get(_key(tensor))
        if found is None:
            # Written to through another view of the same memory, or made where no call can be seen (in a scripted
            # function): what requires a gradient depends on the layer, because nothing else here does.
            found = self._writers.get(_address(tensor), 0 if tensor.requires_grad else None)
        return found

    def _enter(self, name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _args: Any) -> None:
            self._stack.append(name)
            if not self._begun:
                self.trace.modules.append(name)

        return hook

    def _leave(self, _module: nn.Module, _args: Any, _output: Any) -> None:
        if self._stack:
            self._stack.pop()


class Witness(Lenient):
    """Sees whether a module's `forward` runs, also where its hooks are passed by.

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
        """Call a torch function, and look who called it."""
        frame: FrameType | None = sys._getframe(1)
        while self.frames is None and frame is not None and not _is_boundary(frame):
            if frame.f_locals.get("self") is self._layer:
                self.frames, _ = _frames({}, frame.f_back)
            frame = frame.f_back
        return self._call(func, args, dict(kwargs or {}))


@contextmanager
def _inference_blocks(tracer: Tracer) -> Iterator[None]:
    """Let the tracer see where the model enters `inference_mode`, which no function mode is told of."""
    original = torch.inference_mode.__enter__

    def enter(block: Any) -> None:
        mode = block.mode
        if mode and not tracer._enter_inference():
            block.mode = torch.is_inference_mode_enabled()
        try:
            original(block)
        finally:
            block.mode = mode

    torch.inference_mode.__enter__ = enter  # type: ignore[method-assign]
    try:
        yield
    finally:
        torch.inference_mode.__enter__ = original  # type: ignore[method-assign]


def disturbed(tensor: Tensor) -> Tensor:
    """Another value of the same kind, to see whether anything depends on it."""
    tensor = tensor.detach().clone()
    if tensor.dtype == torch.bool:
        return ~tensor
    if not tensor.is_floating_point():
        return tensor + 1
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(tensor.shape, generator=generator, dtype=torch.float32).to(tensor) + 0.5
    return tensor * noise + noise * tensor.abs().mean().nan_to_num(1.0) + 1e-3 * noise


def _nature(func: Callable[..., Any], name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Cause | None:
    """Why the call itself ends a gradient, whatever is on or off."""
    if func in _DETACHING:
        return Cause.DETACHED
    if _switches_off(func, args, kwargs):
        return Cause.REQUIRES_GRAD_OFF
    return Cause.LEFT_TORCH if name in _COPYING else None


def _switches_off(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    if func == _SET_REQUIRES_GRAD:
        return not args[1]
    if func == torch.Tensor.requires_grad_:
        return not (args[1] if len(args) > 1 else kwargs.get("requires_grad", True))
    return False


def _spoken(func: Callable[..., Any], name: str) -> str:
    """The function's name as people write it: "Tensor.detach", "nn.functional.linear"."""
    full = resolve_name(func) or name
    return full.removeprefix("torch.").removesuffix(".__get__").removesuffix(".__set__")


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from _tensors(tuple(value.values()))
    elif isinstance(value, slice):
        yield from _tensors((value.start, value.stop, value.step))
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _tensors(item)


def _mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, dict):
        return {key: _mapped(item, change) for key, item in value.items()}
    if type(value) in (tuple, list):
        return type(value)(_mapped(item, change) for item in value)
    return value


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


def _key(tensor: Tensor) -> tuple[int, int]:
    return id(tensor), _version(tensor)


def _address(tensor: Tensor) -> int:
    try:
        return tensor.untyped_storage().data_ptr()
    except (RuntimeError, NotImplementedError):  # a kind of tensor without one storage, such as a sparse one
        return 0


def _is_finite(tensors: Iterable[Tensor]) -> bool:
    floating = (tensor.detach() for tensor in tensors if tensor.is_floating_point())
    return all(bool(tensor.isfinite().all()) for tensor in floating)


def _custom_functions() -> dict[CodeType, str]:
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


def _frames(functions: Mapping[CodeType, str], start: FrameType | None = None) -> tuple[tuple[Frame, ...], str | None]:
    """The lines being executed, innermost first, up to the call of the model; and the custom function they are inside.

    Of what happens within the forward of a custom function, the lines begin at its call.
    """
    frames: list[Frame] = []
    custom = None
    frame: FrameType | None = start or sys._getframe(1)
    while frame is not None and not _is_boundary(frame):
        file = frame.f_code.co_filename
        if frame.f_code in functions:
            custom, frames = functions[frame.f_code], []
        elif os.path.dirname(file) != _OURS:
            frames.append(Frame(file, frame.f_lineno, frame.f_code.co_name))
        frame = frame.f_back
    return tuple(frames), custom


def _is_boundary(frame: FrameType) -> bool:
    """Whether this is our own call of the model; what lies further out is not the model's business."""
    return frame.f_code.co_filename == _CALL_FILE
