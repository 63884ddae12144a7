"""The wall: gradients on, inference mode off, evaluation mode, generators; everything put back on the way out.

Note [Values in few pieces]

A model can write to a buffer without autograd taking notice: through `.data`, through NumPy, or by handing it to
`batch_norm` as a running mean. So the values of all buffers are copied, whatever module they belong to, and copied
back. To copy each by itself would be a kernel each on a GPU, and a ResNet-50 has 159; so those of one device and type
are laid end to end in one tensor. They go back through aliases of the buffers' memory, which have versions of their
own: a graph that saved an untouched buffer can still be gone back.

Weights are larger, and written to by the optimizer only, so they are not copied. An exchange of their memory
(`weight.data = ...`) is seen by its address and undone.
"""

from __future__ import annotations

import operator
import random
import sys
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointFunction

from gradcam_callback.engine.generators import is_generator, putting_back

# What modules keep their parts and hooks in, and what their users gather things in.
_CONTAINERS = frozenset({list, dict, set, deque, defaultdict, OrderedDict, Counter})
# What else most attributes are. To ask of each whether it is a tensor would take longer than all the rest.
_ATOMS = frozenset({bool, int, float, str, tuple, type(None)})


@contextmanager
def isolated(model: nn.Module) -> Iterator[None]:
    """Let a model run with gradients on, and take back whatever the run did to it.

    Inside, whatever the caller switched off, gradients are on and inference mode is off; every module is in evaluation
    mode; no parameter requires a gradient, so that a forward pass stores nothing for backward until a graph is begun
    on purpose; what `torch.compile` compiled runs eagerly, because hooks put on later do not fire in compiled code;
    reentrant activation checkpointing does not happen, because it cuts a graph that begins inside the block.

    On the way out, also by an exception, each is put back as it was: modes (module by module), `requires_grad` flags,
    buffers and what they hold, parameters, children and hooks, attributes that forward set on a module, the content of
    lists, dicts, sets and deques among them, generators among them, and those of Python, NumPy and torch. `.grad` is
    never touched.

    Not put back: what forward writes in place into the memory of a weight (but for an embedding with `max_norm`),
    into a buffer that is sparse, expanded or of a tensor class of its own, into a container within a container, or
    into an object of the user's own; what a scripted module assigns to its attributes; and, in versions of torch
    without `FSDPModule.reset_iter_state`, where FSDP2 was when the model raised.
    """
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(_eager())
        stack.enter_context(_checkpoints_passed_by())
        stack.enter_context(_generators_kept())
        modules = list(model.modules())
        stack.enter_context(_sharded(modules))
        states = [_ModuleState.of(module) for module in modules]
        stack.enter_context(_values_kept(states))
        stack.enter_context(_modules_kept(states))
        stack.enter_context(_parameters_frozen(modules))
        yield


def _eager() -> AbstractContextManager[Any]:
    """Compiled code runs eagerly inside. Where nothing was compiled, the slow import of the compiler is spared."""
    if "torch._dynamo" not in sys.modules:
        return nullcontext()
    return torch.compiler.set_stance("force_eager")  # type: ignore[no-any-return, no-untyped-call, unused-ignore]


@contextmanager
def _sharded(modules: Sequence[nn.Module]) -> Iterator[None]:
    """FSDP2 swaps the parameters of a module between shards and wholes, and remembers which they are.

    What is recorded and put back are the shards, so before and after they have to be what there is.
    """
    fsdp = sys.modules.get("torch.distributed.fsdp")
    sharded = [module for module in modules if fsdp is not None and isinstance(module, fsdp.FSDPModule)]
    for module in sharded:
        module.reshard()
    try:
        yield
    except BaseException:
        _forget_pass(sharded)
        raise
    finally:
        _do_all(module.reshard for module in sharded)


def _forget_pass(sharded: Sequence[Any]) -> None:
    """Have FSDP2 begin anew: it would go on in the middle of the pass that an error ended. It drops gradients, too."""
    gradients = [(parameter, parameter.grad) for parameter in _parameters(sharded)]
    for module in sharded:
        with suppress(RuntimeError, AttributeError):  # the outermost one alone can, and not in each version of torch
            module.reset_iter_state()
    for parameter, gradient in gradients:
        parameter.grad = gradient


