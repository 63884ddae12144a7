"""Copies of modules: same class, own attributes and buffers, weights in common."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from gradcam_callback.engine.copying import objects

if TYPE_CHECKING:
    from gradcam_callback.engine.copying.structure import StructureCopier

# Most attributes are of these types, and most containers are empty: a dozen kinds of hooks a module.
_PLAIN = frozenset({bool, int, float, str, type(None)})
_CONTAINERS = frozenset({dict, OrderedDict, set, list})
_REGISTERED = frozenset({"_parameters", "_buffers", "_modules"})
# In a replica these would exchange buffers, or weights, with other processes and devices. What is in them runs alone.
_WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel)


def copy_module(copier: StructureCopier, slots: list[Any], module: nn.Module) -> nn.Module:
    """A module of the same class. Its own `__deepcopy__`, `__getstate__` and `__setattr__` are not asked."""
    if id(module) not in copier.visited:
        _copy_tensors_below(copier, module)
    copied: nn.Module = object.__new__(type(module))
    copier.modules.append(copied)
    copier.later(lambda: _fill_module(copier, slots, module, copied))
    return copied


def _copy_tensors_below(copier: StructureCopier, module: nn.Module) -> None:
    """Copy weights and buffers first, so that it is known of each other tensor whether it lies in a weight's memory."""
    below = registered_modules(module, copier.visited)
    modules = [each for each in below if not isinstance(each, torch.jit.ScriptModule)]
    for each in modules:
        if isinstance(each, (nn.Embedding, nn.EmbeddingBag)) and each.max_norm is not None:
            # It renormalises its weight in forward, in place.
            _remember(copier, each.weight, copier.tensors.weight(each.weight, own_memory=True))
    for each in modules:
        for weight in each._parameters.values():
            if weight is not None and id(weight) not in copier.memo:
                _remember(copier, weight, copier.tensors.weight(weight))
    for each in modules:
        for buffer in each._buffers.values():
            if buffer is not None and id(buffer) not in copier.memo:
                _remember(copier, buffer, copier.tensors.tensor(buffer, is_buffer=True))


def registered_modules(module: nn.Module, visited: set[int] | None = None) -> Iterator[nn.Module]:
    """The module and those below it, each once, without recursion; scripted ones without what is in them."""
    visited = set() if visited is None else visited
    pending = [module]
    while pending:
        module = pending.pop()
        if id(module) not in visited:
            visited.add(id(module))
            yield module
            if not isinstance(module, torch.jit.ScriptModule):
                pending.extend(child for child in module._modules.values() if child is not None)


def _fill_module(copier: StructureCopier, slots: list[Any], module: nn.Module, copied: nn.Module) -> None:
    held, memo = objects.attributes_of(copied), copier.memo
    for name, value in list(objects.attributes_of(module).items()):
        kind = type(value)
        if kind in _PLAIN:
            held[name] = value
        elif kind in _CONTAINERS and not value and id(value) not in memo:
            held[name] = memo[id(value)] = kind()
        elif name in _REGISTERED and kind in _CONTAINERS and id(value) not in memo:
            held[name] = memo[id(value)] = kind((key, copier.copy(item)) for key, item in value.items())
        else:
            held[name] = copier.copy(value)
    if slots:
        objects.fill_slots(copier, slots, module, copied)
    if isinstance(module, _WRAPPERS):
        held["forward"] = copier.copy(module._modules["module"])


def copy_tensor(copier: StructureCopier, tensor: Tensor) -> Tensor:
    """A weight or another tensor, with what its user has set on it."""
    is_weight = isinstance(tensor, nn.Parameter)
    return _remember(copier, tensor, copier.tensors.weight(tensor) if is_weight else copier.tensors.tensor(tensor))


def _remember(copier: StructureCopier, tensor: Tensor, copied: Tensor) -> Tensor:
    attributes = vars(tensor)
    if attributes and copied is not tensor:
        copier.later(lambda: _set_attributes(copier, attributes, vars(copied)))
    return copier.remember(tensor, copied)


def _set_attributes(copier: StructureCopier, attributes: dict[str, Any], held: dict[str, Any]) -> None:
    # Tensor classes keep their insides there, too.
    held.update((name, copier.copy(value)) for name, value in list(attributes.items()) if name not in held)


def copy_scripted(copier: StructureCopier, module: torch.jit.ScriptModule) -> torch.jit.ScriptModule:
    """A scripted module, with weights of its own: they are kept outside Python. Hooks are not, and are copied here."""
    copied = copy.deepcopy(module)
    if not copier.tensors.own_weights:
        for weight in copied.parameters():
            weight.requires_grad_(False)
    for original, made in zip(module.modules(), copied.modules(), strict=True):
        for name, hooks in vars(original).items():
            if type(hooks) is OrderedDict and hooks:
                vars(made)[name] = copier.copy(hooks)
    return copied
