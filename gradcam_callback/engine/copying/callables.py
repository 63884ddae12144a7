"""Copies of functions, methods and references, so that they act on the copies of what they are bound to."""

from __future__ import annotations

import functools
import sys
import types
import weakref
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

if TYPE_CHECKING:
    from gradcam_callback.engine.copying.structure import StructureCopier

# Under this name, what torch.compile has compiled keeps the original function.
_ORIGINAL = "_torchdynamo_orig_callable"


def copy_function(copier: StructureCopier, function: types.FunctionType) -> Any:
    """A function with cells, defaults and attributes of its own; a compiled one as it was before.

    A function that holds nothing is shared, and so is one that can be imported: its state is the process's.
    """
    held = function.__dict__
    if _ORIGINAL in held:
        return copier.copy(held[_ORIGINAL])
    if not (function.__closure__ or function.__defaults__ or function.__kwdefaults__ or held) or _is_global(function):
        return function
    cells = tuple(map(copier.copy, function.__closure__ or ()))
    copied = types.FunctionType(
        function.__code__, function.__globals__, function.__name__, function.__defaults__, cells
    )
    for name in functools.WRAPPER_ASSIGNMENTS:
        if hasattr(function, name):
            setattr(copied, name, getattr(function, name))

    def fill() -> None:
        copied.__defaults__ = copier.copy(function.__defaults__)
        copied.__kwdefaults__ = copier.copy(function.__kwdefaults__)
        copied.__dict__.update((name, copier.copy(value)) for name, value in held.items())

    copier.later(fill)
    return copied


def _is_global(function: Any) -> bool:
    found: Any = sys.modules.get(getattr(function, "__module__", None) or "")
    for name in getattr(function, "__qualname__", "<locals>").split("."):
        found = getattr(found, name, None)
    return found is function


def copy_cell(copier: StructureCopier, cell: types.CellType) -> types.CellType:
    """A cell, which several functions may have in common."""
    copied = types.CellType()

    def fill() -> None:
        try:
            content = cell.cell_contents
        except ValueError:  # empty
            return
        copied.cell_contents = copier.copy(content)

    copier.later(fill)
    return copied


def copy_method(copier: StructureCopier, method: types.MethodType) -> types.MethodType:
    """A method bound to the copy of its owner."""
    function, owner = copier.copy(method.__func__), copier.copy(method.__self__)
    if function is method.__func__ and owner is method.__self__:
        return method
    return types.MethodType(function, owner)


def copy_builtin_method(copier: StructureCopier, method: Any) -> Any:
    """A method in C, such as `list.append`, bound to the copy of its owner; a function in C is shared."""
    owner = copier.copy(method.__self__)
    return method if owner is method.__self__ else getattr(owner, method.__name__)


def copy_partial(copier: StructureCopier, value: functools.partial[Any]) -> Any:
    """A partial call with copies of its function and its arguments."""
    keywords = {name: copier.copy(argument) for name, argument in value.keywords.items()}
    copied = type(value)(copier.copy(value.func), *map(copier.copy, value.args), **keywords)
    copier.later(lambda: vars(copied).update((name, copier.copy(held)) for name, held in vars(value).items()))
    return copied


def copy_cached(copier: StructureCopier, cached: Any) -> Any:
    """A function behind `lru_cache`, with an empty cache: a full one would answer for the original."""
    if _is_global(cached):
        return cached
    return functools.lru_cache(**cached.cache_parameters())(copier.copy(cached.__wrapped__))


class _Reference(weakref.ref):  # type: ignore[type-arg]
    """A weak reference of a copy. Its referent may be held by nothing else there, so it holds it."""

    __slots__ = ("held",)
    held: Any

    def __call__(self) -> Any:
        return self.held


def copy_reference(copier: StructureCopier, reference: weakref.ref[Any]) -> weakref.ref[Any]:
    """A reference to the copy of its referent, or to the referent where that belongs to no part of the structure."""
    referent = reference()
    if referent is None:
        return reference
    copied = _Reference(referent)
    copied.held = copier.copy(referent) if _belongs_to_modules(referent) else referent
    copier.at_end(lambda: setattr(copied, "held", copier.known(referent)))
    return copied


def copy_proxy(copier: StructureCopier, proxy: Any) -> Any:
    """In place of a proxy, the copy of what it stands for; the proxy itself where that is not copied."""
    referent = proxy.__repr__.__self__
    copied = copier.copy(referent) if _belongs_to_modules(referent) else copier.known(referent)
    return proxy if copied is referent else copied


def _belongs_to_modules(referent: Any) -> bool:
    return isinstance(referent, (nn.Module, Tensor, OrderedDict))


def copy_weak_collection(copier: StructureCopier, collection: Any) -> Any:
    """A dict with weak keys or weak values, or a weak set, of copies, which it holds."""
    copied = type(collection)()
    copied.held_by_copy = []

    def fill() -> None:
        for item in list(collection if isinstance(collection, weakref.WeakSet) else collection.items()):
            copied.held_by_copy.append(copier.copy_filled(item))
        copied.update(copied.held_by_copy)

    copier.later(fill)
    return copied
