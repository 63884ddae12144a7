"""What forward does with the layer's activation, call by call. A room: it judges nothing and knows no layer by name.

Note [Who made a tensor]

A tensor is known by its identity and its version. Memory can also be written to, or seen, by other objects: a view,
a detached alias, the input that a custom function returns. So of an unknown tensor the memory is looked up, and then
the graph of autograd. Where memory that carries a gradient appears again without one, and no call was seen that took it
away, a step without a name and without a line stands for what happened.

"""

from __future__ import annotations

import inspect
import os
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from types import CodeType, FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge, saved_tensors_hooks
from torch.overrides import resolve_name
from torch.utils.hooks import RemovableHandle

from gradcam_callback.causes import Cause
from gradcam_callback.diagnosis.trace import Frame, Step, Trace, Use, frame_of
from gradcam_callback.engine.no_grad_fallback import (
    NoGradFallback,
    disables_grad,
    map_tensors,
    tensors_in,
)
from gradcam_callback.engine.process_state import inference_as_no_grad

_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_DEMO = os.path.join(_PACKAGE, "demo", "")  # its networks are explained like anybody's
_CALL_FILE = os.path.join(_PACKAGE, "engine", "explain.py")

_DETACHING = (torch.Tensor.detach, torch.Tensor.detach_, torch.detach, torch.detach_, torch.Tensor.data.__get__)  # type: ignore[attr-defined]
_SET_REQUIRES_GRAD = torch.Tensor.requires_grad.__set__  # type: ignore[attr-defined]
_COPYING = {"tensor", "new_tensor", "asarray"}
# What makes a tensor of numbers; of a tensor that is given for a number, the number is taken.
_FILLING = {"full", "full_like", "new_full", "arange", "linspace", "logspace", "scalar_tensor"}
# What gives a value to Python, NumPy or another library.
_LEAVING = {
    *("numpy", "__array__", "item", "tolist", "__float__", "__int__", "__index__", "__complex__", "__bool__"),
    *("__dlpack__", "untyped_storage", "storage", "data_ptr", "__contains__", "__format__", "__repr__", "__deepcopy__"),
    *("__reduce_ex__", "equal", "allclose", "is_nonzero"),
}
# Of the first argument, these look at the shape or the kind only: the result does not depend on its values.
_SHAPE_ONLY = {"new_zeros", "new_ones", "new_full", "new_empty", "new_empty_strided", "new_tensor"}
# And these of the second.
_LIKE_SECOND = {"expand_as", "view_as", "reshape_as", "type_as", "to"}


class TensorProvenance:
    """Which step made a tensor. See Note [Who made a tensor]."""

    def __init__(self) -> None:
        self._steps: dict[tuple[int, int], int] = {}
        self._writers: dict[int, int] = {}
        self._alive: dict[int, Tensor] = {}
        self._nodes: dict[Any, int | None] = {}  # of autograd's graph; None: does not lead to the layer
        self._kept: list[Tensor] = []  # so that no identity and no address is given away a second time

    def add(self, tensor: Tensor, step: int, layer: bool = False) -> None:
        """This step made it, as it is now. Of what the layer itself hands on, the graph begins there."""
        self._kept.append(tensor)
        self._steps[_key(tensor)] = step
        address = _address(tensor)
        if address:
            self._writers[address] = step
        node = _node(tensor)
        if node is not None and (layer or self.origin(node) is not None):
            self._nodes[node] = step
            self._alive[address] = tensor

    def known(self, tensor: Tensor) -> int | None:
        """The step that made this very tensor in its present version."""
        return self._steps.get(_key(tensor))

    def writer(self, tensor: Tensor) -> int | None:
        """The last step that made anything of its memory."""
        return self._writers.get(_address(tensor))

    def alive_at(self, tensor: Tensor) -> Tensor | None:
        """The last tensor of the same memory that carried a gradient."""
        return self._alive.get(_address(tensor))

    def origin(self, node: Any) -> int | None:
        """The last step before a node of autograd's graph; None if the node does not lead to the layer."""
        waiting = [node]
        while waiting:
            current = waiting[-1]
            parents = [parent for parent, _ in current.next_functions if parent is not None]
            unknown = [parent for parent in parents if parent not in self._nodes]
            if current not in self._nodes and unknown:
                waiting += unknown
                continue
            if current not in self._nodes:
                found = [step for parent in parents if (step := self._nodes[parent]) is not None]
                self._nodes[current] = max(found, default=None)
            waiting.pop()
        return self._nodes[node]


