"""Copies of containers, and of objects of any class."""

from __future__ import annotations

import ast
import copyreg
import itertools
import random
import sys
import types
import warnings
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from gradcam_callback.engine.copying.structure import StructureCopier

# The special kinds before those that they are kinds of.
_CONTAINERS: tuple[type, ...] = (defaultdict, OrderedDict, dict, list, set, deque)
_LONG = 4096  # items
# What is copied even in a long container: each has a state that a forward pass may change.
_STATEFUL = (nn.Module, Tensor, np.ndarray, torch.Generator, types.FunctionType, types.MethodType)
_OWN_WAY = ("__deepcopy__", "__getstate__", "__setstate__", "__getnewargs__", "__getnewargs_ex__")
_REDUCE = ("__reduce__", "__reduce_ex__")


# Containers


def container_kind(kind: type) -> type | None:
    """The kind of container that instances of a class are, if they can be made empty and filled; else None."""
    base = next((base for base in _CONTAINERS if issubclass(kind, base)), None)
    return base if base is not None and has_plain_state(kind) else None


def copy_container(copier: StructureCopier, base: Any, value: Any) -> Any:
    """A container of copies, of the same class."""
    copied = base.__new__(type(value))
    if base is deque:
        deque.__init__(copied, (), value.maxlen)
    copier.later(lambda: _fill_container(copier, base, value, copied))
    return copied


def _fill_container(copier: StructureCopier, base: Any, value: Any, copied: Any) -> None:
    # With the methods of the base: those of a subclass may do more.
    if issubclass(base, dict):
        keys, values = list(base.keys(value)), list(base.values(value))
        pairs = zip(_copies(copier, keys, filled=True), _copies(copier, values), strict=True)
        for key, item in pairs:
            base.__setitem__(copied, key, item)
        if base is defaultdict:
            copied.default_factory = copier.copy(value.default_factory)
    elif base is set:
        set.update(copied, _copies(copier, list(set.__iter__(value)), filled=True))
    else:
        base.extend(copied, _copies(copier, list(base.__iter__(value))))
    if type(value) is not base:
        fill_state(copier, slots_of(type(value)), value, copied)


def _copies(copier: StructureCopier, items: list[Any], *, filled: bool = False) -> Iterable[Any]:
    if _are_shared(items):
        return items
    return list(map(copier.copy_filled if filled else copier.copy, items))


def _are_shared(items: list[Any] | tuple[Any, ...]) -> bool:
    return len(items) > _LONG and not any(issubclass(kind, _STATEFUL) for kind in set(map(type, items)))


def copy_tuple(copier: StructureCopier, value: tuple[Any, ...]) -> Any:
    """A tuple of copies, of the same class; the tuple itself where nothing in it is copied."""
    kind, items = type(value), list(tuple.__iter__(value))
    if kind is tuple and _are_shared(items):
        return value
    copies = list(map(copier.copy, items))
    if kind is tuple:
        return value if all(map(_is_same, items, copies)) else tuple(copies)
    try:
        copied = tuple.__new__(kind, copies)
    except TypeError:  # a structure of C, such as what `torch.max` returns
        return kind(copies)
    copier.later(lambda: fill_state(copier, slots_of(kind), value, copied))
    return copied


def copy_frozenset(copier: StructureCopier, value: frozenset[Any]) -> frozenset[Any]:
    """A frozen set of copies; the set itself where nothing in it is copied."""
    items = list(value)
    copies = list(map(copier.copy_filled, items))
    return value if all(map(_is_same, items, copies)) else frozenset(copies)


def copy_array(copier: StructureCopier, array: Any) -> Any:
    """An array of numbers, or of Python's objects."""
    if not array.dtype.hasobject:
        return copier.tensors.array(array)
    copied = array.copy()

    def fill() -> None:
        for place, item in enumerate(array.flat):
            copied.flat[place] = copier.copy(item)

    copier.later(fill)
    return copied


def _is_same(one: Any, other: Any) -> bool:
    return one is other


# Objects


def has_plain_state(kind: type) -> bool:
    """Whether a class leaves it to Python how its instances are copied."""
    bases = (object, Counter, *_CONTAINERS)
    plain = [vars(base).get(name) for base in bases for name in (*_OWN_WAY, *_REDUCE)]
    return all(getattr(kind, name, None) in plain for name in (*_OWN_WAY, *_REDUCE))


