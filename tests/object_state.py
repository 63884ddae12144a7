"""Writes down everything that can be reached from an object, to compare it later: identity, content, order.

It shares no code with what it judges. Only objects that the walk knows how to open are opened; of others the type and
the identity count.
"""

from __future__ import annotations

import random
import types
import weakref
from collections import deque
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from recorder import bits, digest
from torch import Tensor, nn

ATOMS = (bool, int, float, complex, str, bytes, type(None), type, types.ModuleType, types.BuiltinFunctionType)


def object_state(root: Any) -> dict[str, str]:
    """Path to what is there."""
    found: dict[str, str] = {}
    seen: dict[int, str] = {}
    pending = [("", root)]
    while pending:
        path, value = pending.pop()
        if isinstance(value, ATOMS):
            found[path] = repr(value)
        elif id(value) in seen:
            found[path] = f"as {seen[id(value)]}"
        else:
            seen[id(value)] = path
            found[path] = f"{type(value).__qualname__} {id(value)} {content(value)}"
            pending += [(f"{path}/{name}", part) for name, part in parts(value)]
    return found


def content(value: Any) -> str:
    """What is in an object itself."""
    if isinstance(value, nn.parameter.UninitializedTensorMixin):
        return f"without a shape {value.requires_grad}"
    if isinstance(value, Tensor):
        version = None if value.is_inference() else value._version
        flags = f"{value.requires_grad} {version} {value.is_conj()} {id(value.grad) if value.is_leaf else None}"
        if value.layout is not torch.strided or value.is_quantized:
            return f"{flags} {value}"
        with torch.no_grad():  # a copy, because storages that NumPy has seen cannot grow any more
            values = torch.empty(value.shape, dtype=value.dtype).copy_(value.as_subclass(Tensor))
        return f"{flags} {value.data_ptr()} {value.stride()} {bits(values)}"
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {value.shape} {value.ctypes.data} {digest(value.tobytes())}"
    if isinstance(value, torch.Generator):
        return bits(value.get_state())
    if isinstance(value, np.random.Generator):
        return str(value.bit_generator.state)
    if isinstance(value, np.random.RandomState):
        return digest(repr(value.get_state()).encode())
    if isinstance(value, random.Random):
        return digest(repr(value.getstate()).encode())
    return repr(value) if type(value).__module__ in ("itertools", "io", "pathlib") else ""


def parts(value: Any) -> Iterator[tuple[Any, Any]]:
    """What an object holds, each with a name."""
    if isinstance(value, dict):
        yield from ((repr(key) if isinstance(key, ATOMS) else id(key), item) for key, item in value.items())
    elif isinstance(value, (list, tuple, deque)):
        yield from enumerate(value)
    elif isinstance(value, (set, frozenset)):
        yield from ((repr(item) if isinstance(item, ATOMS) else id(item), item) for item in value)
    elif isinstance(value, types.FunctionType):
        yield from ((f"cell {n}", cell.cell_contents) for n, cell in enumerate(value.__closure__ or ()))
        yield "defaults", value.__defaults__
    elif isinstance(value, types.MethodType):
        yield "self", value.__self__
    elif isinstance(value, weakref.ref):
        yield "referent", value()
    elif isinstance(value, np.ndarray) and value.dtype.hasobject:
        yield from enumerate(value.flat)
    if isinstance(value, torch.jit.ScriptModule):
        yield "mode", value.training
        yield from ((name, tensor) for name, tensor in value.state_dict(keep_vars=True).items())
    elif hasattr(value, "__dict__") and not isinstance(value, (types.FunctionType, torch.jit.ScriptFunction)):
        yield from list(vars(value).items())
