"""Random generators of every kind: a seed for the moment, and the way back. A leaf."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

# How far the search for generators goes. Configuration is small; long containers hold data and are not walked through.
_REACH = 10_000
_LONGEST_CONTAINER = 256


@contextmanager
def sealed(seed: int, owner: Any) -> Iterator[None]:
    """Seed every random generator for the moment and put all of them back on the way out, also when something raises.

    These are the generators of Python, NumPy and torch (CPU, and CUDA where it is in use), and those that `owner`, a
    loader or transforms, carries along: in its sampler, its data set, its transforms. Nothing made inside needs a
    gradient or is bound to inference mode.
    """
    everywhere = [random, np.random, torch.default_generator, *torch.cuda.default_generators]
    with ExitStack() as stack, torch.inference_mode(False), torch.no_grad():
        for generator in [*everywhere, *_generators_within(owner)]:
            stack.callback(_reseed(generator, seed))
        yield


def _reseed(generator: Any, seed: int) -> Callable[[], None]:
    """Seed one generator, and return what puts it back."""
    put_back = putting_back(generator)
    if isinstance(generator, torch.Generator):
        generator.manual_seed(seed)
    elif isinstance(generator, np.random.Generator):
        bits: Any = generator.bit_generator
        bits.state = type(bits)(seed).state
    else:
        generator.seed(seed)
    return put_back


def putting_back(generator: Any) -> Callable[[], None]:
    """What puts a generator back to where it is now."""
    if isinstance(generator, torch.Generator):
        torch_state = generator.get_state()
        return lambda: _restore_torch(generator, torch_state)
    if isinstance(generator, np.random.Generator):
        bits, bits_state = generator.bit_generator, generator.bit_generator.state
        return lambda: setattr(bits, "state", bits_state)
    if generator is np.random or isinstance(generator, np.random.RandomState):
        legacy_state = generator.get_state(legacy=False)
        return lambda: generator.set_state(legacy_state)
    python_state = generator.getstate()
    return lambda: generator.setstate(python_state)


def is_generator(value: Any) -> bool:
    """Whether a value is a random generator with a state that can be put back."""
    kinds = (torch.Generator, np.random.Generator, np.random.RandomState, random.Random)
    return isinstance(value, kinds) and not isinstance(value, random.SystemRandom)


def _restore_torch(generator: torch.Generator, state: Tensor) -> None:
    generator.set_state(state)


def _generators_within(owner: Any) -> Iterator[Any]:
    """The generators that an object carries in its attributes, the nearest first."""
    queue, seen = deque([owner]), set[int]()
    while queue and len(seen) < _REACH:
        item = queue.popleft()
        if id(item) in seen:
            continue
        seen.add(id(item))
        if is_generator(item):
            yield item
        elif isinstance(item, (list, tuple, dict)):
            if len(item) <= _LONGEST_CONTAINER:
                queue.extend(item.values() if isinstance(item, dict) else item)
        elif not isinstance(item, (type, ModuleType, Tensor, np.ndarray)):
            queue.extend(getattr(item, "__dict__", {}).values())
