"""Follows what forward does with the layer's activation, call by call. It judges nothing and knows no layer by name."""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from types import CodeType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from gradcam_callback.causes import Cause
from gradcam_callback.diagnosis import source
from gradcam_callback.diagnosis.provenance import TensorProvenance, address, version
from gradcam_callback.diagnosis.source import Frame
from gradcam_callback.diagnosis.torch_calls import (
    DETACHING,
    LEAVING,
    SET_REQUIRES_GRAD,
    display_name,
    inherent_cause,
    inputs_of,
)
from gradcam_callback.diagnosis.trace import Step, Trace, Use
from gradcam_callback.diagnosis.watchers import RunningModules, SavedTensorCheck
from gradcam_callback.engine.no_grad_fallback import NoGradFallback, map_tensors, tensors_in
from gradcam_callback.engine.process_state import inference_as_no_grad


@dataclass(frozen=True)
class _Given:
    """A tensor that a call is given: how it stands before, and how the tensor does that it is a view of."""

    tensor: Tensor
    version: int
    use: Use | None
    base_use: Use | None

    @classmethod
    def of(cls, tensor: Tensor, use_of: Callable[[Tensor], Use | None]) -> _Given:
        base = tensor._base
        return cls(tensor, version(tensor), use_of(tensor), None if base is None else use_of(base))

    def changed(self) -> list[Tensor]:
        """What the call changed in place: it, and the tensor that it is a view of."""
        if version(self.tensor) == self.version:
            return []
        return [self.tensor] if self.tensor._base is None or self._apart() else [self.tensor, self.tensor._base]

    def uses(self) -> list[Use]:
        """What the result of the call depends on: of a changed view, on its base, whose history autograd rewrites."""
        of_base = self.base_use is not None and version(self.tensor) != self.version and not self._apart()
        use = self.base_use if of_base else self.use
        return [] if use is None else [use]

    def _apart(self) -> bool:
        """Whether the view was made without gradients. See Note [Written through an alias]."""
        own = self.use is not None and self.use.alive
        return self.base_use is not None and self.base_use.alive and not own