@contextmanager
def _checkpoints_passed_by() -> Iterator[None]:
    """A reentrant checkpoint runs its inside without gradients, and gives its result none if no input asks for one.

    Here none does, so a layer inside would have no gradient. What comes before the layer stores nothing anyway.
    """
    before = vars(CheckpointFunction).get("apply")  # ours, where a wall stands within a wall
    CheckpointFunction.apply = staticmethod(_run_block)  # type: ignore[method-assign, assignment, unused-ignore]
    try:
        yield
    finally:
        if before is None:
            del CheckpointFunction.apply
        else:
            CheckpointFunction.apply = before


def _run_block(function: Callable[..., Any], _preserve_rng_state: bool, *args: Any) -> Any:
    return function(*args)


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
def _parameters_frozen(modules: Iterable[nn.Module]) -> Iterator[None]:
    # Of the frozen ones too, because forward may unfreeze them. A parameter that is no leaf (swapped in by
    # functional_call, say) has a flag that cannot be changed.
    flags = [(parameter, parameter.requires_grad) for parameter in _parameters(modules) if parameter.is_leaf]
    try:
        for parameter, _ in flags:
            parameter.requires_grad_(False)
        yield
    finally:
        _do_all(partial(parameter.requires_grad_, flag) for parameter, flag in flags)


def _parameters(modules: Iterable[nn.Module]) -> Iterator[Tensor]:
    return (tensor for module in modules for tensor in module._parameters.values() if tensor is not None)


def _do_all(actions: Iterable[Callable[[], object]]) -> None:
    """Do each, also when another fails, so that one mark that cannot be taken away does not leave all the others.

    Raises:
        Exception: The first failure, when all is done.
    """
    failures = []
    for action in actions:
        try:
            action()
        except Exception as failure:
            failures.append(failure)
    if failures:
        raise failures[0]


# Modules


@contextmanager
def _modules_kept(states: Sequence[_ModuleState]) -> Iterator[None]:
    try:
        for state in states:
            state.prepare()
        yield
    finally:
        _do_all(state.restore for state in states)


@dataclass
class _ModuleState:
    """What one module held, by identity, and the content of the containers among it.

    The module's own dicts (parameters, buffers, children, each kind of hook) are containers like any other. Most are
    empty, a dozen kinds of hooks a module, and an empty one needs no copy.
    """

    module: nn.Module
    training: bool
    attributes: dict[str, Any]
    tensors: list[Tensor]
    empty: list[Any]
    filled: list[tuple[Any, Any]]
    generators: list[Callable[[], None]]

    @classmethod
    def of(cls, module: nn.Module) -> _ModuleState:
        attributes = vars(module).copy()
        tensors, empty, filled, generators = [], [], [], []
        for value in attributes.values():
            kind = type(value)
            if kind in _CONTAINERS:
                if value:
                    filled.append((value, value.copy()))
                else:
                    empty.append(value)
            elif kind not in _ATOMS and isinstance(value, Tensor):
                tensors.append(value)
            elif kind not in _ATOMS and is_generator(value):
                generators.append(putting_back(value))
        if isinstance(module, torch.jit.ScriptModule):  # it keeps all but its mode outside Python
            return cls(module, module.training, {}, tensors, [], [], [])
        return cls(module, module.training, attributes, tensors, empty, filled, generators)

    def prepare(self) -> None:
        module = self.module
        if not self.attributes:
            module.training = False
            return
        # The flag is set past `train()` and `__setattr__`, which a user's module may override and do more in.
        vars(module)["training"] = False
        if self.tensors:
            _replace_inference_tensors(vars(module))
        if module._parameters:
            _replace_inference_tensors(module._parameters)
        if module._buffers:
            _replace_inference_tensors(module._buffers)

    def restore(self) -> None:
        if not self.attributes:
            self.module.training = self.training
            return
        held = vars(self.module)
        held.update(self.attributes)
        if len(held) > len(self.attributes):
            for name in held.keys() - self.attributes.keys():
                del held[name]
        if any(self.empty):
            for container in self.empty:
                container.clear()
        for container, content in self.filled:
            _refill(container, content)
        for put_back in self.generators:
            put_back()