class Tracer(NoGradFallback):
    """Records what happens to a tensor and to all that is computed from it; on demand it crosses cuts.

    Args:
        bridged: The numbers of calls that are not done, so that the gradient gets past them: a `detach` returns its
            argument, gradients are not switched off.
        disturb: For the numbers of the departures whose value is changed, to see whether the score depends on them:
            what to change it by.
        recording: Whether to record. Without it, only the cuts are crossed.
        noting_saved: Whether to look, in backward, for tensors that were changed after they had been saved.
        from_inputs: Whether the trace begins at what the model is given, and not at the layer.
    """

    def __init__(
        self,
        *,
        bridged: frozenset[int] = frozenset(),
        disturb: Mapping[int, Callable[[Tensor], Tensor]] | None = None,
        recording: bool = True,
        noting_saved: bool = False,
        from_inputs: bool = False,
    ) -> None:
        super().__init__()
        self.trace = Trace()
        self._bridged = bridged
        self._disturb = disturb or {}
        self._recording = recording
        self._noting_saved = noting_saved
        self._from_inputs = from_inputs
        self._functions: dict[CodeType, str] = {}
        self._begun = False
        self._events = 0
        self._entering: Cause = Cause.NO_GRAD
        self._off: tuple[Cause, int | None] | None = None  # the outermost block of the model that is in force
        self._last_mode: Cause | None = None  # that of the last operation before the layer had finished
        self._departures = 0
        self._makers = TensorProvenance()
        self._finite: dict[tuple[int, int], bool] = {}
        self._kept: list[Tensor] = []
        self._stack: list[str] = []

    @contextmanager
    def watching(self, model: nn.Module) -> Iterator[Tracer]:
        """Trace while the model runs inside."""
        with ExitStack() as stack:
            for name, module in model.named_modules():
                if not isinstance(module, torch.jit.ScriptModule):
                    enter = module.register_forward_pre_hook(self._enter(plain_name(name)), prepend=True)
                    leave = module.register_forward_hook(self._leave, always_call=True)
                    stack.callback(enter.remove)
                    stack.callback(leave.remove)
            stack.enter_context(inference_as_no_grad(partial(self.entering, Cause.INFERENCE_MODE)))
            if self._noting_saved:
                stack.enter_context(saved_tensors_hooks(self._note_saved, self._note_spoilt))
            stack.enter_context(self)
            yield self

    @contextmanager
    def entering(self, cause: Cause) -> Iterator[None]:
        """If gradients are switched off inside, this is why."""
        self._entering, before = cause, self._entering
        try:
            yield
        finally:
            self._entering = before

    def begin(self, activation: Tensor) -> None:
        """From here on, what is computed from this tensor is followed."""
        self._begun = True
        if not self._recording:
            return
        if not self.trace.steps:
            self.trace.begun_in = self._last_mode
            shape, finite = tuple(activation.shape), _is_finite(activation)
            self.trace.steps.append(Step(0, "layer", self._module(), (), None, None, (), shape, finite))
        elif not self.trace.begun_at:
            self.trace.begun_at = len(self.trace.steps)
        self._makers.add(activation, 0, layer=True)

    def use_of(self, tensor: Tensor) -> Use | None:
        """How a tensor stands now; None if it does not depend on the layer."""
        node = _node(tensor)
        origin = None if node is None else self._makers.origin(node)
        alive = tensor.requires_grad and origin is not None
        producer = self._makers.known(tensor)
        if producer is None:
            producer = self._unknown_producer(tensor, origin if alive else None)
        if producer is None:
            return None
        edge = get_gradient_edge(tensor) if alive else None
        return Use(producer, alive, edge, tuple(tensor.shape), self._is_finite(tensor), tensor.is_floating_point())

    def _unknown_producer(self, tensor: Tensor, origin: int | None) -> int | None:
        writer = self._makers.writer(tensor)
        before = self._makers.alive_at(tensor)
        if origin is None and writer is not None and before is not None and self._makers.known(before) == writer:
            use = self.use_of(before)
            return self._unseen("", Cause.DETACHED, () if use is None else (use,), tensor)
        if writer is not None or origin is None:
            return writer
        operation, parents = type(tensor.grad_fn).__name__, tensor.grad_fn.next_functions  # type: ignore[union-attr]
        uses = [
            Use(producer, True, GradientEdge(node, number), (), True)
            for node, number in parents
            if node is not None and (producer := self._makers.origin(node)) is not None
        ]
        custom = isinstance(tensor.grad_fn, torch.autograd.function.BackwardCFunction)
        return self._unseen(operation, Cause.CUSTOM_FUNCTION if custom else None, tuple(uses), tensor)

    def _unseen(self, operation: str, nature: Cause | None, uses: tuple[Use, ...], result: Tensor) -> int:
        """A step that no call was seen of."""
        index = len(self.trace.steps)
        shape, finite = tuple(result.shape), self._is_finite(result)
        self.trace.steps.append(Step(index, operation, self._module(), uses, nature, None, (), shape, finite))
        self._makers.add(result, index)
        return index

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Call a torch function, record it, or cross it."""
        args, kwargs = self._as_replaced(args, dict(kwargs or {}))
        name = getattr(func, "__name__", "")
        if _is_internal(sys._getframe(1).f_code.co_filename) and name != "_set_grad_enabled":
            return self._call(func, args, kwargs)
        if torch.is_grad_enabled():
            self._off = None
        if name == "_set_grad_enabled":
            return self._switch(func, bool(args[0]))
        if not self._begun:
            self._last_mode = self._off[0] if self._off else None if torch.is_grad_enabled() else Cause.NO_GRAD
            return self._call(func, args, kwargs)
        nature = _nature(func, name, args, kwargs)
        event = self._next_event() if nature not in (None, Cause.LEFT_TORCH) or name == "register_hook" else None
        if event in self._bridged and event is not None:
            return self._cross(func, name, args)
        if name in _LEAVING:
            return self._depart(func, name, args, kwargs)
        if not self._recording:
            return self._call(func, args, kwargs)
        return self._record(func, name, args, kwargs, nature, event)

    def _next_event(self) -> int:
        self._events += 1
        return self._events

    def _cross(self, func: Callable[..., Any], name: str, args: tuple[Any, ...]) -> Any:
        """Leave a call out, and give back what the caller goes on with."""
        use = self.use_of(args[0]) if self._recording else None
        if use is not None:  # so that the steps have the same numbers as without crossing
            index, operation = len(self.trace.steps), _spoken(func, name)
            step = Step(index, operation, self._module(), (use,), None, None, (), use.shape, use.finite)
            self.trace.steps.append(step)
        if name == "register_hook":
            return RemovableHandle(OrderedDict())
        return None if func == _SET_REQUIRES_GRAD else args[0]

    def _switch(self, func: Callable[..., Any], enabled: bool) -> None:
        """Gradients are switched off or on: by a block, when it begins and when it ends, or by a function.

        Both are counted, so that the numbers stay the same when one is crossed.
        """
        event = self._next_event() if self._begun else None
        if not enabled and event is not None and event in self._bridged:
            return
        func(enabled)
        if enabled:
            self._off = None
        elif self._off is None and self._custom_function() is None:
            self._off = self._entering, event
            block = Step(len(self.trace.steps), "", self._module(), (), self._entering, event, (), (), True)
            self.trace.blocks += [block] if event is not None else []

    def _custom_function(self) -> str | None:
        """The custom function whose forward is being run. Its inside runs without gradients in any case."""
        return self._frames()[1] if self._recording else None

    def _frames(self) -> tuple[tuple[Frame, ...], str | None]:
        frames, custom = _frames(self._functions)
        if custom is None and not torch.is_grad_enabled() and self._off is None:
            self._functions = _custom_functions()  # a function may be defined while the model runs
            frames, custom = _frames(self._functions)
        return frames, custom

    def _module(self) -> str:
        return self._stack[-1] if self._stack else ""

    def _depart(self, func: Callable[..., Any], name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        given = [*tensors_in((args, kwargs))] if self._recording else []
        uses = tuple(use for tensor in given if (use := self.use_of(tensor)) is not None)
        self._departures += 1
        number = self._departures
        if uses:
            frames, custom = self._frames()
            nature = Cause.CUSTOM_FUNCTION if custom else Cause.LEFT_TORCH
            index, operation = len(self.trace.steps), custom or _spoken(func, name)
            step = Step(index, operation, self._module(), uses, nature, None, frames, uses[0].shape, True)
            self.trace.departures.append((number, step))
        if number in self._disturb:
            args = map_tensors(args, self._disturb[number])
            self._kept += tensors_in(args)  # a pointer to its memory may be all that is left of it
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
        given = _given(name, args, kwargs)
        seen = [(tensor, _version(tensor), self.use_of(tensor), self._memory_of(tensor)) for tensor in given]
        disabled = not torch.is_grad_enabled()
        self._refusal = ""
        result = self._call(func, args, kwargs)
        changed = [tensor for tensor, version, _, _ in seen if _version(tensor) != version]
        used = [memory if _version(tensor) != version and memory else (own,) for tensor, version, own, memory in seen]
        uses = tuple(use for group in used for use in group if use is not None)
        # Of what switches off or listens, the result is the tensor itself, which nothing has changed.
        itself = nature is Cause.REQUIRES_GRAD_OFF or name == "register_hook"
        bases = [tensor._base for tensor in changed if tensor._base is not None]
        made = [args[0], self._replacement(args[0])] if itself else [*tensors_in(result), *changed, *bases]
        if not uses or not made:
            return result
        frames, custom = self._frames()
        nature, event = self._blame(nature, event, custom, disabled)
        index, operation = len(self.trace.steps), custom or _spoken(func, name)
        shape, finite = tuple(made[0].shape), all(map(self._is_finite, made))
        written = frozenset(map(_address, changed))
        step = Step(index, operation, self._module(), uses, nature, event, frames, shape, finite, written)
        self.trace.steps.append(step)
        for tensor in made:
            # A call may give back what it was given, unchanged: then it is still of the step that made it.
            if itself or func in _DETACHING or self._makers.known(tensor) is None:
                self._makers.add(tensor, index)
        return result

    def _blame(
        self, nature: Cause | None, event: int | None, custom: str | None, disabled: bool
    ) -> tuple[Cause | None, int | None]:
        """Why a call's result carries no gradient, and the number of the call to cross: what lies furthest out."""
        if custom:
            return self._off or (Cause.CUSTOM_FUNCTION, None)
        if nature is None and disabled:
            return self._off or (Cause.NO_GRAD, None)
        return (Cause.INPLACE_MODIFIED, None) if "modified inplace" in self._refusal else (nature, event)

    def _memory_of(self, tensor: Tensor) -> tuple[Use | None, ...]:
        """What an in-place operation on it changes besides: the tensor it is a view of, or that it is an alias of.

        They are looked at before, because autograd gives them a new history.
        """
        base, alive = tensor._base, self._makers.alive_at(tensor)
        others = [other for other in (base, alive) if other is not None and other is not tensor]
        if not others:
            return ()
        own = () if base is not None else (self.use_of(tensor),)
        return (*own, *(self.use_of(other) for other in others[:1]))

    def _is_finite(self, tensor: Tensor) -> bool:
        key = _key(tensor)
        if key not in self._finite:
            self._kept.append(tensor)
            self._finite[key] = _is_finite(tensor)
        return self._finite[key]

    def _note_saved(self, tensor: Tensor) -> tuple[Tensor, int, int]:
        return tensor, _version(tensor), len(self.trace.steps)

    def _note_spoilt(self, saved: tuple[Tensor, int, int]) -> Tensor:
        tensor, version, step = saved
        if _version(tensor) != version:
            self.trace.spoilt.append((_address(tensor), step))
        return tensor

    def _enter(self, name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, args: Any) -> None:
            self._stack.append(name)
            if not self._begun:
                self.trace.modules.append(name)
                for tensor in tensors_in(args) if self._from_inputs else ():
                    self.begin(tensor)

        return hook

    def _leave(self, _module: nn.Module, _args: Any, _output: Any) -> None:
        if self._stack:
            self._stack.pop()


