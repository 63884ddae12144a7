"""Copy a nested structure of objects, whatever is in it; what cannot be copied, or must not be, is shared.

`copy.deepcopy` gives up the whole copy when one object in it cannot be copied, leaves closures with the originals, lets
modules drop what they please, and recurses. Here each object is copied by itself.

Note [Empty first, filled later]

A copy is made empty, and what goes into it is put on a list of things to do. So structures may hold themselves and be
nested deeply, and a function can be copied before the module that it is a closure over. Only what cannot be changed
afterwards (a tuple, say) is made of the copies of its items; and what is made by calling something, or has a hash, is
given copies that are filled already.

Note [What is shared]

Types, modules, global functions and whatever refuses to be copied: locks, files, Python's generators. What belongs to
others or is too large: data sets, loaders and samplers, optimizers, threads and queues, loggers, what a framework runs
the training with; arrays and tensors (no buffers) of more than 256 MiB, arrays that cannot be written to, and the items
of a container of more than some thousand plain ones, such as the list of files of an image folder (the container itself
is copied). What has a finalizer: a copy that closes its file or removes its folder when it dies would do so to the
original. And the memory of weights.
"""

from __future__ import annotations

import enum
import functools
import io
import itertools
import logging
import multiprocessing.process
import pathlib
import queue
import random
import threading
import types
import weakref
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler

from gradcam_callback.engine.copying import callables, modules, objects
from gradcam_callback.engine.copying.tensors import TensorCopier
from gradcam_callback.engine.memory import is_out_of_memory
from gradcam_callback.frameworks import LIGHTNING

T = TypeVar("T")
Handler = Callable[[Any], Any]
log = logging.getLogger(__name__)

# What cannot be changed. Most attributes of modules are of these types, or empty dicts.
_ATOMS = frozenset(
    {bool, int, float, complex, str, bytes, type(None), type(...), type(NotImplemented), range, slice}
    | {type, types.ModuleType, types.CodeType, torch.dtype, torch.device, torch.Size, torch.layout}
)
# See Note [What is shared].
_SHARED = (
    *(type, enum.Enum, pathlib.PurePath, logging.Logger, logging.Handler, np.generic, np.dtype),
    *(threading.Thread, threading.Event, threading.Condition, threading.Semaphore, threading.Barrier),
    *(queue.Queue, queue.SimpleQueue, multiprocessing.process.BaseProcess),
    *(Dataset, DataLoader, Sampler, torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler),
    *(torch.fx.Graph, torch.jit.ScriptFunction, torch.Stream, torch.Event),
)
# Packages whose objects run the training, or the compiler.
_FRAMEWORKS = (*LIGHTNING, "torch._dynamo", "torch.distributed", "torch.utils.tensorboard")
# The special types before those that they are kinds of.
_HANDLERS: tuple[tuple[type | tuple[type, ...], Callable[[StructureCopier, Any], Any]], ...] = (
    (torch.jit.ScriptModule, modules.copy_scripted),
    (Tensor, modules.copy_tensor),
    (_SHARED, lambda _copier, value: value),
    (types.FunctionType, callables.copy_function),
    (types.CellType, callables.copy_cell),
    (types.MethodType, callables.copy_method),
    ((types.BuiltinFunctionType, types.MethodWrapperType), callables.copy_builtin_method),
    (functools.partial, callables.copy_partial),
    (functools._lru_cache_wrapper, callables.copy_cached),
    (weakref.ref, callables.copy_reference),
    (weakref.ProxyTypes, callables.copy_proxy),
    ((weakref.WeakKeyDictionary, weakref.WeakValueDictionary, weakref.WeakSet), callables.copy_weak_collection),
    (tuple, objects.copy_tuple),
    (frozenset, objects.copy_frozenset),
    (itertools.count, objects.copy_count),
    (torch.Generator, objects.copy_torch_generator),
    ((random.Random, np.random.RandomState), objects.copy_generator),
    ((io.StringIO, io.BytesIO), objects.copy_reduced),  # unlike other files
)
_MISSING = object()


def copy_structure(value: T, *, substitutes: Mapping[int, Any] = types.MappingProxyType({})) -> T:
    """Copy nested objects; parameters share the memory of the originals and require no gradient.

    Args:
        value: Modules, tensors, containers, functions, objects of any class, nested as they like. It is only read.
        substitutes: The id of an object to what stands in its place in the copy.

    Returns:
        The copy. What cannot or must not be copied is in it as it is; see Note [What is shared].

    Raises:
        RuntimeError: There is too little memory.
    """
    return StructureCopier(substitutes).finished(value)