def copy_plain(copier: StructureCopier, slots: list[Any], value: Any) -> Any:
    """An object that is what is in its attributes."""
    try:
        copied = object.__new__(type(value))
    except TypeError:  # it has a part in C
        return copy_reduced(copier, value)
    copier.later(lambda: fill_state(copier, slots, value, copied))
    return copied


def slots_of(kind: type) -> list[Any]:
    """What reads and writes the attributes that a class has in slots."""
    classes = (base for base in kind.__mro__ if "__slots__" in vars(base))
    return [held for base in classes for held in vars(base).values() if isinstance(held, types.MemberDescriptorType)]


def fill_state(copier: StructureCopier, slots: list[Any], value: Any, copied: Any) -> None:
    """Copy attributes, past `__getattribute__`, `__setattr__` and properties of the user."""
    fill_slots(copier, slots, value, copied)
    attributes = attributes_of(value)
    if attributes:
        attributes_of(copied).update([(name, copier.copy(held)) for name, held in list(attributes.items())])


def fill_slots(copier: StructureCopier, slots: list[Any], value: Any, copied: Any) -> None:
    """Copy the attributes that are in slots."""
    for slot in slots:
        try:
            held = slot.__get__(value)
        except AttributeError:  # empty
            continue
        slot.__set__(copied, copier.copy(held))


def attributes_of(value: Any) -> dict[str, Any]:
    """The `__dict__` of an object; an empty one where it has none."""
    try:
        held: dict[str, Any] = object.__getattribute__(value, "__dict__")
    except AttributeError:
        return {}
    return held


def copy_reduced(copier: StructureCopier, value: Any) -> Any:
    """An object whose class says itself how it is copied, by `__deepcopy__` or as it is pickled."""
    own = getattr(type(value), "__deepcopy__", None)
    if own is not None:
        return own(value, copier.memo)
    reduced = _reduced(value)
    if isinstance(reduced, str):  # the name of a global object
        return value
    make, arguments, state, items, pairs, set_state = (*reduced, None, None, None, None)[:6]
    copied = make(*copier.copy_filled(arguments))
    copier.remember(value, copied)
    if state is not None:
        _set_state(copier, copied, state, set_state)
    for item in list(items or ()):
        copied.append(copier.copy_filled(item))
    for key, item in list(pairs or ()):
        copied[copier.copy_filled(key)] = copier.copy_filled(item)
    return copied


def _reduced(value: Any) -> Any:
    kind: Any = type(value)
    own = copyreg.dispatch_table.get(kind)
    if kind.__module__ != "itertools" or sys.version_info < (3, 12):
        return own(value) if own is not None else kind.__reduce_ex__(value, 4)
    with warnings.catch_warnings():  # that iterators will not be copied in a later version of Python
        warnings.simplefilter("ignore", DeprecationWarning)
        return kind.__reduce_ex__(value, 4)


def _set_state(
    copier: StructureCopier, copied: Any, state: Any, set_state: Callable[[Any, Any], object] | None
) -> None:
    state = copier.copy_filled(state)
    if set_state is not None:
        set_state(copied, state)
    elif hasattr(type(copied), "__setstate__"):
        copied.__setstate__(state)
    else:
        attributes, slots = state if isinstance(state, tuple) and len(state) == 2 else (state, None)
        attributes_of(copied).update(attributes or {})
        for name, held in (slots or {}).items():
            object.__setattr__(copied, name, held)


def copy_count(_copier: StructureCopier, counter: itertools.count[Any]) -> itertools.count[Any]:
    """A counter of numbers, by what it says of itself: in later versions of Python there is no other way."""
    values = ast.literal_eval(repr(counter).removeprefix("count"))
    return itertools.count(*values) if isinstance(values, tuple) else itertools.count(values)


def copy_torch_generator(_copier: StructureCopier, generator: torch.Generator) -> torch.Generator:
    """A generator in the same state; those of the process are shared, for they are put back by themselves."""
    if generator is torch.default_generator or any(generator is one for one in torch.cuda.default_generators):
        return generator
    copied = torch.Generator(generator.device)
    copied.set_state(generator.get_state())
    return copied


def copy_generator(copier: StructureCopier, generator: random.Random | np.random.RandomState) -> Any:
    """As `copy_torch_generator`, for those of Python and NumPy."""
    of_process = generator is random._inst or generator is np.random.mtrand._rand
    return generator if of_process else copy_reduced(copier, generator)