def _replace_inference_tensors(held: dict[str, Any]) -> None:
    """Swap in clones, for the time being.

    Autograd refuses to save a tensor that was made in inference mode, such as a cache of an earlier validation.
    """
    for name in [name for name, value in held.items() if isinstance(value, Tensor) and value.is_inference()]:
        value = held[name]
        plain = value.clone()
        held[name] = nn.Parameter(plain, requires_grad=False) if isinstance(value, nn.Parameter) else plain


def _refill(container: Any, content: Any) -> None:
    """Give a container back what it held, in the order it had, if forward put something in or took something out."""
    if len(container) == len(content) and _same(container, content):
        return
    container.clear()
    container.extend(content) if hasattr(container, "extend") else container.update(content)


def _same(container: Any, content: Any) -> bool:
    same = all(map(operator.is_, container, content))
    if same and isinstance(container, dict):
        return all(map(operator.is_, container.values(), content.values()))
    return same


# Values; see Note [Values in few pieces]


@contextmanager
def _values_kept(states: Sequence[_ModuleState]) -> Iterator[None]:
    modules = [state.module for state in states]
    buffers = [tensor for module in modules for tensor in module._buffers.values() if tensor is not None]
    # A statistic that is no buffer is kept like one. A scripted module has its attributes outside Python.
    buffers += [tensor for state in states for tensor in state.tensors if type(tensor) is Tensor]
    renormed = (module for module in modules if isinstance(module, (nn.Embedding, nn.EmbeddingBag)))
    written = [*filter(_is_plain, buffers), *(module.weight for module in renormed if module.max_norm is not None)]
    places = [_Place.of(tensor) for tensor in (*written, *filter(_is_plain, _parameters(modules)))]
    values = _Values.of_each_kind([place.memory for place in places[: len(written)]])
    try:
        yield
    finally:
        with torch.no_grad():
            _do_all([*(place.restore for place in places), *(value.restore for value in values)])


def _is_plain(tensor: Tensor) -> bool:
    """Whether a tensor has memory of its own that can be written to; not of a lazy, distributed or expanded one."""
    return (
        type(tensor) in (Tensor, nn.Parameter)
        and tensor.layout is torch.strided
        and not tensor.is_inference()  # it is swapped for a clone, which may be written to
        and 0 not in tensor.stride()
    )


class _Place(NamedTuple):
    """A tensor, and the memory that it stood for."""

    tensor: Tensor
    memory: Tensor
    has_history: bool

    @classmethod
    def of(cls, tensor: Tensor) -> _Place:
        return cls(tensor, tensor.data, tensor.grad_fn is not None)

    def restore(self) -> None:
        if not self.has_history and self.tensor.grad_fn is not None:
            self.tensor.detach_()  # written to with something that has a gradient
        if self.tensor.data_ptr() != self.memory.data_ptr() or self.tensor.shape != self.memory.shape:
            self.tensor.data = self.memory


@dataclass(frozen=True)
class _Values:
    """What tensors of one device and type held, end to end."""

    memories: list[Tensor]
    values: Tensor

    @classmethod
    def of_each_kind(cls, memories: Iterable[Tensor]) -> list[_Values]:
        kinds: dict[Any, list[Tensor]] = {}
        for memory in memories:
            kinds.setdefault((memory.device, memory.dtype), []).append(memory)
        return [cls(alike, torch.cat([memory.flatten() for memory in alike])) for alike in kinds.values()]

    def restore(self) -> None:
        pieces = self.values.split_with_sizes([memory.numel() for memory in self.memories])
        pairs = zip(pieces, self.memories, strict=True)
        shaped = [piece if memory.ndim == 1 else piece.view(memory.shape) for piece, memory in pairs]
        torch._foreach_copy_(self.memories, shaped)