class StructureCopier:
    """Copies one structure, by `finished`. The other methods are for the functions that copy objects of one kind.

    Args:
        substitutes: The id of an object to what stands in its place in the copy.
        shared_types: Further types whose instances are shared.
        own_weights: As for `TensorCopier`.

    Attributes:
        tensors: What copies tensors, and knows which weights are shared.
        modules: The copies of modules.
        visited: The ids of modules whose weights and buffers are copied.
        memo: The id of an original to its copy, as `copy.deepcopy` has it.
    """

    def __init__(
        self, substitutes: Mapping[int, Any], shared_types: tuple[type, ...] = (), *, own_weights: bool = False
    ) -> None:
        self.tensors = TensorCopier(own_weights)
        self.modules: list[nn.Module] = []
        self.visited: set[int] = set()
        self.memo: dict[int, Any] = dict(substitutes)
        self._originals: list[Any] = []  # kept alive, so that no id is given to another object
        self._pending: list[Callable[[], object]] = []
        self._at_end: list[Callable[[], object]] = []
        self._shared_types = shared_types
        self._handlers: dict[type, Handler] = {}

    def finished(self, value: T) -> T:
        """The copy, with all that is in it."""
        try:
            # What is made here is ordinary, whatever the caller is in, and subclasses of tensors have no say in it.
            with torch.inference_mode(False), torch.no_grad(), torch._C.DisableTorchFunctionSubclass():
                copied: T = self.copy_filled(value)
                for action in self._at_end:
                    action()
                return copied
        finally:  # nothing but the structure itself holds its parts
            for memory in (self._originals, self._pending, self._at_end):
                memory.clear()
            self.memo.clear()
            self._handlers.clear()

    def copy_filled(self, value: Any) -> Any:
        """The copy, with all that is in it that was not begun before."""
        begun = len(self._pending)
        copied = self.copy(value)
        while len(self._pending) > begun:
            self._attempt(self._pending.pop())
        return copied

    def copy(self, value: Any) -> Any:
        """The copy, which may be filled later. See Note [Empty first, filled later]."""
        kind = type(value)
        if kind in _ATOMS or (kind is tuple and _ATOMS.issuperset(map(type, value))):
            return value
        copied = self.memo.get(id(value), _MISSING)
        if copied is not _MISSING:
            return copied
        handler = self._handlers.get(kind)
        if handler is None:
            handler = self._handlers[kind] = self._handler(kind)
        return self.remember(value, self._attempt(handler, value))

    def _attempt(self, job: Callable[..., Any], *value: Any) -> Any:
        try:
            return job(*value)
        except Exception as error:  # whatever a class of the user's raises when it is copied
            if is_out_of_memory(error):
                raise
            log.debug("Shared, for it cannot be copied: %s (%r).", list(map(type, value)), error)
            return value[0] if value else None

    def remember(self, value: Any, copied: T) -> T:
        """Have a copy stand for an object wherever it appears."""
        self.memo[id(value)] = copied
        self._originals.append(value)
        return copied

    def known(self, value: Any) -> Any:
        """The copy of an object, if it has one, or else the object."""
        return self.memo.get(id(value), value)

    def later(self, fill: Callable[[], object]) -> None:
        """Fill a copy after it has been handed out."""
        self._pending.append(fill)

    def at_end(self, action: Callable[[], object]) -> None:
        """Do something when all else is copied."""
        self._at_end.append(action)

    def _handler(self, kind: type) -> Handler:
        """What copies the instances of a class."""
        if issubclass(kind, self._shared_types):
            return _shared
        if issubclass(kind, nn.Module) and not issubclass(kind, torch.jit.ScriptModule):
            return partial(modules.copy_module, self, objects.slots_of(kind))
        for kinds, handler in _HANDLERS:
            if issubclass(kind, kinds):
                return partial(handler, self)
        if kind in (np.ndarray, np.memmap):
            return partial(objects.copy_array, self)
        base = objects.container_kind(kind)
        if base is not None:
            return partial(objects.copy_container, self, base)
        if hasattr(kind, "__del__") or kind.__module__.startswith(_FRAMEWORKS):
            return _shared
        if objects.has_plain_state(kind):
            return partial(objects.copy_plain, self, objects.slots_of(kind))
        return partial(objects.copy_reduced, self)


def _shared(value: Any) -> Any:
    return value
