"""The wall: gradients on, inference mode off, evaluation mode, generators; everything put back on the way out."""

from __future__ import annotations

import copy
import operator
import random
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

# What a module may gather things in, and the attributes that every module has, which are seen to by name.
_CONTAINERS = (list, dict, set, deque)
_MODULE_ATTRIBUTES = frozenset(vars(nn.Module()))


@contextmanager
def isolated(model: nn.Module) -> Iterator[None]:
    """Let a model run with gradients on, and take back whatever the run did to it.

    Inside, whatever the caller switched off, gradients are on and inference mode is off; every module is in evaluation
    mode; no parameter requires a gradient, so that a forward pass stores nothing for backward until a graph is begun
    on purpose; what `torch.compile` compiled runs eagerly, because hooks put on later do not fire in compiled code.

    On the way out, also by an exception, each is put back as it was: modes (module by module), `requires_grad` flags,
    buffers, attributes that forward set on a module, and the generators of Python, NumPy and torch.
    `.grad` is never touched.
    """
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(_eager())
        stack.enter_context(_generators_kept())
        stack.enter_context(_modules_kept(model))
        stack.enter_context(_parameters_frozen(model))
        yield


def _eager() -> AbstractContextManager[Any]:
    """Compiled code runs eagerly inside. Where nothing was compiled, the slow import of the compiler is spared."""
    if "torch._dynamo" not in sys.modules:
        return nullcontext()
    return torch.compiler.set_stance("force_eager")  # type: ignore[no-any-return, no-untyped-call, unused-ignore]


@contextmanager
def _generators_kept() -> Iterator[None]:
    python, numpy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
    initialised = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    cuda = torch.cuda.get_rng_state_all() if initialised else []
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(cpu)
        if cuda:
            torch.cuda.set_rng_state_all(cuda)


@contextmanager
def _parameters_frozen(model: nn.Module) -> Iterator[None]:
    # A parameter that is no leaf (swapped in by functional_call, say) has a flag that cannot be changed.
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad and parameter.is_leaf]
    try:
        for parameter in trainable:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)


@contextmanager
def _modules_kept(model: nn.Module) -> Iterator[None]:
    states = [_ModuleState.of(module) for module in model.modules()]
    try:
        for state in states:
            state.prepare()
        yield
    finally:
        for state in states:
            state.restore()


@dataclass(frozen=True)
class _ModuleState:
    """What one module held, by identity; copies of what it may write to: its own buffers and containers."""

    module: nn.Module
    training: bool
    attributes: dict[str, Any]
    parameters: dict[str, nn.Parameter | None]
    buffers: dict[str, Tensor | None]
    copies: list[_BufferCopy]
    containers: list[tuple[Any, Any]]

    @classmethod
    def of(cls, module: nn.Module) -> _ModuleState:
        if isinstance(module, torch.jit.ScriptModule):  # it keeps all but its mode outside Python
            return cls(module, module.training, {}, {}, {}, [], [])
        # The modules of torch itself write no buffer in evaluation mode, and copying each BatchNorm's would cost as
        # much as a layer on a GPU. A user's module may count its calls in one.
        own = () if type(module).__module__.startswith("torch.nn.") else module._buffers.values()
        copies = [_BufferCopy.of(buffer) for buffer in own if buffer is not None and not buffer.is_inference()]
        held = [value for name, value in vars(module).items() if name not in _MODULE_ATTRIBUTES]
        containers = [(value, copy.copy(value)) for value in held if type(value) in _CONTAINERS]
        attributes, parameters, buffers = dict(vars(module)), dict(module._parameters), dict(module._buffers)
        return cls(module, module.training, attributes, parameters, buffers, copies, containers)

    def prepare(self) -> None:
        if not self.attributes:
            self.module.training = False
            return
        # The flag is set past `train()` and `__setattr__`, which a user's module may override and do more in.
        vars(self.module)["training"] = False
        for held in (vars(self.module), self.module._parameters, self.module._buffers):
            _replace_inference_tensors(held)

    def restore(self) -> None:
        if not self.attributes:
            self.module.training = self.training
            return
        _put_back(vars(self.module), self.attributes)
        _put_back(self.module._parameters, self.parameters)
        _put_back(self.module._buffers, self.buffers)
        for copied in self.copies:
            copied.restore()
        for container, content in self.containers:
            _refill(container, content)


@dataclass(frozen=True)
class _BufferCopy:
    buffer: Tensor
    values: Tensor
    version: int

    @classmethod
    def of(cls, buffer: Tensor) -> _BufferCopy:
        return cls(buffer, buffer.detach().clone(), buffer._version)

    def restore(self) -> None:
        # Only what was written to: an untouched buffer keeps its version, which a graph may depend on.
        if self.buffer._version != self.version:
            with torch.no_grad():
                self.buffer.copy_(self.values)


def _replace_inference_tensors(held: dict[str, Any]) -> None:
    """Swap in clones, for the time being.

    Autograd refuses to save a tensor that was made in inference mode, such as a cache of an earlier validation.
    """
    for name, value in list(held.items()):
        if isinstance(value, Tensor) and value.is_inference():
            plain = value.clone()
            held[name] = nn.Parameter(plain, requires_grad=False) if isinstance(value, nn.Parameter) else plain


def _refill(container: Any, content: Any) -> None:
    """Give a list, dict, set or deque back what it held, if forward put something in or took something out."""
    if len(container) == len(content) and all(map(operator.is_, _items(container), _items(content))):
        return
    container.clear()
    container.extend(content) if hasattr(container, "extend") else container.update(content)


def _items(container: Any) -> Iterable[Any]:
    return container.values() if isinstance(container, dict) else container


def _put_back(held: dict[str, Any], before: dict[str, Any]) -> None:
    for name in held.keys() - before.keys():
        del held[name]
    for name, value in before.items():
        if held.get(name, held) is not value:
            held[name] = value