def bridging(cuts: frozenset[int]) -> Callable[[], Tracer]:
    """What makes the observer of a forward pass in which the gradient gets past these cuts."""
    return partial(Tracer, bridged=cuts, recording=False)


def plain_name(name: str) -> str:
    """A module's dotted name without the parts that `torch.compile` puts in."""
    return ".".join(part for part in name.split(".") if part != "_orig_mod")


class ForwardCallDetector(NoGradFallback):
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


def disturbed(tensor: Tensor, attempt: int = 0) -> Tensor:
    """Another value of the same kind, to see whether anything depends on it.

    Args:
        tensor: Of any kind.
        attempt: Which of `ATTEMPTS` values. What is computed from one may by chance be the same (the position of the
            maximum, say), or not be possible (an index out of range).
    """
    tensor = tensor.detach().clone()
    if tensor.dtype == torch.bool:
        return ~tensor
    if not tensor.is_floating_point():
        return tensor + (1, -1, 2)[attempt]
    generator = torch.Generator().manual_seed(attempt)
    noise = torch.rand(tensor.shape, generator=generator, dtype=torch.float32).to(tensor) + 0.5
    sign = -1 if attempt == 1 else 1
    return sign * tensor * noise + noise * tensor.abs().mean().nan_to_num(1.0) + 1e-3 * noise