class Tracer(NoGradFallback):
    """Records what happens to a tensor and to all that is computed from it; on demand it crosses cuts.

    Args:
        bridged: The numbers of calls that are not done, so that the gradient gets past them: a `detach` returns its
            argument, gradients are not switched off.
        perturb: For the numbers of the torch exits whose value is changed, to see whether the score depends on them:
            what to change it by.
        recording: Whether to record. Without it, only the cuts are crossed.
        check_saved: Whether to look, in backward, for tensors that were changed after they had been saved.
        from_inputs: Whether the trace begins at what the model is given, and not at the layer.

    Attributes:
        trace: What was recorded.
    """

    def __init__(
        self,
        *,
        bridged: frozenset[int] = frozenset(),
        perturb: Mapping[int, Callable[[Tensor], Tensor]] | None = None,
        recording: bool = True,
        check_saved: bool = False,
        from_inputs: bool = False,
    ) -> None:
        super().__init__()
        self.trace = Trace()
        self._bridged = bridged
        self._perturb = perturb or {}
        self._recording = recording
        self._check_saved = check_saved
        self._from_inputs = from_inputs
        self._functions: dict[CodeType, str] = {}
        self._begun = False
        self._cuts = 0
        self._exits = 0
        self._entering: Cause = Cause.NO_GRAD
        self._off: tuple[Cause, int | None] | None = None  # the outermost block of the model that is in force
        self._last_mode: Cause | None = None  # that of the last operation before the layer had finished
        self._running = RunningModules()
        self._provenance = TensorProvenance(self.trace.steps, self._running.innermost)
        self._kept: list[Tensor] = []

    @contextmanager
    def watching(self, model: nn.Module) -> Iterator[Tracer]:
        """Trace while the model runs inside."""
        saved = SavedTensorCheck(self.trace) if self._check_saved else nullcontext()
        inference = inference_as_no_grad(partial(self.entering, Cause.INFERENCE_MODE))
        with self._running.watching(model, self._enter), inference, saved, self:
            yield self

    @contextmanager
    def entering(self, cause: Cause) -> Iterator[None]:
        """If gradients are switched off inside, this is why."""
        self._entering, before = cause, self._entering
        try:
            yield
        finally:
            self._entering = before

    def _enter(self, name: str, args: tuple[Any, ...]) -> None:
        """A module begins to run."""
        if not self._begun:
            self.trace.modules.append(name)
            for tensor in tensors_in(args) if self._from_inputs else ():
                self.begin(tensor)

    def begin(self, activation: Tensor) -> None:
        """From here on, what is computed from this tensor is followed."""
        self._begun = True
        if not self._recording:
            return
        steps = self.trace.steps
        if not steps:
            self.trace.layer_block = self._last_mode
            shape, finite = tuple(activation.shape), self._provenance.is_finite(activation)
            steps.append(Step(0, "layer", self._running.innermost(), shape=shape, finite=finite))
        elif not self.trace.steps_before_layer:
            self.trace.steps_before_layer = len(steps)
        self._provenance.add(activation, 0, layer=True)

    def use_of(self, tensor: Tensor) -> Use | None:
        """How a tensor stands now; None if it does not depend on the layer."""
        return self._provenance.use_of(tensor)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Call a torch function, record it, or cross it."""
        args, kwargs = self._as_replaced(args, dict(kwargs or {}))
        name = getattr(func, "__name__", "")
        if source.is_internal(sys._getframe(1).f_code.co_filename) and name != "_set_grad_enabled":
            return self._call(func, args, kwargs)
        if torch.is_grad_enabled():
            self._off = None
        if name == "_set_grad_enabled":
            return self._switch(func, bool(args[0]))
        if not self._begun:
            self._last_mode = self._off[0] if self._off else None if torch.is_grad_enabled() else Cause.NO_GRAD
            return self._call(func, args, kwargs)
        cause = inherent_cause(func, name, args, kwargs)
        cut = self._next_cut() if cause not in (None, Cause.LEFT_TORCH) or name == "register_hook" else None
        if cut is not None and cut in self._bridged:
            return self._cross(func, name, args)
        if name in LEAVING:
            return self._exit(func, name, args, kwargs)
        if not self._recording:
            return self._call(func, args, kwargs)
        return self._record(func, name, args, kwargs, cause, cut)

    def _next_cut(self) -> int:
        self._cuts += 1
        return self._cuts

    def _cross(self, func: Callable[..., Any], name: str, args: tuple[Any, ...]) -> Any:
        """Leave a call out, and give back what the caller goes on with."""
        use = self.use_of(args[0]) if self._recording else None
        if use is not None:  # so that the steps have the same numbers as without crossing
            self._add_step(display_name(func, name), (use,), shape=use.shape, finite=use.finite)
        if name == "register_hook":
            return RemovableHandle(OrderedDict())
        return None if func == SET_REQUIRES_GRAD else args[0]

    def _switch(self, func: Callable[..., Any], enabled: bool) -> None:
        """Gradients are switched off or on: by a block, when it begins and when it ends, or by a function.

        Both are counted, so that the numbers stay the same when one is crossed.
        """
        cut = self._next_cut() if self._begun else None
        if not enabled and cut is not None and cut in self._bridged:
            return
        func(enabled)
        if enabled:
            self._off = None
        elif self._off is None and not (self._recording and self._frames()[1]):  # else a custom function did it
            self._off = self._entering, cut
            block = Step(len(self.trace.steps), "", self._running.innermost(), (), self._entering, cut)
            self.trace.blocks += [] if cut is None else [block]

    def _frames(self) -> tuple[tuple[Frame, ...], str | None]:
        frames, custom = source.current_frames(self._functions)
        if custom is None and not torch.is_grad_enabled() and self._off is None:
            self._functions = source.custom_functions()  # a function may be defined while the model runs
            frames, custom = source.current_frames(self._functions)
        return frames, custom

    def _add_step(self, operation: str, uses: tuple[Use, ...], *facts: Any, **more: Any) -> int:
        index = len(self.trace.steps)
        self.trace.steps.append(Step(index, operation, self._running.innermost(), uses, *facts, **more))
        return index

    def _exit(self, func: Callable[..., Any], name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A value goes to Python or to another library."""
        given = [*tensors_in((args, kwargs))] if self._recording else []
        uses = tuple(use for tensor in given if (use := self.use_of(tensor)) is not None)
        self._exits += 1
        number = self._exits
        if uses:
            frames, custom = self._frames()
            cause = Cause.CUSTOM_FUNCTION if custom else Cause.LEFT_TORCH
            index, operation = len(self.trace.steps), custom or display_name(func, name)
            step = Step(index, operation, self._running.innermost(), uses, cause, None, frames, uses[0].shape)
            self.trace.torch_exits.append((number, step))
        if number in self._perturb:
            args = map_tensors(args, self._perturb[number])
            self._kept += tensors_in(args)  # a pointer to its memory may be all that is left of it
        return self._call(func, args, kwargs)

    def _record(
        self,
        func: Callable[..., Any],
        name: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        cause: Cause | None,
        cut: int | None,
    ) -> Any:
        given = [_Given.of(tensor, self.use_of) for tensor in inputs_of(name, args, kwargs)]
        disabled = not torch.is_grad_enabled()
        self._refusal = ""
        result = self._call(func, args, kwargs)
        uses = tuple(use for one in given for use in one.uses())
        # Of what switches off or listens, the result is the tensor itself, whose values nothing has changed.
        itself = cause is Cause.REQUIRES_GRAD_OFF or name in ("register_hook", "detach_")
        changed = [tensor for one in given for tensor in one.changed()]
        made = [args[0], self._replacement(args[0])] if itself else [*tensors_in(result), *changed]
        if not uses or not made:
            return result
        for tensor in changed:
            self._provenance.add_write(tensor, len(self.trace.steps))
        frames, custom = self._frames()
        cause, cut = self._blame(cause, cut, custom, disabled)
        shape, finite = tuple(made[0].shape), all(map(self._provenance.is_finite, made))
        written = frozenset(map(address, changed))
        index = self._add_step(custom or display_name(func, name), uses, cause, cut, frames, shape, finite, written)
        for tensor in made:
            # A call may give back what it was given, unchanged: then it is still of the step that made it.
            if itself or func in DETACHING or self._provenance.known(tensor) is None:
                self._provenance.add(tensor, index)
        return result

    def _blame(
        self, cause: Cause | None, cut: int | None, custom: str | None, disabled: bool
    ) -> tuple[Cause | None, int | None]:
        """Why a call's result carries no gradient, and the number of the call to cross: what lies furthest out."""
        if custom:
            return self._off or (Cause.CUSTOM_FUNCTION, None)
        if cause is None and disabled:
            return self._off or (Cause.NO_GRAD, None)
        return (Cause.INPLACE_MODIFIED, None) if "modified inplace" in self._refusal else (cause, cut)


def bridging(cuts: frozenset[int]) -> Callable[[], Tracer]:
    """What makes the observer of a forward pass in which the gradient gets past these cuts."""
    return partial(Tracer, bridged=cuts, recording=False)