ATTEMPTS = range(3)


def _nature(func: Callable[..., Any], name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Cause | None:
    """Why the call itself ends a gradient, whatever is on or off."""
    if func in _DETACHING:
        return Cause.DETACHED
    if disables_grad(func, args, kwargs):
        return Cause.REQUIRES_GRAD_OFF
    return Cause.LEFT_TORCH if name in _COPYING | _FILLING else None


def _spoken(func: Callable[..., Any], name: str) -> str:
    """The function's name as people write it: "Tensor.detach", "nn.functional.linear"."""
    full = resolve_name(func) or name
    return full.removeprefix("torch.").removesuffix(".__get__").removesuffix(".__set__")


def _given(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """The tensors on whose values the result of a call may depend."""
    if name in _LIKE_SECOND:
        args = args[:1]
    elif name in _SHAPE_ONLY or name.endswith("_like"):
        args = args[1:]
    return list(tensors_in((args, kwargs)))


def _node(tensor: Tensor) -> Any:
    """Its node in autograd's graph, if it has one; a view that was changed in a forbidden way has none."""
    try:
        return tensor.grad_fn
    except RuntimeError:
        return None


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


def _key(tensor: Tensor) -> tuple[int, int]:
    return id(tensor), _version(tensor)


def _address(tensor: Tensor) -> int:
    try:
        return tensor.untyped_storage().data_ptr()
    except (RuntimeError, NotImplementedError):  # a kind of tensor without one storage, such as a sparse one
        return 0


def _is_finite(tensor: Tensor) -> bool:
    if not tensor.is_floating_point():
        return True
    try:
        return bool(tensor.detach().isfinite().all())
    except RuntimeError:  # under vmap, whose tensors have no values to ask for
        return True


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
        elif not _is_internal(file):
            frames.append(frame_of(frame, frame.f_lineno))
        frame = frame.f_back
    return tuple(frames), custom


def _is_internal(file: str) -> bool:
    """Whether a file is part of this package, and not the user's."""
    return file.startswith(_PACKAGE + os.sep) and not file.startswith(_DEMO)


def _is_boundary(frame: FrameType) -> bool:
    """Whether this is our own call of the model; what lies further out is not the model's business."""
    return frame.f_code.co_filename == _CALL_FILE
